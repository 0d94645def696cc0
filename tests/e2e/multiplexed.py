"""A client with thousands of requests open at once: HTTP/2 on bare ``asyncio.Protocol``s, a few connections, requests encoded once.

A general library takes 60 µs for an event, so 10,000 streams would need a core for themselves; this takes 4. It reads answers as a careful
client does: every event is parsed, tokens are counted by itself, and an answer is whole only when HTTP says so.
"""

from __future__ import annotations

import asyncio
import json
import ssl
import struct
from collections.abc import Callable, Mapping
from time import perf_counter
from typing import Any, Final

import hpack
import msgspec

DATA, HEADERS, RST_STREAM, SETTINGS, PING, GOAWAY, WINDOW_UPDATE, CONTINUATION = 0, 1, 3, 4, 6, 7, 8, 9
END_STREAM, ACK, END_HEADERS = 1, 1, 4
MAX_CONCURRENT_STREAMS: Final = 3
CANCEL: Final = 8
HEAD: Final = struct.Struct(">IBI")  # length and type in one word, flags, stream
HEAD_BYTES: Final = 9
FRAME_BYTES_MAX: Final = 16_384
WINDOW_DEFAULT: Final = 65_535
STREAM_WINDOW: Final = 1 << 20  # of one answer: what a test asks for is shorter
CONNECTION_WINDOW: Final = 1 << 30  # renewed at its half
CONNECT_S: Final = 10.0
# No header table: each block of the answers can be read by itself, and only where somebody wants to know.
OUR_SETTINGS: Final = struct.pack(">HIHIHI", 1, 0, 2, 0, 4, STREAM_WINDOW)


class _Delta(msgspec.Struct, gc=False):
    content: str | None = None


class _Choice(msgspec.Struct, gc=False):
    delta: _Delta | None = None


class _Event(msgspec.Struct, gc=False):
    choices: list[_Choice] = []
    error: Any = None


_EVENT = msgspec.json.Decoder(_Event)


class Reading:
    """What has been read of one answer. Times are ``perf_counter`` seconds. ``over`` is done when nothing more can come."""

    __slots__ = ("_on_event", "_rest", "block", "body", "done", "fault", "first_s", "id", "line", "over", "sent_s", "tokens", "whole")

    def __init__(self, line: Line, stream_id: int, on_event: Callable[[Reading], None] | None) -> None:
        self.line = line
        self.id = stream_id
        self.block = b""  # of response headers
        self.body = b""  # of an answer that is no stream
        self.tokens = 0  # events with text
        self.done = False  # [DONE] was read
        self.whole = False  # ended as HTTP says
        self.fault = ""  # an error event, a reset, a lost connection
        self.sent_s = perf_counter()
        self.first_s = 0.0
        self.over: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._rest = b""
        self._on_event = on_event

    @property
    def status(self) -> int:
        """0: there is none."""
        # 0x20: "the table is empty"; 0x88: 200
        return 200 if self.block.lstrip(b"\x20").startswith(b"\x88") else int(self.headers.get(":status", "0"))

    @property
    def headers(self) -> dict[str, str]:
        return {str(name): str(value) for name, value in hpack.Decoder().decode(self.block)}

    @property
    def request_id(self) -> str:
        return self.headers["x-request-id"]

    @property
    def good(self) -> bool:
        """A stream that was answered and ended as it must."""
        return self.whole and self.done and not self.fault and self.status == 200

    def cancel(self) -> None:
        """Leave, at once."""
        self.line.cancel(self)

    def look(self, data: bytes) -> None:
        """A piece of the body."""
        self.first_s = self.first_s or perf_counter()
        if self.body or (not self._rest and not data.startswith(b"data: ")):
            self.body += data
            return
        *events, self._rest = (self._rest + data).split(b"\n\n")
        for event in events:
            self._event(event.removeprefix(b"data: "))
        if self._on_event is not None:
            self._on_event(self)

    def _event(self, data: bytes) -> None:
        if data == b"[DONE]":
            self.done = True
            return
        told = _EVENT.decode(data)
        if told.error is not None:
            self.fault = f"error event {told.error}"
        self.tokens += sum(1 for choice in told.choices if choice.delta is not None and choice.delta.content)

    def end(self, fault: str = "") -> None:
        self.fault = self.fault or fault
        self.whole = not fault
        if not self.over.done():
            self.over.set_result(None)


