"""CPU time of other processes, from the operating system's accounting: all threads, living or ended, user and system.

The kernel's CPU clock of a process (``clock_gettime`` with the id that glibc's ``clock_getcpuclockid`` makes of a pid) counts what
``utime + stime`` of ``/proc/PID/stat`` counts, in nanoseconds instead of ticks of 10 ms: short runs stay exact. The smoke test compares both.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

TICK_NS = 1_000_000_000 // os.sysconf("SC_CLK_TCK")


def cpu_ns(pid: int) -> int:
    """Of one process since its start."""
    return time.clock_gettime_ns(((~pid) << 3) | 2)


def ticks_ns(pid: int) -> tuple[int, int]:
    """``/proc/PID/stat``: (own, of children that were waited for), as coarse as ticks are."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    utime, stime, cutime, cstime = map(int, fields[11:15])
    return (utime + stime) * TICK_NS, (cutime + cstime) * TICK_NS


def thread_names_ns(pid: int) -> dict[str, int]:
    """CPU of the living threads of a process, added up by name; the first one is ``main``."""
    found: dict[str, int] = {}
    for task in Path(f"/proc/{pid}/task").iterdir():
        name = "main" if task.name == str(pid) else (task / "comm").read_text().strip()
        found[name] = found.get(name, 0) + int((task / "schedstat").read_text().split()[0])
    return found


def children(pid: int) -> list[int]:
    """Live direct children."""
    found: list[int] = []
    for task in Path(f"/proc/{pid}/task").iterdir():
        found += map(int, (task / "children").read_text().split())
    return found


def tree_ns(pid: int) -> int:
    """Of a process and everything below it. Who ends meanwhile goes on counting, at its parent."""
    total = cpu_ns(pid) + ticks_ns(pid)[1]
    for child in children(pid):
        try:
            total += tree_ns(child)
        except OSError:  # it has just ended; the next reading finds it at its parent
            continue
    return total


class Accounts:
    """Named groups of processes and what each has used so far. ``trees``: groups whose children count."""

    def __init__(self, groups: Mapping[str, Sequence[int]], *, trees: Sequence[str] = ()) -> None:
        self._groups = {name: tuple(pids) for name, pids in groups.items()}
        self._trees = frozenset(trees)

    def pids(self, group: str) -> tuple[int, ...]:
        return self._groups[group]

    def read(self) -> dict[str, int]:
        """Nanoseconds by group."""
        return {name: sum(map(tree_ns if name in self._trees else cpu_ns, pids)) for name, pids in self._groups.items()}
