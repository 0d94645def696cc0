"""Memory of other processes, as the kernel accounts for it."""

from __future__ import annotations

from pathlib import Path

KB = 1_024


def rss_bytes(pid: int) -> int:
    """Pages of a process that are in memory, shared ones included (they do not grow with what it does)."""
    return _of(pid, "Rss:")


def private_bytes(pid: int) -> int:
    """Pages that it has written and nobody shares."""
    return _of(pid, "Private_Dirty:")


def _of(pid: int, name: str) -> int:
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith(name):
            return int(line.split()[1]) * KB
    raise LookupError(f"{name} of process {pid}")
