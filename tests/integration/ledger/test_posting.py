"""Postings into a real PostgreSQL: once, in one transaction with the cursor, and balanced."""

from __future__ import annotations

import asyncio
import contextlib
import random

import psycopg
import pytest
from ledger_invariants import ledger_faults

from extproc.errors import StoreRefused, StoreRejected
from extproc.ledger.port import derived_id
from extproc.ledger.rows import RARE
from extproc.money.posting import Posting
from extproc.money.usage import QUANTITIES, Quota, used
from extproc.stores.queries import Query


async def balance(bench, payer: str) -> int:
    found = await bench.ledger.balance(payer)
    assert found is not None
    return found.balance_nanos


async def test_a_batch_is_booked_with_its_cursor(bench):
    payer = await bench.account(1_000)
    posted = await bench.ledger.post(
        [bench.posting(payer), bench.posting(payer, kind="void"), bench.posting(payer, kind="expire", shard=7)]
    )
    assert (posted.booked, posted.conflicts, posted.violations, dict(posted.cursors)) == (3, 0, 0, {0: "2-0", 7: "1-0"})
    cursors = await bench.ledger.cursors([0, 7, 8])
    assert [(cursors[shard].stream_id, cursors[shard].seq) for shard in (0, 7, 8)] == [("2-0", 2), ("1-0", 1), ("0-0", 0)]
    assert await balance(bench, payer) == 1_000 - 2 * 25
    assert ledger_faults(bench.dsn) == []


@pytest.mark.parametrize("past_redis", [True, False])
async def test_an_event_applied_k_times_is_applied_once(bench, past_redis):
    payer = await bench.account(1_000)
    batch = [bench.posting(payer, past_redis=past_redis) for _ in range(5)]
    for _ in range(3):
        await bench.ledger.post(batch)
    await bench.ledger.post(batch[::-1])
    assert (bench.count("billing_events", "event_type = 'settle'"), bench.count("requests")) == (5, 5)
    assert await balance(bench, payer) == 1_000 - 5 * 25
    assert ledger_faults(bench.dsn) == []


async def test_every_unit_has_its_column_and_only_who_used_it_fills_it(bench):
    """Beside ordinary rows in one batch; what an adjust does not name any more is nothing."""
    payer = await bench.account(1_000)
    units = {name: number for number, name in enumerate(RARE, 1)} | {"input_tokens": 50, "output_tokens": 70, "cached_tokens": 9}
    _, rare, _ = batch = [bench.posting(payer), bench.posting(payer, 2, kind="expire", record=units), bench.posting(payer)]
    await bench.ledger.post(batch)
    columns = ", ".join(RARE)
    assert bench.sql(f"SELECT {columns} FROM requests WHERE id = %s", rare.hold_id) == [tuple(units[name] for name in RARE)]
    assert bench.sql(f"SELECT DISTINCT {columns} FROM requests WHERE id <> %s", rare.hold_id) == [(0,) * len(RARE)]
    found = await bench.ledger.explain(rare.hold_id)
    assert found is not None
    usage, quota = used(found.request)
    said = {name: getattr(usage, name) for name in QUANTITIES} | {"free_input": 10, "free_output": 11, "choices": found.request["choices"]}
    assert said.items() >= units.items()
    assert quota == Quota(input_tokens=10, output_tokens=11)
    more = {"images": 7, "free_output": 3}
    await bench.ledger.post([bench.posting(payer, 40, past_redis=True, hold_id=rare.hold_id, record=more)])
    expected = dict.fromkeys(RARE, 0) | more
    assert bench.sql(f"SELECT {columns} FROM requests WHERE id = %s", rare.hold_id) == [tuple(expected.values())]


async def test_the_stream_and_the_outbox_at_once(bench):
    """The same endings from two writers at the same time: none twice, nobody in a deadlock."""
    payers = [await bench.account(100_000) for _ in range(4)]
    batch = [bench.posting(payer) for _ in range(25) for payer in payers]
    outbox = [one._replace(stream_id="", seq=0) for one in batch]
    shuffled = random.Random(1).sample(outbox, len(outbox))
    results = await asyncio.gather(bench.ledger.post(batch), bench.ledger.post(outbox), bench.ledger.post(shuffled))
    assert sum(result.booked for result in results) == 100
    assert bench.count("billing_events", "event_type = 'settle'") == 100
    assert ledger_faults(bench.dsn) == []


async def test_a_settle_after_its_expire_becomes_one_adjust(bench):
    payer = await bench.account(1_000)
    expire = bench.posting(payer, 2, kind="expire")
    settle = bench.posting(payer, 40, past_redis=True, hold_id=expire.hold_id)
    await bench.ledger.post([expire])
    before = await bench.ledger.balance(payer)
    assert [(await bench.ledger.post([settle])).adjusted for _ in range(3)] == [1, 0, 0]
    after = await bench.ledger.balance(payer)
    assert before is not None
    assert after is not None
    assert after.balance_nanos == 1_000 - 85
    assert (after.version - before.version, after.credited_total - before.credited_total) == (1, -76), "Redis learns of it"
    explained = await bench.ledger.explain(expire.hold_id)
    assert explained is not None
    assert [(event["event_type"], event["amount"]) for event in explained.events] == [("expire", -9), ("adjust", -76)]
    assert (explained.request["ending"], explained.request["cost"], explained.request["output_tokens"]) == ("expire", 85, 40)
    assert explained.request["refund_nanos"] == 1_000 - 85
    assert ledger_faults(bench.dsn) == []


