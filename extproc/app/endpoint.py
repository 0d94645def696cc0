"""Where a gate worker listens, and the socket that the supervisor holds there for one worker after the other.

Whoever holds it keeps connections waiting in its backlog: a worker that is killed or replaced leaves no moment at which one is refused.
"""

from __future__ import annotations

import socket

from extproc.edge.transport import address as addresses
from extproc.edge.transport.port import Listen, TlsFiles
from extproc.settings import Settings

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
        self._address = listen.address
        self._mark = addresses.mark(listen.address)

    def close(self) -> None:
        """Listen no more, as far as we are concerned: what nobody else listens on is refused from now on."""
        self.socket.close()
        addresses.release(self._address, self._mark)


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
