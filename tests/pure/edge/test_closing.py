from __future__ import annotations

import asyncio
from types import SimpleNamespace

import pytest

from extproc.edge import closing as module
from extproc.edge.closing import Closing
from extproc.edge.driver import Driver
from extproc.errors import StoreUnknown
from extproc.exchange.actions import LookUpKey
from extproc.exchange.events import Event, StoreFailed
from extproc.money.hold import Ending, EndKind, EndResult


class Away:
    """A hold store that does not answer until it is told to."""

    def __init__(self) -> None:
        self.asked: list[tuple[Ending, asyncio.Future[EndResult]]] = []

    def end(self, ending: Ending) -> asyncio.Future[EndResult]:
        self.asked.append((ending, asyncio.get_running_loop().create_future()))
        return self.asked[-1][1]


def ending(number: int) -> Ending:
    return Ending(hold_id=f"h{number}", owner="h", payer_id="p", key_id="k", kind=EndKind.SETTLE, charge_nanos=7, tokens=1, row=b"{}")


def closing_over(store: Away) -> Closing:
    series = SimpleNamespace(hold_ended=lambda _: None, store_failed=lambda _: None)
    return Closing(store, series, jitter=lambda: 0.0)  # type: ignore[arg-type]


async def test_endings_are_taken_however_many_wait_but_no_new_holds(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(module, "PENDING_MAX", 2)
    store = Away()
    closing = closing_over(store)
    endings = [closing.end(ending(number)) for number in range(3)]
    assert closing.full

    told: list[Event] = []
    driver = Driver.__new__(Driver)
    driver._gate = SimpleNamespace(closing=closing)
    monkeypatch.setattr(Driver, "push", lambda _, event: told.append(event))
    driver._look_up(LookUpKey(secret="sk-of-somebody"))
    assert [type(event) for event in told] == [StoreFailed]

    for _, answer in store.asked:
        answer.set_result(EndResult.ENDED)
    assert await asyncio.gather(*endings) == [EndResult.ENDED] * 3
    assert not closing.full


async def test_an_ending_is_repeated_until_it_is_acknowledged(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(module, "RETRY_S_FIRST", 0.0)
    store = Away()
    closing = closing_over(store)
    closing._wait_s = 0.0
    done = closing.end(ending(1))
    for attempt in range(3):
        while len(store.asked) == attempt:
            await asyncio.sleep(0)
        store.asked[-1][1].set_exception(StoreUnknown("no answer"))
    while len(store.asked) == 3:
        await asyncio.sleep(0)
    store.asked[-1][1].set_result(EndResult.ENDED)
    assert await done is EndResult.ENDED
    assert {one.hold_id for one, _ in store.asked} == {"h1"}
