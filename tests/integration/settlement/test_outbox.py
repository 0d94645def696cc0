"""The outbox: what it has told is on the disk, whatever happens to process, file or disk."""

from __future__ import annotations

import asyncio
import os
import random
import resource
import shutil
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path

import pytest
from outbox_bench import ending, holds_below, holds_in, opened, until

from extproc.errors import StoreRefused, StoreRejected
from extproc.settlement import outbox as module
from extproc.settlement import outbox_file
from extproc.settlement.outbox_file import Claim, OutboxFile, Watermark, broken, confirm, outboxes, watermark_of

WRITER = Path(__file__).with_name("outbox_bench.py")
DAY_MS = 24 * 3_600_000


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return tmp_path / "data" / "outbox"


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "RETRY_S", 0.02)
    monkeypatch.setattr(module, "LOOK_S", 0.05)


# what is told


async def test_what_was_told_is_there_in_order_and_private(directory: Path):
    async with opened(directory) as box:
        box.put(*range(100))
        await box.until_stored(*range(100))
        rows = OutboxFile.read_only(box.path).read(0, 1_000)
        modes = {path.name: path.stat().st_mode & 0o777 for path in directory.iterdir()}
    assert [row.id for row in rows] == list(range(1, 101))
    assert [row.posting.hold_id for row in rows] == [f"h{number}" for number in range(100)]
    posting = rows[7].posting
    assert (posting.shard, posting.payer_id, posting.charge_nanos, posting.reserved_nanos) == (3, "p7", 7, 8)
    assert (posting.stream_id, posting.seq, posting.epoch, posting.row) == ("", 0, "", b'{"model":"m"}')
    assert directory.stat().st_mode & 0o777 == 0o700
    assert set(modes.values()) == {0o600}, modes
    assert set(modes) >= {"gate-0-0.sqlite", "gate-0-0.sqlite-wal"}


async def test_every_commit_is_synced(directory: Path):
    async with opened(directory) as box:
        file = box.keeper._file
        assert file is not None
        assert file._rows("PRAGMA synchronous") == [(2,)]
        assert file._rows("PRAGMA journal_mode") == [("wal",)]


async def test_power_is_cut(directory: Path, tmp_path: Path):
    """The files, copied at the moment at which the outbox says that a group is there, have that group and all before it."""
    chance = random.Random(1)
    async with opened(directory) as box:
        for turn in range(20):
            group = range(100 * turn, 100 * turn + chance.randint(1, 99))
            box.put(*group)
            copied: list[Path] = []

            def copy(turn: int = turn, copied: list[Path] = copied) -> None:
                copied.append(Path(shutil.copytree(directory, tmp_path / f"copy-{turn}")))

            assert box.outbox.put(ending(100 * turn + 99), copy)
            await until(lambda copied=copied: copied)
            assert set(box.stored) <= set(holds_below(copied[0]))
            assert f"h{100 * turn + 99}" in holds_below(copied[0])


