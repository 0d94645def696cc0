"""Closed months: nothing is booked into them, late events are booked in the open one and say so, sums stay as they were."""

from __future__ import annotations

import asyncio
import itertools
from datetime import UTC, date, datetime, timedelta
from typing import Any
from uuid import uuid4

import psycopg
import pytest
from ledger_invariants import ledger_faults

from extproc.errors import UsageError
from extproc.ledger.journal import PERIODS_LOCK
from extproc.ledger.periods import PostgresPeriods
from extproc.ledger.port import EventType
from extproc.money.hold import uuid7
from extproc.stores.postgres import Database

THIS = datetime.now(UTC).date().replace(day=1)
LAST = (THIS - timedelta(days=1)).replace(day=1)
BEFORE = (LAST - timedelta(days=1)).replace(day=1)


def ms(day: date, hour: int = 12) -> int:
    return int(datetime(day.year, day.month, day.day, hour, tzinfo=UTC).timestamp()) * 1_000


@pytest.fixture
async def periods(bench):
    """Of a ledger whose first account is from the month before the last one."""
    payer = await bench.account(0)
    bench.sql("UPDATE users SET created_at = %s WHERE id = %s", BEFORE, payer)
    async with Database(bench.dsn) as pool:
        yield PostgresPeriods(pool)


async def close(periods: PostgresPeriods, month: date) -> Any:
    await periods.close(month, audit_id=str(uuid4()), actor="test", reason="month end")
    sums = await periods.sum_up(month)
    await periods.freeze(month, sums)
    return sums


async def test_months_are_closed_once_in_order_and_when_they_are_over(bench, periods):
    for month, why in (
        (LAST, f"close {BEFORE:%Y-%m} first"),
        (THIS, f"close {BEFORE:%Y-%m} first"),
        ((BEFORE - timedelta(days=1)).replace(day=1), "before the first account"),
    ):
        with pytest.raises(UsageError, match=why):
            await close(periods, month)
    await close(periods, BEFORE)
    await close(periods, LAST)
    with pytest.raises(UsageError, match=r"was closed at .* by test"):
        await close(periods, LAST)
    with pytest.raises(UsageError, match="is not over"):
        await close(periods, THIS)
    assert [(one.month, one.is_complete, one.actor) for one in await periods.closed()] == [(LAST, True, "test"), (BEFORE, True, "test")]
    assert bench.sql("SELECT subject, actor, reason FROM audit WHERE action = 'close_period' ORDER BY subject") == [
        (f"{BEFORE:%Y-%m}", "test", "month end"),
        (f"{LAST:%Y-%m}", "test", "month end"),
    ]


async def test_without_an_account_there_is_no_month(database):
    async with Database(database) as pool:
        with pytest.raises(UsageError, match="nothing to close"):
            await PostgresPeriods(pool).check(LAST)


async def test_sums_are_those_of_what_occurred_in_the_month(bench, periods):
    payer = await bench.account(0)
    for day in (BEFORE, LAST, LAST, THIS):
        await bench.ledger.grant(bench.grant(payer, 100, occurred_ms=ms(day)))
    of_its_day = {"hold_id": uuid7(unix_ms=ms(LAST, 22), random_bits=1), "occurred_ms": ms(LAST, 23)}  # other ids are of today
    await bench.ledger.post([bench.posting(payer, **fields) for fields in (of_its_day, {"occurred_ms": ms(THIS, 0)})])
    await bench.ledger.post([bench.posting(payer, occurred_ms=ms(LAST, 0), hold_id=uuid7(unix_ms=ms(BEFORE, 23), random_bits=2))])
    await close(periods, BEFORE)
    sums = await close(periods, LAST)
    assert (sums.events, sums.late) == (4, 0)
    assert [(line.kind, line.name, line.sum) for line in sums.lines] == [
        ("clearing", "manual", -200),
        ("customer", "", 150),
        ("revenue", "m", 50),
    ]
    period, frozen = await periods.period(LAST)
    assert (frozen, period.events) == (sums, 4)


async def test_what_comes_late_is_booked_in_the_open_month_and_says_so(bench, periods):
    payer = await bench.account(0)
    await bench.ledger.grant(bench.grant(payer, 1_000, occurred_ms=ms(BEFORE)))
    await close(periods, BEFORE)
    frozen = await periods.period(BEFORE)
    # one each way: a grant, an ending by Redis, one past it, an adjust and an overage with it
    await bench.ledger.grant(bench.grant(payer, 500, occurred_ms=ms(BEFORE)))
    expired = bench.posting(payer, 5, kind="expire", occurred_ms=ms(BEFORE))
    await bench.ledger.post([expired, bench.posting(payer, occurred_ms=ms(BEFORE, 13))])
    late = [bench.posting(payer, 10, hold_id=expired.hold_id, past_redis=True, occurred_ms=ms(BEFORE))]
    late.append(bench.posting(payer, 100, cap=150, past_redis=True, occurred_ms=ms(BEFORE)))
    await bench.ledger.post([*late, bench.posting(payer, occurred_ms=ms(LAST))])
    booked = bench.sql("SELECT event_type, late_period, period_of(occurred_at, late_period) FROM billing_events ORDER BY event_type")
    assert sorted(booked, key=str) == sorted(
        [
            ("deposit", None, BEFORE),
            *[(kind, LAST, LAST) for kind in ("adjust", "deposit", "expire", "overage", "settle", "settle")],
            ("settle", None, LAST),
        ],
        key=str,
    )
    assert await periods.period(BEFORE) == frozen
    assert await periods.sum_up(BEFORE) == frozen[1], "worked out again, it is the same"
    sums = await close(periods, LAST)
    assert (sums.events, sums.late) == (7, 6)
    assert sum(line.sum for line in sums.lines) == 0
    assert ledger_faults(bench.dsn) == []


