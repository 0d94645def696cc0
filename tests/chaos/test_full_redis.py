"""Redis is full: nobody new is let in, and what runs ends and is charged."""

from __future__ import annotations

import asyncio

from breakable import BreakableHouse
from house import SMALL, Guest, until
from test_workers import begin, reached
from traffic import Traffic
from wire import call, chat, error_code, figure, steering

TOKENS = 100


async def test_new_requests_are_refused_and_endings_go_through(house: BreakableHouse, guest: Guest):
    redis = house.redis()
    tolds, streams = begin(house, guest, streams=10, tokens=TOKENS)
    await reached(tolds, 5)
    try:
        redis.config_set("maxmemory", redis.info("memory")["used_memory"] - 1)
        refused = [await call(house, {**guest.headers, **steering(tokens=3)}, chat(SMALL)) for _ in range(5)]
        assert {(told.status, error_code(told.body)) for told in refused} == {(503, "unavailable")}
        assert all(int(told.headers["retry-after"]) > 0 for told in refused)
        await asyncio.gather(*streams)
        assert all(told.done and told.tokens == TOKENS for told in tolds)
        await asyncio.to_thread(until, lambda: guest.view().open_holds == 0, "every hold has ended, full or not")
        assert redis.config_get("maxmemory")["maxmemory"] != "0"
    finally:
        redis.config_set("maxmemory", 0)
        redis.close()
    async with Traffic(house, guest, a_second=20) as traffic:
        await asyncio.to_thread(until, lambda: traffic.answered >= 10, "somebody is served again")
    rows = await asyncio.to_thread(house.judge, guest, [*tolds, *traffic.told])
    served = [row for row in rows if row["output_tokens"] == TOKENS]
    figure(f"{len(served)} streams ended while Redis was full, {len(refused)} requests refused")
    assert len(served) == len(tolds)
    assert {row["request_id"] for row in rows if row["cost"]}.isdisjoint(told.request_id for told in refused)
