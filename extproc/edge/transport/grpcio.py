"""The reference transport: grpc.aio, raw bytes, ``read()``/``write()`` style (cheaper than async iteration).

A stream is served by one coroutine. It reads a message, hands it to the handler, writes what the handler sent meanwhile, and reads on;
what is sent later, from outside ``message``, is written by a short task of its own. So a chunk that is answered at once costs no task.

grpc.aio cannot tell a stream that was reset from a connection that broke (both come as half-close or ``CancelledError``): ``gone`` says
``closed`` here unless we ended it. It does not check the peer's uid either: the mode of the socket's directory is what keeps others out.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from typing import Any, Final, TypeAlias

import grpc
import grpc.aio

from extproc.edge import health as health_wire
from extproc.edge.health import Health
from extproc.edge.transport import address as addresses
from extproc.edge.transport.port import MESSAGE_BYTES_MAX, METHOD, UNSENT_BYTES_MAX, GoneReason, Handler, HandlerFactory, Listen, StatusCode
from extproc.errors import UsageError

_log = logging.getLogger(__name__)

_CODES: Final = {
    StatusCode.RESOURCE_EXHAUSTED: grpc.StatusCode.RESOURCE_EXHAUSTED,
    StatusCode.INTERNAL: grpc.StatusCode.INTERNAL,
    StatusCode.UNAVAILABLE: grpc.StatusCode.UNAVAILABLE,
}

_PING_INTERVAL_MIN_MS: Final = 5_000
"""Envoy pings every 30 s (envoy.yaml); by default grpcio answers pings that come more often than every 5 min with GOAWAY."""

_PATIENCE_S: Final = 365 * 86_400.0
"""grpc.aio has no "stop accepting" without a deadline. This one is never reached: ``stop`` ends it."""

_FLUSH_S: Final = 2.0
"""How long an error close waits for replies that Envoy does not take."""

_Context: TypeAlias = "grpc.aio.ServicerContext[bytes, bytes]"


class _Stream:
    """One gRPC stream: the ``Call`` that the handler holds, and the queue between it and grpc.aio."""

    __slots__ = ("_closing", "_context", "_inside", "_over", "_reader", "_unsent", "_unsent_bytes", "_writer", "_writing")

    def __init__(self, context: _Context, reader: asyncio.Task[Any]) -> None:
        self._context = context
        self._reader = reader
        self._writer: asyncio.Task[None] | None = None
        self._unsent: deque[bytes] = deque()
        self._unsent_bytes = 0
        self._inside = False  # in handler.message(): the reader looks at the queue right after it
        self._writing = False  # somebody empties the queue
        self._over = False  # gone was called
        self._closing: tuple[StatusCode, str] | None = None

    def send(self, message: bytes) -> None:
        if self._over or self._closing is not None:
            return
        self._unsent.append(message)
        self._unsent_bytes += len(message)
        if self._unsent_bytes > UNSENT_BYTES_MAX:
            self._unsent.clear()
            self._writing = False  # whoever writes now is interrupted by close()
            self.close(StatusCode.RESOURCE_EXHAUSTED, "replies are not taken")
        elif not self._inside and not self._writing:
            self._writing = True
            self._writer = asyncio.get_running_loop().create_task(self._write())

    def close(self, code: StatusCode, message: str) -> None:
        if self._over or self._closing is not None:
            return
        self._closing = (code, message)
        reader_writes = self._writing and (self._writer is None or self._writer.done())
        if not self._inside and not reader_writes:
            self._reader.cancel()  # it waits in read(); serve() knows why

    async def serve(self, factory: HandlerFactory) -> None:
        """Until the stream is over. Returning means status OK to grpc.aio, unless a code was set: only Envoy's own end leaves it unset."""
        handler: Handler | None = None
        try:
            self._inside = True
            handler = factory(self)
            await self._read(handler)
        except asyncio.CancelledError:
            if self._closing is None:  # grpc.aio cancels the coroutine of a stream that was reset
                raise
            self._reader.uncancel()
        except Exception:  # noqa: BLE001 - whatever it was, the stream must not end with OK
            _log.exception("the handler of a stream raised; the stream is closed with INTERNAL")
            self._closing = self._closing or (StatusCode.INTERNAL, "internal error")
        finally:
            self._inside = False
            self._over = True
            if handler is not None:
                _say_gone(handler, "closed" if self._closing is None else "sidecar_error")
        await self._finish()

    async def _read(self, handler: Handler) -> None:
        read = self._context.read
        while True:
            if self._unsent and not self._writing:
                self._writing = True
                self._inside = False
                await self._write()
            self._inside = False
            if self._closing is not None:
                return
            data = await read()
            if data is grpc.aio.EOF:  # type: ignore[attr-defined]  # the stubs do not know it
                return
            self._inside = True
            handler.message(data)

    async def _write(self) -> None:
        """Empty the queue, in order. Exactly one at a time: ``_writing`` was set by the caller."""
        try:
            while self._unsent:
                message = self._unsent.popleft()
                self._unsent_bytes -= len(message)
                await self._context.write(message)
        except grpc.aio.BaseError as error:  # the stream ended under us; the reader learns it by itself
            self._unsent.clear()
            _log.debug("a reply came too late: %s", error)
        finally:
            self._writing = False

    async def _finish(self) -> None:
        """What was sent before the end still goes out, then the code of an error close."""
        if self._writer is not None and not self._writer.done():
            await asyncio.wait({self._writer}, timeout=_FLUSH_S)
            self._writer.cancel()
        elif self._unsent:
            self._writing = True
            await self._write()
        if self._closing is not None:
            code, message = self._closing
            self._context.set_code(_CODES[code])
            self._context.set_details(message)


