"""What every child of the supervisor does the same way: arguments, signals, heartbeat, and not outliving its parent."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import ctypes
import logging
import os
import signal
import sys
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path

import uvloop

from extproc.app import room
from extproc.app.logs import set_up
from extproc.errors import ExtprocError
from extproc.settings import Settings, load_settings

log = logging.getLogger(__name__)

_PR_SET_PDEATHSIG = 1
HEARTBEAT_S = 1.0
BEAT, QUITS = b".", b"-"  # what a child says to its parent
CUT_S = 2.0  # how long a stream that was cut may take to pass its error event on
FLUSH_S = 10.0  # how long charges may take to be safe once everything is quiet
COMMIT_S = 2.0  # how long the outbox may take for what Redis has already
CLOSE_S = 12.0  # for connections to be closed, those of Envoy (2 s), PostgreSQL (5 s) and Redis, with room for a busy machine
SETTLE_S = 8.0  # how long the settler's loops may take for what gates have left; then they are given up, the next settler goes on
HUNG_S = 10.0  # beyond it, for statements that a PostgreSQL which hangs does not even end: they are cut
LEAVE_S = CUT_S + FLUSH_S + COMMIT_S + CLOSE_S  # beyond drain.grace_s: the longest that a gate takes; the supervisor waits for so long
SETTLER_LEAVE_S = SETTLE_S + HUNG_S + CLOSE_S  # likewise, the settler
ALL_LEAVE_S = LEAVE_S + SETTLER_LEAVE_S  # likewise, for the gates, and then the settler: whoever stops the supervisor waits for so long


@dataclass(frozen=True, slots=True, kw_only=True)
class Child:
    """What a child knows of itself. ``stop`` is set by SIGTERM; ``hang_ups`` are called on SIGHUP, ``chores`` with every beat.

    ``listen_fd``: the supervisor's socket for this slot, if it listens for us. ``is_successor``: somebody serves
    there, and leaves when we are ready.
    """

    slot: int
    heartbeat_fd: int
    listen_fd: int | None
    stop: asyncio.Event
    hang_ups: list[Callable[[], object]]
    chores: list[Callable[[], object]]
    is_successor: bool = False

    async def beat(self) -> None:
        """Tell the supervisor that this loop runs; the first time: that we are ready. Ends when nobody listens any more."""
        while True:
            try:
                os.write(self.heartbeat_fd, BEAT)
            except BlockingIOError:
                pass  # the supervisor is asleep; it will read later
            except OSError:
                return
            for chore in self.chores:
                chore()
            await asyncio.sleep(HEARTBEAT_S)

    def quit(self) -> None:
        """Tell the supervisor that we leave. If it has not told us to, it starts another one without waiting for our end."""
        with contextlib.suppress(OSError):
            os.write(self.heartbeat_fd, QUITS)


def run(name: str, main: Callable[[Settings, Child], Awaitable[None]]) -> None:
    """Parse the supervisor's arguments and run ``main`` on uvloop; exit code 1 with one clear line if it cannot start."""
    parser = argparse.ArgumentParser(prog=f"extproc {name}")
    parser.add_argument("--slot", type=int, required=True)
    parser.add_argument("--heartbeat-fd", type=int, required=True)
    parser.add_argument("--parent", type=int, required=True)
    parser.add_argument("--listen-fd", type=int)
    parser.add_argument("--config", type=Path)
    parser.add_argument("--successor", action="store_true")
    words = parser.parse_args()
    _die_with(words.parent)
    os.set_blocking(words.heartbeat_fd, False)
    try:
        settings = load_settings(words.config, os.environ)
        set_up(level=settings.log.level, form=settings.log.format, process=name if words.slot < 0 else f"{name}-{words.slot}")
        room.reserve(Path(os.environ["PROMETHEUS_MULTIPROC_DIR"]), os.getpid())
        uvloop.run(_main(settings, words, main))
    except ExtprocError as error:
        print(f"extproc {name}: {error}", file=sys.stderr)  # noqa: T201 - the log may not be set up yet
        sys.exit(1)


async def _main(settings: Settings, words: argparse.Namespace, main: Callable[[Settings, Child], Awaitable[None]]) -> None:
    child = Child(
        slot=words.slot,
        heartbeat_fd=words.heartbeat_fd,
        listen_fd=words.listen_fd,
        stop=asyncio.Event(),
        hang_ups=[],
        chores=[],
        is_successor=words.successor,
    )
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGTERM, child.stop.set)
    for number in (signal.SIGINT, signal.SIGUSR2):  # sent to all of us at once: they are the supervisor's, which leads us out
        loop.add_signal_handler(number, lambda: None)
    loop.add_signal_handler(signal.SIGHUP, lambda: [hang_up() for hang_up in child.hang_ups])
    await main(settings, child)


def _die_with(parent: int) -> None:
    """A supervisor that was killed leaves nobody behind: its children drain."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
    if os.getppid() != parent:
        sys.exit(1)
