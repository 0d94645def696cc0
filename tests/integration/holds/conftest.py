from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
from integration.holds.bank import Bank
from integration.holds.invariants import problems

from extproc.holds.fresh import open_fresh
from extproc.holds.redis import RedisHolds
from extproc.stores.pipeline import Pipeline

LEASE_MS = 60_000


@pytest.fixture
async def pipeline(redis_url: str) -> AsyncIterator[Pipeline]:
    pipeline = Pipeline(redis_url, timeout_ms=5_000)
    await pipeline.open()
    yield pipeline
    await pipeline.close()


@pytest.fixture
async def bank(pipeline: Pipeline, redis_url: str) -> AsyncIterator[Bank]:
    bank = Bank(RedisHolds(pipeline, lease_ms=LEASE_MS))
    await open_fresh(bank.holds)
    yield bank
    assert await problems(redis_url, balances=bank.credited, trimmed=bank.trimmed) == []
