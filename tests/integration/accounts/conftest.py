"""Accounts on a fresh database and the shared Valkey; clocks in the test's hand."""

from __future__ import annotations

import secrets
import time
from collections.abc import AsyncIterator

import pytest

from extproc.accounts.directory import Directory, KeyStore
from extproc.accounts.registry import Registry
from extproc.holds.fresh import open_fresh
from extproc.holds.redis import RedisHolds
from extproc.money.hold import uuid7
from extproc.stores.pipeline import Pipeline
from extproc.stores.postgres import Database


def new_id() -> str:
    return uuid7(unix_ms=time.time_ns() // 1_000_000, random_bits=secrets.randbits(74))


class House:
    """One process's view of the stores. ``now_s`` and ``now_ms`` move only when a test moves them."""

    def __init__(self, database: Database, pipeline: Pipeline, dsn: str) -> None:
        self.dsn = dsn
        self.now_s = 1_000.0
        self.now_ms = 1_760_000_000_000
        self.database = database
        self.pipeline = pipeline
        self.holds = RedisHolds(pipeline)
        self.store = KeyStore(database, pipeline, self.holds, unix_ms=lambda: self.now_ms)
        self.registry = Registry(self.store, self.holds, new_id=new_id)
        self.directory = self.new_process()

    async def empty_redis(self) -> None:
        """All is lost, and the shards are opened without having been rebuilt."""
        await self.pipeline.execute("FLUSHALL")
        await open_fresh(self.holds)

    def new_process(self) -> Directory:
        return Directory(self.store, monotonic_s=lambda: self.now_s)


@pytest.fixture
async def house(database: str, redis_url: str) -> AsyncIterator[House]:
    pipeline = Pipeline(redis_url)
    await pipeline.open()
    async with Database(database) as pool:
        house = House(pool, pipeline, database)
        await open_fresh(house.holds)
        yield house
    await pipeline.close()
