"""Who leaves early pays the prompt and what was delivered, within one token of what it has read; who leaves at ``[DONE]`` pays it all.

Three witnesses are compared: what the client read, what the simulator made, what the ledger charged.
"""

from __future__ import annotations

import asyncio
import os
import time
from typing import Any

import pytest
from house import NANOS_IN, NANOS_OUT, SMALL, Guest, House, until
from wire import Line, Told, Trunk, call, chat, figure, steering
from witnesses import explained

DONE_CLIENTS = int(os.environ.get("EXTPROC_DONE_CLIENTS", "40"))
EVENTS = 1_000
SLOWLY = steering(tokens=EVENTS, delay_ms=30)  # one token an event, and no socket buffer holds more than one
SETTLED_S = 1.0
TOLERANCE = 1  # what was on its way when the client left


async def test_leaving_in_the_middle(house: House, guest: Guest):
    """Several at once, each after another number of tokens."""
    after = (1, 2, 5, 10, 10, 10, 25, 40)
    headers = {**guest.headers, **SLOWLY}
    left = await asyncio.gather(*(call(house, headers, chat(SMALL, max_tokens=EVENTS), leave_after=number) for number in after))
    assert [told.tokens for told in left] == list(after)
    for told in left:
        paid_what_was_delivered(house, guest, told)
    guest.check()


async def test_leaving_in_the_middle_over_http2(house: House, guest: Guest):
    """One connection, whose other streams go on."""
    trunk = await Trunk.open(house)
    after, body = (1, 10, 10, 30), chat(SMALL, max_tokens=EVENTS)
    staying = asyncio.create_task(trunk.ask({**guest.headers, **steering(tokens=60, delay_ms=30)}, body))
    left = await asyncio.gather(*(trunk.ask({**guest.headers, **SLOWLY}, body, leave_after=number) for number in after))
    stayed = await staying
    await trunk.leave()
    assert [told.tokens for told in left] == list(after)
    assert (stayed.tokens, stayed.done, stayed.whole) == (60, True, True)
    for told in left:
        paid_what_was_delivered(house, guest, told)
    assert guest.row(stayed.request_id)["output_tokens"] == 60
    guest.check()


def paid_what_was_delivered(house: House, guest: Guest, told: Told) -> None:
    row = explained(guest, told.request_id)
    (seen,) = until(lambda: [one for one in house.upstream(told.request_id) if one["end"] != "open"], "the simulator noticed")
    figure(
        f"read {told.tokens}, made {seen['generated_tokens']}, billed {row['output_tokens']} ({row['usage_source']}, {row['end_reason']})"
    )
    assert abs(row["output_tokens"] - told.tokens) <= TOLERANCE
    assert abs(row["output_tokens"] - seen["generated_tokens"]) <= TOLERANCE
    assert row["input_tokens"] == seen["prompt_tokens"]
    assert row["cost"] == row["input_tokens"] * NANOS_IN + row["output_tokens"] * NANOS_OUT
    assert (row["end_reason"], row["ending"], row["stream"]) == ("client_gone", "settle", True)
    assert seen["end"] == "client_gone"


@pytest.mark.parametrize(
    "orders",
    [{"tokens": EVENTS, "first_ms": 60_000}, {"fault": "hang_headers"}],
    ids=["headers came, no event", "no headers"],
)
async def test_leaving_before_the_first_event(house: House, guest: Guest, orders: dict[str, Any]):
    """The prompt was computed, or is being computed: it is charged, and nothing else."""
    body = chat(SMALL, max_tokens=EVENTS)
    whole = guest.row((await call(house, {**guest.headers, **steering(tokens=1)}, body)).request_id)
    line = await Line.open(house)
    await line.send({**guest.headers, **steering(**orders)}, body)
    if "fault" not in orders:
        assert (await line.head()).status == 200
    _, seen = await asyncio.to_thread(until, lambda: forwarded(house, guest)[1:] and forwarded(house, guest), "the simulator has it")
    await line.leave()
    row = await asyncio.to_thread(guest.row, seen["request_id"])
    assert (row["input_tokens"], row["output_tokens"], row["end_reason"]) == (whole["input_tokens"], 0, "client_gone")
    assert row["cost"] == row["input_tokens"] * NANOS_IN > 0
    guest.check()
    assert len(guest.rows()) == 2


def forwarded(house: House, guest: Guest) -> list[dict[str, Any]]:
    seen, _ = house.simulators[SMALL].log()
    return [one for one in seen if dict(one["headers"]).get("x-account-id") == guest.id]


async def test_leaving_during_the_upload(house: House, guest: Guest):
    """The hold of the headers is given back; nothing reached a backend."""
    body = chat(SMALL, max_tokens=EVENTS)
    with guest.charged_nothing():
        line = await Line.open(house)
        await line.send(guest.headers, body[:20], length=len(body))
        await asyncio.to_thread(until, lambda: guest.view().open_holds == 1, "the entry hold")
        assert guest.view().entry_held_nanos > 0
        await line.leave()
    guest.check()
    (row,) = guest.rows()
    assert (row["ending"], row["cost"], row["end_reason"]) == ("void", 0, "client_gone")
    assert forwarded(house, guest) == []


@pytest.mark.parametrize("http2", [False, True], ids=["HTTP/1.1", "HTTP/2"])
async def test_closing_at_done(house: House, guest: Guest, http2: bool):
    """As OpenAI's SDK does, while the end of the body comes 50 ms later: the whole answer, charged by the backend's own figures, at once."""
    headers = {**guest.headers, **steering(tokens=10, fault="late_eos_ms=50")}
    leave = leave_at_done_http2 if http2 else leave_at_done
    gate = asyncio.Semaphore(4)  # at once: a client that has to wait for the processor does not leave before the end

    async def one() -> str:
        async with gate:
            return await leave(house, headers)

    left = await asyncio.gather(*(one() for _ in range(DONE_CLIENTS // 2)))
    ended = time.monotonic()
    await asyncio.to_thread(until, lambda: guest.view().open_holds == 0, "all of them settled", SETTLED_S)
    figure(f"{len(left)} left at [DONE], settled {1_000 * (time.monotonic() - ended):.0f} ms after the last one")
    await asyncio.to_thread(guest.check)
    rows = guest.rows()
    assert {row["request_id"] for row in rows} == set(left)
    assert len(rows) == len(left) == DONE_CLIENTS // 2
    assert {(row["usage_source"], row["output_tokens"], row["end_reason"], row["ending"]) for row in rows} == {
        ("upstream", 10, "stop", "settle")
    }
    assert {row["cost"] - row["input_tokens"] * NANOS_IN for row in rows} == {10 * NANOS_OUT}
    seen = forwarded(house, guest)
    early = sum(one["end"] == "client_gone" for one in seen)
    figure(f"{len(rows)} of {len(seen)} charged by the figures of the backend, which saw {early} of them leave before the end")
    assert {row["input_tokens"] for row in rows} == {one["prompt_tokens"] for one in seen}
    assert early > 0, "nobody left before the end: this tests nothing"


async def leave_at_done(house: House, headers: dict[str, str]) -> str:
    line = await Line.open(house)
    await line.send(headers, chat(SMALL))
    told = await line.head()
    async for _ in line.events(told):
        if told.done:
            break
    await line.leave()
    assert told.done
    assert not told.whole
    return told.request_id


async def leave_at_done_http2(house: House, headers: dict[str, str]) -> str:
    trunk = await Trunk.open(house)
    told = await trunk.ask(headers, chat(SMALL), at_done=True)
    await trunk.leave()
    assert told.done
    assert not told.whole
    return told.request_id
