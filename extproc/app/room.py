"""Room for the mapped files of the metrics, taken before they are mapped.

prometheus_client makes files with holes. On a full disk the first write to a page of such a hole ends the process (SIGBUS): a worker, or
the supervisor, which folds the counts of the dead, and with it everybody (seen). Where the blocks are there already, no write can fail.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

from extproc.errors import UsageError

FILE_BYTES: Final = 1_048_576
"""Of each file: some 5,000 series of 200 bytes. What a process counts beyond them goes into a hole again."""

KINDS: Final = ("counter", "histogram", "gauge_livesum", "gauge_livemin", "gauge_livemax")


def reserve(directory: Path, owner: int | str) -> None:
    """The files of ``owner`` (a pid, or ``metrics.DEAD``), empty. Raises UsageError when there is no room."""
    try:
        for kind in KINDS:
            _fill(directory / f"{kind}_{owner}.db")
    except OSError as error:
        raise UsageError(f"no room for metrics in {directory}: {error.strerror}") from error


def _fill(path: Path) -> None:
    """Whole, or not there at all: who reads all files for a page trips over an empty one."""
    fresh = path.with_suffix(".new")
    file = os.open(fresh, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        os.posix_fallocate(file, 0, FILE_BYTES)
        fresh.rename(path)
    finally:
        os.close(file)
        fresh.unlink(missing_ok=True)
