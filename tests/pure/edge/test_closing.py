from __future__ import annotations

import asyncio
from collections.abc import Callable
from types import SimpleNamespace

import pytest

from extproc.edge import closing as module
from extproc.edge import driver as driving
from extproc.edge.closing import Closing
from extproc.edge.driver import Driver
from extproc.errors import StoreFenced, StoreRejected, StoreUnknown
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


class Disk:
    """An outbox that writes nothing until it is told to."""

    def __init__(self, *, is_full: bool = False) -> None:
        self.is_full = is_full
        self.put_in: list[tuple[str, Callable[[], object]]] = []

    def put(self, ending: Ending, stored: Callable[[], object]) -> bool:
        if not self.is_full:
            self.put_in.append((ending.hold_id, stored))
        return not self.is_full


def ending(number: int, *, is_forwarded: bool = False) -> Ending:
    return Ending(
        hold_id=f"h{number}",
        owner="h",
        payer_id="p",
        key_id="k",
        kind=EndKind.SETTLE,
        charge_nanos=7,
        tokens=1,
        row=b"{}",
        is_forwarded=is_forwarded,
    )


def closing_over(store: Away, disk: Disk | None = None, *, waits_for_disk: bool = False) -> Closing:
    series = SimpleNamespace(hold_ended=lambda _: None, store_failed=lambda _: None, illegal_event=lambda: None)
    return Closing(store, disk or Disk(), series, jitter=lambda: 0.0, waits_for_disk=waits_for_disk)  # type: ignore[arg-type]


