"""Holds ended by hand: all goes back at once, and whoever runs on after all is charged when he settles – once, whichever way it comes."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import psycopg
import pytest
from ledger_invariants import ledger_faults
from psycopg.rows import dict_row
from town import CAP, PRICE, new_id, unix_ms

from extproc.errors import StoreRefused, UsageError
from extproc.exchange.record import Record
from extproc.ledger.audit import PostgresAudit
from extproc.money.hold import Checkpoint, Ending, EndKind, EndResult
from extproc.money.posting import Posting
from extproc.money.receipt import receipt
from extproc.money.usage import Usage
from extproc.settlement.release import Release, released_row
from extproc.stores.shards import shard_of

USED = Usage(input_tokens=5, output_tokens=10)
CHARGE = 25


def releases(town: Any, holds: Any = None) -> Release:
    return Release(holds or town.holds, PostgresAudit(town.database), new_id=new_id)


def row_of(hold: str, payer: str, key: str) -> bytes:
    return Record(
        id=hold, user_id=payer, creds_id=key, model="m", input_tokens=5, output_tokens=10, cost_nanos=CHARGE,
        list_nanos=receipt(USED, PRICE, cap_nanos=CAP).cost_nanos, price_id=PRICE.price_id, price=PRICE.text, created_ms=unix_ms(),
    ).to_row()  # fmt: skip


async def settle(town: Any, hold: str, payer: str, key: str) -> EndResult:
    return await town.holds.end(
        Ending(
            hold_id=hold, owner=hold, payer_id=payer, key_id=key, kind=EndKind.SETTLE, charge_nanos=CHARGE, tokens=15,
            row=row_of(hold, payer, key), reserved_nanos=CAP, is_forwarded=True,
        )
    )  # fmt: skip


def rows(town: Any, sql: str) -> list[dict[str, Any]]:
    with psycopg.connect(town.dsn, row_factory=dict_row) as connection:
        return connection.execute(sql.encode()).fetchall()


async def test_it_gives_all_back_at_once_and_the_audit_says_who_and_why(town):
    payer, key = await town.customer(10_000)
    hold = await town.hold(payer, key)
    checkpoint = Checkpoint(hold_id=hold, owner=hold, payer_id=payer, charge_nanos=15, row=row_of(hold, payer, key))
    await town.holds.beat([checkpoint])
    released = await releases(town).release(hold, actor="ada", reason="it hangs")
    assert (released.hold_id, released.reserved_nanos, released.checkpoint_nanos) == (hold, CAP, 15)
    assert await town.holds.open_holds() == []
    await town.poster().step()
    assert await town.at_rest(payer) == (10_000, 10_000, 0)
    (request,) = rows(town, "SELECT ending, end_reason, cost, list_nanos, hold_nanos, refund_nanos, model, input_tokens FROM requests")
    assert request == {
        "ending": "expire", "end_reason": "released", "cost": 0, "list_nanos": 0, "hold_nanos": CAP, "refund_nanos": CAP, "model": "m",
        "input_tokens": 0,
    }  # fmt: skip
    (audit,) = rows(town, "SELECT actor, subject, reason, detail FROM audit WHERE action = 'release_hold'")
    assert (audit["actor"], audit["subject"], audit["reason"]) == ("ada", hold, "it hangs")
    assert audit["detail"] == {"account": payer, "state": "exact", "reserved_nanos": CAP, "checkpoint_nanos": 15}
    assert ledger_faults(town.dsn) == []


@pytest.mark.parametrize("by_redis", [True, False])
@pytest.mark.parametrize("by_outbox", [True, False])
async def test_a_request_that_runs_on_is_charged_once_when_it_settles(town, by_redis, by_outbox):
    payer, key = await town.customer(10_000)
    hold = await town.hold(payer, key)
    await releases(town).release(hold, actor="ada", reason="it hangs")
    if by_redis:
        assert await settle(town, hold, payer, key) is EndResult.ALREADY
    await town.poster().step()
    if by_outbox:
        past = Posting(shard_of(payer), "", "settle", hold, payer, key, CHARGE, CAP, "", 0, unix_ms(), row_of(hold, payer, key))
        for _ in range(2):
            await town.ledger.post([past])
    await town.sweep().step()
    charged = CHARGE if by_redis or by_outbox else 0
    assert await town.at_rest(payer) == (10_000 - charged, 10_000 - charged, 0)
    assert [row["cost"] for row in rows(town, "SELECT cost FROM requests")] == [charged]
    assert town.count("conflicts") == 0
    assert ledger_faults(town.dsn) == []


async def test_one_of_a_settle_and_a_release_ends_it(town):
    payer, key = await town.customer(1_000_000)
    for _ in range(20):
        hold = await town.hold(payer, key)
        first, second = settle(town, hold, payer, key), releases(town).release(hold, actor="ada", reason="race")
        await asyncio.gather(first, second, return_exceptions=True)
    poster = town.poster()
    while await town.waiting():
        await poster.step()
    await town.sweep().step()
    assert await town.at_rest(payer) == (1_000_000 - 20 * CHARGE, 1_000_000 - 20 * CHARGE, 0)
    assert ledger_faults(town.dsn) == []


async def test_what_is_not_open_is_told_and_nothing_is_done(town):
    payer, key = await town.customer(10_000)
    served = await town.serve(payer, key)
    hold = await town.hold(payer, key)
    for hold_id, reason in ((served, "x"), (new_id(), "x"), (hold, "  ")):
        with pytest.raises(UsageError):
            await releases(town).release(hold_id, actor="ada", reason=reason)
    assert [one.hold_id for one in await town.holds.open_holds()] == [hold]
    assert town.count("audit", "action = 'release_hold'") == 0


async def test_redis_away_leaves_the_hold_and_the_wish_in_the_audit(town):
    payer, key = await town.customer(10_000)
    hold = await town.hold(payer, key)

    class Away:
        def __getattr__(self, verb: str) -> Any:
            return getattr(town.holds, verb)

        async def release(self, *_: Any, **__: Any) -> EndResult:
            raise StoreRefused("away")

    with pytest.raises(StoreRefused):
        await releases(town, Away()).release(hold, actor="ada", reason="it hangs")
    assert [one.hold_id for one in await town.holds.open_holds()] == [hold]
    assert town.count("audit", "action = 'release_hold'") == 1


@pytest.mark.parametrize("row", [b"", b"nothing", b"[]", b"\xff"])
def test_a_row_that_cannot_be_read_keeps_no_hold_open(row):
    assert json.loads(released_row(row, "h")) == {**json.loads(released_row(b'{"id": "h"}', "h"))}
