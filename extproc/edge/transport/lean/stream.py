"""One stream, as the connection sees it, and the events that tell the caller about it."""

from __future__ import annotations

from collections import deque
from typing import Any, Final, NamedTuple, TypeAlias

from extproc.edge.transport.lean import limits
from extproc.edge.transport.lean.messages import Assembly


class Stream:
    """Two directions, each open or not. Both closed = over; its id never comes again, so the object itself is its generation.

    ``call`` belongs to the caller. ``unsent`` is ``None`` while nothing waits: most streams never need it.
    """

    __slots__ = (
        "assembly",
        "begun",
        "call",
        "credit",
        "ended",
        "id",
        "met",
        "receiving",
        "reserved",
        "sending",
        "trailers",
        "unsent",
        "unsent_bytes",
        "window",
    )

    def __init__(self, stream_id: int, window: int) -> None:
        self.id: Final = stream_id
        self.call: Any = None
        # from the peer
        self.receiving = True  # its messages are wanted: it has not ended, and neither have we
        self.ended = False  # END_STREAM has come, after whole messages
        self.met = False  # its first message is complete: what ends it from now on is a normal end
        self.credit = limits.STREAM_CREDIT
        self.reserved = 0
        self.assembly: Assembly | None = None
        # to the peer
        self.sending = True  # replies are taken: no end was queued
        self.begun = False  # response HEADERS are out, or in ``unsent``
        self.window = window
        self.unsent: deque[memoryview] | None = None
        self.unsent_bytes = 0
        self.trailers = b""  # to come after ``unsent``

    def __repr__(self) -> str:
        return f"Stream({self.id})"


class Opened(NamedTuple):
    """A gRPC request has begun."""

    stream: Stream
    path: bytes


class Message(NamedTuple):
    """One whole message."""

    stream: Stream
    data: bytes


class Ended(NamedTuple):
    """The peer has ended its side, after whole messages: the caller says ``finish`` or ``close``."""

    stream: Stream


class Over(NamedTuple):
    """Reset by the peer, or closed because of what came on it. Nothing can be sent any more."""

    stream: Stream


class Draining(NamedTuple):
    """Stream ids run out: the first GOAWAY is under way, the caller has to say when the final one comes."""


class Failed(NamedTuple):
    """The peer broke the protocol: the output ends with a GOAWAY, then the connection must be closed."""

    code: int
    reason: str


Event: TypeAlias = Opened | Message | Ended | Over | Draining | Failed
