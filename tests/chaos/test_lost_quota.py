"""A hold takes free tokens, and nobody is told that it has: the link breaks behind the script. The tokens come back; who was served all the same pays."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from breakable import BreakableHouse
from house import NANOS_IN, NANOS_OUT, SMALL, Guest
from test_cut_off import IN_A_ROW, all_serve, gauge, until_aside
from test_free_tokens import give, left
from test_lent import credit  # noqa: F401 - a fixture
from wire import Told, call, chat, figure, steering

pytestmark = pytest.mark.long

GIVEN, MADE, TOKENS = 10_000, 5_000, 20  # all of a request's tokens are free


@contextmanager
def answers_of_amend_are_lost(house: BreakableHouse) -> Iterator[None]:
    house.valkey_proxy.lost.clear()
    house.valkey_proxy.losses["amend"] = 1.0
    try:
        yield
    finally:
        house.valkey_proxy.losses.clear()


async def asked(house: BreakableHouse, guest: Guest) -> list[Told]:
    """One after the other, streams and JSON answers."""
    headers = {**guest.headers, **steering(tokens=TOKENS)}
    return [await call(house, headers, chat(SMALL, max_tokens=TOKENS, stream=number % 2 == 0)) for number in range(IN_A_ROW)]


async def everything_is_back(guest: Guest) -> None:
    """As soon as the store is asked again: no lease has to run out."""
    await until_aside(lambda: guest.view().open_holds == 0, "nothing is held", 1.5)
    assert await asyncio.to_thread(left, guest) == (GIVEN, MADE)


@pytest.mark.usefixtures("credit")
async def test_who_is_served_on_credit_pays_with_money(house: BreakableHouse, guest: Guest):
    before = await all_serve(house, guest)  # both workers have seen that there is money
    illegal = gauge(house, "extproc_illegal_events_total")
    give(guest, GIVEN, MADE)
    with answers_of_amend_are_lost(house):
        tolds = await asked(house, guest)
    lost = house.valkey_proxy.lost["amend"]
    assert lost >= IN_A_ROW
    assert all((told.status, told.whole) == (200, True) for told in tolds)
    await everything_is_back(guest)
    await until_aside(lambda: {told.request_id for told in tolds} <= {row["request_id"] for row in guest.rows()}, "all are booked")
    rows = {row["request_id"]: row for row in await asyncio.to_thread(house.judge, guest, [*before, *tolds])}
    for told in tolds:
        row = rows[told.request_id]
        assert (row["ending"], row["free_input"] or 0, row["free_output"] or 0, row["loss_nanos"]) == ("settle", 0, 0, 0)
        assert (row["policies"], row["cost"]) == (["stores_away=credit"], row["input_tokens"] * NANOS_IN + TOKENS * NANOS_OUT)
    assert gauge(house, "extproc_illegal_events_total") == illegal
    figure(f"{lost} answers of amend lost, {len(tolds)} served on credit, {sum(rows[told.request_id]['cost'] for told in tolds)} nanos")


async def test_who_is_refused_leaves_them(house: BreakableHouse, guest: Guest):
    before = await all_serve(house, guest)
    give(guest, GIVEN, MADE)
    with answers_of_amend_are_lost(house):
        tolds = await asked(house, guest)
    assert {told.status for told in tolds} == {503}
    await everything_is_back(guest)
    await asyncio.to_thread(house.judge, guest, [*before, *tolds])
