"""A started process that never outlives us.

An engine is started through a tiny launcher that asks the kernel to end it when its parent dies (``PR_SET_PDEATHSIG``), gives up root
where a user is named, and then becomes the program by ``exec``: same pid, nothing in between. A ``preexec_fn`` could do the same, but
runs Python between fork and exec, which may dead-lock as soon as the parent has threads (gRPC has). Price: 20 ms a start.

The kernel watches the *thread* that started the child. Start engines from a thread that lives as long as they shall: the main thread.
"""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import subprocess
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from extproc.errors import UsageError

LOG_TAIL_BYTES_MAX = 4_096
"""Of the log in an error message: the last screen or so."""

POLL_S = 0.005
"""How often a condition of another process is looked at: short against every start that was measured (14 ms and more)."""

KILL_WAIT_S = 10.0
"""For the kernel to take a killed process away: only a process in uninterruptible sleep needs longer than milliseconds."""

SOCKET_PATH_BYTES_MAX = 107
"""Of a Unix socket's path on Linux, the closing zero not counted."""

_LAUNCHER = """
import ctypes, os, sys
parent, death_signal, uid, gid = map(int, sys.argv[1:5])
cwd, *argv = sys.argv[5:]
if uid >= 0:
    os.setgroups([]); os.setgid(gid); os.setuid(uid)
if ctypes.CDLL(None, use_errno=True).prctl(1, death_signal, 0, 0, 0):
    sys.exit("prctl: " + os.strerror(ctypes.get_errno()))
if os.getppid() != parent:
    sys.exit("the parent has died")
os.chdir(cwd)
os.execv(argv[0], argv)
"""


class EngineFailed(UsageError):
    """An engine ended or did not become ready; the message carries the end of its log."""


class Engine:
    """One running process with its log file. ``stop`` and ``kill`` may be called at any time and more than once."""

    def __init__(self, name: str, process: subprocess.Popen[bytes], log_file: Path, stop_signal: signal.Signals) -> None:
        self.name = name
        self.log_file = log_file
        self.pid = process.pid
        self._process = process
        self._stop_signal = stop_signal

    @classmethod
    def start(
        cls,
        name: str,
        argv: Sequence[str],
        *,
        log_file: Path,
        environ: Mapping[str, str] | None = None,
        user: pwd.struct_passwd | None = None,
        cwd: Path = Path("/"),
        stop_signal: signal.Signals = signal.SIGTERM,
        death_signal: signal.Signals = signal.SIGKILL,
        pass_fds: Sequence[int] = (),
    ) -> Engine:
        """Start ``argv`` (its first word: an absolute path). Output is appended to ``log_file``. ``user``: whom to become, root only.

        ``environ`` adds to our own environment. ``death_signal`` is what the kernel sends when we die.
        """
        assert Path(argv[0]).is_absolute(), argv[0]
        uid, gid = (user.pw_uid, user.pw_gid) if user is not None else (-1, -1)
        launch = [sys.executable, "-I", "-S", "-c", _LAUNCHER, str(os.getpid()), str(int(death_signal)), str(uid), str(gid), str(cwd)]
        log_file.parent.mkdir(parents=True, exist_ok=True)
        with log_file.open("ab") as log:
            process = subprocess.Popen(  # noqa: S603 - our own argv, no shell
                [*launch, *argv],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env={**os.environ, **(environ or {})},
                # A session of its own: Ctrl-C reaches us alone, and we end the engines in order.
                start_new_session=True,
                pass_fds=tuple(pass_fds),
            )
        return cls(name, process, log_file, stop_signal)

    @property
    def alive(self) -> bool:
        return self._process.poll() is None

    @property
    def returncode(self) -> int | None:
        """Exit code, negative for a signal; ``None`` while it runs."""
        return self._process.poll()

    def wait_ready(self, probe: Callable[[], bool], *, deadline_s: float = 30.0) -> None:
        """Until ``probe()`` is true. Raises :class:`EngineFailed` when the process ends first or the deadline passes (then it is ended)."""
        end = time.monotonic() + deadline_s
        while not probe():
            if not self.alive:
                raise EngineFailed(f"{self.name} ended at its start with code {self.returncode}:\n{self.log_tail()}")
            if time.monotonic() > end:
                self.kill()
                raise EngineFailed(f"{self.name} was not ready within {deadline_s:g} s:\n{self.log_tail()}")
            time.sleep(POLL_S)

    def wait(self, timeout_s: float) -> int | None:
        """The exit code once it has ended, or ``None`` after ``timeout_s``."""
        try:
            return self._process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            return None

    def signal(self, number: signal.Signals) -> None:
        """Send a signal; nothing happens if the process has ended."""
        self._process.send_signal(number)

    def stop(self, grace_s: float = 10.0) -> int | None:
        """Ask it to end; after ``grace_s`` end its whole process group. Its exit code."""
        self.signal(self._stop_signal)
        code = self.wait(grace_s)
        return code if code is not None else self._end_group()

    def kill(self) -> int | None:
        """SIGKILL to the process alone, as a crash would be. Its exit code."""
        self._process.kill()
        return self.wait(KILL_WAIT_S)

    def log_tail(self) -> str:
        """The end of what it printed."""
        with self.log_file.open("rb") as log:
            log.seek(max(0, log.seek(0, os.SEEK_END) - LOG_TAIL_BYTES_MAX))
            return log.read().decode(errors="replace")

    def _end_group(self) -> int | None:
        # The process is not reaped yet, so its pid, which is its group's id too, cannot belong to anybody else.
        os.killpg(self.pid, signal.SIGKILL)
        return self.wait(KILL_WAIT_S)


class Server(ABC):
    """What can be stopped, killed and started again on the same data: ``engine`` is another process each time."""

    engine: Engine

    @property
    def pid(self) -> int:
        return self.engine.pid

    def stop(self, grace_s: float = 10.0) -> None:
        """It ends in its own way, as long as that takes no longer."""
        self.engine.stop(grace_s)

    def kill(self) -> None:
        """As a crash would be."""
        self.engine.kill()

    def start_again(self) -> None:
        """After :meth:`stop` or :meth:`kill`."""
        assert not self.engine.alive
        self.engine = self._start()

    @abstractmethod
    def _start(self) -> Engine:
        """A process that is ready."""


def find_program(*names: str) -> Path | None:
    """The first of ``names`` on PATH or in the folders that a plain user's PATH often lacks."""
    path = os.pathsep.join((os.environ.get("PATH", os.defpath), "/usr/sbin", "/usr/local/sbin"))
    found = (shutil.which(name, path=path) for name in names)
    return next((Path(program) for program in found if program), None)


def socket_path_fits(path: Path) -> bool:
    """Whether a Unix socket may have this path."""
    return len(os.fsencode(path)) <= SOCKET_PATH_BYTES_MAX