async def test_late_events_go_beyond_months_that_were_closed_meanwhile(bench, periods):
    await close(periods, BEFORE)
    await close(periods, LAST)
    payer = await bench.account(0)
    await bench.ledger.grant(bench.grant(payer, 5, occurred_ms=ms(BEFORE)))
    await bench.ledger.grant(bench.grant(payer, 5, occurred_ms=ms(LAST)))
    assert bench.sql("SELECT DISTINCT late_period FROM billing_events") == [(THIS,)]


async def test_nothing_slips_into_a_month_while_it_is_closed(bench, periods):
    """Batches and grants of that month all the while; each is in the frozen sums, or late."""
    payers = [await bench.account(0) for _ in range(3)]
    await close(periods, BEFORE)
    told = itertools.count()
    stop = asyncio.Event()

    async def post(shard: int) -> None:
        while not stop.is_set():
            next(told)
            await bench.ledger.post([bench.posting(payers[shard], shard=shard, occurred_ms=ms(LAST)) for _ in range(5)])

    async def grant() -> None:
        while not stop.is_set():
            next(told)
            await bench.ledger.grant(bench.grant(payers[0], 1_000, occurred_ms=ms(LAST)))

    writers = [asyncio.create_task(work) for work in (post(0), post(1), grant())]
    async with asyncio.timeout(30):
        while next(told) < 60:
            await asyncio.sleep(0.005)
        sums = await close(periods, LAST)
        reached = next(told)
        while next(told) < reached + 60:
            await asyncio.sleep(0.005)
    stop.set()
    await asyncio.gather(*writers)
    assert await periods.sum_up(LAST) == sums == (await periods.period(LAST))[1]
    early, late = bench.sql("SELECT count(*) FILTER (WHERE late_period IS NULL), count(late_period) FROM billing_events")[0]
    assert sums.events == early > 0
    assert late > 0
    assert bench.sql("SELECT DISTINCT late_period FROM billing_events WHERE late_period IS NOT NULL") == [(THIS,)]
    assert ledger_faults(bench.dsn) == []


async def test_a_close_waits_for_who_is_journal(bench, periods):
    with psycopg.connect(bench.dsn) as booking:
        booking.execute("SELECT pg_advisory_xact_lock_shared(%s, 0)", (PERIODS_LOCK,))
        closing = asyncio.create_task(close(periods, BEFORE))

        async def waits() -> bool:
            return bench.count("pg_locks", "locktype = 'advisory' AND NOT granted") == 1

        async with asyncio.timeout(10):
            while not await waits():
                await asyncio.sleep(0.01)
        assert not closing.done()
        booking.rollback()
        await closing
    assert (await periods.closed())[0].month == BEFORE


async def test_a_close_that_was_cut_off_is_taken_up(bench, periods):
    payer = await bench.account(0)
    await bench.ledger.grant(bench.grant(payer, 100, occurred_ms=ms(BEFORE)))
    await periods.close(BEFORE, audit_id=str(uuid4()), actor="test", reason="")
    assert not (await periods.closed())[0].is_complete
    with pytest.raises(UsageError, match="was cut off"):
        await periods.period(BEFORE)
    await bench.ledger.grant(bench.grant(payer, 7, occurred_ms=ms(BEFORE)))
    sums = await close(periods, BEFORE)
    assert [line.sum for line in sums.lines] == [-100, 100]
    assert bench.count("audit", "action = 'close_period'") == 1


async def test_two_who_close_at_once_close_once(bench, periods):
    results = await asyncio.gather(close(periods, BEFORE), close(periods, BEFORE), return_exceptions=True)
    assert all(isinstance(result, UsageError) or result.events == 0 for result in results), results
    assert bench.count("audit", "action = 'close_period'") == 1
    assert bench.count("periods", "summed_at IS NOT NULL") == 1


async def test_frozen_sums_do_not_change(bench, periods):
    payer = await bench.account(0)
    await bench.ledger.grant(bench.grant(payer, 100, event_type=EventType.DEPOSIT, occurred_ms=ms(BEFORE)))
    await close(periods, BEFORE)
    for change in ("UPDATE period_sums SET sum = 0", "DELETE FROM period_sums"):
        with pytest.raises(psycopg.errors.CheckViolation):
            bench.sql(change)
