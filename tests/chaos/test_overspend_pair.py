"""A thousand at once, by four clients through two sidecars, on a balance for ten: exactly ten are served."""

from __future__ import annotations

import asyncio
import os
from collections import Counter
from decimal import Decimal

import pytest
from house import SMALL, Guest
from pair import Pair
from test_overspend import AFFORDED, HELD_OPEN_MS, REFUSALS, TOKENS, exact_hold, lowest_balance, nothing_overspent
from wire import Told, Trunk, chat, figure, steering

pytestmark = pytest.mark.long

ROUNDS = int(os.environ.get("EXTPROC_OVERSPEND_ROUNDS", "1"))
CLIENTS, EACH = 4, 250


async def test_ten_of_a_thousand_are_served_by_two_sidecars(pair: Pair):
    body = chat(SMALL, max_tokens=8_000)
    hold = await asyncio.to_thread(exact_hold, pair, body)
    for _ in range(ROUNDS):
        guest = await asyncio.to_thread(pair.guest, deposit=str(Decimal(AFFORDED * hold).scaleb(-9)))
        await one_round(pair, guest, body)


async def one_round(pair: Pair, guest: Guest, body: bytes) -> None:
    before = await asyncio.to_thread(pair.of_sockets, "rq_total")
    trunks = await asyncio.gather(*(Trunk.open(pair) for _ in range(CLIENTS)))
    over = asyncio.Event()
    looking = asyncio.create_task(lowest_balance(pair, guest, over))
    headers = {**guest.headers, **steering(tokens=TOKENS, first_ms=HELD_OPEN_MS)}
    told: list[Told] = await asyncio.gather(*(trunk.ask(headers, body) for trunk in trunks for _ in range(EACH)))
    over.set()
    lowest, looks = await looking
    await asyncio.gather(*(trunk.leave() for trunk in trunks))
    after = await asyncio.to_thread(pair.of_sockets, "rq_total")
    served = [one for one in told if one.status == 200]
    refused = Counter(one.status for one in told if one.status != 200)
    figure(f"{len(served)} of {len(told)} served, {dict(refused)}; lowest balance {lowest} in {looks} looks")
    assert len(served) == AFFORDED
    assert set(refused) <= set(REFUSALS)
    assert all(one.done and one.whole and one.tokens == TOKENS for one in served)
    assert lowest >= 0
    assert all(after[path] > before[path] for path in before), "a worker had nothing to do"
    await asyncio.to_thread(nothing_overspent, guest, {one.request_id for one in served})
