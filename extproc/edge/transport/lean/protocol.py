"""The thin layer between a ``Connection`` and asyncio: one read in, the handlers' turns, one write out."""

from __future__ import annotations

import asyncio
import logging
from typing import Final, Protocol, cast

from extproc.edge.transport.lean import limits
from extproc.edge.transport.lean.connection import Connection
from extproc.edge.transport.lean.stream import Ended, Event, Failed, Message, Opened, Over, Stream
from extproc.edge.transport.port import GoneReason, Handler, StatusCode

_log = logging.getLogger(__name__)

GREETING_S: Final = 10.0
"""For preface and SETTINGS. Envoy sends both with its first bytes."""

CLOSE_S: Final = 2.0
"""For the last bytes (an error's GOAWAY) to be read before the connection is cut."""

GOAWAY_GAP_S: Final = 0.3
"""Between the two GOAWAYs of a drain: longer than any round trip on one host, so that no request is refused (ENVOY.md)."""

_WRITE_BUFFER_BYTES: Final = 1_048_576
"""Above it replies wait on their streams, where an end of Envoy drops them."""


class Host(Protocol):
    """What a connection needs of its server."""

    def arrived(self, protocol: LeanProtocol, transport: asyncio.Transport) -> bool:
        """``False`` = this peer is not served."""

    def left(self, protocol: LeanProtocol) -> None:
        """The connection is over."""

    def answer(self, call: LeanCall, path: bytes) -> None:
        """Give the call its handler, or close it."""

    def gone(self, call: LeanCall, reason: GoneReason) -> None:
        """Tell the call's handler. Never raises."""


class LeanCall:
    """One stream's ``Call``. The stream is the generation: its id never comes again, and once over it stays so."""

    __slots__ = ("_protocol", "closed", "counted", "handler", "stream")

    def __init__(self, protocol: LeanProtocol, stream: Stream) -> None:
        self._protocol: Final = protocol
        self.stream: Final = stream
        self.handler: Handler | None = None
        self.counted = False  # among the server's open streams
        self.closed = False  # by the handler: it hears nothing more but its end

    def send(self, message: bytes) -> None:
        stream = self.stream
        if not stream.sending:
            return
        protocol = self._protocol
        if not protocol.sending.send(stream, message):
            self.close(StatusCode.RESOURCE_EXHAUSTED, "replies are not taken")
        elif not protocol.inside:
            protocol.wake()

    def close(self, code: StatusCode, message: str) -> None:
        self.end(code, message)

    def end(self, code: int, message: str) -> None:
        """As ``close``, with any of gRPC's codes."""
        if not self.closed:
            self.closed = True
            self._protocol.leave(self, code, message)


