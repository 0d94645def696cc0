"""Where the parts of a local stack live: in one directory, as far as sockets and PostgreSQL allow.

A Unix socket's path has 107 bytes at most, and PostgreSQL, which does not run as root, must be able to enter every folder above its
data. Where the directory is too deep, it gets a short second name (a link) below ``/tmp``; where PostgreSQL could not enter it, the
database lives below ``/var/tmp``. Both are folders that belong to us, and both are found again by the next start.
"""

from __future__ import annotations

import fcntl
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Final

from extproc.errors import UsageError
from extproc.local.engine import socket_path_fits

LONGEST_SOCKET: Final = "postgres/run/.s.PGSQL.5432.lock"
SHORT: Final = Path("/tmp")  # noqa: S108 - the folder in it is checked to be ours
SETTINGS: Final = "extproc.yaml"
LASTING: Final = Path("/var/tmp")  # noqa: S108 - likewise; survives a restart of the machine


@dataclass(frozen=True, slots=True, kw_only=True)
class Places:
    """``data`` is what the operator named; ``home`` the same directory by a name that is short enough for sockets."""

    data: Path
    home: Path
    postgres: Path

    @property
    def settings(self) -> Path:
        return self.data / SETTINGS

    @property
    def catalog(self) -> Path:
        return self.data / "models.yaml"

    @property
    def facts(self) -> Path:
        return self.data / "up.json"

    @property
    def state(self) -> Path:
        return self.data / "state.json"

    @property
    def salt_key(self) -> Path:
        return self.data / "cache-salt.key"

    @property
    def sockets(self) -> Path:
        return self.home / "run"

    @property
    def logs(self) -> Path:
        return self.data / "logs"

    def leave(self) -> None:
        """Take the short name away; the next start makes it again."""
        if self.home != self.data:
            self.home.unlink(missing_ok=True)
            self.home.parent.rmdir()


def prepare(data: Path) -> Places:
    """Make the directory and find places for everything in it."""
    data = data.absolute()
    is_root = os.geteuid() == 0
    try:
        # As root, PostgreSQL is somebody else and must come through; what is secret in here has its own mode.
        data.mkdir(parents=True, exist_ok=True, mode=0o711 if is_root else 0o700)
    except (FileExistsError, NotADirectoryError):
        raise UsageError(f"{data} is not a directory") from None
    except OSError as error:
        raise UsageError(f"{data} cannot be made: {error.strerror}") from error
    if not os.access(data, os.W_OK | os.X_OK):
        raise UsageError(f"{data} is not writable for you")
    home = data if socket_path_fits(data / LONGEST_SOCKET) else _short_name(data)
    places = Places(data=data, home=home, postgres=home / "postgres")
    if is_root and not _anybody_may_enter(data):
        places = Places(data=data, home=home, postgres=_own_folder(LASTING, data) / "postgres")
    places.sockets.mkdir(mode=0o750, exist_ok=True)
    places.logs.mkdir(mode=0o700, exist_ok=True)
    return places


@contextmanager
def claim(data: Path) -> Iterator[None]:
    """Be the only stack on this directory: a lock that the kernel lets go of, whatever ends us."""
    descriptor = os.open(data / "up.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UsageError(f"a stack is running on {data} already: `extproc down --data {data}` ends it") from None
        os.truncate(descriptor, 0)
        os.write(descriptor, f"{os.getpid()}\n".encode())
        yield
    finally:
        os.close(descriptor)


def claimant(data: Path) -> int | None:
    """The pid of the ``up`` that runs on this directory; ``None``: none does."""
    try:
        descriptor = os.open(data / "up.lock", os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        text = os.read(descriptor, 32).strip()
        return int(text) if text else None
    finally:
        os.close(descriptor)
    return None


def lives(pid: int) -> bool:
    """Neither gone nor a zombie: one whose parent has left waits for an init that may not look."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def write_private(path: Path, text: str) -> None:
    """Whole or not at all, and never readable by others for a moment."""
    unfinished = path.with_name(path.name + ".part")
    unfinished.unlink(missing_ok=True)
    with os.fdopen(os.open(unfinished, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(text)
    unfinished.rename(path)


def _short_name(data: Path) -> Path:
    link = _own_folder(SHORT, data) / "d"
    if not link.is_symlink():
        link.symlink_to(data)
    return link


def _own_folder(parent: Path, data: Path) -> Path:
    """Always the same one for the same directory, and surely ours: anybody may make folders in ``parent``."""
    folder = parent / f"extproc-{os.geteuid()}-{sha256(os.fsencode(data)).hexdigest()[:12]}"
    folder.mkdir(mode=0o711 if os.geteuid() == 0 else 0o700, exist_ok=True)
    status = folder.lstat()
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.geteuid():
        raise UsageError(f"{folder} belongs to somebody else: choose another data directory")
    return folder


def _anybody_may_enter(path: Path) -> bool:
    real = path.resolve()
    return all(folder.stat().st_mode & stat.S_IXOTH for folder in (real, *real.parents))