def kill_a_writer(directory: Path, lines: int) -> list[str]:
    """What it had said."""
    process = subprocess.Popen([sys.executable, WRITER, directory], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    said = [process.stdout.readline().strip() for _ in range(lines)]
    process.send_signal(signal.SIGKILL)
    said += [line.strip() for line in process.stdout if line.endswith("\n")]
    process.wait()
    process.stdout.close()
    return said[1:]


async def test_a_writer_is_killed(directory: Path):
    """Everything that it was told to be there is there; whoever comes after it goes on in the same file."""
    for turn, lines in enumerate((2, 50, 500)):
        said = await asyncio.to_thread(kill_a_writer, directory, lines)
        assert [path.name for path in outboxes(directory)] == ["gate-0-0.sqlite"]
        found = holds_below(directory)
        assert set(said) <= set(found)
        assert found.count("h1") == turn + 1
    async with opened(directory) as box:
        box.put(1_000_000)
        await box.until_stored(1_000_000)
        assert box.path.name == "gate-0-0.sqlite"
        assert holds_in(box.path)[-1] == "h1000000"


async def test_a_log_is_torn(directory: Path):
    """The end of the log is missing, or is garbage: what was committed before it is there, and the next worker goes on."""
    for turn, damage in enumerate(
        (lambda log: log[:-1_000], lambda log: log[:-3_000] + os.urandom(3_000), lambda log: log + os.urandom(5_000))
    ):
        copy = directory.with_name(f"torn-{turn}")
        async with opened(directory) as box:
            for number in range(30):
                box.put(number, row=b"x" * 700)
                await box.until_stored(number)
            shutil.copytree(directory, copy)
            before = holds_in(box.path)
        (log,) = copy.glob("*-wal")
        log.write_bytes(damage(log.read_bytes()))
        async with opened(copy) as box:
            after = holds_in(box.path)
            assert after == before[: len(after)]
            assert len(after) >= len(before) - 4
            box.put(31)
            await box.until_stored(31)
        assert not broken(copy)
        shutil.rmtree(directory)


# whose it is


async def test_two_processes_of_one_slot(directory: Path):
    async with opened(directory) as first, opened(directory) as second, opened(directory, slot=1) as other:
        first.put(1)
        second.put(2)
        other.put(3)
        await first.until_stored(1)
        await second.until_stored(2)
        await other.until_stored(3)
        assert [path.name for path in outboxes(directory)] == ["gate-0-0.sqlite", "gate-0-1.sqlite", "gate-1-0.sqlite"]
        assert holds_below(directory) == ["h1", "h2", "h3"]
        assert Claim.of(first.path) is None
    async with opened(directory) as next_one:
        next_one.put(4)
        await next_one.until_stored(4)
        assert holds_in(next_one.path) == ["h1", "h4"]


def test_a_lock_that_was_removed_while_it_was_taken_is_none(directory: Path, monkeypatch: pytest.MonkeyPatch):
    path = directory / "gate-0-0.sqlite"
    taken = Claim.of(path)
    assert taken is not None
    real = os.open

    def slowly(name: Path, *words: int) -> int:
        file = real(name, *words)
        if name == path.with_suffix(".lock"):
            taken.remove()  # the settler has cleared up in between
        return file

    monkeypatch.setattr(os, "open", slowly)
    assert Claim.of(path) is None
    monkeypatch.undo()
    assert Claim.of(path) is not None


def test_no_file_is_left(directory: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(outbox_file, "FILES_EACH_MAX", 2)
    claims = [Claim.first_of(directory, 0) for _ in range(2)]
    with pytest.raises(StoreRefused, match="all 2 outboxes"):
        Claim.first_of(directory, 0)
    claims[1].release()
    assert Claim.first_of(directory, 0).path.name == "gate-0-1.sqlite"


# what is confirmed, and what may go


async def test_rows_go_when_they_are_confirmed_and_a_day_old(directory: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(module, "PIECE_ROWS", 10)
    async with opened(directory) as box:
        box.put(*range(100))
        await box.until_stored(*range(100))
        outbox_id = OutboxFile.read_only(box.path).outbox_id
        confirm(box.path, Watermark(outbox_id=outbox_id, below=46, ledger_id="l"))
        await until(lambda: box.keeper.figures.rows == 55)
        assert len(holds_in(box.path)) == 100, "none is a day old"
        box.clock.skipped_ms = DAY_MS + 60_000
        await until(lambda: len(holds_in(box.path)) == 60)  # whole pieces
        confirm(box.path, Watermark(outbox_id="another", below=1_000, ledger_id="l"))
        await until(lambda: box.keeper.figures.rows == 60)
        assert len(holds_in(box.path)) == 60, "what somebody has confirmed of another file says nothing"
        assert box.outbox.lives == 0


async def test_how_far_behind_the_ledger_is(directory: Path):
    async with opened(directory) as box:
        assert box.outbox.behind_s == 0
        box.put(1)
        await box.until_stored(1)
        box.clock.skipped_ms += 600_000
        await until(lambda: box.outbox.behind_s >= 600)
        box.put(2)
        await box.until_stored(2)
        box.clock.skipped_ms += 60_000
        outbox_id = OutboxFile.read_only(box.path).outbox_id
        confirm(box.path, Watermark(outbox_id=outbox_id, below=2, ledger_id="l"))
        await until(lambda: 60 <= box.outbox.behind_s < 600)
        confirm(box.path, Watermark(outbox_id=outbox_id, below=3, ledger_id="l"))
        await until(lambda: box.outbox.behind_s == 0)


async def test_confirmed_rows_make_room_and_unconfirmed_rows_keep_everybody_out(directory: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(module, "PIECE_ROWS", 10)
    async with opened(directory, bytes_max=1_048_576) as box:
        box.put(*range(600), row=b"x" * 1_000)
        await box.until_stored(*range(600))
        assert not box.outbox.is_full
        box.put(*range(600, 1_200), row=b"x" * 1_000)
        await until(lambda: box.outbox.is_full)
        await box.until_stored(1_199)  # what runs is kept all the same
        confirm(box.path, Watermark(outbox_id=OutboxFile.read_only(box.path).outbox_id, below=1_001, ledger_id="l"))
        await until(lambda: not box.outbox.is_full)
        await until(lambda: len(holds_in(box.path)) < 700)
        assert box.keeper.figures.rows == 200
        assert box.outbox.lives, "a price may have gone with them"


async def test_what_is_not_confirmed_is_told(directory: Path, monkeypatch: pytest.MonkeyPatch):
    async with opened(directory) as box:
        box.put(*range(40))
        told = await box.outbox.unconfirmed([1, 2])  # not on the disk yet, when it was asked
        assert [one.hold_id for one in told] == [f"h{number}" for number in range(40) if number % 4 in (1, 2)]
        confirm(box.path, Watermark(outbox_id=OutboxFile.read_only(box.path).outbox_id, below=31, ledger_id="l"))
        await until(lambda: box.keeper.figures.rows == 10)
        assert [one.hold_id for one in await box.outbox.unconfirmed([1])] == ["h33", "h37"]
        monkeypatch.setattr(module, "UNCONFIRMED_MAX", 3)
        assert [one.hold_id for one in await box.outbox.unconfirmed(range(4))] == ["h37", "h38", "h39"]


def test_a_watermark_that_cannot_be_read_is_none(directory: Path):
    directory.mkdir(parents=True)
    path = directory / "gate-0-0.sqlite"
    assert watermark_of(path) is None
    said = Watermark(outbox_id="o", below=7, ledger_id="l")
    confirm(path, said)
    assert watermark_of(path) == said
    for nonsense in ("", "[]", '{"below": 3}', '{"outbox_id": "o", "below": 7'):
        path.with_suffix(".confirmed").write_text(nonsense)
        assert watermark_of(path) is None


# faults


@contextmanager
def no_room(path: Path) -> Iterator[None]:
    """No file of this process may grow beyond what the outbox's log has now: as on a full disk, and with no rights needed."""
    size = Path(f"{path}-wal").stat().st_size
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


async def test_the_disk_is_full(directory: Path):
    """Nobody new is let in; what ends meanwhile waits, and is written in its order, once, when there is room again."""
    async with opened(directory) as box:
        box.put(*range(10))
        await box.until_stored(*range(10))
        with no_room(box.path):
            box.put(*range(10, 20))
            await until(lambda: box.outbox.is_full)
            box.put(20)
            assert len(box.stored) == 10
        await box.until_stored(*range(21))
        await until(lambda: not box.outbox.is_full)
        assert holds_in(box.path) == [f"h{number}" for number in range(21)]
        assert box.outbox._failures
        assert not broken(directory)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of its own, of 2 MB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", disk], capture_output=True, check=False)
    if mounted.returncode:
        pytest.skip("may not mount here: the limit on file sizes has shown the same")
    yield disk
    subprocess.run(["umount", "-l", disk], check=True)


def remount(disk: Path, how: str) -> None:
    subprocess.run(["mount", "-o", f"remount,{how}", disk], check=True)


async def test_a_small_disk_fills_up_and_goes_read_only(small_disk: Path):
    async with opened(small_disk / "outbox") as box:
        box.put(0)
        await box.until_stored(0)
        filler = small_disk / "filler"
        with suppress(OSError), filler.open("wb") as file:
            while True:
                file.write(b"x" * 4_096)
                file.flush()
        box.put(*range(1, 100))
        await until(lambda: box.outbox.is_full)
        assert "full" in box.outbox._fault
        filler.unlink()
        await box.until_stored(*range(100))
        await until(lambda: not box.outbox.is_full)
        assert holds_in(box.path) == [f"h{number}" for number in range(100)]
    await asyncio.to_thread(remount, small_disk, "ro")
    async with opened(small_disk / "outbox") as box:
        assert box.outbox.is_full, "a read-only disk"
        box.put(100)
        await asyncio.to_thread(remount, small_disk, "rw")
        await box.until_stored(100)
        await until(lambda: not box.outbox.is_full)


async def test_somebody_else_writes(directory: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(outbox_file, "BUSY_S", 0.02)
    async with opened(directory) as box:
        with closing(sqlite3.connect(box.path, isolation_level=None)) as intruder:
            intruder.execute("BEGIN IMMEDIATE")
            box.put(1)
            await until(lambda: box.outbox.is_full)
            assert not box.stored
            intruder.execute("ROLLBACK")
        await box.until_stored(1)
        await until(lambda: not box.outbox.is_full)
        assert holds_in(box.path) == ["h1"]


async def test_the_directory_cannot_be_made(directory: Path):
    directory.parent.parent.mkdir(exist_ok=True)
    directory.parent.write_text("a file where a directory should be")
    async with opened(directory) as box:
        assert box.outbox.is_full
        assert await box.outbox.unconfirmed([0]) == []
        box.put(1)
        directory.parent.unlink()
        await box.until_stored(1)
        await until(lambda: not box.outbox.is_full)
        assert holds_in(box.path) == ["h1"]


@pytest.mark.parametrize("pattern", ["*", "*.sqlite", "*-wal", "*-shm"])
async def test_files_are_removed_under_us(directory: Path, pattern: str):
    """Noticed with the next look; everything that is not confirmed is in the new file, with nothing twice."""
    async with opened(directory) as box:
        box.put(*range(50))
        await box.until_stored(*range(50))
        for path in directory.glob(pattern):
            path.unlink()
        box.put(50)
        await box.until_stored(50)
        await until(lambda: box.outbox.lives or pattern == "*-shm")
        box.put(51)
        await box.until_stored(51)
        await until(lambda: len(holds_below(directory)) == 52)
        assert set(holds_below(directory)) == {f"h{number}" for number in range(52)}


async def test_the_directory_is_removed_under_us(directory: Path):
    async with opened(directory) as box:
        box.put(1)
        await box.until_stored(1)
        shutil.rmtree(directory)
        box.put(2)
        await box.until_stored(2)
        await until(lambda: holds_below(directory) == ["h1", "h2"])
        assert Claim.of(box.path) is None


@pytest.mark.parametrize(
    "content",
    [b"", b"not a database at all " * 500, os.urandom(20_000)],
    ids=["empty", "text", "noise"],
)
async def test_a_file_that_is_none_is_put_aside(directory: Path, content: bytes):
    directory.mkdir(parents=True)
    (directory / "gate-0-0.sqlite").write_bytes(content)
    async with opened(directory) as box:
        box.put(1)
        await box.until_stored(1)
        assert holds_below(directory) == ["h1"]
        (aside,) = broken(directory)
        assert aside.read_bytes() == content
        await until(lambda: box.keeper.figures.broken == 1)
        assert not box.outbox.is_full


async def test_a_database_of_somebody_else_is_put_aside(directory: Path):
    directory.mkdir(parents=True)
    with closing(sqlite3.connect(directory / "gate-0-0.sqlite")) as theirs:
        theirs.executescript("CREATE TABLE recipes (name TEXT); INSERT INTO recipes VALUES ('borscht');")
    with pytest.raises(StoreRejected, match="is no outbox"):
        OutboxFile.read_only(directory / "gate-0-0.sqlite")
    async with opened(directory) as box:
        box.put(1)
        await box.until_stored(1)
        (aside,) = broken(directory)
        with closing(sqlite3.connect(aside)) as kept:
            assert kept.execute("SELECT name FROM recipes").fetchall() == [("borscht",)]


async def test_a_file_breaks_while_it_is_written(directory: Path):
    """It is put aside, and what can be read of it goes on to the new one."""
    async with opened(directory) as box:
        box.put(*range(400), row=b"x" * 700)
        await box.until_stored(*range(400))
        with closing(sqlite3.connect(box.path, isolation_level=None)) as other:
            other.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        size = box.path.stat().st_size
        with box.path.open("r+b") as file:
            file.seek(size // 2)
            file.write(os.urandom(size // 2))
        box.put(400)
        await box.until_stored(400)
        assert "h400" in holds_in(box.path)
        await until(lambda: box.keeper.figures.broken == 1)
        assert len(broken(directory)) == 1
        assert box.outbox.lives


async def test_a_disk_hangs(directory: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(module, "STALLED_S", 0.05)
    async with opened(directory) as box:
        file = box.keeper._file
        assert file is not None
        let_go = asyncio.Event()
        loop, append = asyncio.get_running_loop(), file.append
        monkeypatch.setattr(
            OutboxFile,
            "append",
            lambda _, rows, **more: (asyncio.run_coroutine_threadsafe(let_go.wait(), loop).result(), append(rows, **more)),
        )
        box.put(1)
        await until(lambda: box.outbox.is_full)
        let_go.set()
        await box.until_stored(1)
        assert not box.outbox.is_full


async def test_memory_is_bounded(directory: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(module, "PENDING_MAX", 10)
    async with opened(directory) as box:
        box.put(*range(10))
        assert box.outbox.is_full
        assert not box.outbox.put(ending(10), lambda: None)
        assert box.outbox.lives == 1, "what it brought along is not in the file"
        await box.until_stored(*range(10))
        assert holds_in(box.path) == [f"h{number}" for number in range(10)]
        assert not box.outbox.is_full


async def test_whoever_leaves_writes_what_is_left(directory: Path):
    async with opened(directory) as box:
        box.put(*range(1_000))
    assert len(holds_below(directory)) == 1_000
    assert not list(directory.glob("*-wal")), "an outbox without an owner is one file"


def test_what_is_cleared_away_is_gone(directory: Path):
    claim = Claim.first_of(directory, 0)
    OutboxFile.owned(claim, new_id="o", unix_ms=1).close()
    confirm(claim.path, Watermark(outbox_id="o", below=1, ledger_id="l"))
    claim.remove()
    assert list(directory.iterdir()) == []


def test_half_a_file_is_never_seen(directory: Path, monkeypatch: pytest.MonkeyPatch):
    """A worker that dies while it makes its file leaves nothing that anybody takes for an outbox."""
    claim = Claim.first_of(directory, 0)

    def die(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "rename", die)
    with pytest.raises(KeyboardInterrupt):
        OutboxFile.owned(claim, new_id="o", unix_ms=1)
    assert outboxes(directory) == []
    monkeypatch.undo()
    assert OutboxFile.owned(claim, new_id="o", unix_ms=1).extent().last == 0
