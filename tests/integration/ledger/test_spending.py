"""What accounts and keys have spent, as those are told who ask."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import UTC, date, datetime, timedelta
from importlib.resources import files

import psycopg
import pytest

from extproc.errors import StoreRefused
from extproc.ledger.port import EventType
from extproc.ledger.spending import PostgresSpending
from extproc.money.hold import uuid7
from extproc.money.statement import Enquiry, Purse, Statement
from extproc.stores.postgres import Database
from extproc.stores.queries import load_queries

TODAY = datetime.now(UTC).date()
DAY = timedelta(days=1)


@pytest.fixture
async def spending(database: str) -> AsyncIterator[PostgresSpending]:
    async with Database(database) as pool:
        yield PostgresSpending(pool)


def enquiry(payer: str, key: str, *, of_account: bool = False, since: date = TODAY, until: date = TODAY + DAY) -> Enquiry:
    return Enquiry(payer_id=payer, key_id=key, of_account=of_account, since=since, until=until)


def key_of(bench, payer, *, replaces=None, budget=None):
    (row,) = bench.sql(
        "INSERT INTO credentials (id, user_id, hash, budget_id, budget_nanos)"
        " VALUES (gen_random_uuid(), %s, sha256(gen_random_uuid()::text::bytea), %s, %s) RETURNING id::text",
        payer, replaces, budget,
    )  # fmt: skip
    return row[0]


def of_day(day: date) -> dict[str, str]:
    """A hold of that day's noon."""
    noon_ms = int(datetime(day.year, day.month, day.day, 12, tzinfo=UTC).timestamp()) * 1_000
    of_day.ids += 1
    return {"hold_id": uuid7(unix_ms=noon_ms, random_bits=of_day.ids)}


of_day.ids = 0


async def test_days_of_keys_and_of_their_account(bench, spending):
    payer, other = await bench.account(), await bench.account()
    old, plain, foreign = key_of(bench, payer, budget=10**9), key_of(bench, payer), key_of(bench, other)
    new = key_of(bench, payer, replaces=old, budget=10**9)
    before = TODAY - 5 * DAY
    await bench.ledger.post(
        [
            bench.posting(payer, 10, key_id=old, **of_day(before)),
            bench.posting(payer, 20, key_id=new, **of_day(TODAY)),
            bench.posting(payer, 40, key_id=plain, **of_day(TODAY)),
            bench.posting(payer, kind="void", key_id=plain, **of_day(TODAY)),
            bench.posting(other, 80, key_id=foreign, **of_day(TODAY)),
        ]
    )
    line = await spending.spent(enquiry(payer, new, since=before))
    assert (line.key_nanos, line.days) == (25 + 45, ((before, 25), (TODAY, 45)))
    assert (await spending.spent(enquiry(payer, old))).days == ((TODAY, 45),), "the one that was replaced has the same counter"
    whole = await spending.spent(enquiry(payer, plain, of_account=True, since=before, until=TODAY))
    assert (whole.key_nanos, whole.days) == (85, ((before, 25),)), "the last day is not included"
    assert (await spending.spent(enquiry(payer, plain, of_account=True))).days == ((TODAY, 45 + 85),)
    assert (await spending.spent(enquiry(payer, foreign))).days == (), "a key of somebody else"


async def test_what_was_put_in_less_the_balance_is_what_was_spent(bench, spending):
    payer = await bench.account(1_000)
    key = key_of(bench, payer)
    posting = bench.posting(payer, 20, key_id=key)
    await bench.ledger.post([posting, bench.posting(payer, 10, key_id=key, past_redis=True)])
    await bench.ledger.grant(bench.grant(payer, 300, event_type=EventType.BONUS, reason="new"))
    await bench.ledger.grant(bench.grant(payer, 100, event_type=EventType.PAYOUT))
    refund = {"event_type": EventType.USAGE_REFUND, "provider": "m", "of_id": posting.hold_id, "reason": "sorry"}
    await bench.ledger.grant(bench.grant(payer, 5, **refund))
    balance = await bench.ledger.balance(payer)
    spent = await spending.spent(enquiry(payer, key))
    assert (spent.credits_nanos, spent.told_nanos, spent.key_nanos) == (1_200, balance.credited_total, 45 + 25)
    assert spent.credits_nanos - balance.balance_nanos == 45 + 25 - 5
    # The hold store has heard of the deposit alone, and has charged what went through it, and 7 more that are not posted yet.
    live = Purse(balance_nanos=1_000 - 45 - 7, held_nanos=0, credit_nanos=0, total_nanos=1_000)
    assert Statement(purse=live, spent=spent).used_nanos == 45 + 25 - 5 + 7


async def test_keys_without_a_budget_are_counted_from_the_first_day_on(bench, spending):
    """What the migration did with rows that were there before it."""
    payer = await bench.account()
    key = key_of(bench, payer)
    await bench.ledger.post([bench.posting(payer, 10, key_id=key), bench.posting(payer, 20, key_id=key)])
    bench.sql("DELETE FROM budget_spend")
    migration = (files("extproc.ledger") / "migrations/0013_spending.sql").read_text()
    bench.sql(migration.partition("COMMENT ON TABLE")[0])
    assert (await spending.spent(enquiry(payer, key))).days == ((TODAY, 25 + 45),)


async def test_the_sum_of_credits_reads_no_endings(bench):
    query = load_queries("extproc.ledger")["credits_of_account"].sql.decode()
    with psycopg.connect(bench.dsn) as connection:
        connection.execute("SET enable_seqscan = off")
        plan = connection.execute(f"EXPLAIN {query}", {"payer": await bench.account()}).fetchall()
    text = "\n".join(line for (line,) in plan)
    assert "user_id_idx on billing_events" in text or "Scan on billing_events_default_user_id_idx" in text, text
    assert "created_at_idx" not in text, "the index of all events"


async def test_nobody_has_spent_nothing(bench, spending):
    nobody = "018bcfe5-6800-7000-8000-00000000000a"
    with pytest.raises(StoreRefused):
        await spending.spent(enquiry(nobody, nobody))
    payer = await bench.account(0)
    spent = await spending.spent(enquiry(payer, key_of(bench, payer), of_account=True))
    assert (spent.credits_nanos, spent.key_nanos, spent.days) == (0, 0, ())
