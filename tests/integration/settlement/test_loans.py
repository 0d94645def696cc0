"""What a worker lends while Redis is away is on the disk until it has ended, and ends at its last checkpoint if the worker is killed."""

from __future__ import annotations

import asyncio
import os
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest
from outbox_bench import holds_in, loan, loans_in, opened, postings_in, until

from extproc.errors import StoreRefused
from extproc.settlement import outbox as module
from extproc.settlement import outbox_file
from extproc.settlement.outbox_file import FORMAT, Claim, OutboxFile, broken, outboxes

WRITER = Path(__file__).with_name("outbox_bench.py")


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return tmp_path / "outbox"


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "RETRY_S", 0.02)
    monkeypatch.setattr(module, "LOOK_S", 0.05)


# while it lives


async def test_a_loan_is_no_ending_and_its_ending_takes_it_away(directory: Path):
    async with opened(directory) as box:
        box.lend(1, 2, 3)
        await box.until_lent(1, 2, 3)
        box.lend(1, 2, charge=40)
        await box.until_lent(1, 2, charge=40)
        box.lend(2, charge=30)
        await box.until_lent(2, charge=30)
        assert loans_in(box.path) == {"h1": 40, "h2": 40, "h3": 0}, "a checkpoint never falls"
        assert holds_in(box.path) == []
        assert await box.outbox.unconfirmed(range(4)) == []
        box.put(1)
        box.outbox.forget("h3")
        await box.until_stored(1)
        await until(lambda: loans_in(box.path) == {"h2": 40})
        assert holds_in(box.path) == ["h1"]


async def test_lent_and_ended_in_one_commit(directory: Path):
    async with opened(directory) as box:
        box.lend(1, 2, charge=9)
        box.put(1)
        box.outbox.forget("h2")
        box.outbox.forget("h3")
        box.put(4)
        await box.until_stored(1, 4)
        assert (loans_in(box.path), holds_in(box.path)) == ({}, ["h1", "h4"])


async def test_a_disk_that_takes_nothing_lends_nothing(directory: Path):
    async with opened(directory) as box:
        with _locked(box.path):
            box.put(1)
            await until(lambda: box.outbox.is_full)
            assert not box.outbox.lend(loan(2), lambda: None)
            box.outbox.forget("h3")
        await box.until_stored(1)
        await until(lambda: not box.outbox.is_full)
        box.lend(2)
        await box.until_lent(2)


async def test_a_file_that_is_removed_takes_no_loans_with_it(directory: Path):
    async with opened(directory) as box:
        box.lend(1, 2, charge=7)
        await box.until_lent(1, 2, charge=7)
        for path in directory.glob("gate-0-0*"):
            path.unlink()
        await until(lambda: box.outbox.lives)
        box.lend(1, charge=8)
        await box.until_lent(1, charge=8)
        assert (loans_in(box.path), holds_in(box.path)) == ({"h1": 8, "h2": 7}, [])


