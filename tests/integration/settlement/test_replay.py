"""From the outboxes into the ledger: everything that was promised, once, whichever way it comes first, whoever is killed."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import subprocess
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
from ledger_invariants import ledger_faults
from town import Town, new_id, unix_ms, until

from extproc.errors import StoreRefused, StoreUnknown
from extproc.holds.fresh import open_fresh
from extproc.holds.stream import RedisEventStream
from extproc.ledger.outboxes import PostgresOutboxes
from extproc.local import postgres as postgres_engine
from extproc.money.hold import Ending, EndResult
from extproc.settlement.meter import Series
from extproc.settlement.outbox_file import KEEP_MS, Claim, OutboxFile, Watermark, Written, confirm, outboxes, watermark_of
from extproc.settlement.pace import Pace
from extproc.settlement.replay import RETIRE_EVERY_S, RIPE_S, STREAM_PATIENCE_S, Replay
from extproc.stores.migrations import migrate
from extproc.stores.pipeline import Pipeline
from extproc.stores.postgres import Database
from extproc.stores.shards import shard_of


class Killed(BaseException):
    """The end of a process, as far as its code can tell."""


class Outbox:
    """One worker's."""

    def __init__(self, directory: Path, slot: int = 0, *, host: str = "") -> None:
        self.claim = Claim.first_of(directory, slot)
        self.path = self.claim.path
        self.file = OutboxFile.owned(self.claim, new_id=new_id(), unix_ms=unix_ms(), host=host)

    def promise(self, *endings: Ending, **fields: Any) -> None:
        self.file.append([self.row(ending)._replace(**fields) for ending in endings])

    def row(self, ending: Ending) -> Written:
        one = ending
        return Written(
            at_ms=unix_ms(),
            shard=shard_of(one.payer_id),
            hold_id=one.hold_id,
            payer_id=one.payer_id,
            key_id=one.key_id,
            kind=one.kind,
            charge_nanos=one.charge_nanos,
            reserved_nanos=one.reserved_nanos,
            row=one.row,
        )

    @property
    def below(self) -> int:
        mark = watermark_of(self.path)
        return 0 if mark is None else mark.below

    def leave(self) -> None:
        self.file.close()
        self.claim.release()


class Settler:
    """Replays over the town's stores, whose clocks can be set ahead."""

    def __init__(self, town: Town, directory: Path) -> None:
        self.town = town
        self.directory = directory
        self.renewed = 0
        self.ahead_ms = 0
        self.ahead_s = 0.0

    def replay(self, **fields: Any) -> Replay:
        pace = Pace(self.town.stop, monotonic_s=lambda: time.monotonic() + self.ahead_s, unix_ms=lambda: unix_ms() + self.ahead_ms)
        parts = {
            "directory": self.directory,
            "ledger": PostgresOutboxes(self.town.database),
            "postings": self.town.ledger,
            "stream": RedisEventStream(self.town.pipeline),
            "renew": self.renew,
            "meter": self.town.meter,
            "pace": pace,
        }
        return Replay(**(parts | fields))

    async def renew(self) -> None:
        self.renewed += 1

    def count(self, series: Series) -> int:
        return self.town.meter.counts[series]


@pytest.fixture
def settler(town: Town, tmp_path: Path) -> Settler:
    return Settler(town, tmp_path / "outbox")


@pytest.fixture
def outbox(settler: Settler) -> Iterator[Outbox]:
    box = Outbox(settler.directory)
    yield box
    box.leave()


async def endings_of(town: Town, count: int, *, redis: bool) -> tuple[str, list[Ending]]:
    """A payer and settles of his holds, told to Redis or not."""
    payer, key = await town.customer()
    endings = [town.settle(await town.hold(payer, key), payer, key) for _ in range(count)]
    if redis:
        await asyncio.gather(*(town.holds.end(ending) for ending in endings))
    return payer, endings


async def test_what_came_by_the_stream_is_only_confirmed(town, settler, outbox):
    payer, endings = await endings_of(town, 5, redis=True)
    outbox.promise(*endings)
    await town.poster().step()
    assert await settler.replay().step() > 0, "nothing is left to do"
    assert (outbox.below, settler.count(Series.OUTBOX_CONFIRMED), settler.count(Series.OUTBOX_POSTED)) == (6, 5, 0)
    assert await town.at_rest(payer) == (999_875, 999_875, 0)
    assert (town.count("requests"), town.meter.gauges[Series.OUTBOX_AGE_MS]) == (5, 0)


