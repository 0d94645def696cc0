"""Processes of the sidecar die, and are led out."""

from __future__ import annotations

import asyncio
import signal
import time
from pathlib import Path

import pytest
from breakable import BEAT_S, DRAIN_S, GRACE_S, LEASE_S, BreakableHouse
from house import NANOS_IN, NANOS_OUT, SMALL, Guest, until
from traffic import Traffic
from wire import Told, call, chat, figure, steering

STREAMS = 44
EVENT_MS = 20
FLUSH_S = 0.25  # the first checkpoint of a stream is sent so long after its first output


def begin(house: BreakableHouse, guest: Guest, *, streams: int, tokens: int) -> tuple[list[Told], list[asyncio.Task[Told]]]:
    """Streams that run while somebody looks on."""
    headers = {**guest.headers, **steering(tokens=tokens, delay_ms=EVENT_MS)}
    tolds = [Told() for _ in range(streams)]
    return tolds, [asyncio.create_task(call(house, headers, chat(SMALL, max_tokens=2_000), told=told)) for told in tolds]


async def reached(tolds: list[Told], tokens: int) -> None:
    deadline = time.monotonic() + 20
    while min(told.tokens for told in tolds) < tokens:
        assert time.monotonic() < deadline, tolds
        await asyncio.sleep(0.01)


async def reaching_all(house: BreakableHouse, guest: Guest) -> list[Told]:
    """Requests until each worker has got one. Envoy chooses by chance: that none of 40 goes to one of two is as good as impossible."""
    total = await asyncio.to_thread(house.exchanges_of_workers)
    now, tolds = total, list[Told]()
    while not all(now[slot] > total[slot] for slot in total):
        assert len(tolds) < 40, "a new worker gets no requests"
        tolds.append(await call(house, {**guest.headers, **steering(tokens=3)}, chat(SMALL)))
        now = await asyncio.to_thread(house.exchanges_of_workers)
    return tolds


async def test_a_worker_is_killed(house: BreakableHouse, guest: Guest):
    """The streams of the other one do not notice; its own are charged up to their last checkpoint, and it is back."""
    tolds, streams = begin(house, guest, streams=STREAMS, tokens=200)
    await reached(tolds, 1)
    for _ in range(5):  # Envoy may have begun with one worker only: what comes now goes to the other
        if min((await asyncio.to_thread(house.streams_of_workers)).values()) >= 20:
            break
        more_tolds, more_streams = begin(house, guest, streams=12, tokens=200)
        tolds, streams = [*tolds, *more_tolds], [*streams, *more_streams]
        await reached(more_tolds, 1)
    await reached(tolds, 80)  # beyond a second beat
    open_streams = await asyncio.to_thread(house.streams_of_workers)
    assert min(open_streams.values()) >= 20, open_streams
    before = await asyncio.to_thread(house.pids)
    house.kill(before["gate-1"])
    killed = time.monotonic()
    holds = {hold.hold_id: hold for hold in await asyncio.to_thread(house.run, house.stores.holds.open_holds(guest.id))}
    await asyncio.gather(*streams)
    broken = [told for told in tolds if not told.whole]
    assert len(broken) == open_streams[1]
    assert all(told.done and told.tokens == 200 and not told.error for told in tolds if told.whole)

    expired = lambda: [row for row in guest.rows() if row["ending"] == "expire"]  # noqa: E731
    await asyncio.to_thread(until, lambda: len(expired()) == len(broken), "its holds have ended", LEASE_S + GRACE_S)
    ended_s = (max(row["occurred_at"] for row in expired()).timestamp()) - (time.time() - (time.monotonic() - killed))
    figure(f"{len(broken)} streams broken, {len(tolds) - len(broken)} whole; the last hold ended {ended_s:.1f} s after the kill")
    assert ended_s <= LEASE_S + GRACE_S
    rows = await asyncio.to_thread(house.judge, guest, tolds, killed=frozenset(told.request_id for told in broken))
    lag_tokens = []
    for told in broken:
        (row,) = [row for row in rows if row["request_id"] == told.request_id]
        assert row["cost"] >= holds[str(row["id"])].checkpoint_nanos  # more, if the access log came before the lease ran out
        assert row["cost"] == row["input_tokens"] * NANOS_IN + row["output_tokens"] * NANOS_OUT
        lag_tokens.append(told.tokens - row["output_tokens"])
    figure(f"tokens after the last checkpoint: {sorted(lag_tokens)}")
    assert max(lag_tokens) <= (BEAT_S + FLUSH_S) * 1_000 / EVENT_MS + 1

    await asyncio.to_thread(house.wait_serving)
    assert (await asyncio.to_thread(house.pids))["gate-1"] != before["gate-1"]
    assert all(told.done for told in await reaching_all(house, guest))


