"""A town per test."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
from town import Town

from extproc.holds.fresh import open_fresh
from extproc.stores.pipeline import Pipeline
from extproc.stores.postgres import Database


@pytest.fixture
async def town(database: str, redis_url: str) -> AsyncIterator[Town]:
    pipeline = Pipeline(redis_url)
    await pipeline.open()
    async with Database(database) as pool:
        town = Town(pool, pipeline, database, redis_url)
        await open_fresh(town.holds)
        town.stream = await town.new_stream()
        yield town
        await town.close()
    await pipeline.close()