async def test_what_redis_never_had_is_booked_and_read_back(town, settler, outbox):
    payer, endings = await endings_of(town, 5, redis=False)
    outbox.promise(*endings)
    await settler.replay().step()
    assert (outbox.below, settler.count(Series.OUTBOX_POSTED)) == (6, 5)
    await town.sweep().step()
    assert await town.at_rest(payer) == (999_875, 994_875, 5_000), "Redis knows of the charges; the holds wait for their end"
    assert ledger_faults(town.dsn) == []


async def test_outbox_first_then_the_stream(town, settler, outbox):
    payer, endings = await endings_of(town, 5, redis=False)
    outbox.promise(*endings)
    await settler.replay().step()
    await town.sweep().step()
    for ending in endings:
        assert await town.holds.end(ending) is EndResult.ENDED
    await town.poster().step()
    await town.sweep().step()
    assert await town.at_rest(payer) == (999_875, 999_875, 0), "charged once, on both sides"
    assert (town.count("requests"), town.count("conflicts"), await town.waiting()) == (5, 0, 0)
    assert ledger_faults(town.dsn) == []


async def test_a_young_row_waits_for_the_stream(town, settler, outbox):
    _, endings = await endings_of(town, 3, redis=False)
    outbox.promise(endings[0])
    replay = settler.replay()
    await replay.step()
    assert outbox.below == 2, "of what is met first nobody knows the age"
    outbox.promise(*endings[1:], at_ms=unix_ms() - 2_000)
    await replay.step()
    settler.ahead_s = RIPE_S / 2
    await replay.step()
    assert (outbox.below, town.count("requests")) == (2, 1)
    assert town.meter.gauges[Series.OUTBOX_AGE_MS] >= 2_000
    settler.ahead_s = RIPE_S + 0.1
    await replay.step()
    assert (outbox.below, town.count("requests"), town.meter.gauges[Series.OUTBOX_AGE_MS]) == (4, 3, 0)


async def test_a_poster_that_is_behind_goes_first(town, settler, outbox):
    payer, endings = await endings_of(town, 3, redis=True)
    outbox.promise(*endings)
    replay = settler.replay()
    await replay.step()
    assert (outbox.below, town.count("requests")) == (1, 0), "its stream will tell"
    await town.poster().step()
    await replay.step()
    assert (outbox.below, settler.count(Series.OUTBOX_POSTED)) == (4, 0)
    assert (await town.at_rest(payer))[:2] == (999_925, 999_925)


async def test_but_not_for_ever(town, settler, outbox):
    payer, endings = await endings_of(town, 3, redis=True)
    outbox.promise(*endings)
    replay = settler.replay()
    await replay.step()
    settler.ahead_s = STREAM_PATIENCE_S
    await replay.step()
    assert (outbox.below, settler.count(Series.OUTBOX_POSTED)) == (4, 3)
    await town.sweep().step()
    assert (await town.at_rest(payer))[:2] == (999_925, 999_850), "until the stream is posted, Redis counts them twice"
    await town.poster().step()
    await town.sweep().step()
    assert (await town.at_rest(payer))[:2] == (999_925, 999_925)
    assert (town.count("conflicts"), ledger_faults(town.dsn)) == (0, [])


async def test_redis_away_is_waited_for_and_then_done_without(town, settler, outbox):
    class Away:
        async def read(self, *_args, **_fields):
            raise StoreRefused("away")

    _, endings = await endings_of(town, 3, redis=False)
    outbox.promise(*endings)
    replay = settler.replay(stream=Away())
    await replay.step()
    assert outbox.below == 1
    settler.ahead_s = STREAM_PATIENCE_S
    await replay.step()
    assert (outbox.below, town.count("requests")) == (4, 3)


