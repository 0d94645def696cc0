"""PostgreSQL is away for so long that Redis fills up: nobody new is let in, what runs ends, and all of it is posted afterwards."""

from __future__ import annotations

import asyncio
import re
import time

import pytest
from breakable import BreakableHouse
from house import SMALL, Guest, until
from test_workers import begin, reached
from traffic import TOKENS, Traffic
from wire import call, chat, error_code, figure, steering

pytestmark = pytest.mark.long

A_SECOND = 100
ROOM = 1.5  # of what Redis uses at rest: so far it is to grow until 70 % of its limit are used; what ended stays known for a while, events do not
LONG = 500  # events of 20 ms: beyond the moment at which it closes


def used_bytes(house: BreakableHouse) -> int:
    redis = house.redis()
    try:
        return int(redis.info("memory")["used_memory"])
    finally:
        redis.close()


def limit(house: BreakableHouse, limit_bytes: int) -> None:
    redis = house.redis()
    try:
        redis.config_set("maxmemory", limit_bytes)
    finally:
        redis.close()


def series(house: BreakableHouse, name: str) -> float:
    return max([float(value) for value in re.findall(rf"^{re.escape(name)} (\S+)$", house.metrics(), re.MULTILINE)], default=0.0)


async def test_postgresql_is_away_until_redis_is_nearly_full(house: BreakableHouse, guest: Guest):
    refusal = 'extproc_turned_away_total{reason="store_memory"}'
    before = await asyncio.to_thread(series, house, refusal)
    limit(house, int(ROOM / 0.7 * used_bytes(house)))
    try:
        async with Traffic(house, guest, a_second=A_SECOND) as traffic:
            await asyncio.to_thread(until, lambda: traffic.answered > 20, "load")
            house.postgres.kill()
            gone_s = time.monotonic()
            await asyncio.to_thread(until, lambda: series(house, "extproc_store_memory_used_ratio") > 0.6, "Redis fills up", 60)
            tolds, streams = begin(house, guest, streams=10, tokens=LONG)
            await reached(tolds, 1)
            await asyncio.to_thread(until, lambda: traffic.with_status(503), "nobody new is let in", 60)
            figure(f"closed {time.monotonic() - gone_s:.1f} s after PostgreSQL, with {len(traffic.told)} requests at {A_SECOND}/s")
            refused = await call(house, {**guest.headers, **steering(tokens=3)}, chat(SMALL))
            assert (refused.status, error_code(refused.body)) == (503, "unavailable")
            assert int(refused.headers["retry-after"]) > 0
            await asyncio.gather(*streams)
            assert all(told.done and told.tokens == LONG for told in tolds), "what runs goes on"
            assert await asyncio.to_thread(series, house, refusal) > before
            await house.aside(house.postgres.start_again)
            back_s, since = time.monotonic(), len(traffic.told)

            def served() -> bool:
                return sum(told.whole and told.status == 200 for told in traffic.told[since:]) >= 20

            await asyncio.to_thread(until, served, "it opens again", 60)
            figure(f"open again {time.monotonic() - back_s:.1f} s after PostgreSQL was back")
    finally:
        limit(house, 0)
        if not house.postgres.engine.alive:
            await house.aside(house.postgres.start_again)
    assert {told.status for told in traffic.told} == {200, 503}
    served_requests = [told for told in traffic.told if told.status == 200]
    assert all(told.whole and told.tokens == TOKENS for told in served_requests)
    await asyncio.to_thread(house.wait_serving)
    rows = await asyncio.to_thread(house.judge, guest, [*tolds, *traffic.told])
    assert {row["request_id"] for row in rows if row["cost"]} == {told.request_id for told in [*tolds, *served_requests]}