class Line(asyncio.Protocol):
    """One connection."""

    def __init__(self) -> None:
        self.streams_max = 100  # until the server has said
        self.open: dict[int, Reading] = {}
        self.greeted: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._transport: asyncio.Transport
        self._rest = b""
        self._next_id = 1
        self._credit = WINDOW_DEFAULT  # of what we may send
        self._received = 0  # since the connection's window was renewed

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport  # type: ignore[assignment]
        preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + _frame(SETTINGS, 0, 0, OUR_SETTINGS)
        self._transport.write(preface + _frame(WINDOW_UPDATE, 0, 0, struct.pack(">I", CONNECTION_WINDOW - WINDOW_DEFAULT)))

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.greeted.done():
            self.greeted.set_exception(ConnectionError(f"no HTTP/2: {exc}"))
        for reading in self.open.values():
            reading.end(f"the connection was lost: {exc}")
        self.open.clear()

    def close(self) -> None:
        self._transport.close()

    def ask(self, block: bytes, body: bytes, on_event: Callable[[Reading], None] | None = None) -> Reading:
        """Send a request (:func:`block_of`). ``on_event`` is called after each piece of a stream."""
        assert not self._transport.is_closing(), "the server has closed this connection"
        assert len(self.open) < self.streams_max, "the server takes no more streams on this connection"
        assert len(body) <= min(FRAME_BYTES_MAX, self._credit), "the server does not read"
        stream_id, self._next_id = self._next_id, self._next_id + 2
        self._credit -= len(body)
        self._transport.write(_frame(HEADERS, END_HEADERS, stream_id, block) + _frame(DATA, END_STREAM, stream_id, body))
        reading = self.open[stream_id] = Reading(self, stream_id, on_event)
        return reading

    def cancel(self, reading: Reading) -> None:
        if self.open.pop(reading.id, None) is not None:
            self._transport.write(_frame(RST_STREAM, 0, reading.id, struct.pack(">I", CANCEL)))
            reading.end("cancelled")

    def data_received(self, data: bytes) -> None:
        if self._rest:
            data = self._rest + data
        at, end = 0, len(data)
        while end - at >= HEAD_BYTES:
            word, flags, stream_id = HEAD.unpack_from(data, at)
            stop = at + HEAD_BYTES + (word >> 8)
            if stop > end:
                break
            self._frame(word & 255, flags, stream_id, data[at + HEAD_BYTES : stop])
            at = stop
        self._rest = data[at:]

    def _frame(self, kind: int, flags: int, stream_id: int, payload: bytes) -> None:
        if kind == DATA:
            self._received += len(payload)
            if self._received > CONNECTION_WINDOW // 2:
                self._transport.write(_frame(WINDOW_UPDATE, 0, 0, struct.pack(">I", self._received)))
                self._received = 0
            reading = self.open.get(stream_id)
            if reading is not None and payload:
                reading.look(payload)
        elif kind in {HEADERS, CONTINUATION}:
            reading = self.open.get(stream_id)
            if reading is not None:
                reading.block += payload
        else:
            self._control(kind, flags, stream_id, payload)
        if kind <= HEADERS and flags & END_STREAM and stream_id in self.open:
            self.open.pop(stream_id).end()

    def _control(self, kind: int, flags: int, stream_id: int, payload: bytes) -> None:
        if kind == RST_STREAM:
            reading = self.open.pop(stream_id, None)
            if reading is not None:
                reading.end(f"reset {int.from_bytes(payload, 'big')}")
        elif kind == SETTINGS and not flags & ACK:
            self.streams_max = dict(struct.iter_unpack(">HI", payload)).get(MAX_CONCURRENT_STREAMS, self.streams_max)
            self._transport.write(_frame(SETTINGS, ACK, 0, b""))
            if not self.greeted.done():
                self.greeted.set_result(None)
        elif kind == PING and not flags & ACK:
            self._transport.write(_frame(PING, ACK, 0, payload))
        elif kind == WINDOW_UPDATE and stream_id == 0:
            self._credit += int.from_bytes(payload, "big")
        elif kind == GOAWAY:
            self._transport.close()


async def connect(port: int, *, tls: ssl.SSLContext | None = None, streams: int) -> list[Line]:
    """As many connections as so many requests at once need, each ready."""
    lines = [await _line(port, tls)]
    while sum(line.streams_max for line in lines) < streams:
        lines.append(await _line(port, tls))
    return lines


async def _line(port: int, tls: ssl.SSLContext | None) -> Line:
    if tls is not None:
        tls.set_alpn_protocols(["h2"])
    _, line = await asyncio.get_running_loop().create_connection(
        Line, "127.0.0.1", port, ssl=tls, server_hostname="localhost" if tls is not None else None
    )
    async with asyncio.timeout(CONNECT_S):
        await line.greeted
    return line


def block_of(secret: str, headers: Mapping[str, str], *, path: str = "/v1/chat/completions") -> bytes:
    """The header block of a request: literals without a table, the same bytes whenever they are sent."""
    whole = {
        ":method": "POST",
        ":scheme": "https",
        ":authority": "localhost",
        ":path": path,
        "authorization": f"Bearer {secret}",
        "content-type": "application/json",
        **headers,
    }
    return b"".join(b"\x00" + _text(name) + _text(value) for name, value in whole.items())


def chat_body(model: str, prompt: str, **more: Any) -> bytes:
    return json.dumps({"model": model, "messages": [{"role": "user", "content": prompt}], **more}).encode()


def _text(value: str) -> bytes:
    raw = value.encode()
    assert len(raw) < 127, "short literals only"
    return bytes([len(raw)]) + raw


def _frame(kind: int, flags: int, stream_id: int, payload: bytes) -> bytes:
    return HEAD.pack(len(payload) << 8 | kind, flags, stream_id) + payload
