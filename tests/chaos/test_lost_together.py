"""Two of those who know of a hold are lost in one moment: Redis with everything in it, and the worker whose streams they were."""

from __future__ import annotations

import asyncio

import pytest
from breakable import LEASE_S, BreakableHouse
from house import SMALL, Guest, until
from storm import EVENT_MS
from test_workers import begin, reached
from wire import call, chat, figure, steering

PATIENCE_S = 10 * LEASE_S + 10.0
FIGURE_MS = 250  # Envoy is told so often


@pytest.mark.long
async def test_redis_is_emptied_and_a_worker_killed(house: BreakableHouse, guest: Guest):
    """Its open streams were delivered, and Envoy says how much of them: they are charged, at most a figure short."""
    earlier = house.guest()  # the ledger knows what a request costs: another account has had one
    await call(house, {**earlier.headers, **steering(tokens=3)}, chat(SMALL))
    await asyncio.to_thread(until, lambda: any(row["cost"] for row in earlier.rows()), "the price is known")
    tolds, streams = begin(house, guest, streams=12, tokens=2_000)
    await reached(tolds, 20)
    pids = await asyncio.to_thread(house.pids)
    with house.redis() as client:
        client.flushall()
    for name in ("gate-0", "gate-1"):
        house.kill(pids[name])
    await asyncio.gather(*streams)
    await asyncio.to_thread(house.wait_serving)
    read = {told.request_id: told.tokens for told in tolds}
    try:
        await asyncio.to_thread(
            until, lambda: read.keys() <= {row["request_id"] for row in guest.rows() if row["cost"]}, "charged", PATIENCE_S
        )
    except AssertionError:
        figure(f"{sum(read.values())} tokens of {len(read)} streams delivered; charged: {len(guest.rows())}")
        raise
    rows = await asyncio.to_thread(house.judge, guest, tolds, killed=frozenset(read))
    lacking = sorted(read[row["request_id"]] - row["output_tokens"] for row in rows)
    figure(f"tokens delivered and not charged: {lacking}")
    assert lacking[-1] <= FIGURE_MS / EVENT_MS + 1
    assert {row["ending"] for row in rows} == {"expire"}
    assert all("witnessed" in row["usage_flags"] for row in rows)
