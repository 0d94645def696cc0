"""Workers are replaced, hang, and are killed, while requests come in: the socket outlives them all, it is the supervisor's."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import statistics
import time
from pathlib import Path

import pytest
from breakable import BreakableHouse
from house import Guest, until
from traffic import Traffic
from wire import figure, steering

ROUNDS = int(os.environ.get("EXTPROC_ROUNDS", "1"))  # of two workers each
A_SECOND = int(os.environ.get("EXTPROC_A_SECOND", "80"))
ERRORS_STOP_S = 3.0
STREAM = steering(tokens=25, delay_ms=20)  # half a second


def replace(house: BreakableHouse) -> None:
    """A round of replacements, until all of them serve and nobody is leaving any more."""
    before = house.pids()
    house.sidecar.signal(signal.SIGUSR2)

    def over() -> bool:
        now = house.pids()
        return now.keys() == before.keys() and set(now.values()).isdisjoint(before.values())

    until(over, "everybody is replaced", 60)


async def test_replacements_and_no_request_fails(house: BreakableHouse, guest: Guest):
    async with Traffic(house, guest, a_second=A_SECOND, stream_orders=STREAM, json=False) as quiet:
        await asyncio.to_thread(until, lambda: quiet.answered >= A_SECOND * 2, "load")
    began = time.monotonic()
    async with Traffic(house, guest, a_second=A_SECOND, stream_orders=STREAM, json=False) as traffic:
        for _ in range(ROUNDS):
            await asyncio.to_thread(replace, house)
        target = traffic.answered + A_SECOND
        await asyncio.to_thread(until, lambda: traffic.answered >= target, "load")
    took_s = time.monotonic() - began
    for name, load in (("without", quiet), ("with", traffic)):
        times_ms = sorted(1_000 * told.took_s for told in load.told)
        figure(
            f"{name} replacement: {len(times_ms)} streams, median {statistics.median(times_ms):.0f} ms, "
            f"p99 {times_ms[-len(times_ms) // 100]:.0f} ms, slowest {times_ms[-1]:.0f} ms"
        )
    figure(f"{ROUNDS * house.workers} replacements in {took_s:.1f} s")
    failed = [told for told in traffic.told if not told.done or not told.whole or told.error]
    assert failed == []
    assert {told.tokens for told in traffic.told} == {25}
    rows = await asyncio.to_thread(house.judge, guest, [*quiet.told, *traffic.told])
    assert {row["request_id"] for row in rows} == {told.request_id for told in [*quiet.told, *traffic.told]}
    assert {(row["ending"], row["usage_source"], row["output_tokens"]) for row in rows} == {("settle", "upstream", 25)}


@pytest.mark.long
async def test_settings_with_a_wrong_address_of_a_store_replace_nobody(house: BreakableHouse, guest: Guest):
    """They are well-formed, so only who tries them finds out: the successor, who leaves again. SIGUSR2 with them used to end all service."""
    before, right = house.pids(), house.settings_file.read_text()
    settings = json.loads(right)
    settings["redis"]["url"] = f"unix://{house.directory}/nobody.sock"
    house.settings_file.write_text(json.dumps(settings))
    try:
        async with Traffic(house, guest, a_second=10) as traffic:
            house.sidecar.signal(signal.SIGUSR2)
            await asyncio.to_thread(until, lambda: "extproc_replacements_failed_total 1.0" in house.metrics(), "the round is given up", 60)
    finally:
        house.settings_file.write_text(right)
    assert house.pids() == before
    assert {told.status for told in traffic.told} == {200}
    assert "nobody is replaced by one who has no stores: " in house.log_file.read_text()
    await asyncio.to_thread(replace, house)


@pytest.mark.long
async def test_one_of_two_workers_hangs(house: BreakableHouse, guest: Guest):
    """Envoy's health check takes it out, the supervisor kills it, and the next one accepts on the same socket."""
    old = (await asyncio.to_thread(house.pids))["gate-1"]
    async with Traffic(house, guest, a_second=30, stream_orders=STREAM) as traffic:
        await asyncio.to_thread(until, lambda: traffic.answered >= 60, "load")
        house.kill(old, signal.SIGSTOP)
        stopped_s = time.monotonic()
        await asyncio.to_thread(until, lambda: house.envoy.healthy("extproc") == 1, "Envoy takes it out")
        figure(f"out of Envoy's choice after {time.monotonic() - stopped_s:.1f} s")
        await asyncio.to_thread(until, lambda: not Path(f"/proc/{old}").exists(), "it is killed")
        figure(f"killed after {time.monotonic() - stopped_s:.1f} s")
        await asyncio.to_thread(until, lambda: house.pids().get("gate-1", old) != old, "another one")
        await asyncio.to_thread(house.wait_serving)
        figure(f"two workers again after {time.monotonic() - stopped_s:.1f} s")
        total = await asyncio.to_thread(house.exchanges_of_workers)
        target = traffic.answered + 60
        await asyncio.to_thread(until, lambda: traffic.answered >= target, "load")
    assert (await asyncio.to_thread(house.exchanges_of_workers))[1] > total[1], "the new worker gets no requests"
    failed = [told for told in traffic.told if not told.whole or told.status != 200]
    figure(
        f"{len(failed)} of {len(traffic.told)} failed, the last one begun {max(told.began_s for told in failed) - stopped_s:.1f} s after"
    )
    assert [told for told in failed if told.began_s > stopped_s + ERRORS_STOP_S] == []
    rows = await asyncio.to_thread(house.judge, guest, traffic.told, killed=frozenset(told.request_id for told in failed))
    refused = {told.request_id for told in failed if told.status != 200}
    assert [row for row in rows if row["request_id"] in refused and row["cost"]] == [], "refused and charged"
    assert {row["ending"] for row in rows if row["request_id"] not in {told.request_id for told in failed}} == {"settle"}