def _say_gone(handler: Handler, reason: GoneReason) -> None:
    try:
        handler.gone(reason)
    except Exception:  # noqa: BLE001 - the status of the stream does not depend on it
        _log.exception("the handler of a stream raised at its end")


class _Methods(grpc.GenericRpcHandler):  # type: ignore[type-arg]  # generic in the stubs only
    """Two methods, no (de)serializers."""

    def __init__(self, methods: dict[str, Any]) -> None:
        self._methods = methods

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> Any:
        return self._methods.get(handler_call_details.method)


class GrpcioTransport:
    """``Transport`` over grpc.aio. One per worker and loop (asyncio's or uvloop's)."""

    def __init__(self, listen: Listen, factory: HandlerFactory, health: Health) -> None:
        self._listen = listen
        self._factory = factory
        self._health = health
        self._streams: set[_Stream] = set()
        self._server: grpc.aio.Server | None = None
        self._stopping: asyncio.Task[None] | None = None
        self._idle = asyncio.Event()
        self._idle.set()
        self._address = ""
        self._mark: tuple[int, int] | None = None  # of the socket's file

    @property
    def address(self) -> str:
        return self._address

    @property
    def open_streams(self) -> int:
        return len(self._streams)

    async def start(self) -> None:
        target = addresses.checked(self._listen)
        server = grpc.aio.server(
            options=(
                ("grpc.max_receive_message_length", MESSAGE_BYTES_MAX),
                ("grpc.max_send_message_length", MESSAGE_BYTES_MAX),
                ("grpc.http2.min_ping_interval_without_data_ms", _PING_INTERVAL_MIN_MS),
                ("grpc.http2.max_ping_strikes", 0),
                ("grpc.keepalive_permit_without_calls", 1),
                ("grpc.so_reuseport", 0),  # two workers on one port would share it unevenly (ENVOY.md: 40/0)
            )
        )
        methods = {
            METHOD: grpc.stream_stream_rpc_method_handler(self._process),
            health_wire.METHOD: grpc.unary_unary_rpc_method_handler(self._check),
        }
        server.add_generic_rpc_handlers((_Methods(methods),))
        addresses.prepare(target)
        try:
            port = self._add_port(server, target)
        except RuntimeError as error:
            raise UsageError(f"cannot listen on {target}: {error}; is another process there?") from error
        addresses.protect(target, self._listen.socket_mode)
        self._mark = addresses.mark(target)
        self._address = target if target.startswith(addresses.UNIX) else f"{target.rpartition(':')[0]}:{port}"
        self._server = server
        await server.start()

    def _add_port(self, server: grpc.aio.Server, target: str) -> int:
        tls = self._listen.tls
        if tls is None:
            return server.add_insecure_port(target)
        pair = (addresses.read(tls.key_file), addresses.read(tls.cert_file))
        ca = addresses.read(tls.client_ca_file)
        return server.add_secure_port(target, grpc.ssl_server_credentials([pair], root_certificates=ca, require_client_auth=True))

    async def _process(self, _requests: object, context: _Context) -> None:
        if self._stopping is not None or len(self._streams) >= self._listen.streams_max:
            context.set_code(grpc.StatusCode.UNAVAILABLE)  # Envoy repeats it on another worker
            context.set_details("worker is full or stops")
            return
        reader = asyncio.current_task()
        assert reader is not None
        stream = _Stream(context, reader)
        self._streams.add(stream)
        self._idle.clear()
        try:
            await stream.serve(self._factory)
        finally:
            self._streams.discard(stream)
            if not self._streams:
                self._idle.set()

    async def _check(self, request: bytes, _context: _Context) -> bytes:
        return self._health.check(request)

    def stop_accepting(self) -> None:
        if self._server is not None and self._stopping is None:
            self._stopping = asyncio.get_running_loop().create_task(self._server.stop(_PATIENCE_S))

    async def drain(self, grace_s: float) -> bool:
        self.stop_accepting()
        try:
            await asyncio.wait_for(self._idle.wait(), grace_s)
        except TimeoutError:
            return False
        return True

    async def stop(self) -> None:
        self.stop_accepting()
        if self._server is None or self._stopping is None:
            return
        for stream in tuple(self._streams):
            stream.close(StatusCode.UNAVAILABLE, "worker stops")
        await self.drain(_FLUSH_S)
        await self._server.stop(None)
        await self._stopping
        addresses.release(self._address, self._mark)
