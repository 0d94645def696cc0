"""A proxy in front of Valkey whose connections can be severed: at once, or after a chosen script was executed and before its answer is told.

It runs in a thread of its own, so that it goes on whatever a test waits for.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import socket
import struct
import threading
from collections import Counter
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

from extproc.stores.scripts import load_scripts

PIECE_BYTES = 65_536
DEADLINE_S = 10.0


class Severable:
    """``losses``: verb → probability that its answer is lost. ``lost``: how many of each were. ``late_s``: so long answers are kept back."""

    def __init__(self, server: Path, listen: Path) -> None:
        self.server, self.listen = server, listen
        self.losses: dict[str, float] = {}
        self.late_s = 0.0
        self.lost: Counter[str] = Counter()
        self.random = random.Random(0)
        scripts = load_scripts("extproc.holds.lua")
        self._shas = {verb: scripts[verb].sha.encode() for verb in ("admit", "amend", "settle", "beat", "expire")}
        self.cut_off: frozenset[int] = frozenset()  # process ids that cannot connect, once their connections are severed
        self._ways: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="severable", daemon=True)
        self._thread.start()
        self._listener = self._call(asyncio.start_unix_server(self._serve, listen))

    @property
    def url(self) -> str:
        return f"unix://{self.listen}"

    def sever(self) -> None:
        """All connections, now."""
        self._loop.call_soon_threadsafe(self._sever)

    def stop(self) -> None:
        self._call(self._close())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(DEADLINE_S)
        self._loop.close()

    def _call(self, job: Coroutine[Any, Any, Any]) -> Any:
        return asyncio.run_coroutine_threadsafe(job, self._loop).result(DEADLINE_S)

    def _sever(self) -> None:
        for writer in tuple(self._ways):
            writer.transport.abort()

    async def _close(self) -> None:
        self._listener.close()
        for task in tuple(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _serve(self, from_client: asyncio.StreamReader, to_client: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            if _peer_of(to_client) in self.cut_off:
                raise ConnectionRefusedError
            from_server, to_server = await asyncio.open_unix_connection(self.server)
        except OSError:
            to_client.transport.abort()
            self._tasks.discard(task)
            return
        self._ways |= {to_client, to_server}
        doomed = asyncio.Event()
        ways = [
            asyncio.ensure_future(self._requests(from_client, to_server, doomed)),
            asyncio.ensure_future(self._replies(from_server, to_client, doomed)),
        ]
        try:
            await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for way in ways:
                way.cancel()
            await asyncio.gather(*ways, return_exceptions=True)
            for writer in (to_server, to_client):
                writer.transport.abort()
                self._ways.discard(writer)
                with contextlib.suppress(OSError):
                    await writer.wait_closed()
            self._tasks.discard(task)

    async def _requests(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, doomed: asyncio.Event) -> None:
        while data := await reader.read(PIECE_BYTES):
            for verb, chance in self.losses.items():
                if self._shas[verb] in data and self.random.random() < chance:
                    self.lost[verb] += 1
                    doomed.set()
            writer.write(data)

    async def _replies(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, doomed: asyncio.Event) -> None:
        """The server has executed what it answers; a doomed connection ends there."""
        while data := await reader.read(PIECE_BYTES):
            if doomed.is_set():
                return
            if self.late_s:
                await asyncio.sleep(self.late_s)
            writer.write(data)


def _peer_of(writer: asyncio.StreamWriter) -> int:
    """The process at the other end."""
    told = writer.get_extra_info("socket").getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    return int(struct.unpack("3i", told)[0])
