"""A month is closed when all that is known of it is booked; what the poster brings later is late."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import psycopg
import pytest
from ledger_invariants import ledger_faults
from town import CAP, PRICE, new_id

from extproc.errors import StoreRefused, UsageError
from extproc.exchange.record import Record
from extproc.ledger.periods import PostgresPeriods
from extproc.settlement.month_end import MonthEnd, oldest_unconfirmed_ms
from extproc.settlement.outbox_file import Claim, OutboxFile, Watermark, Written, confirm
from extproc.stores.shards import SHARDS, TAGS, shard_of

THIS = datetime.now(UTC).date().replace(day=1)
LAST = (THIS - timedelta(days=1)).replace(day=1)


def ms(day: date) -> int:
    return int(datetime(day.year, day.month, day.day, 12, tzinfo=UTC).timestamp()) * 1_000


class Silent:
    async def read(self, *_: Any, **__: Any) -> Any:
        raise StoreRefused("Redis is away")


def month_end(town: Any, *, stream: Any = None, unconfirmed_ms: int | None = None) -> MonthEnd:
    return MonthEnd(
        periods=PostgresPeriods(town.database),
        ledger=town.ledger,
        stream=stream or town.stream,
        shards=SHARDS,
        unconfirmed_ms=lambda: unconfirmed_ms,
        new_id=new_id,
    )


async def close(town: Any, **fields: Any) -> Any:
    days: list[date] = []
    sums = await month_end(town, **fields).close(LAST, actor="test", reason="", progress=days.append)
    assert days[0] == LAST
    assert days[-1] == THIS - timedelta(days=1)
    return sums


async def settled(town: Any, payer: str, key: str, day: date, seq: int) -> None:
    """As the script leaves it in the shard's stream, if the clock had stood at that day."""
    hold, shard = new_id(), shard_of(payer)
    row = Record(
        id=hold, user_id=payer, creds_id=key, model="m", input_tokens=5, output_tokens=10, cost_nanos=25, list_nanos=25,
        price_id=PRICE.price_id, price=PRICE.text, created_ms=ms(day),
    ).to_row()  # fmt: skip
    await town.pipeline.execute(
        "XADD", f"{TAGS[shard]}:events", "*", "k", "settle", "h", hold, "p", payer, "c", key, "a", 25, "r", CAP, "e", "e.1", "s", seq,
        "t", ms(day), "d", row,
    )  # fmt: skip


async def customer(town: Any) -> tuple[str, str]:
    """Of last month, with a deposit of today."""
    payer, key = await town.customer(10_000)
    with psycopg.connect(town.dsn) as connection:
        connection.execute("UPDATE users SET created_at = %s", (LAST,))
    return payer, key


async def test_it_is_refused_while_events_of_it_wait_and_not_for_those_of_the_next(town):
    payer, key = await customer(town)
    await settled(town, payer, key, LAST, 1)
    with pytest.raises(UsageError, match=f"events since {LAST} 12:00:00 UTC wait to be posted"):
        await close(town)
    assert town.count("periods") == 0
    await town.poster().step()
    await settled(town, payer, key, THIS, 2)
    sums = await close(town)
    assert [(line.kind, line.name, line.sum) for line in sums.lines] == [("customer", "", -25), ("revenue", "m", 25)]


async def test_it_is_refused_while_an_outbox_has_more_or_nobody_can_say(town):
    await customer(town)
    with pytest.raises(UsageError, match="an outbox has endings"):
        await close(town, unconfirmed_ms=ms(LAST))
    with pytest.raises(UsageError, match=r"is not known \(Redis is away\)"):
        await close(town, stream=Silent())
    assert town.count("periods") == 0
    await close(town, unconfirmed_ms=ms(THIS))


async def test_what_the_poster_brings_after_the_close_is_late(town):
    (payer, key), poster = await customer(town), town.poster()
    await settled(town, payer, key, LAST, 1)
    await poster.step()
    sums = await close(town)
    await settled(town, payer, key, LAST, 2)
    await settled(town, payer, key, THIS, 3)
    await poster.step()
    with psycopg.connect(town.dsn) as connection:
        query = "SELECT late_period FROM billing_events WHERE event_type = 'settle' ORDER BY seq"
        assert connection.execute(query).fetchall() == [(None,), (THIS,), (None,)]
    _, frozen = await PostgresPeriods(town.database).period(LAST)
    assert sums == frozen == await PostgresPeriods(town.database).sum_up(LAST)
    assert ledger_faults(town.dsn) == []


async def test_a_close_killed_between_its_steps_is_taken_up(town):
    (payer, key), poster = await customer(town), town.poster()
    await settled(town, payer, key, LAST, 1)
    await poster.step()

    def die(_: date) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        await month_end(town).close(LAST, actor="test", reason="", progress=die)
    await settled(town, payer, key, LAST, 2)
    await poster.step()
    sums = await close(town)
    assert (sums.events, sums.late) == (1, 0), "what came after the first step is late, although there were no sums yet"


def outbox(directory: Path, slot: int, *days: date) -> str:
    claim = Claim.first_of(directory, slot)
    with closing(OutboxFile.owned(claim, new_id=new_id(), unix_ms=1)) as file:
        file.append([Written(ms(day), 0, new_id(), new_id(), "", "settle", 1, 1, b"") for day in days])
        outbox_id = file.outbox_id
    claim.release()
    return outbox_id


def test_what_outboxes_have_that_the_ledger_is_not_known_to_have(tmp_path):
    assert oldest_unconfirmed_ms(tmp_path / "none") is None
    first = outbox(tmp_path, 0, LAST, LAST + timedelta(days=1), THIS)
    second = outbox(tmp_path, 1, THIS)
    outbox(tmp_path, 2)
    assert oldest_unconfirmed_ms(tmp_path) == ms(LAST)
    path = tmp_path / "gate-0-0.sqlite"
    for below, oldest in ((2, ms(LAST + timedelta(days=1))), (3, ms(THIS)), (4, ms(THIS))):
        confirm(path, Watermark(outbox_id=first, below=below, ledger_id="l"))
        assert oldest_unconfirmed_ms(tmp_path) == oldest
    confirm(tmp_path / "gate-1-0.sqlite", Watermark(outbox_id=second, below=2, ledger_id="l"))
    assert oldest_unconfirmed_ms(tmp_path) is None
    confirm(path, Watermark(outbox_id=second, below=9, ledger_id="l"))
    assert oldest_unconfirmed_ms(tmp_path) == ms(LAST), "the watermark of another file says nothing of this one"


def test_an_outbox_that_cannot_be_read_is_not_passed_over(tmp_path):
    with closing(sqlite3.connect(tmp_path / "gate-0-0.sqlite")) as other:
        other.execute("CREATE TABLE t (a)")
    with pytest.raises(StoreRefused):
        oldest_unconfirmed_ms(tmp_path)
