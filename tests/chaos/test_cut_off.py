"""What the outbox is for: a worker is cut off from Redis, everybody dies at once, Redis is lost, the disk is full. No charge is lost or doubled."""

from __future__ import annotations

import asyncio
import json
import resource
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from breakable import BreakableHouse
from house import SMALL, Guest, until
from wire import Told, call, chat, figure, steering

EVENT_MS = 20
RIPE_S = 5.0  # of the settler: so old is a row before it is looked for
BLOCK_BYTES = 4_096
IN_A_ROW = 12  # requests that surely meet both workers


def begin(house: BreakableHouse, guest: Guest, *, streams: int, tokens: int) -> tuple[list[Told], list[asyncio.Task[Told]]]:
    headers = {**guest.headers, **steering(tokens=tokens, delay_ms=EVENT_MS)}
    tolds = [Told() for _ in range(streams)]
    return tolds, [asyncio.create_task(call(house, headers, chat(SMALL, max_tokens=2_000), told=told)) for told in tolds]


async def until_aside(condition, what: str, deadline_s: float = 30.0) -> None:  # type: ignore[no-untyped-def]
    await asyncio.to_thread(until, condition, what, deadline_s)


async def all_serve(house: BreakableHouse, guest: Guest) -> list[Told]:
    """Both workers have seen the shards open again. What was asked until then, and answered."""
    tolds: list[Told] = []
    until_s = time.monotonic() + 30
    while len(tolds) < IN_A_ROW or {told.status for told in tolds[-IN_A_ROW:]} != {200}:
        assert time.monotonic() < until_s, tolds[-IN_A_ROW:]
        tolds.append(await call(house, guest.headers, chat(SMALL)))
    return tolds


def gauge(house: BreakableHouse, name: str) -> float:
    return sum(float(line.rpartition(" ")[2]) for line in house.metrics().splitlines() if line.startswith(name))


def charged(guest: Guest) -> set[str]:
    return {row["request_id"] for row in guest.rows() if row["cost"] and row["ending"] == "settle"}


@contextmanager
def cut_off(house: BreakableHouse, slot: int) -> Iterator[None]:
    """One worker does not reach Redis; everybody else does."""
    house.valkey_proxy.cut_off = frozenset({house.pids()[f"gate-{slot}"]})
    house.valkey_proxy.sever()
    try:
        yield
    finally:
        house.valkey_proxy.cut_off = frozenset()


@pytest.mark.long
async def test_one_worker_is_cut_off_from_redis(house: BreakableHouse, guest: Guest):
    """Its streams finish, new ones get 503; what it charges comes into the ledger by its disk, while it is cut off, once.

    The short streams end before their leases do; the long ones expire first, and are adjusted to what was delivered.
    """
    short, short_tasks = begin(house, guest, streams=24, tokens=100)
    long, long_tasks = begin(house, guest, streams=12, tokens=350)
    tolds = [*short, *long]
    await until_aside(lambda: min(told.tokens for told in tolds) >= 55, "streams run")
    assert min((await asyncio.to_thread(house.streams_of_workers)).values()) >= 3
    with cut_off(house, 1):
        await asyncio.gather(*short_tasks, *long_tasks)
        assert all(told.done and told.whole and not told.error for told in tolds), "a client noticed"
        began = time.monotonic()
        refused = [await call(house, guest.headers, chat(SMALL)) for _ in range(10)]
        assert {told.status for told in refused} <= {200, 503}
        delivered = {told.request_id for told in tolds}
        await until_aside(lambda: delivered <= {row["request_id"] for row in guest.rows() if row["ending"] != "none"}, "booked")
        figure(f"all in the ledger {time.monotonic() - began:.1f} s after the last of them had ended, still cut off")
        await until_aside(lambda: sum(row["output_tokens"] for row in guest.rows() if row["request_id"] in delivered) == 24 * 100 + 12 * 350,
                          "adjusted to what was delivered")  # fmt: skip
    others = [*refused, *await all_serve(house, guest)]
    rows = await asyncio.to_thread(house.judge, guest, [*tolds, *others])
    assert len({row["request_id"] for row in rows if row["cost"]}) == len(tolds) + sum(told.status == 200 for told in others)


