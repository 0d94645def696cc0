"""Money out of PostgreSQL into Redis: doubled, late, reordered, lost – the sum is right."""

from __future__ import annotations

import asyncio
import random

import psycopg
import pytest
from ledger_invariants import ledger_faults
from town import new_id, until

from extproc.accounts.registry import Scopes
from extproc.errors import StoreRefused, StoreUnknown, UsageError
from extproc.settlement.meter import Series


class Deaf:
    """Deliveries that fail before or after they were carried out."""

    def __init__(self, holds, *, after: bool) -> None:
        self._holds, self._after = holds, after

    def epoch_of(self, payer_id):
        return self._holds.epoch_of(payer_id)

    def __getattr__(self, verb):
        real = getattr(self._holds, verb)

        async def fail(*args, **fields):
            if self._after:
                await real(*args, **fields)
                raise StoreUnknown("the answer was lost")
            raise StoreRefused("away")

        return fail


async def test_a_deposit_is_spendable_at_once(town):
    payer, _ = await town.customer(0)
    receipt = await town.deposits.deposit(payer, 500, method="manual", actor="test")
    assert receipt.is_delivered
    assert await town.at_rest(payer) == (500, 500, 0)
    assert await town.ledger.undelivered(after=None, limit=5) == []
    assert ledger_faults(town.dsn) == []


@pytest.mark.parametrize("after", [False, True])
async def test_what_redis_did_not_confirm_the_sweep_brings(town, after):
    payer, _ = await town.customer(100)
    receipt = await town.deposits_over(Deaf(town.holds, after=after)).deposit(payer, 500, method="manual", actor="test")
    assert (receipt.fresh, receipt.is_delivered) == (True, False)
    for _ in range(2):
        await town.sweep().step()
        assert await town.at_rest(payer) == (600, 600, 0)
    assert await town.ledger.undelivered(after=None, limit=5) == []


async def test_a_payer_that_redis_never_had_is_installed_by_the_sweep(town):
    account = await town.registry.create_account(name="n", tier="t", actor="test")
    await town.empty_redis()
    with_key = await town.registry.create_key(account.id, name="k", scopes=Scopes(), actor="test")
    with psycopg.connect(town.dsn) as connection:
        connection.execute("UPDATE balances SET redis_version = NULL")
        connection.execute("UPDATE credentials SET redis_version = NULL")
    await town.deposits_over(Deaf(town.holds, after=False)).deposit(account.id, 5_000, method="manual", actor="test")
    await town.empty_redis()
    await town.sweep().step()
    assert await town.at_rest(account.id) == (5_000, 5_000, 0)
    assert (town.meter.counts[Series.DELIVERED_KEYS], town.meter.counts[Series.MISSING_PAYERS]) == (1, 0)
    await town.serve(account.id, with_key.id)


async def test_a_payer_that_redis_lost_is_alarmed_and_not_guessed(town):
    payer, _ = await town.customer(100)
    await town.empty_redis()
    receipt = await town.deposits.deposit(payer, 500, method="manual", actor="test")
    assert (receipt.is_delivered, await town.holds.view(payer)) == (False, None)
    await town.sweep().step()
    assert await town.holds.view(payer) is None
    assert town.meter.counts[Series.MISSING_PAYERS] == 2
    assert len(await town.ledger.undelivered(after=None, limit=5)) == 1


async def test_deliveries_doubled_late_and_reordered(town):
    """Snapshots of every version, brought in any order, any number of times: the sum is that of the last."""
    payer, _ = await town.customer(0)
    deposits = town.deposits_over(Deaf(town.holds, after=False))
    snapshots = [(await deposits.deposit(payer, amount, method="manual", actor="test")).balance for amount in (100, 20, 3)]
    snapshots.append((await deposits.correct(payer, -50, reason="test", actor="test")).balance)
    for seed in range(5):
        order = random.Random(seed).choices(snapshots, k=12)
        for one in order:
            await town.holds.credit(payer, version=one.version, total_nanos=one.credited_total, credit_nanos=one.credit_nanos)
    last = snapshots[-1]
    await town.holds.credit(payer, version=last.version, total_nanos=last.credited_total, credit_nanos=last.credit_nanos)
    assert await town.at_rest(payer) == (73, 73, 0)


async def test_deposits_at_once_while_requests_run(town):
    payer, key = await town.customer(10_000)
    holds = [await town.hold(payer, key) for _ in range(3)]
    await asyncio.gather(*(town.deposits.deposit(payer, 100, method="manual", actor="test") for _ in range(8)))
    await asyncio.gather(*(town.serve(payer, key) for _ in range(4)))
    await town.poster().step()
    await town.sweep().step()
    balance, available, held = await town.at_rest(payer)
    assert (balance, held) == (10_000 + 800 - 100, 1_000 * len(holds))
    assert available + held == balance, "invariant 3"
    assert ledger_faults(town.dsn) == []


