"""The ledger, the outbox or the machine is not the one that it was: copies, backups, images. What may be missing is posted again."""

from __future__ import annotations

import contextlib
import shutil
import subprocess
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
from ledger_invariants import ledger_faults
from replaying import Outbox, Settler, endings_of, patiently
from town import Town, new_id, until

from extproc.errors import StoreRefused
from extproc.holds.fresh import open_fresh
from extproc.ledger.outboxes import PostgresOutboxes
from extproc.local import postgres as postgres_engine
from extproc.settlement.meter import Series
from extproc.settlement.outbox_file import OutboxFile, Watermark, confirm, watermark_of
from extproc.settlement.replay import RIPE_S
from extproc.stores.migrations import migrate
from extproc.stores.pipeline import Pipeline
from extproc.stores.postgres import Database


async def test_another_cluster_or_timeline_goes_through_everything_again(town, settler, outbox):
    _, endings = await endings_of(town, 5, redis=False)
    outbox.promise(*endings)
    await settler.replay().step()
    mark = watermark_of(outbox.path)
    assert mark is not None
    confirm(outbox.path, Watermark(outbox_id=mark.outbox_id, below=mark.below, ledger_id="1/00000001"))
    await settler.replay().step()
    assert (watermark_of(outbox.path), settler.renewed) == (mark, 1)
    assert (settler.count(Series.OUTBOX_RESTARTS), settler.count(Series.OUTBOX_CONFIRMED), town.count("requests")) == (1, 10, 5)
    await settler.replay().step()
    assert settler.renewed == 1, "once"


async def test_an_outbox_that_is_older_than_its_mark_is_read_from_its_beginning(town, settler, outbox):
    """A machine that was set back to its backup: numbers are given a second time."""
    _, endings = await endings_of(town, 5, redis=False)
    outbox.promise(*endings[:2])
    with contextlib.closing(OutboxFile.read_only(outbox.path)) as file:
        outbox_id = file.outbox_id
    ledger = PostgresOutboxes(town.database)
    mark = Watermark(outbox_id=outbox_id, below=100, ledger_id=(await ledger.positions()).ledger_id)
    confirm(outbox.path, mark)
    await town.database.fetch(ledger._queries["move_outbox"], {"outbox": outbox_id, "below": 100, "known": 0})
    replay = settler.replay()
    await replay.step()
    outbox.promise(*endings[2:])
    await replay.step()
    settler.ahead_s = RIPE_S
    await replay.step()
    assert (outbox.below, town.count("requests")) == (6, 5)


async def test_a_machine_that_was_set_back_with_its_marks_is_read_from_there(town, settler):
    """Its worker has written more than it had forgotten before any settler looks: numbers that the ledger has confirmed mean something else."""
    _, endings = await endings_of(town, 9, redis=False)
    outbox = Outbox(settler.directory)
    outbox.promise(*endings[:2])
    await settler.replay().step()
    outbox.leave()
    backup = settler.directory.with_name("backup")
    shutil.copytree(settler.directory, backup)
    outbox = Outbox(settler.directory)
    outbox.promise(*endings[2:5])
    await settler.replay().step()
    assert (outbox.below, town.count("requests")) == (6, 5)
    outbox.leave()
    shutil.rmtree(settler.directory)
    backup.rename(settler.directory)
    outbox = Outbox(settler.directory)
    outbox.promise(*endings[5:])
    replay = settler.replay()
    await replay.step()
    await replay.step()
    assert (outbox.below, town.count("requests"), settler.renewed) == (7, 9, 0)
    outbox.leave()


async def test_a_copy_of_an_outbox_that_lives_on_as_another_one(town, settler):
    """Somebody copied a file, and two workers go on in both: the same numbers, and the same name, of different rows."""
    _, endings = await endings_of(town, 9, redis=False)
    first = Outbox(settler.directory)
    first.promise(*endings[:2])
    replay = settler.replay()
    await replay.step()
    first.leave()
    for path in list(settler.directory.iterdir()):
        shutil.copy(path, settler.directory / path.name.replace("gate-0-0", "gate-1-0"))
    first, second = Outbox(settler.directory), Outbox(settler.directory, 1)
    first.promise(*endings[2:6])
    await replay.step()
    settler.ahead_s += RIPE_S + 1
    await replay.step()
    second.promise(*endings[6:])
    for _ in range(3):
        settler.ahead_s += RIPE_S + 1
        await replay.step()
    assert (first.below, second.below, town.count("requests"), settler.renewed) == (7, 6, 9, 0)
    first.leave()
    second.leave()


async def test_a_settler_that_is_ahead_of_us_is_no_older_ledger(town, settler, outbox):
    """It confirms while we look: its mark is above the position that we have read a moment ago."""
    _, endings = await endings_of(town, 5, redis=False)
    outbox.promise(*endings)

    class Ahead(PostgresOutboxes):
        async def positions(self) -> Any:
            told = await super().positions()
            await settler.replay().step()
            return told

    await settler.replay(ledger=Ahead(town.database)).step()
    assert (outbox.below, town.count("requests")) == (6, 5)
    assert (settler.count(Series.OUTBOX_RESTARTS), settler.renewed) == (0, 0)


