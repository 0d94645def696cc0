"""A proxy in front of a Unix socket that can lose what it was given to carry."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Self


class CuttingProxy:
    """``lose_replies``: requests reach the server, its answers are dropped and the connection is cut. ``lose_requests``: not even that."""

    def __init__(self, server: Path, listen: Path) -> None:
        self.server, self.listen = server, listen
        self.lose_replies = False
        self.lose_requests = False
        self.cuts = 0
        self._tasks: set[asyncio.Task[None]] = set()
        self._clients: set[asyncio.StreamWriter] = set()

    @property
    def url(self) -> str:
        return f"unix://{self.listen}"

    async def __aenter__(self) -> Self:
        self._listener = await asyncio.start_unix_server(self._serve, self.listen)
        return self

    async def __aexit__(self, *_: object) -> None:
        self._listener.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._listener.wait_closed()

    def cut(self) -> None:
        """Every connection; new ones go to ``server`` as it is now."""
        for client in self._clients:
            client.transport.abort()

    async def _serve(self, from_client: asyncio.StreamReader, to_client: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            from_server, to_server = await asyncio.open_unix_connection(self.server)
        except OSError:
            to_client.transport.abort()
            self._tasks.discard(task)
            return
        self._clients.add(to_client)
        ways = [asyncio.ensure_future(self._requests(from_client, to_server)), asyncio.ensure_future(self._replies(from_server, to_client))]
        try:
            await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
        finally:
            self._clients.discard(to_client)
            for writer in (to_server, to_client):  # first: we may be cancelled while we wait
                writer.transport.abort()
            for way in ways:
                way.cancel()
            await asyncio.gather(*ways, return_exceptions=True)
            self._tasks.discard(task)

    async def _requests(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(65_536):
            if self.lose_requests:
                self.cuts += 1
                return
            writer.write(data)

    async def _replies(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(65_536):
            if self.lose_replies:
                self.cuts += 1
                return
            writer.write(data)
