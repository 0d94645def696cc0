"""Where a gate worker listens, and the socket that the supervisor holds there for one worker after the other.

A worker that is replaced leaves no moment at which a connection is refused. After one that was killed, connections wait in the backlog for
the next one, unless somebody else serves: then they are turned away at once, and Envoy asks there. (Seen on a busy machine, where a worker
takes more than 3 s to start: with another one beside it, those that waited got 504, those that were turned away an answer.)
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
from collections.abc import Callable

from extproc.edge.transport import address as addresses
from extproc.edge.transport.port import Listen, TlsFiles
from extproc.settings import Settings

log = logging.getLogger(__name__)

INHERITING = "lean"
"""The transport that takes a socket from its parent. grpcio binds by itself: two of its processes cannot share an address."""


def listen_of(settings: Settings, slot: int, inherited_fd: int | None = None) -> Listen:
    """What the transport of worker ``slot`` is made with."""
    listen, tls = settings.listen, settings.listen.tls
    return Listen(
        address=listen.address_of(slot),
        inherited_fd=inherited_fd,
        socket_mode=listen.socket_mode,
        streams_max=listen.max_open_exchanges,
        insecure_loopback=listen.insecure_loopback,
        allowed_uids=listen.allowed_uids,
        tls=TlsFiles(cert_file=str(tls.cert_file), key_file=str(tls.key_file), client_ca_file=str(tls.client_ca_file)) if tls else None,
    )


class Endpoint:
    """A socket that listens, and its file."""

    def __init__(self, listen: Listen) -> None:
        """Raises UsageError when the address cannot be had."""
        self.socket: socket.socket = addresses.listening(listen)
        self.socket.setblocking(False)
        self._listen = listen
        self._mark = addresses.mark(listen.address)

    def restore(self) -> None:
        """Listen anew where the socket's file has gone: nobody could connect to whoever starts behind it. Raises UsageError."""
        if self._mark is None or addresses.mark(self._listen.address) is not None:
            return
        log.error("%s is gone: somebody has removed it; made anew", self._listen.address)
        fresh = addresses.listening(self._listen)
        self.wait()
        self.socket.close()
        self.socket = fresh
        self.socket.setblocking(False)
        self._mark = addresses.mark(self._listen.address)

    def turn_away(self, elsewhere: Callable[[], bool]) -> None:
        """While nobody accepts here: close what connects, as long as ``elsewhere`` says that somebody else serves."""
        asyncio.get_running_loop().add_reader(self.socket, self._turn_one_away, elsewhere)

    def wait(self) -> None:
        """Turn nobody away any more. Idempotent, even when it is closed."""
        if self.socket.fileno() >= 0:
            asyncio.get_running_loop().remove_reader(self.socket)

    def close(self) -> None:
        """Listen no more, as far as we are concerned: what nobody else listens on is refused from now on."""
        self.wait()
        self.socket.close()
        addresses.release(self._listen.address, self._mark)

    def _turn_one_away(self, elsewhere: Callable[[], bool]) -> None:
        if not elsewhere():
            self.wait()
            return
        with contextlib.suppress(OSError):  # it has left by itself
            self.socket.accept()[0].close()


def endpoints_of(settings: Settings) -> list[Endpoint] | list[None]:
    """One for each worker; ``None``: they bind by themselves. Raises UsageError, and holds nothing then."""
    slots = range(settings.listen.worker_count)
    if settings.listen.chosen_transport[0] != INHERITING:
        return [None for _ in slots]
    made: list[Endpoint] = []
    try:
        for slot in slots:
            made.append(Endpoint(listen_of(settings, slot)))  # noqa: PERF401 - those before one that fails are closed
    except BaseException:
        for endpoint in made:
            endpoint.close()
        raise
    return made