async def test_poison_is_set_aside_and_the_rest_goes_on(town, settler, outbox):
    _, endings = await endings_of(town, 9, redis=False)
    outbox.promise(endings[0])
    outbox.promise(endings[1], hold_id="x")
    outbox.promise(endings[2], payer_id=new_id())
    outbox.promise(endings[3], charge_nanos=4 * 10**18 + 1, kind="settle")
    outbox.promise(endings[4], row=b"\xff")
    outbox.promise(*endings[5:])

    class Buggy:
        def __getattr__(self, verb):
            return getattr(town.ledger, verb)

        async def post(self, postings):
            if any(one.hold_id == endings[5].hold_id for one in postings):
                raise ZeroDivisionError
            return await town.ledger.post(postings)

    await settler.replay(postings=Buggy()).step()
    assert (outbox.below, town.count("conflicts", "reason = 'rejected'")) == (10, 1)
    assert town.count("conflicts", "reason IN ('bad_event', 'unknown_payer', 'bad_row')") == 3
    assert town.count("billing_events", "event_type = 'settle'") == 6


async def test_a_file_that_cannot_be_read_is_told_once_and_keeps_nobody(town, settler, outbox):
    (settler.directory / "gate-1-0.sqlite").write_bytes(b"no database at all" * 100)
    (settler.directory / "gate-2-0.sqlite").write_bytes(b"")
    _, endings = await endings_of(town, 2, redis=False)
    outbox.promise(*endings)
    replay = settler.replay()
    for _ in range(3):
        await replay.step()
    assert (outbox.below, settler.count(Series.UNREADABLE_OUTBOXES)) == (3, 2)


async def test_no_directory_is_nothing_to_do(settler):
    assert await settler.replay().step() > 0


class Dying:
    """A port that ends the process at its n-th call, before or after it was carried out."""

    def __init__(self, port: Any, verb: str, number: int, *, after: bool) -> None:
        self._port, self._verb, self._left, self._after = port, verb, number, after

    def __getattr__(self, verb: str) -> Any:
        real = getattr(self._port, verb)
        if verb != self._verb:
            return real

        async def call(*args: Any, **fields: Any) -> Any:
            self._left -= 1
            if self._left == 0 and not self._after:
                raise Killed
            answer = await real(*args, **fields)
            if self._left == 0:
                raise Killed
            return answer

        return call


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("call", ["positions 1", "read_back 1", "read_back 2", "post 1", "cursors 1"])
async def test_killed_at_any_point_the_next_one_goes_on(town, settler, outbox, call, after):
    verb, _, number = call.partition(" ")
    payer, endings = await endings_of(town, 6, redis=True)
    lost, more = await endings_of(town, 6, redis=False)
    outbox.promise(*[ending for pair in zip(endings, more, strict=True) for ending in pair])
    await town.poster().step()
    ledger, postings = (Dying(real, verb, int(number), after=after) for real in (PostgresOutboxes(town.database), town.ledger))
    with pytest.raises(Killed):
        await settler.replay(ledger=ledger, postings=postings).step()
    await settler.replay().step()
    assert (outbox.below, town.count("requests"), settler.renewed, settler.count(Series.OUTBOX_RESTARTS)) == (13, 12, 0, 0)
    assert (await town.at_rest(payer))[0] == (await town.at_rest(lost))[0] == 999_850
    assert ledger_faults(town.dsn) == []


async def test_killed_before_the_mark_is_written(town, settler, outbox, monkeypatch):
    _, endings = await endings_of(town, 3, redis=False)
    outbox.promise(*endings)

    def die(*_: object) -> None:
        raise Killed

    with monkeypatch.context() as patched:
        patched.setattr("extproc.settlement.replay.confirm", die)
        with pytest.raises(Killed):
            await settler.replay().step()
    assert outbox.below == 0
    await settler.replay().step()
    assert (outbox.below, town.count("requests"), settler.renewed) == (4, 3, 0)


@pytest.mark.parametrize("after", [False, True])
async def test_an_unknown_commit_is_asked_after(town, settler, outbox, after):
    payer, endings = await endings_of(town, 3, redis=False)
    outbox.promise(*endings)

    class Unsure:
        failed = False

        def __getattr__(self, verb):
            return getattr(town.ledger, verb)

        async def post(self, postings):
            if self.failed:
                return await town.ledger.post(postings)
            self.failed = True
            if after:
                await town.ledger.post(postings)
            raise StoreUnknown("the answer was lost")

    replay = settler.replay(postings=Unsure())
    with pytest.raises(StoreUnknown):
        await replay.step()
    await replay.step()
    assert (outbox.below, town.count("requests"), (await town.at_rest(payer))[0]) == (4, 3, 999_925)