async def test_two_machines_that_are_made_from_one_image(town, settler, tmp_path):
    """Both go on with the same numbers. What the ledger has of the one it need not have of the other, and nobody is rebuilt for it."""
    _, endings = await endings_of(town, 12, redis=False)
    image = Outbox(settler.directory, host="image")
    image.promise(*endings[:4])
    image.leave()
    await settler.replay().step()
    other = Settler(town, tmp_path / "copied")
    shutil.copytree(settler.directory, other.directory)
    outboxes_ = [Outbox(one.directory, host=name) for one, name in ((settler, "a"), (other, "b"))]
    for outbox, own in zip(outboxes_, (endings[4:10], endings[10:]), strict=True):
        outbox.promise(*own)
    replays = [settler.replay(), other.replay()]
    for look in range(3):
        settler.ahead_s = other.ahead_s = look * 2 * RIPE_S
        for replay in replays:
            await replay.step()
    for outbox in outboxes_:
        outbox.leave()
    assert [outbox.below for outbox in outboxes_] == [11, 7]
    assert (town.count("requests"), settler.count(Series.OUTBOX_RESTARTS), settler.renewed + other.renewed) == (12, 0, 0)


async def test_who_goes_on_on_the_same_machine_does_not_begin_anew(town, settler):
    _, endings = await endings_of(town, 5, redis=False)
    for ending in endings:
        outbox = Outbox(settler.directory, host="a")
        outbox.promise(ending)
        outbox.leave()
    await settler.replay().step()
    assert (outbox.below, town.count("requests"), town.count("outbox_positions")) == (6, 5, 1)


class Cluster:
    """A PostgreSQL of its own, whose data can be put aside and back."""

    def __init__(self, directory: Path) -> None:
        self.engine = postgres_engine.start(directory)
        self._data, self._copy = directory / "data", directory / "copy"
        migrate(self.engine.dsn)

    def copy(self) -> None:
        self.engine.stop()
        self._copied(self._data, self._copy)

    def go_back(self) -> None:
        self.engine.stop()
        shutil.rmtree(self._data)
        self._copied(self._copy, self._data)

    def _copied(self, source: Path, target: Path) -> None:
        subprocess.run(["cp", "-a", str(source), str(target)], check=True)  # with its owner, who is not us
        self.engine.start_again()


@pytest.fixture
def cluster(engine_directory: Path) -> Iterator[Cluster]:
    cluster = Cluster(engine_directory / f"pg-{new_id()[-6:]}")
    yield cluster
    cluster.engine.stop()


@pytest.fixture
async def old_town(cluster: Cluster, redis_url: str) -> AsyncIterator[Town]:
    pipeline = Pipeline(redis_url)
    await pipeline.open()
    async with Database(cluster.engine.dsn) as pool:
        town = Town(pool, pipeline, cluster.engine.dsn, redis_url)
        await open_fresh(town.holds)
        town.stream = await town.new_stream()
        yield town
        await town.close()
    await pipeline.close()


async def test_an_older_copy_of_the_ledger_gets_back_what_it_has_not(old_town, cluster, tmp_path):
    """Same cluster, same timeline: only its own position gives it away."""
    town, settler = old_town, Settler(old_town, tmp_path / "outbox")
    outbox = Outbox(settler.directory)
    payer, key = await town.customer()
    replay = settler.replay()

    async def serve(count: int) -> None:
        for _ in range(count):
            ending = town.settle(await town.hold(payer, key), payer, key)
            outbox.promise(ending)
            await town.holds.end(ending)
        poster = town.poster()
        await poster.step()
        await poster._leadership.release()

    await serve(4)
    await replay.step()
    cluster.copy()
    await patiently(replay)
    await serve(6)
    await patiently(replay)
    settler.ahead_s += RIPE_S
    await replay.step()
    assert (outbox.below, town.count("requests")) == (11, 10)
    cluster.go_back()

    async def caught_up() -> bool:
        with contextlib.suppress(StoreRefused):
            await replay.step()
        return settler.renewed > 0

    assert town.count("requests") == 4
    await until(caught_up)
    assert (town.count("requests"), outbox.below, settler.renewed) == (10, 11, 1)
    assert (await town.ledger.balance(payer)).balance_nanos == 1_000_000 - 10 * 25
    assert settler.count(Series.OUTBOX_RESTARTS) == 1
    await serve(1)
    await replay.step()
    settler.ahead_s += RIPE_S
    await replay.step()
    assert (settler.renewed, outbox.below, ledger_faults(town.dsn)) == (1, 12, [])
    outbox.leave()
