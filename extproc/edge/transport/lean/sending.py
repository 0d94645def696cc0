"""What we send: replies within both windows, ends of streams, and control frames, collected until the caller takes them.

A reply that fits goes out as it is, in two pieces of output. What does not fit waits on its stream, and is pumped out, in turns with other
streams, when a window opens.
"""

from __future__ import annotations

from collections import deque
from typing import Final

from extproc.edge.transport.lean import frames, headers, limits
from extproc.edge.transport.lean.frames import END_HEADERS, END_STREAM, HEADERS, PREFIX_BYTES, ConnectionFault, ErrorCode, message_head
from extproc.edge.transport.lean.stream import Stream
from extproc.edge.transport.port import UNSENT_BYTES_MAX

_SMALL: Final = limits.FRAME_BYTES_MAX - PREFIX_BYTES


class Sending:
    """The sending half of a connection. ``held``: the peer's socket is full, so nothing but control frames is added to the output."""

    __slots__ = ("_blocked", "_initial_window", "_out", "_streams", "_unsent_bytes", "_window", "held")

    def __init__(self, streams: dict[int, Stream]) -> None:
        self._streams = streams
        self._out: list[bytes | memoryview] = []
        self._window = frames.WINDOW_DEFAULT
        self._initial_window = frames.WINDOW_DEFAULT
        self._blocked: dict[Stream, None] = {}  # in the order of their turns
        self._unsent_bytes = 0
        self.held = False

    @property
    def initial_window(self) -> int:
        return self._initial_window

    @property
    def waiting(self) -> bool:
        """More may go as soon as what was taken is written."""
        return bool(self._blocked)

    @property
    def unsent_bytes(self) -> int:
        """Of all streams."""
        return self._unsent_bytes

    def take(self) -> bytes:
        """The next bytes for the wire, joined; empty = nothing that may go now. A peer that reads nothing raises ConnectionFault."""
        out = self._out
        if self.held:
            if len(out) > limits.CONTROL_UNSENT_MAX:
                raise ConnectionFault(ErrorCode.ENHANCE_YOUR_CALM, "answers are not read")
            return b""
        if self._blocked:
            self._pump()
        data = b"".join(out)
        out.clear()
        return data

    # ---- replies

    def send(self, stream: Stream, message: bytes) -> bool:
        """Queue a reply. ``False``: too much of this stream or connection is unsent already; the caller must close the stream."""
        assert stream.sending, stream
        length = len(message)
        size = length + PREFIX_BYTES
        if length > _SMALL or size > self._window or size > stream.window or stream.unsent is not None or self.held:
            return self._queue(stream, message)
        self._window -= size
        stream.window -= size
        out = self._out
        if not stream.begun:
            self._begin(stream)
        out.append(message_head(size << 8, 0, stream.id, 0, length))
        out.append(message)
        return True

    def _begin(self, stream: Stream) -> None:
        """HEADERS are subject to no window, so they go out even when their reply has to wait."""
        stream.begun = True
        self._out.append(frames.head(HEADERS, END_HEADERS, stream.id, len(headers.RESPONSE)) + headers.RESPONSE)

    def _queue(self, stream: Stream, message: bytes) -> bool:
        size = len(message) + PREFIX_BYTES
        if stream.unsent_bytes + size > UNSENT_BYTES_MAX or self._unsent_bytes + size > limits.UNSENT_BYTES_MAX:
            self._forget_unsent(stream)
            return False
        if not stream.begun:
            self._begin(stream)
        if stream.unsent is None:
            stream.unsent = deque()
            self._blocked[stream] = None
        prefix = b"\x00" + len(message).to_bytes(4, "big")
        pieces = (prefix + message,) if size <= limits.FRAME_BYTES_MAX else (prefix, message)  # a short copy, or one more frame
        stream.unsent.extend(map(memoryview, pieces))
        stream.unsent_bytes += size
        self._unsent_bytes += size
        return True

    def _pump(self) -> None:
        """One round of turns over the streams that wait, until the connection's window or one write is full."""
        room = limits.PUMP_BYTES_MAX
        for stream in tuple(self._blocked):
            room -= self._turn(stream, min(room, self._window))
            if room <= 0 or self._window <= 0:
                break

    def _turn(self, stream: Stream, most: int) -> int:
        """As much of one stream as windows allow; the bytes that went."""
        unsent = stream.unsent
        assert unsent is not None
        sent = 0
        while unsent and (size := min(most - sent, stream.window, limits.FRAME_BYTES_MAX)) > 0:
            piece = unsent.popleft()
            if len(piece) > size:
                unsent.appendleft(piece[size:])
                piece = piece[:size]
            self._out.append(frames.head(frames.DATA, 0, stream.id, len(piece)))
            self._out.append(piece)
            stream.window -= len(piece)
            sent += len(piece)
        self._window -= sent
        stream.unsent_bytes -= sent
        self._unsent_bytes -= sent
        del self._blocked[stream]
        if unsent:
            if stream.window > 0:
                self._blocked[stream] = None  # its next turn is after everybody else's
        else:
            stream.unsent = None
            if not stream.sending:
                self._finish(stream)
        return sent

    # ---- ends

    def end(self, stream: Stream, trailers: bytes) -> None:
        """Trailers after everything that was sent before; Trailers-Only if there was nothing."""
        assert stream.sending, stream
        stream.sending = False
        stream.trailers = trailers if stream.begun else headers.RESPONSE + trailers
        if stream.unsent is None:
            self._finish(stream)

    def refuse(self, stream_id: int, block: bytes) -> None:
        """An answer of one block to a request that has become no stream."""
        self._out.append(frames.head(HEADERS, END_HEADERS | END_STREAM, stream_id, len(block)) + block)
        self._out.append(frames.rst_stream(stream_id, ErrorCode.NO_ERROR))

    def _finish(self, stream: Stream) -> None:
        trailers = stream.trailers
        self._out.append(frames.head(HEADERS, END_HEADERS | END_STREAM, stream.id, len(trailers)) + trailers)
        if not stream.ended:  # RFC 9113, 8.1: what it may still have to say is not wanted
            self._out.append(frames.rst_stream(stream.id, ErrorCode.NO_ERROR))
        self.drop(stream)

    def drop(self, stream: Stream) -> None:
        """It is over: nothing of it goes out any more."""
        self._forget_unsent(stream)
        stream.sending = stream.receiving = False
        del self._streams[stream.id]

    def reset(self, stream: Stream, code: ErrorCode) -> None:
        self._out.append(frames.rst_stream(stream.id, code))
        self.drop(stream)

    def _forget_unsent(self, stream: Stream) -> None:
        self._blocked.pop(stream, None)
        self._unsent_bytes -= stream.unsent_bytes
        stream.unsent_bytes = 0
        stream.unsent = None

    # ---- control

    def control(self, frame: bytes) -> None:
        self._out.append(frame)

    def control_first(self, frame: bytes) -> None:
        """Before the replies of this read: a round trip is being measured."""
        self._out.insert(0, frame)

    # ---- the peer's windows

    def open_window(self, increment: int) -> None:
        """Of the connection. Raises ConnectionFault."""
        self._window += increment
        if self._window > frames.WINDOW_MAX:
            raise ConnectionFault(ErrorCode.FLOW_CONTROL_ERROR, "connection window above 2^31-1")

    def open_stream_window(self, stream: Stream, increment: int) -> bool:
        """``False`` = above 2³¹-1: the stream must be reset."""
        stream.window += increment
        if stream.unsent is not None and stream.window > 0:
            self._blocked[stream] = None
        return stream.window <= frames.WINDOW_MAX

    def set_initial_window(self, size: int) -> None:
        """Counts for open streams too, and may make their windows negative (RFC 9113, 6.9.2). Raises ConnectionFault."""
        if size > frames.WINDOW_MAX:
            raise ConnectionFault(ErrorCode.FLOW_CONTROL_ERROR, "initial window above 2^31-1")
        difference = size - self._initial_window
        self._initial_window = size
        for stream in self._streams.values():
            if not self.open_stream_window(stream, difference):
                raise ConnectionFault(ErrorCode.FLOW_CONTROL_ERROR, "stream window above 2^31-1")
