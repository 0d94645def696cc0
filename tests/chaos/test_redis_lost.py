"""Redis loses everything, or its last second: nobody is served meanwhile, it is built again, no charge is lost, open streams go on."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from breakable import BreakableHouse
from house import Guest, until
from test_valkey import served, served_or_told_why
from test_workers import begin, reached
from traffic import Traffic
from wire import Told, figure

A_SECOND = 40
STREAMS = 6
TOKENS = 250  # at 20 ms: five seconds
SEEN_S = 1.0  # a loss is noticed within


def numbers(house: BreakableHouse) -> dict[int, int]:
    """The epoch of each shard, in Redis; a closed one has none."""
    with house.redis() as client:
        epochs = {shard: client.hget(f"{{s{shard:02d}}}:shard", "epoch") for shard in range(64)}
        run_id = client.info("server")["run_id"]
    return {shard: int(epoch.rpartition(".")[2]) for shard, epoch in epochs.items() if epoch and epoch.startswith(f"{run_id}.")}


def rebuilt(house: BreakableHouse, before: dict[int, int]) -> bool:
    now = numbers(house)
    return len(now) == 64 and all(now[shard] > before[shard] for shard in now)


async def lost_in_traffic(
    house: BreakableHouse, guest: Guest, lose: Callable[[], Awaitable[float]], *, meanwhile: Callable[[], Any] = lambda: None
) -> Traffic:
    """Streams are open and requests come and go; ``lose`` it (and say when), wait until it is built, go on for a while. All is judged."""
    before = numbers(house)
    tolds, streams = begin(house, guest, streams=STREAMS, tokens=TOKENS)
    async with Traffic(house, guest, a_second=A_SECOND) as traffic:
        await served(traffic, 20)
        await reached(tolds, 5)
        first = len(traffic.told)
        lost_s = await lose()  # in this thread: engines die with the one that started them
        await asyncio.to_thread(meanwhile)
        await asyncio.to_thread(until, lambda: rebuilt(house, before), "rebuilt", 40)
        built_s = time.monotonic() - lost_s
        await served(traffic, 30)
    await asyncio.gather(*streams)
    statuses = served_or_told_why(traffic)
    refused = [told for told in traffic.told[first:] if told.status == 503]
    again = min(told.began_s for told in traffic.told[first:] if told.status == 200 and (not refused or told.began_s > refused[-1].began_s))
    first_s = min((told.began_s for told in refused if told.began_s >= lost_s), default=lost_s) - lost_s
    figure(f"built after {built_s:.2f} s; first refused after {first_s:.2f} s, served again after {again - lost_s:.2f} s; {dict(statuses)}")
    assert first_s < SEEN_S, "it was not noticed"
    assert all(told.done and told.tokens == TOKENS and not told.error for told in tolds), tolds
    await asyncio.to_thread(charged_once, house, guest, [*traffic.told, *tolds])
    return traffic


def charged_once(house: BreakableHouse, guest: Guest, tolds: list[Told]) -> None:
    rows = house.judge(guest, tolds)
    charged = {row["request_id"] for row in rows if row["cost"]}
    assert charged == {told.request_id for told in tolds if told.status == 200}, "charged and not served, or served and not charged"


async def test_flushall(house: BreakableHouse, guest: Guest):
    async def lose() -> float:
        with house.redis() as client:
            client.flushall()
        return time.monotonic()

    traffic = await lost_in_traffic(house, guest, lose)
    assert traffic.with_status(503)


@pytest.mark.long
async def test_it_comes_back_empty(house: BreakableHouse, guest: Guest):
    async def lose() -> float:
        lost_s = time.monotonic()
        house.valkey.kill()
        shutil.rmtree(house.valkey.directory / "appendonlydir")
        house.valkey.start_again()
        return lost_s

    await lost_in_traffic(house, guest, lose)


async def test_it_loses_its_last_second(house: BreakableHouse, guest: Guest):
    """Power is lost: what was not synced is gone. The file is cut back to what it was more than a second ago."""

    async def lose() -> float:
        sizes = {path: path.stat().st_size for path in house.valkey.directory.glob("appendonlydir/*.incr.aof")}
        await asyncio.sleep(1.3)  # more traffic, acknowledged and posted
        lost_s = time.monotonic()
        house.valkey.kill()
        cut = sum(path.stat().st_size - size for path, size in sizes.items())
        figure(f"{cut} bytes of 1.3 s are cut off")
        assert cut > 0
        for path, size in sizes.items():
            os.truncate(path, size)
        house.valkey.start_again()
        return lost_s

    await lost_in_traffic(house, guest, lose)


@pytest.mark.long
async def test_a_worker_is_stopped_meanwhile_and_comes_late(house: BreakableHouse, guest: Guest):
    """The shards are open again before it says what it holds."""
    pid = (await asyncio.to_thread(house.pids))["gate-1"]
    before = numbers(house)
    tolds, streams = begin(house, guest, streams=2 * STREAMS, tokens=TOKENS)
    await reached(tolds, 5)
    of_workers = await asyncio.to_thread(house.streams_of_workers)
    house.kill(pid, signal.SIGSTOP)
    try:
        with house.redis() as client:
            client.flushall()
        with house.database() as connection:  # as if it had been silent for 15 s; the supervisor would have killed it by then
            connection.execute("DELETE FROM gate_workers WHERE name LIKE %s", ("% gate-1 %",))
        await asyncio.to_thread(until, lambda: rebuilt(house, before), "rebuilt without it", 4)
        held = len(house.run(house.stores.holds.open_holds(guest.id)))
    finally:
        house.kill(pid, signal.SIGCONT)
    await asyncio.to_thread(until, lambda: len(house.run(house.stores.holds.open_holds(guest.id))) == len(tolds), "its holds are back", 4)
    figure(f"streams of the workers: {of_workers}; {held} holds before it came, all {len(tolds)} afterwards")
    await asyncio.gather(*streams)
    assert all(told.done and told.tokens == TOKENS for told in tolds), tolds
    await asyncio.to_thread(charged_once, house, guest, tolds)


@pytest.mark.long
async def test_the_leader_is_killed_while_it_builds(house: BreakableHouse, guest: Guest):
    """It waits for a worker that is stopped; its successor begins anew, with higher numbers."""
    pids = await asyncio.to_thread(house.pids)

    async def lose() -> float:
        house.kill(pids["gate-1"], signal.SIGSTOP)
        with house.redis() as client:
            client.flushall()
        return time.monotonic()

    def meanwhile() -> None:
        with house.redis() as client:
            until(lambda: all(client.hget(f"{{s{shard:02d}}}:shard", "rebuilding") for shard in range(64)), "it has begun", 4)
        house.kill(pids["settler"])
        until(lambda: house.pids().get("settler", pids["settler"]) != pids["settler"], "another settler")
        house.kill(pids["gate-1"], signal.SIGCONT)

    before = numbers(house)
    try:
        await lost_in_traffic(house, guest, lose, meanwhile=meanwhile)
    finally:
        house.kill(pids["gate-1"], signal.SIGCONT)
    assert min(numbers(house).values()) >= min(before.values()) + 2


@pytest.mark.long
async def test_postgres_is_away_as_well(house: BreakableHouse, guest: Guest):
    """The shards stay closed until it is back: nobody is served from a guess."""
    before = numbers(house)

    async def lose() -> float:
        house.postgres.kill()
        with house.redis() as client:
            client.flushall()
        lost_s = time.monotonic()
        await asyncio.sleep(2)
        assert numbers(house) == {}
        house.postgres.start_again()
        return lost_s

    await lost_in_traffic(house, guest, lose)
    assert min(numbers(house).values()) > min(before.values())


@pytest.mark.long
@pytest.mark.parametrize("words", [("--all",), ("--shard", "7")])
async def test_by_hand_in_traffic(house: BreakableHouse, guest: Guest, words: tuple[str, ...]):
    """Nothing was lost: streams go on, and nothing is charged twice."""
    tolds, streams = begin(house, guest, streams=STREAMS, tokens=100)
    async with Traffic(house, guest, a_second=A_SECOND) as traffic:
        await served(traffic, 10)
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "extproc.cli", "rebuild", *words, "--config", str(house.settings_file)),
            env={**os.environ, "PYTHONPATH": str(Path.cwd())},
            stdout=asyncio.subprocess.PIPE,
        )
        said, _ = await process.communicate()
        figure(said.decode().strip())
        assert process.returncode == 0
        await served(traffic, 10)
    await asyncio.gather(*streams)
    served_or_told_why(traffic)
    await asyncio.to_thread(charged_once, house, guest, [*traffic.told, *tolds])


async def test_a_worker_that_was_killed_is_not_waited_for(house: BreakableHouse, guest: Guest):
    """Its registration would be believed for 15 s."""
    pid = (await asyncio.to_thread(house.pids))["gate-1"]

    def is_registered() -> bool:
        return any(row["name"].split()[-2] == str(pid) for row in house.rows("SELECT name FROM gate_workers"))

    await asyncio.to_thread(until, is_registered, "it has registered")
    house.kill(pid)

    before = numbers(house)
    with house.redis() as client:
        client.flushall()
    await asyncio.to_thread(until, lambda: rebuilt(house, before), "rebuilt without it", 10)
    assert not is_registered()
    await asyncio.to_thread(house.wait_serving)
    async with Traffic(house, guest, a_second=A_SECOND) as traffic:
        await served(traffic, 10)
    await asyncio.to_thread(charged_once, house, guest, traffic.told)
