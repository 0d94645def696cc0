"""Clients that a test can see through: HTTP/1.1 and HTTP/2 over TLS on bare asyncio streams. They leave when told to, at once."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import h2.config
import h2.connection
import h2.errors
import h2.events
import h2.exceptions

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
    began_s: float = 0.0  # on the monotonic clock, if somebody looked at it; likewise took_s: to the end of the answer
    took_s: float = 0.0

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
    async def open(cls, house: House, *, window_bytes: int = 0) -> Line:
        """``window_bytes``: of the socket, if the kernel is not to choose."""
        plain = socket.socket()
        if window_bytes:
            plain.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, window_bytes)
        plain.setblocking(False)
        try:
            await asyncio.get_running_loop().sock_connect(plain, ("127.0.0.1", house.envoy.port))
        except OSError:
            plain.close()
            raise
        streams = asyncio.open_connection(sock=plain, ssl=house.context(), server_hostname="localhost")
        return cls(*await asyncio.wait_for(streams, PATIENCE_S))

    @property
    def is_closed(self) -> bool:
        """By Envoy, which leaves a connection without requests after five minutes: a request on it would never reach it."""
        return self._reader.at_eof()

    async def send(self, headers: Mapping[str, str], body: bytes, *, path: str = CHAT, length: int | None = None) -> None:
        """``length``: what content-length says, if it is not the truth."""
        fields = {"host": "localhost", "content-type": "application/json", "content-length": str(len(body) if length is None else length)}
        lines = "".join(f"{name}: {value}\r\n" for name, value in {**fields, **headers}.items())
        self._writer.write(f"POST {path} HTTP/1.1\r\n{lines}\r\n".encode() + body)
        await self._writer.drain()

    async def more(self, data: bytes) -> None:
        """More of the body."""
        self._writer.write(data)
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


class Trunk:
    """One HTTP/2 connection with many streams. Streams are left by RST_STREAM, one by one; ``leave`` drops the connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer
        self._h2 = h2.connection.H2Connection(h2.config.H2Configuration(header_encoding="utf-8"))
        self._h2.initiate_connection()
        self._arrived: dict[int, asyncio.Queue[Any]] = {}
        self._pump = asyncio.create_task(self._read())
        self._flush()

    @classmethod
    async def open(cls, house: House) -> Trunk:
        context = house.context()
        context.set_alpn_protocols(["h2"])
        streams = asyncio.open_connection("127.0.0.1", house.envoy.port, ssl=context, server_hostname="localhost")
        return cls(*await asyncio.wait_for(streams, PATIENCE_S))

    async def ask(self, headers: Mapping[str, str], body: bytes, *, leave_after: int | None = None, at_done: bool = False) -> Told:
        """One request, read to its end, to ``[DONE]``, or until so many tokens."""
        number = self._h2.get_next_available_stream_id()
        arrived = self._arrived[number] = asyncio.Queue()
        pseudo = {":method": "POST", ":scheme": "https", ":authority": "localhost", ":path": CHAT, "content-type": "application/json"}
        self._h2.send_headers(number, [*pseudo.items(), *headers.items()])
        self._h2.send_data(number, body, end_stream=True)
        self._flush()
        told, rest = Told(), b""
        while not (told.whole or told.tokens == leave_after or (at_done and told.done)):
            event = await asyncio.wait_for(arrived.get(), PATIENCE_S)
            if isinstance(event, h2.events.ResponseReceived):
                told.headers = dict(event.headers)
                told.status = int(told.headers[":status"])
            elif isinstance(event, h2.events.DataReceived):
                *events, rest = (rest + event.data).split(b"\n\n")
                for one in events:
                    told.look(one)
            elif isinstance(event, h2.events.StreamEnded):
                told.whole = True
            elif isinstance(event, h2.events.StreamReset):
                return told
        with contextlib.suppress(h2.exceptions.StreamClosedError):  # its end has come, and was not looked at
            self._h2.reset_stream(number, h2.errors.ErrorCodes.CANCEL)
        self._flush()
        return told

    async def leave(self) -> None:
        self._pump.cancel()
        await asyncio.gather(self._pump, return_exceptions=True)
        self._writer.transport.abort()
        with contextlib.suppress(OSError):
            await self._writer.wait_closed()

    async def _read(self) -> None:
        while data := await self._reader.read(65_536):
            for event in self._h2.receive_data(data):
                if isinstance(event, h2.events.DataReceived):
                    with contextlib.suppress(h2.exceptions.StreamClosedError):
                        self._h2.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
                if getattr(event, "stream_id", None) in self._arrived:
                    self._arrived[event.stream_id].put_nowait(event)
            self._flush()

    def _flush(self) -> None:
        self._writer.write(self._h2.data_to_send())


def figure(text: str) -> None:
    """What a test has measured, for whoever runs it with ``-s``."""
    print(text)  # noqa: T201


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
