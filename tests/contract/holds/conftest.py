from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
from integration.holds.bank import Bank
from integration.holds.invariants import problems

from extproc.holds.fresh import open_fresh
from extproc.holds.redis import RedisHolds
from extproc.stores.pipeline import Pipeline


@pytest.fixture(params=["redis"])
async def bank(request: pytest.FixtureRequest, redis_url: str) -> AsyncIterator[Bank]:
    """A hold store with one payer and one key. Whatever a test does, the invariants hold when it is over."""
    assert request.param == "redis"
    pipeline = Pipeline(redis_url, timeout_ms=5_000)
    holds = RedisHolds(pipeline, lease_ms=2_000)
    await pipeline.open()
    await open_fresh(holds)
    bank = Bank(holds)
    yield bank
    await pipeline.close()
    assert await problems(redis_url, balances=bank.credited) == []