async def test_a_file_that_breaks_has_its_loans_again_with_their_next_checkpoints(directory: Path):
    async with opened(directory) as box:
        box.lend(1, 2, charge=7)
        await box.until_lent(1, 2, charge=7)
        with closing(sqlite3.connect(box.path, isolation_level=None)) as other:
            other.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        size = box.path.stat().st_size
        with box.path.open("r+b") as file:
            file.seek(size // 4)
            file.write(os.urandom(size // 2))
        for charge in (8, 9):
            box.lend(1, 2, charge=charge)
            await box.until_lent(1, 2, charge=charge)
        await until(lambda: box.keeper.figures.broken == 1)
        assert (loans_in(box.path), holds_in(box.path)) == ({"h1": 9, "h2": 9}, [])


# when it does not


async def test_whoever_takes_the_file_over_ends_what_was_lent(directory: Path):
    """Not whoever takes another file of the slot beside a living one."""
    async with opened(directory) as box:
        box.lend(1, 2, charge=40)
        box.lend(3)
        await box.until_lent(3)
        async with opened(directory) as beside:
            beside.put(9)
            await beside.until_stored(9)
        assert set(loans_in(box.path)) == {"h1", "h2", "h3"}
    before_ms = box.clock()
    async with opened(directory) as heir:
        heir.put(4)
        await heir.until_stored(4)
        rows = postings_in(heir.path)
        assert heir.path == box.path
        assert loans_in(heir.path) == {}
    expired = [row for row in rows if row.kind == "expire"]
    assert [row.hold_id for row in rows] == ["h1", "h2", "h3", "h4"]
    assert [(row.hold_id, row.charge_nanos, row.row) for row in expired] == [
        ("h1", 40, b'{"cost_nanos":40}'),
        ("h2", 40, b'{"cost_nanos":40}'),
        ("h3", 0, b'{"cost_nanos":0}'),
    ]
    assert all((row.shard, row.payer_id, row.key_id) == (int(row.hold_id[1:]) % 4, f"p{row.hold_id[1:]}", "k") for row in expired)
    assert all(row.reserved_nanos == row.seq == 0 and row.stream_id == "" and row.occurred_ms >= before_ms for row in expired)


def kill_a_lender(directory: Path, lines: int) -> list[str]:
    with subprocess.Popen([sys.executable, WRITER, directory, "lend"], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        said = [process.stdout.readline().strip() for _ in range(lines)]
        os.kill(process.pid, signal.SIGKILL)
        said += [line.strip() for line in process.stdout if line.endswith("\n")]
    return said[1:]


@pytest.mark.parametrize("lines", [2, 60, 600])
async def test_a_lender_is_killed(directory: Path, lines: int):
    """What it was told is what is charged: every loan ends once, not below its last checkpoint, and not at all beside its ending."""
    said = await asyncio.to_thread(kill_a_lender, directory, lines)
    (path,) = outboxes(directory)
    async with opened(directory) as heir:
        assert heir.path == path
        rows = postings_in(path)
        assert loans_in(path) == {}
    ends = {row.hold_id: row for row in rows}
    assert len(ends) == len(rows), "a hold that ended twice"
    for line in said:
        hold_id, kind, charge = line.split()
        end = ends[hold_id]
        assert end.kind == kind or (kind == "expire" and end.kind == "settle"), "the ending stands for the loan"
        assert end.kind == "settle" or end.charge_nanos >= int(charge)


async def test_the_heir_that_dies_in_between_has_done_all_or_nothing(directory: Path, monkeypatch: pytest.MonkeyPatch):
    async with opened(directory) as box:
        box.lend(1, 2, charge=3)
        await box.until_lent(1, 2, charge=3)
    claim = Claim.of(box.path)
    assert claim is not None
    monkeypatch.setattr(outbox_file, "_EXPIRE", outbox_file._EXPIRE + " WHERE no_such_function()")
    with pytest.raises(StoreRefused):
        OutboxFile.inherited(claim, unix_ms=1)
    monkeypatch.undo()
    assert (loans_in(box.path), holds_in(box.path)) == ({"h1": 3, "h2": 3}, [])
    OutboxFile.inherited(claim, unix_ms=1).close()
    OutboxFile.inherited(claim, unix_ms=2).close()
    assert (loans_in(box.path), holds_in(box.path)) == ({}, ["h1", "h2"])


# another format


@pytest.mark.parametrize("version", [FORMAT - 1, FORMAT + 1])
async def test_a_file_of_another_format_is_left_alone(directory: Path, version: int):
    async with opened(directory) as box:
        box.put(1)
        await box.until_stored(1)
    with closing(sqlite3.connect(box.path)) as other:
        other.execute(f"PRAGMA user_version = {version}")
    before = box.path.read_bytes()
    with pytest.raises(StoreRefused, match=f"format {version}, not {FORMAT}"):
        OutboxFile.read_only(box.path)
    async with opened(directory) as heir:
        heir.put(2)
        await heir.until_stored(2)
        assert heir.path.name == "gate-0-1.sqlite"
        assert not broken(directory)
    assert box.path.read_bytes() == before


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        yield
        other.execute("ROLLBACK")
