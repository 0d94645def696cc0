"""What the command line reads."""

from __future__ import annotations

import json

import pytest

from extproc.errors import UsageError
from extproc.money.price import Price


async def test_a_request_is_explained_by_either_id(bench):
    payer = await bench.account(1_000)
    posting = bench.posting(payer)
    await bench.ledger.post([posting])
    by_hold = await bench.ledger.explain(posting.hold_id)
    assert by_hold == await bench.ledger.explain(f"envoy-{posting.hold_id}")
    assert by_hold is not None
    assert (by_hold.request["cost"], by_hold.request["hold_nanos"], by_hold.request["refund_nanos"]) == (25, 1_000, 975)
    assert by_hold.price is not None
    assert Price.parse(by_hold.price).price_id == by_hold.request["price_id"]
    assert sum(line["amount"] for line in by_hold.entries) == 0
    assert [event["balance_after"] for event in by_hold.events] == [975]
    json.dumps([by_hold.request, by_hold.events, by_hold.entries])


@pytest.mark.parametrize("name", ["", "nothing", "00000000-0000-7000-8000-000000000000", "\x00"])
async def test_what_is_not_there(bench, name):
    assert await bench.ledger.explain(name) is None


async def test_newest_first_then_followed(bench):
    payer, other = await bench.account(), await bench.account()
    await bench.ledger.post([bench.posting(payer), bench.posting(other), bench.posting(payer)])
    newest = await bench.ledger.requests(payer, limit=1)
    assert len(newest) == 1
    assert len(await bench.ledger.requests(None, limit=10)) == 3
    seen = max(row["cursor"] for row in await bench.ledger.requests(payer, limit=10))
    assert await bench.ledger.requests(payer, limit=10, after=seen) == []
    late = [bench.posting(payer) for _ in range(3)]
    await bench.ledger.post(late)
    followed = await bench.ledger.requests(payer, limit=2, after=seen)
    followed += await bench.ledger.requests(payer, limit=2, after=followed[-1]["cursor"])
    assert sorted(row["id"] for row in followed) == sorted(one.hold_id for one in late)
    with pytest.raises(UsageError):
        await bench.ledger.requests(payer, limit=1, after="yesterday")


async def test_housekeeping_makes_months_once(bench):
    bench.sql("SELECT ensure_partitions(5)")
    assert await bench.ledger.housekeep() == 0
    names = [name for (name,) in bench.sql("SELECT relid::regclass::text FROM pg_partition_tree('requests') WHERE isleaf")]
    assert len(names) == 6 + 1


async def test_a_month_whose_rows_came_too_early_stays_in_the_default_partition(bench):
    bench.sql(
        "INSERT INTO requests (id, ending, created_at, occurred_at) VALUES (uuid7_floor(now() + interval '10 months'), 'none', now(), now())"
    )
    made = bench.sql("SELECT ensure_partitions(12)")[0][0]
    assert made == 9 * 3 - 1, "all but that month of that table"
    assert bench.count("requests_default") == 1


async def test_rows_land_in_their_month(bench):
    await bench.ledger.post([bench.posting(await bench.account())])
    assert (bench.count("requests"), bench.count("requests_default"), bench.count("entries_default")) == (1, 0, 0)
