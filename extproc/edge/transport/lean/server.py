"""``Transport`` over our own connections: one listening socket, ext_proc and health on it."""

from __future__ import annotations

import asyncio
import logging
import socket
import ssl
import struct
import sys
from typing import Any, Final

from extproc.edge import health as health_wire
from extproc.edge.health import Health
from extproc.edge.transport import address as addresses
from extproc.edge.transport.lean import limits
from extproc.edge.transport.lean.messages import UNIMPLEMENTED
from extproc.edge.transport.lean.protocol import CLOSE_S, GOAWAY_GAP_S, LeanCall, LeanProtocol
from extproc.edge.transport.port import METHOD, GoneReason, HandlerFactory, Listen, StatusCode, TlsFiles
from extproc.errors import UsageError

_log = logging.getLogger(__name__)

_PROCESS: Final = METHOD.encode()
_CHECK: Final = health_wire.METHOD.encode()

_HANDSHAKE_S: Final = 3.0
"""For TLS, where Envoy needs milliseconds: a peer that says nothing holds a descriptor for so long, and needs no certificate for it."""

_PEER: Final = struct.Struct("3i")
"""struct ucred of Linux: pid, uid, gid."""


class _HealthCheck:
    """Handler of one health check: an answer to each message."""

    __slots__ = ("_call", "_health")

    def __init__(self, call: LeanCall, health: Health) -> None:
        self._call = call
        self._health = health

    def message(self, data: bytes) -> None:
        self._call.send(self._health.check(data))

    def gone(self, reason: GoneReason) -> None:
        """Nothing is kept."""


