"""Everything is restarted in its own order while requests come in: none fails, none is unbilled."""

from __future__ import annotations

import asyncio
import os
import time

import pytest
from house import Guest, until
from pair import Pair
from traffic import TOKENS, Traffic
from wire import figure

pytestmark = pytest.mark.long

ROUNDS = int(os.environ.get("EXTPROC_ROUNDS", "1"))
A_SECOND = float(os.environ.get("EXTPROC_A_SECOND", "60"))


@pytest.fixture
def guest(pair: Pair) -> Guest:
    return pair.guest(deposit="1000")


async def more(traffic: Traffic, requests: int) -> None:
    target = traffic.answered + requests
    await asyncio.to_thread(until, lambda: traffic.answered >= target, "load")


async def whole_and_billed(pair: Pair, guest: Guest, traffic: Traffic) -> None:
    failed = [told for told in traffic.told if not told.whole or told.status != 200 or told.error]
    figure(f"{len(failed)} of {len(traffic.told)} failed; slowest {1_000 * max(told.took_s for told in traffic.told):.0f} ms")
    assert failed == []
    assert {told.tokens for told in traffic.told} == {TOKENS}
    rows = await asyncio.to_thread(pair.judge, guest, traffic.told)
    assert {row["request_id"] for row in rows} == {told.request_id for told in traffic.told}
    assert {(row["ending"], row["output_tokens"]) for row in rows} == {("settle", TOKENS)}


async def test_each_sidecar_is_restarted_and_no_request_fails(pair: Pair, guest: Guest):
    async with Traffic(pair, guest, a_second=A_SECOND) as traffic:
        await more(traffic, 20)
        began = time.monotonic()
        for _ in range(ROUNDS):
            for first in (True, False):
                await pair.aside(pair.restart, first=first)
                await more(traffic, 10)
        took_s = time.monotonic() - began
    figure(f"{2 * ROUNDS} restarts of whole sidecars in {took_s:.1f} s at {A_SECOND:.0f} requests/s")
    await whole_and_billed(pair, guest, traffic)


async def test_envoy_is_replaced_by_its_drain_order_and_no_request_fails(pair: Pair, guest: Guest):
    """Another one is there before it is told to refuse; whoever balances the load sends it nothing more, and what runs ends."""
    async with Traffic(pair, guest, a_second=A_SECOND) as traffic:
        await more(traffic, 20)
        for number in range(ROUNDS):
            old, pair.envoy = pair.envoy, await pair.aside(pair.another_envoy, f"envoy-{number + 1}")
            traffic.reconnect()
            await asyncio.to_thread(old.stop, 20.0)
            await more(traffic, 20)
    figure(f"{ROUNDS} replacements of Envoy at {A_SECOND:.0f} requests/s")
    await whole_and_billed(pair, guest, traffic)
