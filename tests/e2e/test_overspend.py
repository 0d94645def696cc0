"""Five hundred at once on a balance for ten: ten are served, whatever they hold and however they end. Nothing is ever overspent."""

from __future__ import annotations

import asyncio
import os
import time
from collections import Counter
from decimal import Decimal

import redis.asyncio
from house import SMALL, Guest, House
from wire import Line, Told, chat, figure, steering

from extproc.stores.shards import tag_of

ROUNDS = int(os.environ.get("EXTPROC_OVERSPEND_ROUNDS", "2"))
CLIENTS = 500
AFFORDED = 10
REFUSALS = {402: "insufficient_quota", 429: "balance_held"}
TOKENS = 8
# An exact hold as large as an entry hold, and a much larger one: refused on the headers, and refused at the body.
OUTPUT_MAX = (1_200, 8_000)
HELD_OPEN_MS = 2_000  # before the first event: longer than it takes to answer everybody


async def test_ten_of_five_hundred_are_served(house: House):
    lines = await asyncio.gather(*(Line.open(house) for _ in range(CLIENTS)))
    try:
        for number in range(ROUNDS):
            await one_round(house, lines, chat(SMALL, max_tokens=OUTPUT_MAX[number % 2]))
    finally:
        await asyncio.gather(*(line.leave() for line in lines))


async def one_round(house: House, lines: list[Line], body: bytes) -> None:
    hold = await asyncio.to_thread(exact_hold, house, body)
    guest = await asyncio.to_thread(house.guest, deposit=str(Decimal(AFFORDED * hold).scaleb(-9)))
    over = asyncio.Event()
    looking = asyncio.create_task(lowest_balance(house, guest, over))
    started = time.monotonic()
    answers = await asyncio.gather(*(answer(line, guest, body) for line in lines))
    took_s = time.monotonic() - started
    open_holds = guest.view().open_holds
    served = [(line, told) for line, told in zip(lines, answers, strict=True) if told.status == 200]
    await asyncio.gather(*(read_to_the_end(line, told) for line, told in served))
    over.set()
    lowest, looks = await looking
    refused = Counter((told.status, told.error) for told in answers if told.status != 200)
    figure(f"{len(served)} served, {dict(refused)}; all answered in {took_s:.2f} s; hold {hold}, lowest balance {lowest} in {looks} looks")
    assert len(served) == AFFORDED
    assert open_holds == AFFORDED, "answers must stay open until everybody was answered"
    assert set(refused) <= set(REFUSALS.items())
    assert sum(refused.values()) == CLIENTS - AFFORDED
    assert all(told.done and told.whole and told.tokens == TOKENS for _, told in served)
    assert lowest >= 0  # ten times the hold is all of it
    assert looks > 10
    await asyncio.to_thread(nothing_overspent, guest, {told.request_id for _, told in served})


def exact_hold(house: House, body: bytes) -> int:
    """What one such request holds: learnt from a request of somebody who can afford it."""
    guest = house.guest()
    with house.client() as client:
        told = client.post("/v1/chat/completions", content=body, headers={**guest.headers, **steering(tokens=1)})
    return int(guest.row(told.headers["x-request-id"])["hold_nanos"])


async def lowest_balance(house: House, guest: Guest, over: asyncio.Event) -> tuple[int, int]:
    """The least that could be spent at any moment, and how often was looked."""
    seen: list[int] = []
    async with redis.asyncio.Redis.from_url(house.valkey.url) as client:
        while not over.is_set():
            seen.append(int(await client.hget(f"{tag_of(guest.id)}:payer:{guest.id}", "spendable")))
            await asyncio.sleep(0.005)
    return min(seen), len(seen)


async def answer(line: Line, guest: Guest, body: bytes) -> Told:
    """Until the answer is there; a refusal is read to its end, a stream stays open."""
    await line.send({**guest.headers, **steering(tokens=TOKENS, first_ms=HELD_OPEN_MS)}, body)
    told = await line.head()
    if told.status != 200:
        await read_to_the_end(line, told)
    return told


async def read_to_the_end(line: Line, told: Told) -> None:
    async for _ in line.events(told):
        pass


def nothing_overspent(guest: Guest, served: set[str]) -> None:
    guest.check()
    rows = [row for row in guest.rows() if row["ending"] != "none"]
    charged = [row for row in rows if row["ending"] == "settle"]
    assert {row["request_id"] for row in charged} == served
    assert len(charged) == AFFORDED
    assert all(row["output_tokens"] == TOKENS and row["usage_source"] == "upstream" for row in charged)
    # Who was refused at the body had an entry hold: one row each as well, and it cost nothing.
    assert all(row["ending"] == "void" and row["cost"] == 0 for row in rows if row not in charged)
    assert len({row["request_id"] for row in rows}) == len(rows)
