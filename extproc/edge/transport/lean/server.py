"""``Transport`` over our own connections: one listening socket, ext_proc and health on it."""

from __future__ import annotations

import asyncio
import logging
import socket
import ssl
import struct
from pathlib import Path
from typing import Final

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

_BACKLOG: Final = 1_024
"""Connections that may wait to be accepted: after a restart every thread of every Envoy comes at once."""

_HANDSHAKE_S: Final = 10.0
"""For TLS."""

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
        target = addresses.checked(self._listen)
        loop = asyncio.get_running_loop()
        context = _tls(self._listen.tls)
        listening = _bound(target, self._listen.socket_mode)
        self._mark = addresses.mark(target)
        self._address = target
        if not target.startswith(addresses.UNIX):
            self._address = f"{target.rpartition(':')[0]}:{listening.getsockname()[1]}"

        def made() -> LeanProtocol:
            return LeanProtocol(self, loop)

        handshake_s = _HANDSHAKE_S if context is not None else None
        if listening.family == socket.AF_UNIX:
            self._server = await loop.create_unix_server(
                made, sock=listening, backlog=_BACKLOG, ssl=context, ssl_handshake_timeout=handshake_s
            )
        else:
            self._server = await loop.create_server(made, sock=listening, backlog=_BACKLOG, ssl=context, ssl_handshake_timeout=handshake_s)

    def stop_accepting(self) -> None:
        self._health.withdraw()
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
        if self._stopping or len(self._connections) > limits.CONNECTIONS_MAX:
            return False
        if self._listen.tls is not None:
            return _speaks_h2(transport)
        return self._known(transport)

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


def _bound(target: str, socket_mode: int) -> socket.socket:
    """A socket that does not listen yet: its mode is set before anybody can connect. Raises UsageError."""
    addresses.prepare(target)
    host, _, port = target.rpartition(":")
    unix = target.startswith(addresses.UNIX)
    family = socket.AF_UNIX if unix else socket.AF_INET6 if ":" in host else socket.AF_INET
    bound = socket.socket(family, socket.SOCK_STREAM)
    try:
        if unix:
            _clear(target)
            bound.bind(target.removeprefix(addresses.UNIX))
            addresses.protect(target, socket_mode)
        else:
            bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            bound.bind((host.strip("[]"), int(port)))
    except OSError as error:
        bound.close()
        raise UsageError(f"cannot listen on {target}: {error.strerror}; is another process there?") from error
    except UsageError:
        bound.close()
        raise
    return bound


def _clear(target: str) -> None:
    """Remove the socket that a killed worker left; nothing else. Raises UsageError."""
    path = Path(target.removeprefix(addresses.UNIX))
    if not path.exists():
        return
    if not path.is_socket():
        raise UsageError(f"cannot listen on {target}: there is a file of that name that is no socket")
    if _somebody_listens(str(path)):
        raise UsageError(f"cannot listen on {target}: another process does; stop it first")
    path.unlink()


def _somebody_listens(path: str) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)
        try:
            probe.connect(path)
        except BlockingIOError:  # somebody who is very busy
            return True
        except (FileNotFoundError, ConnectionRefusedError):
            return False
    return True


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
