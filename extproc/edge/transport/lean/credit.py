"""What we let the peer send: both receive windows, and turns for long messages so that their sum has a bound."""

from __future__ import annotations

from extproc.edge.transport.lean import frames, limits
from extproc.edge.transport.lean.frames import ConnectionFault, ErrorCode
from extproc.edge.transport.lean.sending import Sending
from extproc.edge.transport.lean.stream import Stream


class Credit:
    """Windows of one connection.

    A stream's window holds STREAM_CREDIT. A message that is longer than what is left of it gets the rest as one WINDOW_UPDATE, as soon as
    RESERVED_BYTES_MAX allows; until then it waits. Whoever has a reservation can always finish, so the queue always moves.
    """

    __slots__ = ("_reserved_bytes", "_sending", "_waiting", "left")

    def __init__(self, sending: Sending) -> None:
        self._sending = sending
        self.left = frames.WINDOW_DEFAULT  # of the connection; DATA frames take from it
        self._reserved_bytes = 0
        self._waiting: dict[Stream, int] = {}  # first come, first served: bytes that its message lacks

    @property
    def reserved_bytes(self) -> int:
        return self._reserved_bytes

    def fill(self) -> None:
        """Open the connection's window again. Raises ConnectionFault when more came than it had room for."""
        if self.left < 0:
            raise ConnectionFault(ErrorCode.FLOW_CONTROL_ERROR, "connection window exceeded")
        self._sending.control(frames.window_update(0, limits.CONNECTION_CREDIT - self.left))
        self.left = limits.CONNECTION_CREDIT

    def renew(self, stream: Stream, missing: int, *, completed: bool) -> None:
        """After a DATA frame: whether it completed a message, and how much the next one lacks."""
        if completed and stream.reserved:
            self.release(stream)
        if missing > stream.credit and not stream.reserved:
            self._reserve(stream, missing)
        elif missing > stream.credit or stream.credit < limits.STREAM_CREDIT_LOW:
            self._grant(stream, missing if stream.reserved else 0)

    def release(self, stream: Stream) -> None:
        """Its long message is complete, or nobody wants it any more."""
        self._waiting.pop(stream, None)
        self._reserved_bytes -= stream.reserved
        stream.reserved = 0
        while self._waiting:
            following, missing = next(iter(self._waiting.items()))
            if not self._fits(missing):
                return
            del self._waiting[following]
            self._take(following, missing)

    def _reserve(self, stream: Stream, missing: int) -> None:
        if self._waiting or not self._fits(missing):
            self._waiting[stream] = missing
        else:
            self._take(stream, missing)

    def _fits(self, missing: int) -> bool:
        return self._reserved_bytes + missing <= limits.RESERVED_BYTES_MAX

    def _take(self, stream: Stream, missing: int) -> None:
        stream.reserved = missing
        self._reserved_bytes += missing
        self._grant(stream, missing)

    def _grant(self, stream: Stream, missing: int) -> None:
        """Enough for the message, and for what comes after it."""
        increment = missing + limits.STREAM_CREDIT - stream.credit
        if increment > 0:
            stream.credit += increment
            self._sending.control(frames.window_update(stream.id, increment))
