"""Gate workers of this host that were killed: a rebuild need not wait until their registration has grown old.

What a dead worker held open nobody can tell any more; its endings are in its outbox, and its leases run out. A process is known by its
number and the tick it started at, among those of one PID namespace of one boot: numbers are used again.
"""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import Final, Protocol

from extproc.settlement.meter import Meter, Series
from extproc.settlement.pace import Pace, keep_doing

LOOK_EVERY_S: Final = 1.0
_STARTED: Final = 19  # of the fields of /proc/PID/stat behind the name in brackets (proc(5): the 22nd)


class Workers(Protocol):
    """The register of gate workers."""

    async def of_host(self, host: str) -> Mapping[str, str]:
        """Id → name of those whose name begins with this host's."""

    async def dismiss(self, worker_id: str) -> None:
        """It holds nothing any more, and never will."""


class Undertaker:
    """``run`` looks once a second; any settler of a host may, whoever leads."""

    def __init__(self, workers: Workers, *, meter: Meter, pace: Pace) -> None:
        self._workers = workers
        self._meter = meter
        self._pace = pace

    async def run(self) -> None:
        """Until the pace is over."""
        await keep_doing(self.step, pace=self._pace, meter=self._meter, failures=Series.SWEEP_FAILURES)

    async def step(self) -> float:
        """One look."""
        found = await self._workers.of_host(host_name())
        dead = [worker_id for worker_id, name in found.items() if not _lives(*name.split()[-2:])]
        await asyncio.gather(*(self._workers.dismiss(worker_id) for worker_id in dead))
        return LOOK_EVERY_S


def host_name() -> str:
    """Host, boot and PID namespace that we run in."""
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().partition("-")[0]
    return f"{socket.gethostname()}/{boot}/{Path('/proc/self/ns/pid').stat().st_ino}"


def worker_name(slot: int) -> str:
    """What this process registers as: host, slot, number, tick of its start."""
    pid = os.getpid()
    return f"{host_name()} gate-{slot} {pid} {_started(pid)}"


def _lives(pid: str, started: str) -> bool:
    return _started(int(pid)) == int(started)


def _started(pid: int) -> int | None:
    """In ticks since the boot; ``None``: there is no such process, or only what is left of one."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] == "Z" else int(fields[_STARTED])
