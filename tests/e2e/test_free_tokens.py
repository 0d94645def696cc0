"""Free tokens through the whole house: they pay before money, at the end of a stream as in its middle, and nobody uses more of them than there are."""

from __future__ import annotations

import asyncio
from typing import Any

from house import NANOS_IN, NANOS_OUT, SMALL, Guest, House, until
from wire import call, chat, steering
from witnesses import explained

TOKENS = 20


def give(guest: Guest, given: int, made: int) -> None:
    deposits = guest.house.stores.deposits
    receipt = guest.house.run(deposits.grant_quota(guest.id, input_tokens=given, output_tokens=made, reason="spring", actor="test"))
    assert receipt.is_delivered


def left(guest: Guest) -> tuple[int, int]:
    """At rest, in both stores."""

    def posted() -> tuple[int, ...]:
        (row,) = guest.house.rows("SELECT free_quota_input, free_quota_output FROM balances WHERE user_id = %s", guest.id)
        return tuple(row.values())

    guest.at_rest()
    view = until(lambda: (view := guest.view()).quota.both == posted() and view, f"{guest.view()} in the ledger, which has {posted()}")
    assert view.held_quota.both == (0, 0)
    return view.quota.both


def used(row: dict[str, Any]) -> tuple[int, int]:
    return row["free_input"], row["free_output"]


async def ask(
    guest: Guest, *, max_tokens: int | None = TOKENS, tokens: int = TOKENS, leave_after: int | None = None, delay_ms: int = 0
) -> Any:
    headers = {**guest.headers, **steering(tokens=tokens, delay_ms=delay_ms)}
    body = chat(SMALL) if max_tokens is None else chat(SMALL, max_tokens=max_tokens)
    return await call(guest.house, headers, body, **({} if leave_after is None else {"leave_after": leave_after}))


async def test_without_any_money_free_tokens_are_enough(house: House):
    guest = await asyncio.to_thread(house.guest, deposit="0")
    assert (await ask(guest)).status == 402
    give(guest, 1_000, 50)
    for _ in range(2):
        told = await ask(guest)
        assert (told.status, told.tokens, told.done) == (200, TOKENS, True)
    row = await asyncio.to_thread(explained, guest, told.request_id)
    assert (row["cost"], row["list_nanos"], row["overage_nanos"], row["hold_nanos"]) == (0, 0, 0, 0)
    assert used(row) == (row["input_tokens"], TOKENS)
    assert left(guest) == (1_000 - 2 * row["input_tokens"], 10)
    assert (await ask(guest)).status == 402, "10 tokens of 20 are there, and no money for the rest"
    guest.check()


async def test_money_pays_what_the_quota_leaves(house: House, guest: Guest):
    """15 tokens of output are free, and as many of input as there are."""
    give(guest, 3, 15)
    told = await ask(guest)
    row = await asyncio.to_thread(explained, guest, told.request_id)
    assert used(row) == (3, 15)
    assert row["cost"] == (row["input_tokens"] - 3) * NANOS_IN + (TOKENS - 15) * NANOS_OUT
    assert left(guest) == (0, 0)
    paid = await ask(guest)
    row = await asyncio.to_thread(explained, guest, paid.request_id)
    assert (used(row), row["cost"]) == ((0, 0), row["input_tokens"] * NANOS_IN + TOKENS * NANOS_OUT)
    guest.check()


async def test_what_was_not_used_comes_back(house: House):
    """Of 500 that the client asked for 20 were made, of the next ones 10 were delivered before it left."""
    guest = await asyncio.to_thread(house.guest, deposit="0")
    give(guest, 1_000, 500)
    told = await ask(guest, max_tokens=500)
    row = await asyncio.to_thread(explained, guest, told.request_id)
    assert left(guest) == (1_000 - row["input_tokens"], 480)
    gone = await ask(guest, max_tokens=480, tokens=400, leave_after=10, delay_ms=30)
    row = await asyncio.to_thread(explained, guest, gone.request_id)
    assert abs(row["output_tokens"] - 10) <= 1
    assert used(row) == (row["input_tokens"], row["output_tokens"])
    assert left(guest) == (1_000 - 2 * row["input_tokens"], 480 - row["output_tokens"])
    guest.check()


async def test_an_answer_without_a_maximum_is_as_long_as_the_quota(house: House):
    guest = await asyncio.to_thread(house.guest, deposit="0")
    give(guest, 1_000, 300)
    told = await ask(guest, max_tokens=None)
    assert told.status == 200
    row = await asyncio.to_thread(explained, guest, told.request_id)
    assert (row["hold_nanos"], used(row)) == (0, (row["input_tokens"], TOKENS))
    assert left(guest)[1] == 300 - TOKENS
    guest.check()


async def test_of_many_at_once_as_many_are_served_as_there_are_tokens(house: House):
    guest = await asyncio.to_thread(house.guest, deposit="0")
    give(guest, 100_000, 7 * TOKENS + 19)
    told = await asyncio.gather(*(ask(guest, delay_ms=20) for _ in range(40)))
    statuses = [one.status for one in told]
    assert statuses.count(200) == 7
    assert set(statuses) == {200, 429}, "others hold the tokens: some of them may come back"
    assert left(guest)[1] == 19
    guest.check()
