"""A PostgreSQL that is slow, not away: endings wait in Redis, batches fit themselves to what it can do, nothing is lost, and nobody else waits."""

from __future__ import annotations

import asyncio
import time

import psycopg
from ledger_invariants import ledger_faults
from town import until

from extproc.ledger.postgres import PostgresLedger
from extproc.settlement.meter import Series
from extproc.stores.postgres import Database

SLOW_COMMIT = """
CREATE FUNCTION take_long() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
    IF current_setting('slow.slept', true) IS DISTINCT FROM pg_current_xact_id()::text THEN
        PERFORM set_config('slow.slept', pg_current_xact_id()::text, false), pg_sleep(0.2);
    END IF;
    RETURN NULL;
END $$;
CREATE CONSTRAINT TRIGGER slow AFTER UPDATE ON stream_cursors DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION take_long()"""
SLOW_ROWS = """
CREATE FUNCTION take_long() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN PERFORM pg_sleep(0.01); RETURN NEW; END';
CREATE TRIGGER slow BEFORE INSERT ON requests FOR EACH ROW EXECUTE FUNCTION take_long()"""
TIMEOUT_MS = 300  # a statement of 30 rows that take 10 ms each


def slow_down(town, statements: str) -> None:
    with psycopg.connect(town.dsn, autocommit=True) as connection:
        connection.execute(statements.encode())


class Counting:
    """The ledger; how many postings each batch had."""

    def __init__(self, ledger) -> None:
        self._ledger = ledger
        self.sizes: list[int] = []

    def __getattr__(self, verb):
        return getattr(self._ledger, verb)

    async def post(self, postings):
        self.sizes.append(len(postings))
        return await self._ledger.post(postings)


async def test_commits_that_take_long_are_few_and_requests_do_not_wait_for_them(town):
    slow_down(town, SLOW_COMMIT)
    payer, key = await town.customer()
    ledger = Counting(town.ledger)
    running = asyncio.create_task(town.poster(ledger=ledger, batch_rows=1_000, batch_wait_ms=50).run())
    begun = time.monotonic()
    for _ in range(300):
        await town.serve(payer, key)
    served_s = time.monotonic() - begun

    async def all_posted() -> bool:
        return town.meter.counts[Series.POSTED_ENDINGS] == 300 and await town.waiting() == 0

    await until(all_posted)
    town.stop.set()
    await running
    assert len(ledger.sizes) <= 2 + (time.monotonic() - begun) / 0.25, "a batch a commit and its rest, whatever waits"
    assert served_s / 300 < 0.2, "no request waited for a commit"
    assert await town.at_rest(payer) == (1_000_000 - 300 * 25, 1_000_000 - 300 * 25, 0)
    assert ledger_faults(town.dsn) == []


async def test_what_takes_longer_than_a_statement_may_gets_through_in_smaller_batches(town):
    slow_down(town, SLOW_ROWS)
    payer, key = await town.customer()
    for _ in range(100):
        await town.serve(payer, key)
    async with Database(town.dsn, statement_timeout_ms=TIMEOUT_MS) as impatient:
        ledger = Counting(PostgresLedger(impatient))
        running = asyncio.create_task(town.poster(ledger=ledger).run())

        async def all_posted() -> bool:
            return await town.waiting() == 0

        await until(all_posted)
        town.stop.set()
        await running
    assert max(ledger.sizes) > 30, "it was too much at first"
    assert town.meter.counts[Series.POST_FAILURES] > 0
    assert (town.meter.counts[Series.QUARANTINED], town.meter.counts[Series.CONFLICTS]) == (0, 0), "slow is no fault of an event"
    assert town.count("requests") == 100
    assert ledger_faults(town.dsn) == []


async def test_the_lag_tells_of_it(town):
    slow_down(town, SLOW_COMMIT)
    payer, key = await town.customer()
    for _ in range(3):
        await town.serve(payer, key)
    await town.poster().step()
    assert town.meter.gauges[Series.POSTER_LAG_MS] >= 200
