"""Addresses of workers and the sockets that listen on them: who may connect to us is decided here.

Unix sockets in a closed directory, or the loopback, or mutual TLS. A socket is bound by the supervisor, which hands it to one worker after
the other (``listening``, ``adopted``), or by the transport itself.
"""

from __future__ import annotations

import ipaddress
import socket
from pathlib import Path
from typing import Final

from extproc.edge.transport.port import Listen
from extproc.errors import UsageError

UNIX: Final = "unix:"

_DIRECTORY_MODE: Final = 0o750
"""Of the sockets' directory: Envoy shares our group, nobody else gets in, not even between bind and chmod."""

_SUN_PATH_MAX: Final = 107
"""Bytes of a Unix socket's path on Linux, without the final NUL."""

BACKLOG: Final = 1_024
"""Connections that may wait to be accepted: after a restart every thread of every Envoy comes at once, and a worker that was killed leaves
its own to the next one."""


def checked(listen: Listen) -> str:
    """The address, if it is one that we may listen on. Raises UsageError."""
    address = listen.address
    if address.startswith(UNIX):
        path = address.removeprefix(UNIX)
        if not path or len(path.encode()) > _SUN_PATH_MAX:
            raise UsageError(f"{address}: a Unix socket's path has 1 to {_SUN_PATH_MAX} bytes; use a shorter directory")
        return address
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit():
        raise UsageError(f"{address}: expected unix:path or host:port (abstract sockets have no file mode, so they are not served)")
    if listen.tls is not None:
        return address
    if not _is_loopback(host):
        raise UsageError(f"{address}: plain TCP only on the loopback; use a Unix socket, or listen.tls")
    if not listen.insecure_loopback:
        raise UsageError(f"{address}: everybody on this machine could connect; say insecure_loopback: true, or use a Unix socket")
    return address


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def listening(listen: Listen) -> socket.socket:
    """A socket that listens there. Its mode is set before anybody can connect. Raises UsageError."""
    target = checked(listen)
    prepare(target)
    host, _, port = target.rpartition(":")
    unix = target.startswith(UNIX)
    family = socket.AF_UNIX if unix else socket.AF_INET6 if ":" in host else socket.AF_INET
    bound = socket.socket(family, socket.SOCK_STREAM)
    try:
        if unix:
            _clear(target)
            bound.bind(target.removeprefix(UNIX))
            protect(target, listen.socket_mode)
        else:
            bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            bound.bind((host.strip("[]"), int(port)))
        bound.listen(BACKLOG)
    except OSError as error:
        bound.close()
        raise UsageError(f"cannot listen on {target}: {error.strerror}; is another process there?") from error
    except UsageError:
        bound.close()
        raise
    return bound


def adopted(inherited_fd: int) -> socket.socket:
    """The socket that our parent listens with, for us alone: what we start does not get it."""
    inherited = socket.socket(fileno=inherited_fd)
    inherited.set_inheritable(False)
    return inherited


def prepare(address: str) -> None:
    """Make the socket's directory, closed to others. One that is there keeps its mode: it may be the operator's."""
    if not address.startswith(UNIX):
        return
    directory = Path(address.removeprefix(UNIX)).parent
    if not directory.exists():
        directory.mkdir(parents=True)
        directory.chmod(_DIRECTORY_MODE)


def _clear(target: str) -> None:
    """Remove the socket that a killed process left; nothing else. Raises UsageError."""
    path = Path(target.removeprefix(UNIX))
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


def protect(address: str, socket_mode: int) -> None:
    """Set the mode of a bound socket."""
    if address.startswith(UNIX):
        Path(address.removeprefix(UNIX)).chmod(socket_mode)


def mark(address: str) -> tuple[int, int] | None:
    """What tells a bound socket's file from a later one of the same name (``None``: it is no file, or gone)."""
    if not address.startswith(UNIX):
        return None
    try:
        stat = Path(address.removeprefix(UNIX)).stat()
    except OSError:
        return None
    return stat.st_ino, stat.st_ctime_ns


def release(address: str, ours: tuple[int, int] | None) -> None:
    """Remove the socket's file, if the server left it. A worker that drains for long must not take its successor's file away."""
    if ours is not None and mark(address) == ours:
        Path(address.removeprefix(UNIX)).unlink(missing_ok=True)


def read(path: str) -> bytes:
    """A PEM file. Raises UsageError."""
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror}") from error
