"""An HTTP/2 server connection for one kind of client, without IO: bytes in, events out; replies in, bytes out.

The rules are those of RFC 9113, read for a server that serves gRPC to Envoy:

* What breaks the connection's rules ends it: GOAWAY with the code of the RFC, event ``Failed``. What breaks a stream's rules ends the
  stream: RST_STREAM, or an error status where gRPC has one, event ``Over``. Nothing else is touched, and no exception leaves ``receive``.
* Frames are read in place; a frame that has not come in full stays in ``_rest`` (at most one frame).
* A stream lives in ``_streams`` until both directions are over. Frames on streams that are not there any more are ignored, apart from
  what they cost of the connection's window and of its HPACK state: Envoy's words and ours cross on the wire.
* The caller ends every stream: ``finish`` after ``Ended`` (status 0), or ``close`` at any time (an error). Status 0 has no other way out.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar, Final

from extproc.edge.transport.lean import frames, headers, limits
from extproc.edge.transport.lean.credit import Credit
from extproc.edge.transport.lean.floods import Floods
from extproc.edge.transport.lean.frames import (
    ACK,
    END_HEADERS,
    END_STREAM,
    HEAD_BYTES,
    PADDED,
    PREFIX_BYTES,
    STREAM_ID_MAX,
    ConnectionFault,
    ErrorCode,
    check_length,
    read_prefix,
    unpadded,
)
from extproc.edge.transport.lean.messages import INTERNAL, Assembly, Broken
from extproc.edge.transport.lean.sending import Sending
from extproc.edge.transport.lean.stream import Draining, Ended, Event, Failed, Message, Opened, Over, Stream

_FIRST: Final = -1
"""``_expected`` before the first frame, which must be SETTINGS. Later: the stream whose header block is not complete, 0 = any frame."""

_TOO_LONG: Final = limits.FRAME_BYTES_MAX + 1 << 8
"""The length of a frame and its type, as they stand in its first four bytes."""

_LOW: Final = limits.STREAM_CREDIT_LOW
_CONNECTION_LOW: Final = limits.CONNECTION_CREDIT_LOW

_SETTINGS: Final = {
    frames.HEADER_TABLE_SIZE: 0,
    frames.MAX_CONCURRENT_STREAMS: limits.STREAMS_MAX,
    frames.MAX_HEADER_LIST_SIZE: limits.HEADER_BLOCK_BYTES_MAX,
}


class Connection:
    """One connection. ``clock``: seconds from anywhere, asked only when something is counted that a flood is made of."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._streams: dict[int, Stream] = {}
        self.sending: Final = Sending(self._streams)
        self._credit = Credit(self.sending)
        self._blocks = headers.RequestBlocks()
        self._events: list[Event] = []
        self._rest = b""
        self._greeted = False
        self.failed = False  # nothing is listened to any more: take what is left of the output, and close
        self._expected = _FIRST
        self._block = headers.Fragments(b"", 0)  # of _expected
        self._last_id = 0
        self._last_id_allowed = STREAM_ID_MAX
        self._draining = False
        self._floods = Floods(clock)
        self.sending.control(frames.settings(_SETTINGS))
        self._credit.fill()

    @property
    def idle(self) -> bool:
        """No stream is open, and nothing is waiting to be sent on one."""
        return not self._streams

    @property
    def over(self) -> bool:
        """To be closed once the output is taken: it has failed, or it refuses more streams and has none."""
        return self.failed or (self._last_id_allowed != STREAM_ID_MAX and self.idle)

    @property
    def greeted(self) -> bool:
        """The peer speaks HTTP/2: its preface and first SETTINGS have come."""
        return self._expected != _FIRST

    @property
    def streams(self) -> tuple[Stream, ...]:
        return tuple(self._streams.values())

    @property
    def reserved_bytes(self) -> int:
        return self._credit.reserved_bytes

    # ---- bytes in

    def receive(self, data: bytes) -> list[Event]:
        """Events in the order of the wire. After ``Failed`` nothing is listened to any more."""
        events: list[Event] = []
        self._events = events
        if self.failed:
            return events
        if self._rest:
            data = self._rest + data
        try:
            self._rest = data[self._frames(data, 0 if self._greeted else self._greet(data)) :]
        except ConnectionFault as fault:
            self._fail(fault)
        return events

    def _greet(self, data: bytes) -> int:
        """Where the frames begin."""
        preface = frames.PREFACE
        if not preface.startswith(data[: len(preface)]):
            raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "not HTTP/2")
        self._greeted = len(data) >= len(preface)
        return len(preface) if self._greeted else 0

    def _frames(self, data: bytes, position: int) -> int:
        """All whole frames; where the rest begins."""
        end = len(data) if self._greeted else 0
        read_head, readers = frames.read_head, self._readers
        while end - position >= HEAD_BYTES:
            word, flags, stream_id = read_head(data, position)
            start = position + HEAD_BYTES
            stop = start + (word >> 8)
            if stop > end or self._expected or word >= _TOO_LONG:
                self._check_head(word, stream_id & STREAM_ID_MAX, flags)
                if stop > end:
                    break
            kind = word & 255
            if kind <= frames.CONTINUATION:
                readers[kind](self, data, start, stop, flags, stream_id & STREAM_ID_MAX)
            else:
                self._floods.odd_frame()
            position = stop
        return position

    def _check_head(self, word: int, stream_id: int, flags: int) -> None:
        """Before a frame is waited for, and where only one kind may come."""
        kind = word & 255
        if word >= _TOO_LONG:
            raise ConnectionFault(ErrorCode.FRAME_SIZE_ERROR, f"frame of {word >> 8} bytes")
        if self._expected == _FIRST:
            if kind != frames.SETTINGS or flags & ACK:
                raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "the first frame must be SETTINGS")
        elif self._expected and (kind != frames.CONTINUATION or stream_id != self._expected):
            raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "the header block before this frame is not complete")

    def _fail(self, fault: ConnectionFault) -> None:
        self.failed = True
        self._rest = b""
        self.sending.control(frames.goaway(self._last_id, fault.code, fault.reason))
        self._events.append(Failed(fault.code, fault.reason))

    # ---- DATA

    def _on_data(self, data: bytes, start: int, stop: int, flags: int, stream_id: int) -> None:
        size = stop - start
        credit = self._credit
        credit.left -= size
        if credit.left < _CONNECTION_LOW:
            credit.fill()
        stream = self._streams.get(stream_id)
        if stream is None or not stream.receiving:
            self._stray_data(stream, stream_id)
            return
        stream.credit -= size
        if stream.credit < 0:
            self._violated(stream, ErrorCode.FLOW_CONTROL_ERROR)
            return
        if flags & PADDED:
            start, stop = unpadded(data, start, stop)
        length = stop - start - PREFIX_BYTES  # of the message, if this frame is exactly one; a low window is renewed with the pieces
        if length < 0 or stream.assembly is not None or read_prefix(data, start) != (0, length) or stream.credit < _LOW:
            self._piece(stream, data, start, stop, flags)
        else:
            stream.met = True
            self._events.append(Message(stream, data[start + PREFIX_BYTES : stop]))
        if flags & END_STREAM and stream.receiving:
            self._ended(stream)

    def _piece(self, stream: Stream, data: bytes, start: int, stop: int, flags: int) -> None:
        """What is not exactly one message."""
        if start == stop:
            if not flags & END_STREAM:
                self._floods.empty_data()
            return
        assembly = stream.assembly
        if assembly is None:
            assembly = stream.assembly = Assembly()
        try:
            messages = assembly.feed(data, start, stop)
        except Broken as broken:
            self._break(stream, broken.code, broken.reason)
            return
        if messages:
            stream.met = True
            self._events.extend([Message(stream, message) for message in messages])
        if not flags & END_STREAM:
            self._credit.renew(stream, assembly.missing, completed=bool(messages))
        if assembly.empty:
            stream.assembly = None

    def _ended(self, stream: Stream) -> None:
        stream.ended = True
        if stream.assembly is not None:
            self._break(stream, INTERNAL, "the stream ended within a message")
            return
        if not stream.met:
            self._floods.early_end()
        stream.receiving = False
        self._credit.release(stream)
        self._events.append(Ended(stream))

    def _stray_data(self, stream: Stream | None, stream_id: int) -> None:
        if stream is None:
            self._check_not_idle(stream_id)
        elif stream.ended:
            self._violated(stream, ErrorCode.STREAM_CLOSED)

    # ---- HEADERS

    def _on_headers(self, data: bytes, start: int, stop: int, flags: int, stream_id: int) -> None:
        if not stream_id & 1:
            raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "HEADERS on a stream that is no client's")
        if flags & PADDED:
            start, stop = unpadded(data, start, stop)
        if flags & frames.WITH_PRIORITY:
            start += 5
            if start > stop:
                raise ConnectionFault(ErrorCode.FRAME_SIZE_ERROR, "HEADERS without its priority")
        if flags & END_HEADERS:
            self._headers_of(stream_id, data[start:stop], flags)
            return
        self._expected = stream_id
        self._block = headers.Fragments(data[start:stop], flags)

    def _on_continuation(self, data: bytes, start: int, stop: int, flags: int, stream_id: int) -> None:
        if not self._expected:
            raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "CONTINUATION of nothing")
        self._block.add(data[start:stop])
        if flags & END_HEADERS:
            self._expected = 0
            block, self._block = self._block, headers.Fragments(b"", 0)
            self._headers_of(stream_id, block.whole(), block.flags)

    def _headers_of(self, stream_id: int, block: bytes, flags: int) -> None:
        request = self._blocks.request(block)
        stream = self._streams.get(stream_id)
        if stream is not None:
            self._request_trailers(stream, flags)
        elif stream_id > self._last_id:
            self._last_id = stream_id
            if stream_id > limits.STREAM_ID_LAST and not self._draining:
                self.drain()
                self._events.append(Draining())
            self._open(stream_id, request, flags)

    def _open(self, stream_id: int, request: headers.Request, flags: int) -> None:
        if stream_id > self._last_id_allowed or len(self._streams) >= limits.STREAMS_MAX:
            self._refuse(stream_id, ErrorCode.REFUSED_STREAM)
        elif not request.well_formed:
            self._refuse(stream_id, ErrorCode.PROTOCOL_ERROR)
        elif not request.grpc:
            self._floods.early_end()
            self.sending.refuse(stream_id, headers.NOT_GRPC)
        else:
            stream = Stream(stream_id, self.sending.initial_window)
            self._streams[stream_id] = stream
            self._events.append(Opened(stream, request.path))
            if flags & END_STREAM:
                self._ended(stream)

    def _request_trailers(self, stream: Stream, flags: int) -> None:
        """Legal, if they end the stream; what they say means nothing to us."""
        if stream.ended:
            self._violated(stream, ErrorCode.STREAM_CLOSED)
        elif not flags & END_STREAM:
            self._violated(stream, ErrorCode.PROTOCOL_ERROR)
        elif stream.receiving:
            self._ended(stream)
        else:
            stream.ended = True

    # ---- small frames

    def _on_rst_stream(self, _data: bytes, start: int, stop: int, _flags: int, stream_id: int) -> None:
        check_length(stop - start, 4)
        self._check_not_idle(stream_id)
        stream = self._streams.get(stream_id)
        if stream is None:
            return
        if not stream.met and not stream.ended:
            self._floods.early_end()
        self._tell_over(stream)
        self._credit.release(stream)
        self.sending.drop(stream)

    def _on_window_update(self, data: bytes, start: int, stop: int, _flags: int, stream_id: int) -> None:
        check_length(stop - start, 4)
        self._floods.odd_frame()
        increment = frames.read_number(data, start)[0] & frames.WINDOW_MAX
        if stream_id == 0:
            if increment == 0:
                raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "WINDOW_UPDATE of 0")
            self.sending.open_window(increment)
            return
        self._check_not_idle(stream_id)
        stream = self._streams.get(stream_id)
        if stream is None:
            return
        if increment == 0:
            self._violated(stream, ErrorCode.PROTOCOL_ERROR)
        elif not self.sending.open_stream_window(stream, increment):
            self._violated(stream, ErrorCode.FLOW_CONTROL_ERROR)

    def _on_settings(self, data: bytes, start: int, stop: int, flags: int, stream_id: int) -> None:
        self._check_control(stream_id)
        self._floods.settings()
        if flags & ACK:
            check_length(stop - start, 0)
            self._blocks.acknowledged()
            return
        if (stop - start) % 6:
            raise ConnectionFault(ErrorCode.FRAME_SIZE_ERROR, "SETTINGS of a broken length")
        self._expected = 0
        for setting, value in frames.read_setting(data[start:stop]):
            self._apply(setting, value)
        self.sending.control(frames.SETTINGS_ACK)

    def _apply(self, setting: int, value: int) -> None:
        """What we send needs no table, and frames of the size that everybody takes: only the window matters."""
        if setting == frames.INITIAL_WINDOW_SIZE:
            self.sending.set_initial_window(value)
        elif setting == frames.ENABLE_PUSH and value > 1:
            raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "ENABLE_PUSH is 0 or 1")
        elif setting == frames.MAX_FRAME_SIZE and not 16_384 <= value < 1 << 24:
            raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "MAX_FRAME_SIZE out of range")

    def _on_ping(self, data: bytes, start: int, stop: int, flags: int, stream_id: int) -> None:
        self._check_control(stream_id)
        check_length(stop - start, 8)
        self._floods.ping()
        if not flags & ACK:
            self.sending.control_first(frames.ping_ack(data[start:stop]))

    def _on_goaway(self, _data: bytes, start: int, stop: int, _flags: int, stream_id: int) -> None:
        """Envoy opens no more streams; those that are open go on, and it closes the connection after them."""
        self._check_control(stream_id)
        if stop - start < 8:
            raise ConnectionFault(ErrorCode.FRAME_SIZE_ERROR, "GOAWAY too short")
        self._floods.odd_frame()

    def _on_priority(self, _data: bytes, start: int, stop: int, _flags: int, stream_id: int) -> None:
        if stream_id == 0:
            raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "PRIORITY of the connection")
        check_length(stop - start, 5)
        self._floods.odd_frame()

    def _on_push_promise(self, _data: bytes, _start: int, _stop: int, _flags: int, _stream_id: int) -> None:
        raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "PUSH_PROMISE from a client")

    # ---- ends

    def finish(self, stream: Stream) -> None:
        """Status 0, after what was sent before: only when the peer has ended its side. Ignored when the stream is over."""
        assert stream.ended, "an early OK would let a request through unbilled"
        if stream.sending:
            self.sending.end(stream, headers.OK_TRAILERS)

    def close(self, stream: Stream, code: int, message: str) -> None:
        """An error, after what was sent before. Ignored when the stream is over or has its end already."""
        if not stream.sending:
            return
        stream.receiving = False
        stream.assembly = None
        self._credit.release(stream)
        self.sending.end(stream, headers.error_trailers(code, message))

    def drain(self) -> None:
        """First GOAWAY: open no more streams here. Those under way still come. Idempotent."""
        if not self._draining:
            self._draining = True
            self.sending.control(frames.goaway(STREAM_ID_MAX, ErrorCode.NO_ERROR, "draining"))

    def refuse_more(self) -> None:
        """Final GOAWAY, a round trip after the first: what comes later is refused, and repeated elsewhere. Idempotent."""
        if self._last_id_allowed == STREAM_ID_MAX:
            self._last_id_allowed = self._last_id
            self.sending.control(frames.goaway(self._last_id, ErrorCode.NO_ERROR, "draining"))

    def abandon(self) -> None:
        """The connection is gone: nothing is sent or received any more."""
        self.failed = True
        self._rest = b""
        for stream in self.streams:
            self.sending.drop(stream)

    def take(self) -> bytes:
        """The next bytes for the wire, joined. Empty = nothing may go now. A peer that never reads ends the connection (see ``failed``)."""
        try:
            return self.sending.take()
        except ConnectionFault:
            self.failed = True
            return b""

    def _break(self, stream: Stream, code: int, reason: str) -> None:
        """A message that we do not take: an error status."""
        self._floods.early_end()
        self._tell_over(stream)
        self.close(stream, code, reason)

    def _violated(self, stream: Stream, code: ErrorCode) -> None:
        """A stream that broke HTTP/2's rules."""
        self._floods.early_end()
        self._tell_over(stream)
        self._credit.release(stream)
        self.sending.reset(stream, code)

    def _refuse(self, stream_id: int, code: ErrorCode) -> None:
        self._floods.early_end()
        self.sending.control(frames.rst_stream(stream_id, code))

    def _tell_over(self, stream: Stream) -> None:
        """Unless the caller has ended it already."""
        if stream.sending:
            self._events.append(Over(stream))

    # ---- checks

    def _check_not_idle(self, stream_id: int) -> None:
        if stream_id > self._last_id or not stream_id & 1:
            raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, f"frame on stream {stream_id}, which was never opened")

    def _check_control(self, stream_id: int) -> None:
        if stream_id != 0:
            raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "a frame of the connection came on a stream")

    _readers: ClassVar[tuple[Callable[..., None], ...]] = (  # by the type of a frame
        _on_data,
        _on_headers,
        _on_priority,
        _on_rst_stream,
        _on_settings,
        _on_push_promise,
        _on_ping,
        _on_goaway,
        _on_window_update,
        _on_continuation,
    )