async def test_the_settler_is_killed(house: BreakableHouse, guest: Guest):
    """Everything is posted all the same: later, once."""
    async with Traffic(house, guest, a_second=40) as traffic:
        for number in range(2):
            target = traffic.answered + 20
            await asyncio.to_thread(until, lambda target=target: traffic.answered >= target, "load")
            pid = (await asyncio.to_thread(house.pids))["settler"]
            house.kill(pid)
            await asyncio.to_thread(until, lambda pid=pid: house.pids().get("settler", pid) != pid, f"another settler, {number}")
        target = traffic.answered + 20
        await asyncio.to_thread(until, lambda: traffic.answered >= target, "load")
    assert len(traffic.with_status(200)) == len(traffic.told)
    rows = await asyncio.to_thread(house.judge, guest, traffic.told)
    figure(f"{len(rows)} rows of {len(traffic.told)} requests, settler killed twice")
    assert {row["request_id"] for row in rows} == {told.request_id for told in traffic.told}
    assert {row["ending"] for row in rows} == {"settle"}


@pytest.mark.long
async def test_the_supervisor_is_killed(house: BreakableHouse, guest: Guest):
    """Its children lead their streams to the end and leave; another supervisor need not wait for them."""
    children = await asyncio.to_thread(house.pids)
    tolds, streams = begin(house, guest, streams=6, tokens=250)
    await reached(tolds, 5)
    house.sidecar.kill()
    house.sidecar = house.start_sidecar()
    assert set(children.values()).isdisjoint(house.pids().values())
    await asyncio.gather(*streams)
    assert all(told.done and told.tokens == 250 for told in tolds)
    await asyncio.to_thread(until, lambda: not any(Path(f"/proc/{pid}").exists() for pid in children.values()), "the children have left")
    await asyncio.to_thread(house.wait_serving)
    later = await reaching_all(house, guest)
    assert all(told.done for told in later)
    await asyncio.to_thread(house.judge, guest, [*tolds, *later])


@pytest.mark.long
async def test_sigterm(house: BreakableHouse, guest: Guest):
    """Patient, then not. Either way nothing is lost, and the balances are the same when the sidecar is back."""
    await patiently(house, guest)
    house.set("drain", grace_s=0)
    house.sidecar = house.start_sidecar()
    await asyncio.to_thread(house.wait_serving)
    await impatiently(house, guest)


async def patiently(house: BreakableHouse, guest: Guest) -> None:
    """What runs runs to its end."""
    tolds, streams = begin(house, guest, streams=8, tokens=100)
    await reached(tolds, 5)
    house.sidecar.signal(signal.SIGTERM)
    await asyncio.gather(*streams)
    assert all(told.done and told.tokens == 100 and not told.error for told in tolds)
    assert await asyncio.to_thread(house.sidecar.wait, 20) == 0
    assert guest.posted() == guest.available, "the settler left before everything was posted"
    rows = await asyncio.to_thread(house.judge, guest, tolds)
    assert {(row["ending"], row["usage_source"], row["output_tokens"]) for row in rows} == {("settle", "upstream", 100)}


async def impatiently(house: BreakableHouse, guest: Guest) -> None:
    """Each stream ends with an error event, and costs what was delivered."""
    tolds, streams = begin(house, guest, streams=8, tokens=1_000)
    await reached(tolds, 20)
    house.sidecar.signal(signal.SIGTERM)
    await asyncio.gather(*streams)
    assert await asyncio.to_thread(house.sidecar.wait, 20) == 0
    assert all((told.error, told.done) == ("stream_cut", True) for told in tolds)
    available = guest.available
    assert guest.posted() == available
    house.set("drain", grace_s=DRAIN_S)
    house.sidecar = house.start_sidecar()
    await asyncio.to_thread(house.wait_serving)
    assert guest.available == available
    rows = await asyncio.to_thread(house.judge, guest, tolds)
    assert [row["end_reason"] for row in rows].count("cut") == len(tolds)
    figure(f"read {sorted(told.tokens for told in tolds)}, billed {sorted(row['output_tokens'] for row in rows)}")