async def test_expire_and_settle_in_one_batch(bench):
    payer = await bench.account(1_000)
    expire = bench.posting(payer, 2, kind="expire")
    posted = await bench.ledger.post([expire, bench.posting(payer, 40, past_redis=True, hold_id=expire.hold_id)])
    assert (posted.booked, posted.adjusted) == (1, 1)
    assert bench.sql("SELECT cost FROM requests WHERE id = %s", expire.hold_id) == [(85,)]
    assert ledger_faults(bench.dsn) == []


async def test_a_late_charge_beyond_the_balance_is_loss(bench):
    payer = await bench.account(50)
    expire = bench.posting(payer, 2, kind="expire")
    await bench.ledger.post([expire])
    posted = await bench.ledger.post([bench.posting(payer, 100, past_redis=True, hold_id=expire.hold_id)])
    assert posted.loss_nanos == 205 - 50
    assert await balance(bench, payer) == 0
    assert bench.sql("SELECT amount FROM entries WHERE kind = 'loss' AND name = 'late'") == [(-155,)]
    assert bench.sql("SELECT cost, loss_nanos FROM requests") == [(50, 155)]
    assert ledger_faults(bench.dsn) == []


async def test_another_second_ending_is_one_conflict(bench):
    payer = await bench.account()
    settle = bench.posting(payer, 10)
    other = bench.posting(payer, 20, past_redis=True, hold_id=settle.hold_id)
    await bench.ledger.post([settle])
    assert [(await bench.ledger.post([other])).conflicts for _ in range(3)] == [1, 0, 0]
    assert bench.sql("SELECT reason, charge_nanos, payload->>'hold_id' FROM conflicts") == [("other_amount", 45, settle.hold_id)]
    assert ledger_faults(bench.dsn) == []


async def test_overage_is_the_operators(bench):
    payer = await bench.account(1_000)
    posting = bench.posting(payer, 600, cap=1_000)
    posted = await bench.ledger.post([posting])
    assert posted.overage_nanos == 205
    assert await balance(bench, payer) == 0
    lines = bench.sql("SELECT kind, name, amount FROM entries WHERE event_id = %s ORDER BY line", derived_id(posting.hold_id, "overage"))
    assert lines == [("loss", "overage", -205), ("revenue", "m", 205)]
    assert ledger_faults(bench.dsn) == []


async def test_gaps_and_duplicates_alarm_and_do_not_stop(bench):
    payer = await bench.account()
    first = bench.posting(payer)
    bench.next_seq()
    after_gap = bench.posting(payer)
    again = bench.posting(payer, seq=3)
    posted = await bench.ledger.post([first, after_gap, again])
    assert (posted.booked, posted.violations) == (3, 2)
    assert bench.sql("SELECT kind, expected_seq, seq FROM fence_violations ORDER BY id") == [("gap", 2, 3), ("duplicate", 4, 3)]
    assert (await bench.ledger.cursors([0]))[0].stream_id == "4-0"


async def test_poison_is_kept_whole_and_the_rest_is_booked(bench):
    payer = await bench.account(1_000)
    batch = [
        bench.posting(payer, row=b"\xff\x00"),
        bench.posting(payer, hold_id="\x00 not an id"),
        bench.posting("00000000-0000-7000-8000-000000000000"),
        bench.posting(payer, kind="explode"),
        bench.posting(payer, row=rb'{"model":"\u0000","error_msg":"\udc80"}'),
        bench.posting(payer),
    ]
    posted = await bench.ledger.post(batch)
    assert (posted.booked, posted.conflicts) == (3, 4)
    assert {reason for (reason,) in bench.sql("SELECT reason FROM conflicts")} == {"bad_row", "bad_event", "unknown_payer"}
    assert await balance(bench, payer) == 1_000 - 3 * 25
    assert (await bench.ledger.cursors([0]))[0].stream_id == "6-0"


async def test_texts_arrive_as_they_were_sent(bench):
    said = {"model": "\\N", "tier": "None", "error_msg": 'a\tb\nc\r\\d "é" \\.', "upstream": "\\."}
    posting = bench.posting(await bench.account(), record={**said, "usage_flags": ('x"y\\', "a,b", "\t", "NULL")})
    await bench.ledger.post([posting])
    ((*texts, flags),) = bench.sql("SELECT model, tier, error_msg, upstream, usage_flags FROM requests")
    assert texts == list(said.values())
    assert flags == ['x"y\\', "a,b", "\t", "NULL"]
    assert bench.sql("SELECT count(*) FROM entries WHERE name = %s", said["model"]) == [(1,)]
    assert ledger_faults(bench.dsn) == []


