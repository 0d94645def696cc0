"""What the ledger says of the outboxes' rows: only what is really in it counts as read back."""

from __future__ import annotations

import secrets
import time

import pytest

from extproc.errors import StoreRefused
from extproc.ledger.outboxes import PostgresOutboxes
from extproc.ledger.port import OutboxRow, QuotaGrant
from extproc.money.hold import uuid7
from extproc.stores.postgres import Database


def new_id() -> str:
    return uuid7(unix_ms=time.time_ns() // 1_000_000, random_bits=secrets.randbits(74))


@pytest.fixture
async def outboxes(database: str):
    async with Database(database) as pool:
        yield PostgresOutboxes(pool)


def rows_of(*postings) -> list[OutboxRow]:
    return [OutboxRow(number, posting) for number, posting in enumerate(postings, 1)]


def ids(found) -> list[int]:
    return [row.id for row in found.missing]


async def test_the_position_stands_before_the_first_row_that_is_missing(bench, outboxes):
    payer, outbox = await bench.account(), new_id()
    rows = rows_of(*[bench.posting(payer, past_redis=True) for _ in range(5)])
    await bench.ledger.post([row.posting for row in rows if row.id != 3])
    found = await outboxes.read_back(outbox, rows, known=0)
    assert (found.below, ids(found)) == (3, [3])
    await bench.ledger.post([rows[2].posting])
    found = await outboxes.read_back(outbox, rows[2:], known=3)
    assert (found.below, ids(found)) == (6, [])
    assert (await outboxes.positions()).below == {outbox: 6}


async def test_the_position_moves_forward_only(bench, outboxes):
    """Another settler may be ahead, and whoever begins again has all of it before him once more."""
    payer, outbox = await bench.account(), new_id()
    rows = rows_of(*[bench.posting(payer, past_redis=True) for _ in range(3)])
    await bench.ledger.post([row.posting for row in rows])
    assert (await outboxes.read_back(outbox, rows, known=0)).below == 4
    assert (await outboxes.read_back(outbox, rows[:1], known=0)).below == 2
    assert (await outboxes.read_back(outbox, rows[:1], known=4)).below == 2
    assert (await outboxes.positions()).below == {outbox: 4}


async def test_a_ledger_that_says_less_than_is_known_confirms_nothing(bench, outboxes):
    payer, outbox = await bench.account(), new_id()
    rows = rows_of(*[bench.posting(payer, past_redis=True) for _ in range(3)])
    await bench.ledger.post([row.posting for row in rows])
    with pytest.raises(StoreRefused):
        await outboxes.read_back(outbox, rows[1:], known=2)
    await outboxes.read_back(outbox, rows[:1], known=0)
    with pytest.raises(StoreRefused):
        await outboxes.read_back(outbox, rows[2:], known=3)
    assert (await outboxes.positions()).below == {outbox: 2}


async def test_an_adjust_is_the_settle(bench, outboxes):
    payer = await bench.account()
    settle = bench.posting(payer, 10, past_redis=True)
    await bench.ledger.post([settle._replace(kind="expire", charge_nanos=5, stream_id="1-0", seq=1)])
    assert ids(await outboxes.read_back(new_id(), rows_of(settle), known=0)) == [1], "the expire alone is not what the worker says"
    await bench.ledger.post([settle])
    assert ids(await outboxes.read_back(new_id(), rows_of(settle), known=0)) == []
    assert ids(await outboxes.read_back(new_id(), rows_of(settle._replace(charge_nanos=6)), known=0)) == [1]


async def test_an_expire_is_what_more_was_booked_for(bench, outboxes):
    payer = await bench.account()
    by_redis = bench.posting(payer, 10, kind="expire")
    loan = by_redis._replace(stream_id="", seq=0, epoch="", charge_nanos=40)
    assert ids(await outboxes.read_back(new_id(), rows_of(loan), known=0)) == [1], "nothing is booked"
    await bench.ledger.post([by_redis])
    less, more = loan._replace(charge_nanos=5), loan
    assert ids(await outboxes.read_back(new_id(), rows_of(less, more), known=0)) == [2]
    await bench.ledger.post([more])
    between = loan._replace(charge_nanos=25)
    assert ids(await outboxes.read_back(new_id(), rows_of(less, between, more), known=0)) == []
    assert ids(await outboxes.read_back(new_id(), rows_of(loan._replace(charge_nanos=41)), known=0)) == [1]
    assert ids(await outboxes.read_back(new_id(), rows_of(less._replace(kind="settle")), known=0)) == [1], (
        "of a settle that is no repetition"
    )
    assert bench.count("conflicts") == 0


async def test_what_came_through_redis_is_there_as_well(bench, outboxes):
    payer = await bench.account()
    settle, void = bench.posting(payer), bench.posting(payer, kind="void")
    await bench.ledger.post([settle, void])
    past = rows_of(*[one._replace(stream_id="", seq=0, epoch="") for one in (settle, void)])
    assert ids(await outboxes.read_back(new_id(), past, known=0)) == []


@pytest.mark.parametrize(
    "fields",
    [
        {"payer_id": new_id()},
        {"hold_id": "x"},
        {"hold_id": f"{new_id()},{new_id()}"},
        {"charge_nanos": -1},
        {"charge_nanos": 2**63},
        {"kind": "explode"},
        {"row": b"\xff", "hold_id": "\x00"},
    ],
)
async def test_poison_is_known_once_it_is_set_aside(bench, outboxes, fields):
    payer = await bench.account()
    good = bench.posting(payer, past_redis=True)
    rows = rows_of(bench.posting(payer, past_redis=True)._replace(**fields), good)
    assert ids(await outboxes.read_back(new_id(), rows, known=0)) == [1, 2]
    await bench.ledger.post([row.posting for row in rows])
    assert bench.count("conflicts") == 1
    assert ids(await outboxes.read_back(new_id(), rows, known=0)) == []


async def test_a_quarantined_one_and_another_truth_are_known(bench, outboxes):
    payer = await bench.account()
    settle, other = bench.posting(payer, past_redis=True), bench.posting(payer, past_redis=True)
    await bench.ledger.post([settle])
    await bench.ledger.quarantine(other, "ZeroDivisionError")
    differs = settle._replace(charge_nanos=7)
    assert ids(await outboxes.read_back(new_id(), rows_of(other, differs), known=0)) == [2]
    await bench.ledger.post([differs])
    assert ids(await outboxes.read_back(new_id(), rows_of(other, differs), known=0)) == []


async def test_another_payers_ending_is_not_this_one(bench, outboxes):
    settle = bench.posting(await bench.account(), past_redis=True)
    await bench.ledger.post([settle])
    assert ids(await outboxes.read_back(new_id(), rows_of(settle._replace(payer_id=await bench.account())), known=0)) == [1]


async def test_which_ledger_it_is_needs_no_superuser(bench, outboxes):
    role = f"plain_{new_id().replace('-', '')}"
    bench.sql(f"CREATE ROLE {role} LOGIN")
    bench.sql(f"GRANT SELECT ON outbox_positions TO {role}")
    try:
        async with Database(bench.dsn.replace("//extproc@", f"//{role}@")) as pool:
            plain = await PostgresOutboxes(pool).positions()
        assert plain == await outboxes.positions()
        cluster, _, timeline = plain.ledger_id.partition("/")
        assert int(cluster) > 0
        assert int(timeline, 16) > 0
    finally:
        bench.sql(f"DROP OWNED BY {role}")
        bench.sql(f"DROP ROLE {role}")


async def test_a_forgotten_outbox_has_no_position(bench, outboxes):
    payer, outbox = await bench.account(), new_id()
    rows = rows_of(bench.posting(payer, past_redis=True))
    await bench.ledger.post([rows[0].posting])
    await outboxes.read_back(outbox, rows, known=0)
    await outboxes.forget(outbox)
    assert (await outboxes.positions()).below == {}


async def test_tokens_that_are_not_booked_are_missing_though_the_charge_is_there(bench, outboxes):
    """An expire that knew fewer of them cost as little; what the outbox has is an adjust, and only then read back."""
    payer, outbox = await bench.account(), new_id()
    await bench.ledger.grant_quota(
        QuotaGrant(
            id=new_id(),
            payer_id=payer,
            input_tokens=50,
            output_tokens=50,
            actor="test",
            reason="r",
            occurred_ms=time.time_ns() // 1_000_000,
        )
    )
    expire = bench.posting(payer, kind="expire", charge_nanos=0, free_input=5, free_output=1, record={"free_input": 5, "free_output": 1})
    settle = expire._replace(kind="settle", stream_id="", seq=0, free_output=10)
    paid = bench.posting(payer, past_redis=True)
    rows = rows_of(expire._replace(stream_id="", seq=0), settle, paid)
    await bench.ledger.post([expire, paid])
    assert ids(await outboxes.read_back(outbox, rows, known=0)) == [2]
    assert (await bench.ledger.post([settle])).adjusted == 1
    assert ids(await outboxes.read_back(outbox, rows, known=0)) == []
    (left,) = bench.sql("SELECT free_quota_input, free_quota_output FROM balances WHERE user_id = %s", payer)
    assert left == (45, 40)