@pytest.mark.long
async def test_a_worker_is_killed_and_the_other_one_gets_what_comes_meanwhile(house: BreakableHouse, guest: Guest):
    """No request that began after it fails, however long the next worker takes to start."""
    old = (await asyncio.to_thread(house.pids))["gate-1"]
    async with Traffic(house, guest, a_second=30, stream_orders=STREAM) as traffic:
        await asyncio.to_thread(until, lambda: traffic.answered >= 60, "load")
        house.kill(old)
        killed_s = time.monotonic()
        target = traffic.answered + 120
        await asyncio.to_thread(until, lambda: traffic.answered >= target, "load")
        await asyncio.to_thread(house.wait_serving)
    broken = [told for told in traffic.told if not told.whole or told.status != 200]
    slowest_s = max(told.took_s for told in traffic.told)
    figure(f"{len(broken)} of {len(traffic.told)} broken; slowest answer {slowest_s:.1f} s")
    assert [told for told in broken if told.began_s > killed_s] == []
    await asyncio.to_thread(house.judge, guest, traffic.told, killed=frozenset(told.request_id for told in broken))


@pytest.mark.long
async def test_a_worker_that_somebody_else_tells_to_leave_is_followed_at_once(house: BreakableHouse, guest: Guest):
    """It has streams to finish, and accepts no more: the next one does not wait for its end."""
    old = (await asyncio.to_thread(house.pids))["gate-1"]
    long = steering(tokens=250, delay_ms=20)  # five seconds
    async with Traffic(house, guest, a_second=20, stream_orders=long, json=False) as traffic:
        await asyncio.to_thread(until, lambda: traffic.answered >= 20, "load")
        house.kill(old, signal.SIGTERM)
        await asyncio.to_thread(until, lambda: "gate-1 leaving" in house.pids(), "another one serves while it leaves")
        target = traffic.answered + 60
        await asyncio.to_thread(until, lambda: traffic.answered >= target, "load")
        await asyncio.to_thread(house.wait_serving)
    assert [told for told in traffic.told if not told.done or not told.whole or told.error] == []
    await asyncio.to_thread(house.judge, guest, traffic.told)
