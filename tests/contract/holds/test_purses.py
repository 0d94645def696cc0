"""What a key is told that asks about its owner's money."""

from __future__ import annotations

import time

import pytest
from integration.holds.bank import Bank

from extproc.errors import StoreFenced
from extproc.holds.port import Tokens
from extproc.money.hold import Denied, DenyReason
from extproc.money.statement import Purse
from extproc.money.usage import Quota
from extproc.stores.shards import tag_of


async def test_live_and_held(bank: Bank) -> None:
    await bank.payer(1_000, credit=50)
    hold = await bank.open(300)
    assert await bank.holds.purse("anna", "k1") == Purse(balance_nanos=1_000, held_nanos=300, credit_nanos=50, total_nanos=1_000)
    await bank.settle(hold, 120)
    assert await bank.holds.purse("anna", "k1") == Purse(balance_nanos=880, held_nanos=0, credit_nanos=50, total_nanos=1_000)
    await bank.holds.credit("anna", version=2, total_nanos=1_500, credit_nanos=0)
    bank.credited["anna"] = 1_500
    assert await bank.holds.purse("anna", "k1") == Purse(balance_nanos=1_380, held_nanos=0, credit_nanos=0, total_nanos=1_500)


async def test_free_tokens_there_and_held(bank: Bank) -> None:
    await bank.payer(1_000)
    await bank.give(Tokens(900, 50))
    hold = await bank.open(300, quota=Quota(input_tokens=100, output_tokens=50), beside=20)
    purse = await bank.holds.purse("anna", "k1")
    assert isinstance(purse, Purse)
    assert (purse.held_nanos, purse.free, purse.held_free) == (20, Quota(input_tokens=800), Quota(input_tokens=100, output_tokens=50))
    await bank.settle(hold, 0, used=Quota(input_tokens=30, output_tokens=50))
    purse = await bank.holds.purse("anna", "k1")
    assert isinstance(purse, Purse)
    assert (purse.free, purse.held_free) == (Quota(input_tokens=870), Quota())


@pytest.mark.parametrize("period", ["none", "day", "month"])
async def test_a_budget_is_that_of_the_present_period_and_of_the_line(bank: Bank, period: str) -> None:
    await bank.payer(1_000, budget_nanos="500", budget_period=period, budget_id="k0")
    assert (await bank.holds.purse("anna", "k1")).budget_used_nanos == 0
    hold = await bank.open(300)
    assert (await bank.holds.purse("anna", "k1")).budget_used_nanos == 300, "what is held is used"
    await bank.settle(hold, 120)
    await bank.key(key="k2", budget_nanos="500", budget_period=period, budget_id="k0")
    assert (await bank.holds.purse("anna", "k2")).budget_used_nanos == 120


async def test_who_may_not_ask(bank: Bank) -> None:
    assert await bank.holds.purse("anna", "k1") == Denied(reason=DenyReason.MISSING)
    await bank.payer(1_000)
    assert await bank.holds.purse("anna", "k9") == Denied(reason=DenyReason.MISSING, limit_source="key")
    await bank.key(expires_ms=str(int(time.time() * 1_000) - 1))
    assert await bank.holds.purse("anna", "k1") == Denied(reason=DenyReason.KEY_EXPIRED, limit_source="key")
    await bank.key(revoked="1")
    assert await bank.holds.purse("anna", "k1") == Denied(reason=DenyReason.KEY_REVOKED, limit_source="key")
    await bank.key(key="k2")
    await bank.holds.set_frozen("anna", version=2, frozen=True)
    assert isinstance(await bank.holds.purse("anna", "k2"), Purse), "frozen money is his all the same"


async def test_a_shard_in_another_epoch_tells_nothing(bank: Bank) -> None:
    await bank.payer(1_000)
    name = f"{tag_of('anna')}:shard"
    epoch = await bank.holds._pipeline.execute("HGET", name, "epoch")
    await bank.holds._pipeline.execute("HSET", name, "epoch", "another.2")
    with pytest.raises(StoreFenced):
        await bank.holds.purse("anna", "k1")
    await bank.holds._pipeline.execute("HSET", name, "epoch", epoch)
    await bank.holds.states()
