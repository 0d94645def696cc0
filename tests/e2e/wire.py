"""A client that a test can see through: HTTP/1.1 over TLS on bare asyncio streams. It says nothing by itself, and leaves when told to."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from house import House

CHAT = "/v1/chat/completions"
PATIENCE_S = 60.0  # nothing that a test waits for takes longer
BROKEN = (OSError, asyncio.IncompleteReadError, EOFError)


@dataclass(slots=True, kw_only=True)
class Told:
    """What a client learnt of one request."""

    status: int = 0  # 0: there was no answer
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""  # of an answer that was no stream
    tokens: int = 0  # events with text
    done: bool = False  # [DONE] was read
    error: str = ""  # code of an error event, or of an error answer
    whole: bool = False  # the answer ended as HTTP says it must

    @property
    def request_id(self) -> str:
        return self.headers.get("x-request-id", "")

    def look(self, event: bytes) -> None:
        """Take note of one SSE event."""
        data = event.removeprefix(b"data:").strip()
        if data == b"[DONE]":
            self.done = True
        elif data.startswith(b"{"):
            value = json.loads(data)
            if "error" in value:
                self.error = value["error"]["code"] or value["error"]["type"]
            self.tokens += sum(1 for choice in value.get("choices", ()) if choice.get("delta", {}).get("content") or choice.get("text"))


class Line:
    """One connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer

    @classmethod
    async def open(cls, house: House) -> Line:
        streams = asyncio.open_connection("127.0.0.1", house.envoy.port, ssl=house.context(), server_hostname="localhost")
        return cls(*await asyncio.wait_for(streams, PATIENCE_S))

    async def send(self, headers: Mapping[str, str], body: bytes, *, path: str = CHAT, length: int | None = None) -> None:
        """``length``: what content-length says, if it is not the truth."""
        fields = {"host": "localhost", "content-type": "application/json", "content-length": str(len(body) if length is None else length)}
        lines = "".join(f"{name}: {value}\r\n" for name, value in {**fields, **headers}.items())
        self._writer.write(f"POST {path} HTTP/1.1\r\n{lines}\r\n".encode() + body)
        await self._writer.drain()

    async def head(self) -> Told:
        """Status and headers."""
        text = (await self._reader.readuntil(b"\r\n\r\n")).decode()
        first, *lines = text.strip().split("\r\n")
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        return Told(status=int(first.split()[1]), headers=headers)

    async def pieces(self, told: Told) -> AsyncIterator[bytes]:
        """The body as it comes."""
        if "content-length" in told.headers:
            yield await self._reader.readexactly(int(told.headers["content-length"]))
            told.whole = True
            return
        while size := int(await self._reader.readuntil(b"\r\n"), 16):
            yield (await self._reader.readexactly(size + 2))[:-2]
        await self._reader.readuntil(b"\r\n")
        told.whole = True

    async def events(self, told: Told) -> AsyncIterator[bytes]:
        """The events of a stream, noted in ``told``; an answer that is none becomes its body."""
        if not told.headers.get("content-type", "").startswith("text/event-stream"):
            told.body = b"".join([piece async for piece in self.pieces(told)])
            told.error = error_code(told.body)
            return
        rest = b""
        async for piece in self.pieces(told):
            *events, rest = (rest + piece).split(b"\n\n")
            for event in events:
                told.look(event)
                yield event

    async def leave(self) -> None:
        """At once: what was not sent is not sent, what was not read is not read."""
        self._writer.transport.abort()
        with contextlib.suppress(OSError):
            await self._writer.wait_closed()


def error_code(body: bytes) -> str:
    """``error.code`` of an answer in OpenAI's shape; empty if it is none."""
    try:
        return str(json.loads(body)["error"]["code"] or "")
    except (ValueError, LookupError, TypeError):
        return ""


def chat(model: str, *, text: str = "hello", stream: bool = True, **more: Any) -> bytes:
    """The body of a chat completion."""
    return json.dumps({"model": model, "messages": [{"role": "user", "content": text}], "stream": stream, **more}).encode()


def steering(**orders: str | int) -> dict[str, str]:
    """Headers for the simulator: ``steering(tokens=5, delay_ms=20)``."""
    return {f"x-sim-{name.replace('_', '-')}": str(value) for name, value in orders.items()}


async def call(house: House, headers: Mapping[str, str], body: bytes, *, leave_after: int | None = None, told: Told | None = None) -> Told:
    """One request on a connection of its own, read to its end, or until ``leave_after`` tokens. A connection that breaks is an answer too.

    ``told`` is kept up to date meanwhile, for those who look on.
    """
    told = told or Told()
    line = None
    try:
        async with asyncio.timeout(PATIENCE_S):
            line = await Line.open(house)
            await line.send(headers, body)
            head = await line.head()
            told.status, told.headers = head.status, head.headers
            if leave_after == 0:
                return told
            async for _ in line.events(told):
                if told.tokens == leave_after:
                    break
    except BROKEN:
        pass
    finally:
        if line is not None:
            await line.leave()
    return told
