"""From the outboxes into the ledger: everything that was promised, once, whichever way it comes first."""

from __future__ import annotations

from ledger_invariants import ledger_faults
from replaying import Outbox, endings_of
from town import new_id, unix_ms

from extproc.errors import StoreRefused
from extproc.ledger.outboxes import PostgresOutboxes
from extproc.money.hold import EndResult
from extproc.settlement.meter import Series
from extproc.settlement.outbox_file import KEEP_MS, outboxes
from extproc.settlement.replay import RETIRE_EVERY_S, RIPE_S, STREAM_PATIENCE_S


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


async def test_a_poster_far_behind_is_not_disturbed(town, settler, outbox):
    """After an outage nothing of what waits in the streams is in the ledger: to look for it would only take the poster's time."""
    looked: list[int] = []

    class Looking:
        def __init__(self, ledger) -> None:
            self._ledger = ledger

        def __getattr__(self, verb):
            return getattr(self._ledger, verb)

        async def read_back(self, outbox_id, rows, **fields):
            looked.append(len(rows))
            return await self._ledger.read_back(outbox_id, rows, **fields)

    _, endings = await endings_of(town, 3, redis=True)
    _, others = await endings_of(town, 2, redis=False)
    outbox.promise(*endings, *others)
    replay = settler.replay(ledger=Looking(PostgresOutboxes(town.database)))
    settler.ahead_ms = int(RIPE_S * 1_000) + 1
    await replay.step()
    settler.ahead_s = STREAM_PATIENCE_S - 1
    await replay.step()
    assert (looked, outbox.below) == ([], 1)
    settler.ahead_s = STREAM_PATIENCE_S
    await replay.step()
    assert (outbox.below, settler.count(Series.OUTBOX_POSTED)) == (6, 5), "its patience is over, and no other one begins"
    await town.poster().step()
    looked.clear()
    outbox.promise(*others)
    await replay.step()
    settler.ahead_s += RIPE_S + 0.1
    await replay.step()
    assert looked, "nobody is behind any more"
    assert ledger_faults(town.dsn) == []


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
