"""Many streams open at once: nobody is refused, nobody's stream breaks, and everybody pays for exactly what was made and read."""

from __future__ import annotations

import asyncio
import os

from house import SMALL, House
from multiplexed import block_of, chat_body, connect
from witnesses import assert_agreed

STREAMS = int(os.environ.get("EXTPROC_STREAMS", "600"))
TOKENS, DELAY_MS = 20, 300  # a stream lasts until the last one speaks, on a machine that others use as well
PAYERS = 4
ASKED_TOGETHER = 50  # then the loop's turn
PATIENCE_S = 60.0


async def test_many_streams_at_once(house: House) -> None:
    guests = [house.guest(deposit="1000") for _ in range(PAYERS)]
    steering = {"x-sim-tokens": str(TOKENS), "x-sim-delay-ms": str(DELAY_MS)}
    blocks = [block_of(guest.secret, steering) for guest in guests]
    body = chat_body(SMALL, "hello " * 200, stream=True, max_tokens=2 * TOKENS)
    lines = await connect(house.envoy.port, tls=house.context(), streams=STREAMS)
    readings = []
    async with asyncio.timeout(PATIENCE_S):
        for place in range(STREAMS):
            line = lines[place % len(lines)]
            readings.append(line.ask(blocks[place % PAYERS], body))
            if place % ASKED_TOGETHER == ASKED_TOGETHER - 1:
                await asyncio.sleep(0)
        at_once = 0
        while not all(reading.over.done() for reading in readings):
            at_once = max(at_once, sum(reading.tokens > 0 for line in lines for reading in line.open.values()))
            await asyncio.sleep(0.05)
    for line in lines:
        line.close()
    assert at_once == STREAMS, "all of them were open, and speaking, at the same time"
    assert await asyncio.to_thread(assert_agreed, house, guests, readings) == STREAMS * TOKENS
    for guest in guests:
        await asyncio.to_thread(guest.check)
