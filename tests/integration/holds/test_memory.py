from __future__ import annotations

import pytest
import redis

from extproc.errors import StoreRefused
from extproc.holds.memory import used_ratio
from extproc.stores.pipeline import Pipeline


async def test_a_server_without_a_limit_is_never_full(pipeline: Pipeline):
    assert await used_ratio(pipeline) == 0.0


async def test_a_share_of_its_limit(pipeline: Pipeline, redis_url: str):
    with redis.Redis.from_url(redis_url) as server:
        server.config_set("maxmemory", 100 * server.info("memory")["used_memory"])  # others use it as well
        try:
            assert 0.001 < await used_ratio(pipeline) < 0.1
        finally:
            server.config_set("maxmemory", 0)


async def test_nobody_says():
    pipeline = Pipeline("unix:///nonexistent/valkey.sock")
    await pipeline.open()
    with pytest.raises(StoreRefused):
        await used_ratio(pipeline)
    await pipeline.close()