async def test_one_payment_is_one_deposit(town):
    payer, _ = await town.customer(0)
    told = [town.deposits.deposit(payer, 500, method="stripe", payment_id="pi_1", actor="stripe") for _ in range(5)]
    receipts = await asyncio.gather(*told)
    assert sum(receipt.fresh for receipt in receipts) == 1
    assert await town.at_rest(payer) == (500, 500, 0)


async def test_corrections_and_credit_lines_reach_redis(town):
    payer, _ = await town.customer(100)
    await town.deposits.correct(payer, -30, reason="booked twice", actor="test")
    receipt = await town.deposits.set_credit(payer, 40, actor="test", reason="postpaid")
    assert receipt.is_delivered
    view = await town.holds.view(payer)
    assert view is not None
    assert (view.available_nanos, view.credit_nanos) == (70, 40)


@pytest.mark.parametrize("amount", [0, -1, 4 * 10**18 + 1])
async def test_amounts_that_cannot_be(town, amount):
    payer, _ = await town.customer(0)
    with pytest.raises(UsageError):
        await town.deposits.deposit(payer, amount, method="manual", actor="test")
    with pytest.raises(UsageError):
        await town.deposits.set_credit(payer, -1, actor="test", reason="x")
    with pytest.raises(UsageError):
        await town.deposits.correct(payer, 5, reason="", actor="test")


async def test_the_sweep_runs_until_it_is_told_to_stop(town):
    payer, _ = await town.customer(0)
    await town.deposits_over(Deaf(town.holds, after=False)).deposit(payer, 500, method="manual", actor="test")
    running = asyncio.create_task(town.sweep().run())

    async def delivered() -> bool:
        return (await town.at_rest(payer))[1] == 500

    await until(delivered)
    town.stop.set()
    await running


async def test_a_revocation_that_redis_did_not_hear_is_brought(town):
    payer, key = await town.customer(100)
    with psycopg.connect(town.dsn) as connection:
        connection.execute("UPDATE credentials SET revoked = true, version = version + 1")
    await town.sweep().step()
    (name,) = await town.pipeline.execute("KEYS", f"*:key:{payer}:{key}")
    assert await town.pipeline.execute("HGET", name, "revoked") == b"1"


@pytest.mark.parametrize("reference", ["", " ", "a\0b", "a\nb", "x" * 201, "\ud800"])
async def test_references_that_cannot_be(town, reference):
    payer, _ = await town.customer(0)
    with pytest.raises(UsageError):
        await town.deposits.deposit(payer, 5, method="manual", actor="test", payment_id=reference)
    assert town.count("billing_events") == 0


async def test_one_deposit_is_not_two_payments(town):
    payer, _ = await town.customer(0)
    told = {"method": "stripe", "actor": "test", "deposit_id": new_id()}
    assert (await town.deposits.deposit(payer, 5, payment_id="pi_1", **told)).fresh
    assert not (await town.deposits.deposit(payer, 5, payment_id="pi_1", **told)).fresh
    for other in ({"payment_id": "pi_2"}, {"payment_id": None}, {"payment_id": "pi_1", "method": "paypal"}):
        with pytest.raises(UsageError):
            await town.deposits.deposit(payer, 5, **(told | other))
    assert await town.at_rest(payer) == (5, 5, 0)


async def test_a_ledger_that_counts_on_from_an_older_copy_is_noticed(town):
    """Redis has heard of a version that the ledger has lost. The next deposit has that number again: it is not taken for a late one."""
    payer, _ = await town.customer(100)
    with psycopg.connect(town.dsn) as connection:
        before = connection.execute(
            "SELECT balance, version, credited_total, redis_version FROM balances WHERE user_id = %s", (payer,)
        ).fetchone()
        await town.deposits.deposit(payer, 7, method="bank", actor="test")
        assert before is not None
        connection.execute(
            "UPDATE balances SET balance = %s, version = %s, credited_total = %s, redis_version = %s WHERE user_id = %s", (*before, payer)
        )
    assert not (await town.deposits.deposit(payer, 500, method="bank", actor="test")).is_delivered
    assert town.meter.counts[Series.MISSING_PAYERS] == 1
    wanted = []

    async def missed(payer_id: str) -> None:
        wanted.append(payer_id)

    town.epochs.miss = missed
    await town.sweep().step()
    assert wanted == [payer], "its shard is rebuilt"
