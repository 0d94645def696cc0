"""Holds and balances are not a cache: a server that throws keys away when it is full is not served from."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Iterator

import pytest
import redis

from extproc.app.compose import open_stores
from extproc.errors import ExtprocError, StoreRefused
from extproc.settings import load_settings
from extproc.stores.pipeline import Pipeline


@pytest.fixture
def server(redis_url: str) -> Iterator[redis.Redis]:
    """Everybody's Valkey, as it was when the test is over."""
    with redis.Redis.from_url(redis_url) as client:
        yield client
        client.config_set("maxmemory", 0)
        client.config_set("maxmemory-policy", "noeviction")
        client.execute_command("ACL", "DELUSER", "mute")


@pytest.fixture
async def pipeline(redis_url: str) -> AsyncIterator[Pipeline]:
    pipeline = Pipeline(redis_url, timeout_ms=5_000)
    yield pipeline
    await pipeline.close()


@pytest.mark.parametrize("policy", ["allkeys-lru", "volatile-ttl"])
async def test_a_server_that_evicts_is_not_connected_to(
    server: redis.Redis, pipeline: Pipeline, policy: str, caplog: pytest.LogCaptureFixture
) -> None:
    server.config_set("maxmemory-policy", policy)
    server.config_set("maxmemory", 2**30)
    await pipeline.open()
    assert (pipeline.connected, policy in pipeline.fault, "noeviction" in pipeline.fault) == (False, True, True)
    with pytest.raises(StoreRefused, match=policy):
        await pipeline.execute("PING")
    assert [record.levelno for record in caplog.records if policy in record.message] == [logging.ERROR]


@pytest.mark.parametrize(("policy", "maxmemory"), [("noeviction", 2**30), ("allkeys-lru", 0)])
async def test_a_server_that_never_evicts_is(server: redis.Redis, pipeline: Pipeline, policy: str, maxmemory: int) -> None:
    server.config_set("maxmemory-policy", policy)
    server.config_set("maxmemory", maxmemory)
    await pipeline.open()
    assert (pipeline.connected, pipeline.fault) == (True, "")


async def test_a_server_that_may_not_be_asked_is_warned_of(server: redis.Redis, redis_url: str, caplog: pytest.LogCaptureFixture) -> None:
    server.execute_command("ACL", "SETUSER", "mute", "on", ">word", "~*", "+@all", "-info")
    path = redis_url.removeprefix("unix://")
    pipeline = Pipeline(f"unix://mute:word@{path}", timeout_ms=5_000)
    await pipeline.open()
    assert (pipeline.connected, pipeline.fault) == (True, "")
    assert any("could not be asked" in record.message for record in caplog.records)
    await pipeline.close()


async def test_nobody_serves_from_it(server: redis.Redis, redis_url: str, database: str) -> None:
    server.config_set("maxmemory-policy", "allkeys-lru")
    server.config_set("maxmemory", 2**30)
    settings = load_settings(None, {"EXTPROC_REDIS__URL": redis_url, "EXTPROC_POSTGRES__DSN": database})
    with pytest.raises(ExtprocError, match="allkeys-lru"):
        await open_stores(settings, application="test")
