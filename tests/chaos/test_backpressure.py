"""Somebody is slow, or there is too much: who waits, who is refused, and that nobody's money is lost over it."""

from __future__ import annotations

import asyncio
import json
from collections import Counter

import pytest
from breakable import BreakableHouse
from house import SMALL, Guest, until
from traffic import Traffic
from wire import Line, Told, chat, figure, steering

LATE_S = 0.01
OPEN_MAX = 5  # of each worker
CHOICES, EACH = 16, 8_192  # as long as the model's answers may be
WINDOW_BYTES = 65_536  # of the client's socket: the kernel would take megabytes for it
LONG = CHOICES * EACH  # events: more bytes (26 MB) than kernel and Envoy keep for one who does not read


async def test_redis_answers_late(house: BreakableHouse, guest: Guest):
    """Everybody waits a little; nobody is refused, everything is booked once."""
    house.valkey_proxy.late_s = LATE_S
    try:
        async with Traffic(house, guest, a_second=80) as traffic:
            await asyncio.to_thread(until, lambda: traffic.answered >= 200, "load")
    finally:
        house.valkey_proxy.late_s = 0.0
    assert {told.status for told in traffic.told} == {200}
    rows = await asyncio.to_thread(house.judge, guest, traffic.told)
    assert {row["request_id"] for row in rows} == {told.request_id for told in traffic.told}
    assert {row["ending"] for row in rows} == {"settle"}


@pytest.mark.long
async def test_more_requests_than_may_be_open(house: BreakableHouse, guest: Guest):
    """Above ``listen.max_open_exchanges`` Envoy tries the other worker, then says 503; those who are in go on, and there is room again."""
    house.sidecar.stop(30)
    house.set("listen", max_open_exchanges=OPEN_MAX)
    house.sidecar = house.start_sidecar()
    try:
        await asyncio.to_thread(house.wait_serving)
        asked = steering(tokens=40, delay_ms=50)
        tolds = await asyncio.gather(*(one(house, guest, asked) for _ in range(6 * OPEN_MAX)))
        statuses = Counter(told.status for told in tolds)
        figure(f"{len(tolds)} at once where {house.workers} x {OPEN_MAX} may be open: {dict(statuses)}")
        assert set(statuses) == {200, 503}
        # Health checks are no exchanges, but Envoy gives up after two retries, which may all have met the same worker.
        assert OPEN_MAX <= statuses[200] <= house.workers * OPEN_MAX
        for told in tolds:
            assert told.whole
            assert told.status == 503 or (told.done and told.tokens == 40)
            if told.status == 503:
                assert json.loads(told.body)["error"]["type"] == "server_error"
        later = [await one(house, guest, steering(tokens=3)) for _ in range(OPEN_MAX)]
        assert all(told.done for told in later)
        rows = await asyncio.to_thread(house.judge, guest, [*tolds, *later])
        served = {told.request_id for told in [*tolds, *later] if told.status == 200}
        assert {row["request_id"] for row in rows if row["cost"]} == served, "refused and charged"
    finally:
        house.sidecar.stop(30)
        house.set("listen", max_open_exchanges=20_000)
        house.sidecar = house.start_sidecar()
        await asyncio.to_thread(house.wait_serving)


async def test_a_client_does_not_read(house: BreakableHouse, guest: Guest):
    """Its stream comes to a halt back to the model, others do not notice; when it reads on it gets, and pays for, all of it."""
    line = await Line.open(house, window_bytes=WINDOW_BYTES)
    await line.send({**guest.headers, **steering(tokens=EACH)}, chat(SMALL, max_tokens=EACH, n=CHOICES))
    slow = await line.head()

    async with Traffic(house, guest, a_second=40) as traffic:
        made = await asyncio.to_thread(halted, house, guest)
        await asyncio.to_thread(until, lambda: traffic.answered >= 40, "load")
    figure(f"halted after {made} of {LONG} events")
    assert {told.status for told in traffic.told} == {200}

    async for _ in line.events(slow):
        pass
    await line.leave()
    assert (slow.status, slow.tokens, slow.done, slow.whole) == (200, LONG, True, True)
    rows = await asyncio.to_thread(house.judge, guest, [slow, *traffic.told])
    (row,) = [row for row in rows if row["request_id"] == slow.request_id]
    assert (row["output_tokens"], row["usage_source"]) == (LONG, "upstream")


def halted(house: BreakableHouse, guest: Guest) -> int:
    """Wait until the simulator generates no more of the long answer; how far it has come."""
    seen: list[int] = []

    def stands() -> bool:
        seen.append(max(one["generated_tokens"] for one in house.seen_of(guest)))
        return len(seen) > 10 and seen[-1] == seen[-10] > 0

    until(stands, "the simulator waits")
    assert seen[-1] < LONG, "nobody waited: the answer is too short for this test"
    return seen[-1]


async def one(house: BreakableHouse, guest: Guest, orders: dict[str, str]) -> Told:
    """A stream, over a connection of its own."""
    line = await Line.open(house)
    await line.send({**guest.headers, **orders}, chat(SMALL, max_tokens=1_000))
    told = await line.head()
    async for _ in line.events(told):
        pass
    await line.leave()
    return told
