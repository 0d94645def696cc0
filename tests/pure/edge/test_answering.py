from __future__ import annotations

import asyncio
from datetime import date
from typing import Any

import pytest

from extproc.edge import answering as module
from extproc.edge.answering import ASKED_EACH_MAX, AT_LEDGER_MAX, FRESH_S, Answering
from extproc.errors import StoreRefused
from extproc.money.hold import Denied, DenyReason
from extproc.money.statement import Enquiry, Purse, Spent, Statement

PURSE = Purse(balance_nanos=9, held_nanos=1, credit_nanos=0, total_nanos=9)


def enquiry(payer_id: str = "anna", until: date = date(2026, 2, 1)) -> Enquiry:
    return Enquiry(payer_id=payer_id, key_id="k1", of_account=True, since=date(2026, 1, 1), until=until)


class Stores:
    """Both; the ledger answers when the test says so."""

    def __init__(self) -> None:
        self.purse_of: Purse | Denied = PURSE
        self.asked: list[asyncio.Future[Spent]] = []
        self.now_s = 100.0
        self.answering = Answering(self, self, now_s=lambda: self.now_s)

    async def purse(self, payer_id: str, key_id: str) -> Purse | Denied:
        assert key_id == "k1"
        return self.purse_of

    async def spent(self, asked: Enquiry) -> Spent:
        del asked
        self.asked.append(asyncio.get_running_loop().create_future())
        return await self.asked[-1]

    async def ask(self, *payers: str) -> list[asyncio.Task[Any]]:
        return await self.enquire(*map(enquiry, payers))

    async def enquire(self, *enquiries: Enquiry) -> list[asyncio.Task[Any]]:
        """Each is as far as it can get when this returns."""
        tasks = [asyncio.create_task(self.answering.find(one)) for one in enquiries]
        for _ in range(5):
            await asyncio.sleep(0)
        return tasks


def spent(credits_nanos: int) -> Spent:
    return Spent(credits_nanos=credits_nanos, told_nanos=9)


async def test_all_who_ask_the_same_are_told_by_one_query():
    stores = Stores()
    first, second = await stores.ask("anna", "anna")
    assert len(stores.asked) == 1
    first.cancel()
    stores.asked[0].set_result(spent(5))
    assert await second == Statement(purse=PURSE, spent=spent(5)), "one who leaves does not take the answer along"
    stores.now_s += FRESH_S / 2
    stores.purse_of = Purse(balance_nanos=4, held_nanos=0, credit_nanos=0, total_nanos=9)
    (again,) = await stores.ask("anna")
    assert await again == Statement(purse=stores.purse_of, spent=spent(5)), "the purse is never remembered"
    stores.now_s += FRESH_S / 2
    await stores.ask("anna")
    assert len(stores.asked) == 2, "an answer is as old as its question"


async def test_a_failure_is_told_and_not_remembered():
    stores = Stores()
    (task,) = await stores.ask("anna")
    stores.asked[0].set_exception(StoreRefused("away"))
    with pytest.raises(StoreRefused):
        await task
    await stores.ask("anna")
    assert len(stores.asked) == 2


async def test_the_ledger_is_not_asked_for_a_key_that_is_over():
    stores = Stores()
    stores.purse_of = Denied(reason=DenyReason.KEY_REVOKED)
    (task,) = await stores.ask("anna")
    assert await task == stores.purse_of
    assert not stores.asked


async def test_other_dates_do_not_take_the_places_of_others():
    stores = Stores()
    days = [enquiry("anna", until=date(2026, 2, 1 + number)) for number in range(ASKED_EACH_MAX + 1)]
    *waiting, refused = await stores.enquire(*days)
    with pytest.raises(StoreRefused):
        await refused
    (boris,) = await stores.ask("boris")
    assert len(stores.asked) == AT_LEDGER_MAX, "key look-ups find a connection"
    for number in range(ASKED_EACH_MAX + 1):
        stores.asked[number].set_result(spent(number))
        await (*waiting, boris)[number]
    (again,) = await stores.enquire(days[-1])
    stores.asked[-1].set_result(spent(9))
    assert (await again).spent == spent(9)


async def test_bounds(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(module, "ASKED_MAX", 2)
    monkeypatch.setattr(module, "REMEMBERED_MAX", 2)
    stores = Stores()
    *waiting, third = await stores.ask("anna", "boris", "carla")
    with pytest.raises(StoreRefused):
        await third
    for number in range(2):
        stores.asked[number].set_result(spent(number))
        await waiting[number]
    (task,) = await stores.ask("carla")
    stores.asked[2].set_result(spent(2))
    await task
    assert [payer.payer_id for payer in stores.answering._told] == ["boris", "carla"]
