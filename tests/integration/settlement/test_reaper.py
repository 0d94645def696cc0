"""Holds that nobody ends are ended, without PostgreSQL; what it finds reaches the ledger like any ending."""

from __future__ import annotations

import asyncio

import pytest
from ledger_invariants import ledger_faults
from town import Tally, until

from extproc.errors import StoreRefused
from extproc.holds.redis import RedisHolds
from extproc.settlement.meter import Series
from extproc.settlement.reaper import Reaper

LEASE_MS = 300


async def test_an_abandoned_hold_comes_back(town):
    holds = RedisHolds(town.pipeline, lease_ms=LEASE_MS)
    await holds.states()
    town.holds = holds
    payer, key = await town.customer(5_000)
    reaper = Reaper(holds=holds, shards=64, meter=town.meter, pace=town.pace, reap_every_s=0.05)
    running = asyncio.create_task(reaper.run())
    hold = await town.hold(payer, key)
    assert (await town.at_rest(payer))[1:] == (4_000, 1_000)

    async def back() -> bool:
        return (await town.at_rest(payer))[1:] == (5_000, 0)

    await until(back)
    town.stop.set()
    await running
    assert town.meter.counts[Series.EXPIRED_HOLDS] == 1
    await town.poster().step()
    assert town.count("requests", f"id = '{hold}' AND ending IN ('expire', 'void') AND cost = 0 AND refund_nanos = 1000") == 1
    assert ledger_faults(town.dsn) == []


async def test_nothing_expires_before_the_witness_has_told(town):
    """A settler that was away finds both: leases that ran out, and lines about them that nobody has read."""
    shards, told = Shards(StoreRefused("away")), asyncio.Event()
    reaper = Reaper(holds=shards, shards=3, meter=Tally(), pace=town.pace, caught_up=told.wait)
    step = asyncio.create_task(reaper.step())
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert len(shards.work[0]) == 3
    told.set()
    await step
    assert shards.work[0] == []


class Shards:
    """Reaping of three shards: 0 has work for three calls, 1 fails, 2 has none."""

    def __init__(self, error: Exception) -> None:
        self.work = {0: [["a", "b"], ["c"], ["d"]], 2: []}
        self.error = error

    async def expire(self, shard: int) -> list[str]:
        if shard == 1:
            raise self.error
        return self.work[shard].pop(0) if self.work[shard] else []


async def test_a_shard_that_fails_does_not_keep_the_others_waiting(town):
    shards, meter = Shards(StoreRefused("away")), Tally()
    reaper = Reaper(holds=shards, shards=3, meter=meter, pace=town.pace)
    assert await reaper.step() == 2
    assert (meter.counts[Series.EXPIRED_HOLDS], meter.counts[Series.REAP_FAILURES]) == (4, 1)


async def test_a_bug_is_not_repeated_in_silence(town):
    with pytest.raises(ZeroDivisionError):
        await Reaper(holds=Shards(ZeroDivisionError()), shards=3, meter=Tally(), pace=town.pace).run()
