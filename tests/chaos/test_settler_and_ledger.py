"""The way from the outboxes into the ledger while things break: PostgreSQL away, the settler killed again and again, an older ledger."""

from __future__ import annotations

import asyncio
import shutil
import subprocess
from collections import Counter
from pathlib import Path

import pytest
from breakable import BreakableHouse
from house import Guest, until
from traffic import Traffic
from wire import figure

from extproc.errors import StoreError
from extproc.settlement.outbox_file import OutboxFile, outboxes, watermark_of

pytestmark = pytest.mark.long

CONFIRMED_S = 30.0  # a row is old enough after five seconds; the rest is for a busy machine
RENEWED_S = 60.0
KILLS = 4


def unconfirmed(house: BreakableHouse) -> int:
    """Rows of all outboxes that the ledger is not known to have."""
    count = 0
    for path in outboxes(house.directory / "data/outbox"):
        mark = watermark_of(path)
        file = OutboxFile.read_only(path)
        try:
            below = 1 if mark is None or mark.again_below else mark.below
            count += len(file.read(below - 1, 10_000))
        finally:
            file.close()
    return count


def is_posted_again(house: BreakableHouse) -> bool:
    marks = [watermark_of(path) for path in outboxes(house.directory / "data/outbox")]
    return counted(house, "outbox_restarts") > 0 and all(mark is not None and not mark.again_below for mark in marks)


async def all_confirmed(house: BreakableHouse) -> None:
    """And the judge's own connections to PostgreSQL have been made anew, where it was restarted."""
    await asyncio.to_thread(until, lambda: unconfirmed(house) == 0, "every row was read back", CONFIRMED_S)
    await asyncio.to_thread(until, lambda: answers(house), "PostgreSQL answers the judge")


def answers(house: BreakableHouse) -> bool:
    try:
        return bool(house.run(house.stores.epochs.epochs()))
    except StoreError:
        return False


async def load(traffic: Traffic, count: int) -> None:
    target = traffic.answered + count
    await asyncio.to_thread(until, lambda: traffic.answered >= target, "load", 30)


def counted(house: BreakableHouse, what: str) -> int:
    lines = [line for line in house.metrics().splitlines() if line.startswith("extproc_settlement") and f'"{what}"' in line]
    return int(sum(float(line.rpartition(" ")[2]) for line in lines))


def as_told(rows: list[dict[str, object]], *loads: Traffic) -> bool:
    return {row["request_id"] for row in rows} == {told.request_id for one in loads for told in one.with_status(200)}


async def test_postgres_is_away_under_load(house: BreakableHouse, guest: Guest):
    """What waits in the streams is the poster's; the outboxes only see that all of it has arrived."""
    booked = counted(house, "outbox_posted")
    async with Traffic(house, guest, a_second=40) as traffic:
        await load(traffic, 20)
        house.postgres.kill()
        await load(traffic, 200)
        waiting = await asyncio.to_thread(unconfirmed, house)
        house.postgres.start_again()
        await load(traffic, 20)
    assert waiting >= 200
    await asyncio.to_thread(house.wait_serving)
    await all_confirmed(house)
    rows = await asyncio.to_thread(house.judge, guest, traffic.told)
    figure(f"{waiting} rows waited; {counted(house, 'outbox_posted') - booked} of them were booked out of the outboxes")
    assert as_told(rows, traffic)
    assert set(Counter(told.status for told in traffic.told)) == {200}


async def test_the_settler_is_killed_again_and_again(house: BreakableHouse, guest: Guest):
    async with Traffic(house, guest, a_second=40) as traffic:
        for number in range(KILLS):
            await load(traffic, 30 + 20 * number)
            pid = (await asyncio.to_thread(house.pids))["settler"]
            house.kill(pid)
            await asyncio.to_thread(until, lambda pid=pid: house.pids().get("settler", pid) != pid, f"another settler, {number}")
        await load(traffic, 20)
    assert len(traffic.with_status(200)) == len(traffic.told)
    await all_confirmed(house)
    rows = await asyncio.to_thread(house.judge, guest, traffic.told)
    figure(f"{len(rows)} rows of {len(traffic.told)} requests, settler killed {KILLS} times")
    assert as_told(rows, traffic)
    assert counted(house, "outbox_restarts") == 0


@pytest.fixture
def copy(house: BreakableHouse):
    """Where an older state of PostgreSQL lies."""
    path = house.directory / "postgres/older"
    yield path
    shutil.rmtree(path, ignore_errors=True)


def put(source: Path, target: Path) -> None:
    subprocess.run(["cp", "-a", str(source), str(target)], check=True)  # with its owner, who is not us


async def test_postgres_is_replaced_by_an_older_copy(house: BreakableHouse, guest: Guest, copy: Path):
    """What was confirmed by the ledger that is gone is posted again, and Redis is rebuilt: nobody's charge is lost, nobody pays twice."""
    data = house.directory / "postgres/data"
    async with Traffic(house, guest, a_second=30) as traffic:
        await load(traffic, 30)
    await all_confirmed(house)
    house.postgres.stop()
    put(data, copy)
    house.postgres.start_again()
    async with Traffic(house, guest, a_second=30) as lost:
        await load(lost, 60)
    await all_confirmed(house)
    assert as_told(await asyncio.to_thread(house.judge, guest, [*traffic.told, *lost.told]), traffic, lost)
    house.postgres.stop()
    shutil.rmtree(data)
    put(copy, data)
    async with Traffic(house, guest, a_second=30) as after:
        house.postgres.start_again()
        await asyncio.to_thread(until, lambda: is_posted_again(house), "posted again", RENEWED_S)
        await load(after, 30)
    await asyncio.to_thread(house.wait_serving)
    await all_confirmed(house)
    gaps = await asyncio.to_thread(house.rows, "DELETE FROM fence_violations RETURNING kind")
    told = [*traffic.told, *lost.told, *after.told]
    rows = await asyncio.to_thread(house.judge, guest, told)
    figure(f"{len(rows)} rows, {len(lost.told)} of them lost and posted again; gaps told: {len(gaps)}; "
           f"booked out of outboxes {counted(house, 'outbox_posted')}; answers meanwhile {dict(Counter(one.status for one in after.told))}")  # fmt: skip
    assert as_told(rows, traffic, lost, after)
    assert {one["kind"] for one in gaps} <= {"gap"}, "the streams of what was lost have long been trimmed"