@pytest.mark.long
@pytest.mark.parametrize("is_emptied", [False, True], ids=["redis keeps its data", "redis loses everything"])
async def test_everybody_dies_when_the_answers_are_complete(house: BreakableHouse, guest: Guest, is_emptied: bool):
    """Redis is killed under running streams; they finish; the moment they have, both workers are killed. Everything is charged."""
    tolds, tasks = begin(house, guest, streams=30, tokens=80)
    await until_aside(lambda: min(told.tokens for told in tolds) >= 10, "streams run")
    await house.aside(house.valkey.kill)
    await asyncio.gather(*tasks)
    for name, pid in (await asyncio.to_thread(house.pids)).items():
        if name.startswith("gate-"):
            house.kill(pid)
    assert all(told.done and told.whole and not told.error for told in tolds), "a client noticed"
    if is_emptied:
        shutil.rmtree(house.valkey.directory / "appendonlydir")
    await house.aside(house.valkey.start_again)
    began = time.monotonic()
    delivered = {told.request_id for told in tolds}
    await until_aside(lambda: delivered <= {row["request_id"] for row in guest.rows() if row["cost"]}, "booked")
    await until_aside(lambda: sum(row["output_tokens"] for row in guest.rows()) == 30 * 80, "in full")
    figure(f"all charged in full {time.monotonic() - began:.1f} s after Redis was back")
    others = await all_serve(house, guest)
    rows = await asyncio.to_thread(house.judge, guest, [*tolds, *others])
    assert len(rows) == len(tolds) + sum(told.status == 200 for told in others)
    unknown = house.rows("SELECT id FROM requests LEFT JOIN price_versions USING (price_id) WHERE user_id = %s AND price IS NULL", guest.id)
    assert unknown == [], "a price that nobody knows in full"


@contextmanager
def disk_full(house: BreakableHouse) -> Iterator[None]:
    """For the workers: no file of theirs may be written beyond its first block (EFBIG where a full disk says ENOSPC; no rights needed)."""
    pids = [pid for name, pid in house.pids().items() if name.startswith("gate-")]
    before = {pid: resource.prlimit(pid, resource.RLIMIT_FSIZE, (BLOCK_BYTES, resource.RLIM_INFINITY)) for pid in pids}
    try:
        yield
    finally:
        for pid, limits in before.items():
            resource.prlimit(pid, resource.RLIMIT_FSIZE, limits)


@pytest.mark.long
async def test_the_disk_of_the_outbox_is_full(house: BreakableHouse, guest: Guest):
    """New requests get 503 and an alarm is up; what runs is settled by Redis. With room again it goes on, and the disk has it all."""
    tolds, tasks = begin(house, guest, streams=30, tokens=60)
    await until_aside(lambda: min(told.tokens for told in tolds) >= 10, "streams run")
    with disk_full(house):
        await asyncio.gather(*tasks)
        assert all(told.done and told.whole and not told.error for told in tolds), "a client noticed"
        await until_aside(lambda: gauge(house, "extproc_outbox_full") == 1, "an alarm")
        told = await call(house, guest.headers, chat(SMALL))
        until_s = time.monotonic() + 10
        while told.status != 503 and time.monotonic() < until_s:  # one of the workers may have had nothing to write yet
            told = await call(house, guest.headers, chat(SMALL))
        assert told.status == 503
        assert json.loads(told.body)["error"]["code"] == "unavailable"
        assert int(told.headers["retry-after"]) > 0
        assert gauge(house, "extproc_outbox_commit_failures_total") > 0
        await until_aside(lambda: {one.request_id for one in tolds} <= charged(guest), "settled by Redis")
    await until_aside(lambda: gauge(house, "extproc_outbox_full") == 0, "room again")
    again = await all_serve(house, guest)
    await asyncio.to_thread(house.judge, guest, [*tolds, *again])
    await until_aside(lambda: gauge(house, "extproc_outbox_rows") == 0, "all of it was read back", 4 * RIPE_S)
