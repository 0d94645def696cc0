"""The files that processes map for their metrics have no holes: on a full disk a write to one would end the process."""

from __future__ import annotations

import resource
import signal
from pathlib import Path

import pytest
from house import House

from extproc import metrics
from extproc.app.room import FILE_BYTES, reserve
from extproc.errors import UsageError


def test_no_mapped_file_has_a_hole(house: House):
    pids = house.pids()
    environ = Path(f"/proc/{pids['gate-0']}/environ").read_bytes().split(b"\0")
    [directory] = [word.partition(b"=")[2].decode() for word in environ if word.startswith(b"PROMETHEUS_MULTIPROC_DIR=")]
    files = list(Path(directory).glob("*.db"))
    owners = {path.stem.rpartition("_")[2] for path in files}
    assert owners >= {metrics.DEAD, *map(str, pids.values())}
    assert [path.name for path in files if path.stat().st_blocks * 512 < path.stat().st_size] == []
    assert {path.stat().st_size for path in files} == {FILE_BYTES}


def test_without_room_there_is_no_file(tmp_path: Path):
    before, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (FILE_BYTES // 2, before[1]))
    try:
        with pytest.raises(UsageError, match="no room for metrics"):
            reserve(tmp_path, 7)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
    assert list(tmp_path.iterdir()) == []
    assert metrics.render_merged(tmp_path) == b""