async def test_many_settlers_read_one_directory(town, settler, outbox):
    payer, endings = await endings_of(town, 40, redis=False)
    replays = [settler.replay() for _ in range(3)]
    for start in range(0, 40, 10):
        outbox.promise(*endings[start : start + 10])
        await asyncio.gather(*(_patiently(replay) for replay in replays))
        settler.ahead_s += RIPE_S
        await asyncio.gather(*(_patiently(replay) for replay in replays))
    assert (outbox.below, town.count("requests"), (await town.at_rest(payer))[0]) == (41, 40, 999_000)
    assert (settler.count(Series.OUTBOX_RESTARTS), settler.renewed, town.count("conflicts")) == (0, 0, 0)


async def _patiently(replay: Replay) -> None:
    """As its loop does: one that was overtaken tries again."""
    for _ in range(20):
        with contextlib.suppress(StoreRefused):
            await replay.step()
            return
        await asyncio.sleep(0.01)


async def test_a_backlog_of_several_batches_and_files(town, settler, outbox, monkeypatch):
    monkeypatch.setattr("extproc.settlement.replay.ROWS_MAX", 8)
    monkeypatch.setattr("extproc.settlement.replay.BATCHES_MAX", 2)
    other = Outbox(settler.directory, 1)
    for box in (outbox, other):
        for _ in range(2):
            box.promise(*(await endings_of(town, 25, redis=False))[1])
    replay = settler.replay()
    assert await replay.step() == 0, "there is more"
    while await replay.step() == 0:
        pass
    assert (outbox.below, other.below, town.count("requests")) == (51, 51, 100)
    assert ledger_faults(town.dsn) == []
    other.leave()


# --- another ledger


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
    await _patiently(replay)
    await serve(6)
    await _patiently(replay)
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


async def test_postgres_restarts_while_it_runs(town, settler, outbox, postgres):
    payer, endings = await endings_of(town, 30, redis=False)
    running = asyncio.create_task(settler.replay().run())
    outbox.promise(*endings[:10])

    async def confirmed(below: int) -> bool:
        return outbox.below == below

    await until(lambda: confirmed(11))
    postgres.stop()
    outbox.promise(*endings[10:])

    async def failing() -> bool:
        return settler.count(Series.REPLAY_FAILURES) > 0

    await until(failing)
    postgres.start_again()
    await until(lambda: confirmed(31))
    town.stop.set()
    await running
    assert ((await town.at_rest(payer))[0], town.count("requests"), settler.renewed) == (999_250, 30, 0)


# --- files that nobody needs any more


async def test_a_file_without_an_owner_goes_when_nothing_in_it_is_needed(town, settler, outbox):
    left = Outbox(settler.directory, 1)
    for box in (outbox, left):
        box.promise(*(await endings_of(town, 2, redis=False))[1])
    left.leave()
    settler.ahead_ms = KEEP_MS - 60_000
    replay = settler.replay()
    settler.ahead_s = RETIRE_EVERY_S
    await replay.step()
    assert outboxes(settler.directory) == [outbox.path, left.path], "confirmed, but not a day old"
    settler.ahead_ms, settler.ahead_s = KEEP_MS + 60_000, 2 * RETIRE_EVERY_S
    await replay.step()
    assert outboxes(settler.directory) == [outbox.path], "the other one has an owner"
    assert [path.name for path in settler.directory.iterdir() if "gate-1" in path.name] == []
    assert len((await PostgresOutboxes(town.database).positions()).below) == 1


async def test_a_file_without_an_owner_stays_while_a_row_of_it_is_missing(town, settler):
    left = Outbox(settler.directory, 1)
    left.promise(*(await endings_of(town, 2, redis=True))[1])
    left.leave()
    replay = settler.replay()
    settler.ahead_ms, settler.ahead_s = KEEP_MS + 60_000, RETIRE_EVERY_S + 1
    await replay.step()
    assert (outboxes(settler.directory), town.count("requests")) == ([left.path], 0)
