"""Valkey hangs, restarts, and loses answers that it has given: nobody is served unheld, nothing is held or charged twice."""

from __future__ import annotations

import asyncio
import json
import random
import signal
import urllib.request
from collections import Counter

import pytest
from breakable import BreakableHouse
from house import SMALL, Guest, until
from test_cut_off import all_serve, gauge, until_aside
from traffic import Traffic
from wire import call, chat, figure

PAUSE_S = 1.0


async def served(traffic: Traffic, more: int) -> None:
    """Wait until so many more requests were served."""
    target = len(traffic.with_status(200)) + more
    try:
        await asyncio.to_thread(until, lambda: len(traffic.with_status(200)) >= target, "load")
    except AssertionError:
        raise AssertionError(f"nobody is served: {Counter((told.status, told.error) for told in traffic.told)}") from None


def served_or_told_why(traffic: Traffic) -> Counter[int]:
    """Every request got a whole answer: served, or 503 in OpenAI's shape."""
    assert all(told.whole for told in traffic.told), [told for told in traffic.told if not told.whole]
    refused = [told for told in traffic.told if told.status != 200]
    for told in refused:
        error = json.loads(told.body)["error"]
        assert (told.status, error["type"], error["code"]) == (503, "server_error", "unavailable"), told
        assert int(told.headers["retry-after"]) > 0
    return Counter(told.status for told in traffic.told)


def nothing_twice(house: BreakableHouse, guest: Guest, traffic: Traffic) -> None:
    rows = house.judge(guest, traffic.told)
    charged = {row["request_id"] for row in rows if row["cost"]}
    delivered = {told.request_id for told in traffic.with_status(200)}
    assert charged == delivered, "charged and not served, or served and not charged"


async def test_it_hangs(house: BreakableHouse, guest: Guest):
    """For a second: refused meanwhile, everything as it should be afterwards."""
    async with Traffic(house, guest, a_second=40) as traffic:
        await served(traffic, 20)
        house.valkey.engine.signal(signal.SIGSTOP)
        await asyncio.sleep(PAUSE_S)
        house.valkey.engine.signal(signal.SIGCONT)
        await served(traffic, 40)
    statuses = served_or_told_why(traffic)
    figure(f"paused for {PAUSE_S} s at 40 requests/s: {dict(statuses)}")
    assert statuses[503] > 0
    await asyncio.to_thread(nothing_twice, house, guest, traffic)


@pytest.mark.parametrize("crash", [True, False], ids=["killed", "stopped"])
async def test_it_restarts(house: BreakableHouse, guest: Guest, crash: bool):
    """With its data: holds, balances and the stream are as they were."""
    async with Traffic(house, guest, a_second=40) as traffic:
        await served(traffic, 20)
        (house.valkey.kill if crash else house.valkey.stop)()
        house.valkey.start_again()  # in this thread: engines die with the one that started them
        await served(traffic, 40)
    statuses = served_or_told_why(traffic)
    figure(f"restarted at 40 requests/s: {dict(statuses)}")
    await asyncio.to_thread(nothing_twice, house, guest, traffic)


def is_ready(house: BreakableHouse) -> bool:
    with urllib.request.urlopen(f"{house.ops}/readyz", timeout=5) as page:
        return bool(page.status == 200)


@pytest.mark.long
async def test_the_sidecar_stays_ready_though_nobody_is_let_in(house: BreakableHouse, guest: Guest):
    """All gateways share Redis: if it took them out of service, clients would get a refused connection and not an error that says when."""
    house.valkey.kill()
    try:
        await until_aside(lambda: gauge(house, "extproc_shards_closed") == 64, "nobody calls it any more")
        told = await call(house, guest.headers, chat(SMALL))
        assert await asyncio.to_thread(is_ready, house)
        await asyncio.to_thread(house.wait_serving)  # Envoy sees it likewise
    finally:
        house.valkey.start_again()
    assert (told.status, told.error, told.whole) == (503, "unavailable", True)
    assert int(told.headers["retry-after"]) > 0
    await asyncio.to_thread(house.judge, guest, await all_serve(house, guest))


@pytest.mark.parametrize("verb", ["admit", "amend", "settle"])
async def test_answers_are_lost(house: BreakableHouse, guest: Guest, verb: str):
    """The script has run, its caller does not know: no orphan, nothing twice."""
    house.valkey_proxy.lost.clear()
    async with Traffic(house, guest, a_second=40) as traffic:
        await served(traffic, 5)
        house.valkey_proxy.losses[verb] = 0.3
        await asyncio.to_thread(until, lambda: house.valkey_proxy.lost[verb] >= 10, "answers are lost")
        house.valkey_proxy.losses.clear()
        await served(traffic, 10)
    statuses = served_or_told_why(traffic)
    figure(f"{house.valkey_proxy.lost[verb]} answers of {verb} lost: {dict(statuses)}")
    if verb != "settle":
        assert statuses[503] > 0
    await asyncio.to_thread(nothing_twice, house, guest, traffic)


async def test_connections_are_cut_at_random(house: BreakableHouse, guest: Guest):
    """Between everybody and Valkey, in any state: what was not sent, what was not answered."""
    chance = random.Random(1)
    async with Traffic(house, guest, a_second=40) as traffic:
        for _ in range(15):
            await asyncio.sleep(chance.uniform(0.02, 0.2))
            house.valkey_proxy.sever()
        await served(traffic, 20)
    figure(f"cut 15 times: {dict(served_or_told_why(traffic))}")
    await asyncio.to_thread(nothing_twice, house, guest, traffic)