async def test_endings_are_taken_however_many_wait_but_no_new_holds(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(module, "PENDING_MAX", 2)
    store = Away()
    closing = closing_over(store)
    endings = [closing.end(ending(number)) for number in range(3)]
    assert closing.why_full == "endings"

    told: list[Event] = []
    reasons: list[str] = []
    driver = Driver.__new__(Driver)
    driver._gate = SimpleNamespace(why_shut=closing.why_full, metrics=SimpleNamespace(turned_away=reasons.append))
    monkeypatch.setattr(Driver, "push", lambda _, event: told.append(event))
    driver._look_up(LookUpKey(secret="sk-of-somebody"))
    assert [type(event) for event in told] == [StoreFailed]
    assert reasons == ["endings"]

    for _, answer in store.asked:
        answer.set_result(EndResult.ENDED)
    await asyncio.gather(*endings)
    assert not closing.why_full


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
    await done
    assert {one.hold_id for one, _ in store.asked} == {"h1"}


async def test_where_power_may_fail_only_the_disk_makes_a_charge_safe():
    store, disk = Away(), Disk()
    closing = closing_over(store, disk, waits_for_disk=True)
    first, second = closing.end(ending(1, is_forwarded=True)), closing.end(ending(2, is_forwarded=True))
    refused = closing.end(ending(3))  # no backend had it: nothing is charged, nothing is kept
    for _, answer in store.asked:
        answer.set_result(EndResult.ENDED)
    assert await refused is False
    assert (first.done(), second.done()) == (False, False)
    disk.put_in[0][1]()
    assert await first is True, "both have it: what its row brought along is known everywhere"
    assert not second.done()
    disk.is_full = True
    unkept = closing.end(ending(4, is_forwarded=True))
    store.asked[-1][1].set_result(EndResult.ENDED)
    assert await unkept is False, "a disk that takes nothing is not waited for"


async def test_a_charge_is_safe_as_soon_as_either_has_it():
    store, disk = Away(), Disk()
    closing = closing_over(store, disk)
    by_disk, by_store = closing.end(ending(1, is_forwarded=True)), closing.end(ending(2, is_forwarded=True))
    assert [hold_id for hold_id, _ in disk.put_in] == ["h1", "h2"]
    assert [one.hold_id for one, _ in store.asked] == ["h1", "h2"]
    disk.put_in[0][1]()
    store.asked[1][1].set_result(EndResult.ENDED)
    assert (await by_disk, await by_store) == (False, True)
    disk.put_in[1][1]()  # what comes second changes nothing
    store.asked[0][1].set_result(EndResult.ENDED)
    assert await closing.drain(1) == 0


async def test_what_no_backend_had_goes_to_the_store_alone():
    store, disk = Away(), Disk()
    done = closing_over(store, disk).end(ending(1))
    assert not disk.put_in
    store.asked[0][1].set_result(EndResult.ENDED)
    assert await done is False, "a price that came along is not in the outbox"


async def test_a_price_counts_as_known_only_where_both_have_it():
    store, disk = Away(), Disk(is_full=True)
    closing = closing_over(store, disk)
    done = closing.end(ending(1, is_forwarded=True))
    store.asked[0][1].set_result(EndResult.ENDED)
    assert await done is False
    assert closing.why_full == "outbox"


@pytest.mark.parametrize("refusal", [StoreFenced("closed"), StoreUnknown("no answer")])
async def test_the_store_is_not_asked_for_ever_if_the_disk_has_it(monkeypatch: pytest.MonkeyPatch, refusal: Exception):
    monkeypatch.setattr(module, "GIVE_UP_S", -1.0)
    store, disk = Away(), Disk()
    closing = closing_over(store, disk)
    kept, unkept = closing.end(ending(1, is_forwarded=True)), closing.end(ending(2))
    disk.put_in[0][1]()
    for _, answer in tuple(store.asked):
        answer.set_exception(refusal)
    await kept
    while len(store.asked) < 3:
        await asyncio.sleep(0.01)
    assert store.asked[2][0].hold_id == "h2", "what is nowhere else is repeated"
    assert not unkept.done()
    store.asked[2][1].set_result(EndResult.ENDED)
    await closing.drain(1)


async def test_what_the_store_rejects_is_safe_when_the_disk_has_it():
    store, disk = Away(), Disk()
    done = closing_over(store, disk).end(ending(1, is_forwarded=True))
    store.asked[0][1].set_exception(StoreRejected("no such script"))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert not done.done()
    disk.put_in[0][1]()
    assert await done is False


@pytest.mark.parametrize("result", [EndResult.UNKNOWN, EndResult.TAKEN, EndResult.ALREADY])
async def test_what_the_store_has_not_written_is_safe_when_the_disk_has_it(result: EndResult):
    """Its hold was lost with a Redis that was rebuilt while this worker was silent: the tombstone that it leaves is no charge."""
    store, disk = Away(), Disk()
    done = closing_over(store, disk).end(ending(1, is_forwarded=True))
    store.asked[0][1].set_result(result)
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert not done.done()
    disk.put_in[0][1]()
    assert await done is False


async def test_a_worker_leaves_when_its_charges_are_safe(monkeypatch: pytest.MonkeyPatch):
    """The store is away. Nothing is lost of what the disk has; a void of a request that no backend had is left to its lease."""
    monkeypatch.setattr(module, "LINGER_S", 0.01)
    store, disk = Away(), Disk()
    closing = closing_over(store, disk)
    for number in (1, 2):
        closing.end(ending(number, is_forwarded=True))
    closing.end(ending(3))
    disk.put_in[0][1]()
    assert await closing.drain(0.05) == 1
    leaving = asyncio.create_task(closing.drain(5))
    await asyncio.sleep(0.02)
    assert not leaving.done()
    disk.put_in[1][1]()
    assert await leaving == 0


@pytest.mark.parametrize("is_safe", [True, False])
async def test_the_end_of_an_answer_waits_until_it_is_safe_or_for_as_long_as_it_may(monkeypatch: pytest.MonkeyPatch, is_safe: bool):
    """Then it goes, and somebody hears of it: nobody pays for an answer without its end."""
    monkeypatch.setattr(driving, "SAFE_WAIT_S", 60.0 if is_safe else 0.01)
    carried: list[object] = []
    left: list[bool] = []
    monkeypatch.setattr(Driver, "_carry", lambda _, actions: carried.extend(actions))
    driver = Driver.__new__(Driver)
    driver._gate = SimpleNamespace(metrics=SimpleNamespace(left_unsafe=lambda: left.append(True)))
    driver._exchange = SimpleNamespace(tab=SimpleNamespace(request_id="r", hold_id="h"))
    driver._mailbox = []
    driver._ending = asyncio.get_running_loop().create_future()
    driver._wait(("the last chunk",))
    if is_safe:
        await asyncio.sleep(0)
        assert not carried
        driver._ending.set_result(True)
    async with asyncio.timeout(5):
        while not carried:
            await asyncio.sleep(0.001)
    if not is_safe:
        driver._ending.set_result(True)  # late: it has gone
        await asyncio.sleep(0)
    assert (carried, left) == (["the last chunk"], [] if is_safe else [True])