async def test_a_hold_whose_refusal_has_a_row_ends_without_another(bench):
    payer = await bench.account(1_000)
    void = bench.posting(payer, kind="void")
    note = bench.note(payer, id=void.hold_id)._replace(hold_id="")
    await bench.ledger.post([note])
    assert (await bench.ledger.post([void])).booked == 1
    assert bench.sql("SELECT ending FROM requests") == [("none",)]
    assert bench.count("billing_events", "event_type = 'void'") == 1


async def test_refusals_from_two_writers_at_once(bench):
    """No payer is locked for them: who comes second finds the row there, keeps nothing, and comes again."""
    payer = await bench.account()
    notes = [bench.note(payer, created_ms=60_000 * n) for n in range(1, 20)]
    outbox = [note._replace(stream_id="") for note in notes]

    async def post(batch: list[Posting]) -> None:
        while True:
            with contextlib.suppress(StoreRefused):
                await bench.ledger.post(batch)
                return

    async with asyncio.timeout(20):
        await asyncio.gather(post(notes), post(outbox), post(outbox[::-1]))
    assert bench.count("requests") == len(notes)


async def test_what_the_database_rejects_keeps_nothing_and_is_quarantined(bench):
    """Above the cap of a balance: a CHECK says no. The whole batch is undone; the caller sets the one aside."""
    payer, other = await bench.account(), await bench.account()
    monster = bench.posting(payer, charge_nanos=8 * 10**18)
    fine = bench.posting(other)
    with pytest.raises(StoreRejected):
        await bench.ledger.post([monster, fine])
    assert (bench.count("billing_events", "event_type = 'settle'"), (await bench.ledger.cursors([0]))[0].stream_id) == (0, "0-0")
    assert (await bench.ledger.quarantine(monster, "why")).conflicts == 1
    assert (await bench.ledger.quarantine(monster, "why")).repeated == 1
    assert (await bench.ledger.post([monster, fine])).booked == 1
    assert bench.sql("SELECT reason, detail FROM conflicts") == [("rejected", "why")]
    assert ledger_faults(bench.dsn) == []


async def test_refusals_are_bounded_across_batches(bench):
    payer = await bench.account()
    for size in (4, 9, 20):
        await bench.ledger.post([bench.note(payer) for _ in range(size)])
    await bench.ledger.post([bench.note(payer, error_code="rate_limit_exceeded")])
    assert bench.count("requests", "error_code = 'insufficient_quota' AND times = 1") == 10
    assert bench.sql("SELECT times FROM requests WHERE times > 1") == [(23,)]
    assert bench.count("requests", "error_code = 'rate_limit_exceeded'") == 1
    assert bench.count("billing_events", "event_type <> 'deposit'") == 0


async def test_a_note_needs_no_account(bench):
    await bench.ledger.post([bench.note("", user_id="", error_code="invalid_api_key") for _ in range(3)])
    assert bench.sql("SELECT user_id, times FROM requests") == [(None, 3)]


async def test_a_posted_batch_is_durable_by_setting(bench):
    async with bench.ledger._database.transaction() as transaction:
        rows = await transaction.fetch(Query(name="x", sentence="x", sql=b"SHOW synchronous_commit"))
    assert rows == [{"synchronous_commit": "on"}]


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE entries SET amount = amount + 1",
        "DELETE FROM entries",
        "UPDATE billing_events SET amount = 0",
        "DELETE FROM billing_events",
        "INSERT INTO entries (event_id, line, kind, name, amount) SELECT gen_random_uuid(), 0, 'promo', '', 1",
        "INSERT INTO billing_events (id, user_id, event_type, amount, balance_after, occurred_at) SELECT id, id, 'gift', 1, 1, now() FROM users",
        "INSERT INTO entries (event_id, line, kind, amount) VALUES (gen_random_uuid(), 0, 'piggy bank', 1)",
        "INSERT INTO price_versions (price_id, price) VALUES (repeat('0', 64), 'x')",
    ],
)
async def test_the_schema_holds_what_the_program_promises(bench, statement):
    await bench.ledger.post([bench.posting(await bench.account())])
    with pytest.raises(psycopg.Error) as refused:
        bench.sql(statement)
    assert refused.value.sqlstate == "23514"


@pytest.mark.parametrize(
    "damage",
    [
        "UPDATE balances SET balance = balance + 1",
        "ALTER TABLE entries DISABLE TRIGGER USER; UPDATE entries SET amount = amount - 1 WHERE kind = 'customer'",
        "UPDATE requests SET output_tokens = output_tokens + 1",
        "UPDATE requests SET cost = cost - 1, refund_nanos = refund_nanos + 1",
        "UPDATE requests SET ending = 'expire'",
        "DELETE FROM requests",
        "DELETE FROM price_versions",
    ],
)
async def test_the_invariants_see_damage(bench, damage):
    await bench.ledger.post([bench.posting(await bench.account())])
    assert ledger_faults(bench.dsn) == []
    with psycopg.connect(bench.dsn, autocommit=True) as connection:
        connection.execute(damage.encode())
    assert ledger_faults(bench.dsn) != []