class LeanTransport:
    """``Transport`` of one worker and loop (asyncio's or uvloop's)."""

    def __init__(self, listen: Listen, factory: HandlerFactory, health: Health) -> None:
        self._listen = listen
        self._factory = factory
        self._health = health
        self._server: asyncio.Server | None = None
        self._connections: set[LeanProtocol] = set()
        self._open_streams = 0
        self._address = ""
        self._mark: tuple[int, int] | None = None  # of the socket's file
        self._stopping = False
        self._refusing = False  # the final GOAWAYs are out
        self._quiet = asyncio.Event()  # stopping, and everything that came before the final GOAWAYs has ended
        self._disconnected = asyncio.Event()
        self._disconnected.set()

    @property
    def address(self) -> str:
        return self._address

    @property
    def open_streams(self) -> int:
        return self._open_streams

    # ---- the port

    async def start(self) -> None:
        listen = self._listen
        target = addresses.checked(listen)
        context = _tls(listen.tls)
        if listen.inherited_fd is None:
            listening = addresses.listening(listen)
            self._mark = addresses.mark(target)
        else:
            listening = addresses.adopted(listen.inherited_fd)
        self._address = target
        if listening.family != socket.AF_UNIX:
            self._address = f"{target.rpartition(':')[0]}:{listening.getsockname()[1]}"
        loop = asyncio.get_running_loop()
        options: dict[str, Any] = {"sock": listening, "backlog": addresses.BACKLOG, "ssl": context}
        if context is not None:
            options["ssl_handshake_timeout"] = _HANDSHAKE_S
        if listening.family != socket.AF_UNIX:
            self._server = await loop.create_server(lambda: LeanProtocol(self, loop), **options)
            return
        if sys.version_info >= (3, 13):
            options["cleanup_socket"] = False  # by default the file of a socket that others listen with would go, too
        self._server = await loop.create_unix_server(lambda: LeanProtocol(self, loop), **options)

    def stop_accepting(self) -> None:
        if self._server is None or self._stopping:
            return
        self._stopping = True
        self._server.close()
        for protocol in tuple(self._connections):
            protocol.drain()
        if self._connections:
            asyncio.get_running_loop().call_later(GOAWAY_GAP_S, self._refuse_more)
        else:
            self._refuse_more()

    async def drain(self, grace_s: float) -> bool:
        self.stop_accepting()
        if self._server is None:
            return True
        try:
            await asyncio.wait_for(self._quiet.wait(), grace_s)
        except TimeoutError:
            return False
        return True

    async def stop(self) -> None:
        self.stop_accepting()
        if self._server is None:
            return
        for protocol in tuple(self._connections):
            protocol.stop()
        try:
            await asyncio.wait_for(self._disconnected.wait(), CLOSE_S)
        except TimeoutError:
            for protocol in tuple(self._connections):
                protocol.abort()
            await self._disconnected.wait()
        self._server = None
        addresses.release(self._address, self._mark)

    def _refuse_more(self) -> None:
        self._refusing = True
        for protocol in tuple(self._connections):
            protocol.refuse_more()
        self._check_quiet()

    def _check_quiet(self) -> None:
        if self._refusing and not self._open_streams:
            self._quiet.set()

    # ---- the host of connections

    def arrived(self, protocol: LeanProtocol, transport: asyncio.Transport) -> bool:
        self._connections.add(protocol)
        self._disconnected.clear()
        if self._refusing or len(self._connections) > limits.CONNECTIONS_MAX:
            return False
        if self._stopping:  # it was accepted, or shook hands, while the first GOAWAYs went out: served until the final ones do
            protocol.drain()
        return (self._listen.tls is None or _speaks_h2(transport)) and self._known(transport)

    def _known(self, transport: asyncio.Transport) -> bool:
        """Whether the peer's user may talk to us (ENVOY.md: who may connect to us)."""
        allowed = self._listen.allowed_uids
        if allowed is None or not self._address.startswith(addresses.UNIX):
            return True
        peer = transport.get_extra_info("socket").getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _PEER.size)
        uid = _PEER.unpack(peer)[1]
        if uid not in allowed:
            _log.warning("a connection of uid %d was refused: it is not among allowed_uids", uid)
        return uid in allowed

    def left(self, protocol: LeanProtocol) -> None:
        self._connections.discard(protocol)
        if not self._connections:
            self._disconnected.set()

    def answer(self, call: LeanCall, path: bytes) -> None:
        if path == _PROCESS:
            self._process(call)
        elif path == _CHECK:
            call.handler = _HealthCheck(call, self._health)
        else:
            call.end(UNIMPLEMENTED, "unknown method")

    def _process(self, call: LeanCall) -> None:
        if self._open_streams >= self._listen.streams_max:
            call.close(StatusCode.UNAVAILABLE, "worker is full")  # Envoy repeats it on another worker
            return
        self._open_streams += 1
        call.counted = True
        try:
            call.handler = self._factory(call)
        except Exception:  # noqa: BLE001 - whatever it was, the stream must not end with OK
            _log.exception("no handler could be made for a stream; it is closed with INTERNAL")
            call.close(StatusCode.INTERNAL, "internal error")

    def gone(self, call: LeanCall, reason: GoneReason) -> None:
        handler, call.handler = call.handler, None
        if call.counted:
            self._open_streams -= 1
            self._check_quiet()
        if handler is None:
            return
        try:
            handler.gone(reason)
        except Exception:  # noqa: BLE001 - the status of the stream does not depend on it
            _log.exception("the handler of a stream raised at its end")


def _speaks_h2(transport: asyncio.Transport) -> bool:
    tls_object = transport.get_extra_info("ssl_object")
    chosen = tls_object is not None and tls_object.selected_alpn_protocol() == "h2"
    if not chosen:
        _log.warning("a TLS connection without ALPN h2 was refused: Envoy's cluster needs alpn_protocols: [h2]")
    return chosen


def _tls(files: TlsFiles | None) -> ssl.SSLContext | None:
    """HTTP/2 only, client certificate required. Raises UsageError."""
    if files is None:
        return None
    for path in (files.cert_file, files.key_file, files.client_ca_file):
        addresses.read(path)
    try:
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=files.client_ca_file)
        context.load_cert_chain(files.cert_file, files.key_file)
    except ssl.SSLError as error:
        raise UsageError(f"{files.cert_file}, {files.key_file}, {files.client_ca_file}: {error.reason or error}") from error
    context.verify_mode = ssl.CERT_REQUIRED
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(["h2"])
    return context