class LeanProtocol(asyncio.Protocol):
    """One connection of Envoy."""

    def __init__(self, host: Host, loop: asyncio.AbstractEventLoop) -> None:
        self._host = host
        self._loop = loop
        self._transport: asyncio.Transport | None = None  # None before, after, and once it is being closed
        self.connection = Connection(loop.time)
        self.sending: Final = self.connection.sending
        self.inside = False  # in data_received, which flushes at its end
        self._awake = False  # a flush is scheduled
        self._leaving: list[LeanCall] = []  # closed by their handlers, which are told when they are not on the stack any more

    # ---- asyncio

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        both_ways = cast("asyncio.Transport", transport)  # uvloop's are no subclasses of it
        if not self._host.arrived(self, both_ways):
            both_ways.abort()
            return
        self._transport = both_ways
        both_ways.set_write_buffer_limits(high=_WRITE_BUFFER_BYTES)
        self._loop.call_later(GREETING_S, self._check_greeting)
        self._flush()

    def data_received(self, data: bytes) -> None:
        if self._transport is None:
            return
        self.inside = True
        for event in self.connection.receive(data):
            if type(event) is Message:
                self._message(event.stream, event.data)
            else:
                self._other(event)
            if self._leaving:
                self._say_gone()
        self.inside = False
        self._flush()

    def pause_writing(self) -> None:
        self.sending.held = True

    def resume_writing(self) -> None:
        self.sending.held = False
        self._flush()

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - every reason is the same to us
        self._transport = None
        self._say_gone()
        streams = self.connection.streams
        self.connection.abandon()
        for stream in streams:
            self._gone(stream, "edge_lost")
        self._host.left(self)

    # ---- events

    def _message(self, stream: Stream, data: bytes) -> None:
        call: LeanCall | None = stream.call
        if call is None:  # closed by its handler. Not: stream.sending. A reset that came in the same read takes no message away
            return
        assert call.handler is not None
        try:
            call.handler.message(data)
        except Exception:  # noqa: BLE001 - whatever it was, the stream must not end with OK
            _log.exception("the handler of a stream raised; the stream is closed with INTERNAL")
            call.close(StatusCode.INTERNAL, "internal error")

    def _other(self, event: Event) -> None:
        if isinstance(event, Opened):
            event.stream.call = call = LeanCall(self, event.stream)
            self._host.answer(call, event.path)
        elif isinstance(event, Ended):
            self.connection.finish(event.stream)  # first, so that nothing can be sent from within gone()
            self._gone(event.stream, "closed")
        elif isinstance(event, Over):
            self._gone(event.stream, "closed")
        elif isinstance(event, Failed):
            _log.warning("a connection was closed with GOAWAY %d: %s", event.code, event.reason)
        else:  # Draining: ids run out
            self._loop.call_later(GOAWAY_GAP_S, self.refuse_more)

    def leave(self, call: LeanCall, code: int, message: str) -> None:
        """An error close by the handler's side: told soon, never from within the handler's own call."""
        self.connection.close(call.stream, code, message)
        self._leaving.append(call)
        if not self.inside:
            self.wake()

    def _say_gone(self) -> None:
        leaving, self._leaving = self._leaving, []
        for call in leaving:
            self._gone(call.stream, "sidecar_error")

    def _gone(self, stream: Stream, reason: GoneReason) -> None:
        call: LeanCall | None = stream.call
        stream.call = None
        if call is not None:
            self._host.gone(call, reason)

    # ---- output

    def wake(self) -> None:
        """Flush at the end of this turn of the loop, together with what else is sent in it."""
        if not self._awake:
            self._awake = True
            self._loop.call_soon(self._woken)

    def _woken(self) -> None:
        self._awake = False
        self._say_gone()
        self._flush()

    def _flush(self) -> None:
        transport = self._transport
        if transport is None:
            return
        connection = self.connection
        data = connection.take()
        while data:
            transport.write(data)
            data = connection.take() if self.sending.waiting else b""
        if connection.over:
            self._close()

    # ---- ends

    def drain(self) -> None:
        """First GOAWAY."""
        self.connection.drain()
        self._flush()

    def refuse_more(self) -> None:
        """Final GOAWAY; the connection is closed when its streams have ended."""
        self.connection.refuse_more()
        self._flush()

    def stop(self) -> None:
        """Close what is open with UNAVAILABLE, then the connection, once what was sent has been taken."""
        for stream in self.connection.streams:
            self.connection.close(stream, StatusCode.UNAVAILABLE, "worker stops")
            self._gone(stream, "sidecar_error")
        self.connection.drain()
        self.refuse_more()

    def abort(self) -> None:
        """Now, whatever was not taken."""
        if self._transport is not None:
            self._transport.abort()

    def _close(self) -> None:
        transport, self._transport = self._transport, None
        if transport is not None:
            transport.close()
            self._loop.call_later(CLOSE_S, transport.abort)

    def _check_greeting(self) -> None:
        if self._transport is not None and not self.connection.greeted:
            _log.warning("a connection said nothing for %g s and was closed", GREETING_S)
            self._close()


assert limits.STREAMS_MAX <= limits.CONTROL_UNSENT_MAX, "the ends of all streams may wait at once"
