"""A clock for tests: the shard's time is max(Redis's, last seen), so moving "last seen" moves time, forward only."""

from __future__ import annotations

from extproc.holds.redis import RedisHolds
from extproc.stores.pipeline import Pipeline
from extproc.stores.shards import TAGS, shard_of

REAPER_STEP_MS = 2_000


class ShardClock:
    def __init__(self, pipeline: Pipeline, holds: RedisHolds, payer: str = "anna") -> None:
        self.pipeline = pipeline
        self.holds = holds
        self.shard = shard_of(payer)

    async def now_ms(self) -> int:
        seconds, micros = await self.pipeline.execute("TIME")
        seen = await self.pipeline.execute("HGET", f"{TAGS[self.shard]}:shard", "now")
        return max(int(seconds) * 1_000 + int(micros) // 1_000, int(seen or 0))

    async def jump(self, ms: int) -> None:
        """As if Redis's clock had been set forward, with nobody doing anything meanwhile."""
        await self.pipeline.execute("HSET", f"{TAGS[self.shard]}:shard", "now", await self.now_ms() + ms)

    async def pass_by(self, ms: int) -> list[str]:
        """Time passes, and the reaper comes every two seconds. What it ended."""
        ended = await self.holds.expire(self.shard)
        for _ in range(0, ms, REAPER_STEP_MS):
            await self.jump(REAPER_STEP_MS)
            ended += await self.holds.expire(self.shard)
        return ended
