"""Both ends of a lean connection without IO: frames by hand, h2 as the client, and a caller that keeps what happened."""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from extproc.edge.transport.lean.connection import Connection
from extproc.edge.transport.lean.stream import Ended, Event, Failed, Message, Opened, Over, Stream
from extproc.edge.transport.port import METHOD

RECORDED = Path(__file__).with_name("envoy-1.40.bin").read_bytes()
"""What Envoy 1.40 sent on one connection: SETTINGS, five ext_proc streams (JSON, three of SSE, one aborted), each ended by a reset."""

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, PRIORITY, RST, SETTINGS, PUSH, PING, GOAWAY, WINDOW, CONTINUATION = range(10)
ERRORS = [
    "NO",
    "PROTOCOL",
    "INTERNAL",
    "FLOW_CONTROL",
    "TIMEOUT",
    "CLOSED",
    "FRAME_SIZE",
    "REFUSED",
    "CANCEL",
    "COMPRESSION",
    "CONNECT",
    "CALM",
]


def frame(kind: int, flags: int, stream_id: int, payload: bytes = b"") -> bytes:
    return len(payload).to_bytes(3, "big") + struct.pack(">BBL", kind, flags, stream_id) + payload


def literal(name: bytes, value: bytes) -> bytes:
    assert len(name) < 127
    assert len(value) < 127
    return b"\0" + bytes([len(name)]) + name + bytes([len(value)]) + value


def block(fields: dict[str, str] | None = None, **changed: str) -> bytes:
    """The header block of a gRPC request, with its table's size of 0; ``changed``: ``method=""`` leaves :method out."""
    pseudo = {"method": "POST", "scheme": "http", "path": METHOD, "authority": "extproc"} | changed
    names = {f":{name}": value for name, value in pseudo.items() if value} | ({"content-type": "application/grpc"} | (fields or {}))
    return b"\x20" + b"".join(literal(name.encode(), value.encode()) for name, value in names.items())


def message(data: bytes) -> bytes:
    return b"\0" + len(data).to_bytes(4, "big") + data


HELLO = PREFACE + frame(SETTINGS, 0, 0) + frame(SETTINGS, 1, 0)


REQUEST = block()


def opened(stream_id: int, *messages: bytes, flags: int = 0) -> bytes:
    """A request and its first messages."""
    data = b"".join(map(message, messages))
    return frame(HEADERS, 4, stream_id, REQUEST) + (frame(DATA, flags, stream_id, data) if messages else b"")


def frames_of(data: bytes) -> list[tuple[int, int, int, bytes]]:
    """(kind, flags, stream, payload) of everything that we sent."""
    found = []
    while data:
        length = int.from_bytes(data[:3], "big")
        kind, flags, stream_id = struct.unpack_from(">BBL", data, 3)
        assert len(data) >= 9 + length, "half a frame"
        found.append((kind, flags, stream_id, data[9 : 9 + length]))
        data = data[9 + length :]
    return found


class Clock:
    """Stands still until it is moved."""

    def __init__(self) -> None:
        self.now_s = 1_000.0

    def __call__(self) -> float:
        return self.now_s


def shown(event: Event) -> tuple[object, ...]:
    """An event without its stream's identity, to be compared with that of another connection."""
    return (type(event).__name__, *(part.id if isinstance(part, Stream) else part for part in event))


@dataclass
class Caller:
    """What ``protocol.py`` does, without handlers: ``answer`` reacts to messages, an end of the peer is answered with status 0."""

    answer: Callable[[Caller, Stream, bytes], None] = lambda caller, stream, data: None
    clock: Clock = field(default_factory=Clock)
    seen: list[tuple[object, ...]] = field(default_factory=list)
    live: dict[int, Stream] = field(default_factory=dict)
    sent: bytearray = field(default_factory=bytearray)

    def __post_init__(self) -> None:
        self.connection = Connection(self.clock)
        self.flush()

    def feed(self, data: bytes) -> Caller:
        for event in self.connection.receive(data):
            self.seen.append(shown(event))
            self._react(event)
        self.flush()
        return self

    def _react(self, event: Event) -> None:
        if isinstance(event, Opened):
            assert event.stream.id not in self.live
            self.live[event.stream.id] = event.stream
        elif isinstance(event, Message):
            self.answer(self, event.stream, event.data)
        elif isinstance(event, Ended):
            self.connection.finish(event.stream)
            self.live.pop(event.stream.id, None)
        elif isinstance(event, Over):
            self.live.pop(event.stream.id, None)
        elif isinstance(event, Failed):
            assert self.connection.failed

    def send(self, stream: Stream, data: bytes) -> None:
        if stream.sending and not self.connection.sending.send(stream, data):
            self.connection.close(stream, 8, "too much")
            self.live.pop(stream.id, None)

    def flush(self) -> None:
        while data := self.connection.take():
            self.sent += data

    def drained(self) -> list[tuple[int, int, int, bytes]]:
        """What was sent since the last look."""
        data, self.sent = bytes(self.sent), bytearray()
        return frames_of(data)

    def goaway(self) -> str | None:
        """The code of the GOAWAY that was sent last."""
        codes = [payload[4:8] for kind, _, _, payload in self.drained() if kind == GOAWAY]
        return ERRORS[int.from_bytes(codes[-1], "big")] if codes else None


def echo(caller: Caller, stream: Stream, data: bytes) -> None:
    caller.send(stream, data)


def greeted(answer: Callable[[Caller, Stream, bytes], None] = lambda caller, stream, data: None) -> Caller:
    """A caller whose client has said hello; what was sent until then is forgotten."""
    caller = Caller(answer).feed(HELLO)
    caller.drained()
    return caller


# ---- floods: what costs us something and tells us nothing


def reset(stream_id: int) -> bytes:
    return frame(RST, 0, stream_id, b"\0\0\0\2")


def many(count: int) -> range:
    """Ids of a client's first streams."""
    return range(1, 2 * count + 1, 2)


FLOODS = {
    "pings": frame(PING, 0, 0, bytes(8)) * 2_000,
    "settings": frame(SETTINGS, 0, 0) * 200,
    "acknowledgements": frame(SETTINGS, 1, 0) * 200,
    "empty data": opened(1) + frame(DATA, 0, 1) * 2_000,
    "padded empty data": opened(1) + frame(DATA, 8, 1, b"\1\0") * 2_000,
    "continuations": frame(HEADERS, 0, 1, b"") + frame(CONTINUATION, 0, 1, b"") * 20,
    "resets before a message": b"".join(frame(HEADERS, 4, number, REQUEST) + reset(number) for number in many(10_000)),
    "resets within a message": b"".join(opened(number) + frame(DATA, 0, number, b"\0") + reset(number) for number in many(2_100)),
    "ends without a message": b"".join(frame(HEADERS, 5, number, block()) + reset(number) for number in many(2_100)),
    "malformed requests": b"".join(frame(HEADERS, 4, number, block(path="")) for number in many(2_100)),
    "not grpc": b"".join(frame(HEADERS, 4, number, block(method="GET")) for number in many(2_100)),
    "resets by us": b"".join(opened(number, b"x") + frame(WINDOW, 0, number, bytes(4)) for number in many(2_100)),
    "broken messages": b"".join(opened(number) + frame(DATA, 0, number, b"\1\0\0\0\0") for number in many(2_100)),
    "priorities": frame(PRIORITY, 0, 1, bytes(5)) * 10_100,
    "unknown frames": frame(77, 0, 1) * 10_100,
    "windows": frame(WINDOW, 0, 0, b"\0\0\0\1") * 10_100,
}
"""Each ends its connection with ENHANCE_YOUR_CALM."""
