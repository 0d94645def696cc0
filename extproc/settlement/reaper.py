"""Ends what nobody ends: holds whose lease has run out. No leader and no PostgreSQL: the script is idempotent, every settler runs it.

When nothing may expire (a new epoch, a reconnect, a pause of all reapers above ten seconds: one full lease) is decided by the store's
script, by the clock of Redis and for all settlers at once; here is only the rhythm.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from extproc.errors import StoreError, StoreFenced
from extproc.holds.port import Reaping
from extproc.settlement.meter import Meter, Series
from extproc.settlement.pace import Pace, keep_doing

CALLS_MAX = 100  # of one shard in one round: a call ends a bounded batch, and a dead worker may leave thousands of holds


class Reaper:
    """``step`` is one round over all shards, after ``caught_up``: a witness may know more of holds than their checkpoints say."""

    def __init__(
        self,
        *,
        holds: Reaping,
        shards: int,
        meter: Meter,
        pace: Pace,
        reap_every_s: float = 2.0,
        caught_up: Callable[[], Awaitable[object]] | None = None,
    ) -> None:
        self._holds = holds
        self._shards = range(shards)
        self._meter = meter
        self._pace = pace
        self._reap_every_s = reap_every_s
        self._caught_up = caught_up

    async def run(self) -> None:
        """Until the pace is over."""
        await keep_doing(self.step, pace=self._pace, meter=self._meter, failures=Series.REAP_FAILURES)

    async def step(self) -> float:
        """A shard that fails does not keep the others waiting; it is tried again in the next round."""
        if self._caught_up is not None:
            await self._caught_up()
        results = await asyncio.gather(*(self._reap(shard) for shard in self._shards), return_exceptions=True)
        for result in results:
            if isinstance(result, StoreFenced):
                continue  # nothing expires in a shard that is rebuilt
            if isinstance(result, StoreError):
                self._meter.add(Series.REAP_FAILURES)
            elif isinstance(result, BaseException):
                raise result
        return self._reap_every_s

    async def _reap(self, shard: int) -> None:
        for _ in range(CALLS_MAX):
            ended = await self._holds.expire(shard)
            if not ended:
                return
            self._meter.add(Series.EXPIRED_HOLDS, len(ended))
