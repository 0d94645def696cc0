"""A town per test, and an outbox in it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from replaying import Outbox, Settler
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


@pytest.fixture
def settler(town: Town, tmp_path: Path) -> Settler:
    return Settler(town, tmp_path / "outbox")


@pytest.fixture
def outbox(settler: Settler) -> Iterator[Outbox]:
    box = Outbox(settler.directory)
    yield box
    box.leave()
