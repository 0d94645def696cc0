from __future__ import annotations

import asyncio
from concurrent.futures import Executor, Future
from types import SimpleNamespace
from typing import Any

import pytest

from extproc.edge import driver as module
from extproc.edge.driver import Driver
from extproc.edge.threads import Threads
from extproc.edge.transport.port import StatusCode
from extproc.errors import StoreUnknown
from extproc.exchange.actions import Amend, FindAnswer
from extproc.exchange.events import Amended, Chunk, Gone, StoreFailed
from extproc.money.hold import Denied, DenyReason, Granted, Verdict


class Patient(Executor):
    """Jobs that are done when the test says so."""

    def __init__(self) -> None:
        self.jobs: list[Future[Any]] = []

    def submit(self, fn: Any, /, *args: Any, **more: Any) -> Future[Any]:
        del fn, args, more
        self.jobs.append(Future())
        return self.jobs[-1]


async def test_one_account_cannot_take_all_threads():
    executor = Patient()
    threads = Threads(executor, jobs_max=3, jobs_each_max=2)
    mine = [threads.run("mallory", lambda: 1) for _ in range(3)]
    assert [job is None for job in mine] == [False, False, True]
    assert threads.run("anna", lambda: 1) is not None
    assert threads.run("boris", lambda: 1) is None, "all are taken"

    executor.jobs[0].set_result(5)
    assert await asyncio.wait_for(mine[0], 1) == 5
    assert threads.run("boris", lambda: 1) is not None
    assert threads.run("mallory", lambda: 1) is None, "all are taken again"


def test_more_chunks_than_the_mailbox_takes_end_the_stream_but_its_end_is_heard(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(module, "MAILBOX_EVENTS_MAX", 2)
    closed: list[StatusCode] = []
    driver = Driver.__new__(Driver)
    driver._call = SimpleNamespace(close=lambda code, _: closed.append(code))
    driver._mailbox = []
    driver._rest = ()  # an ending is on its way
    chunks = [Chunk(at_ns=number, data=b"", end_of_stream=False) for number in range(3)]
    for chunk in chunks:
        driver.push(chunk)
    assert closed == [StatusCode.RESOURCE_EXHAUSTED]
    gone = Gone(at_ns=4, reason="closed")
    driver.push(gone)
    assert driver._mailbox == [*chunks[:2], gone]


async def test_who_asks_about_his_money_does_not_wait_for_ever(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(module, "PHASE_S", 0.01)
    told: asyncio.Queue[Any] = asyncio.Queue()

    class Waiting(Driver):
        def push(self, event: Any) -> None:
            told.put_nowait(event)

    driver = Waiting.__new__(Waiting)
    driver._gate = SimpleNamespace(answering=SimpleNamespace(find=lambda _: asyncio.get_running_loop().create_future()))
    driver._find_answer(FindAnswer(enquiry=None))
    event = await asyncio.wait_for(told.get(), 5)
    assert isinstance(event, StoreFailed)
    assert event.what == "TimeoutError"


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (Granted(hold_id="h", spendable_nanos=1), None),
        (Granted(hold_id="h", spendable_nanos=1, would_deny=DenyReason.INSUFFICIENT), "insufficient"),
        (Denied(reason=DenyReason.ENDED), "ended"),
        (StoreUnknown("away"), "unknown"),
    ],
)
async def test_trust_that_was_misplaced_is_counted(answer: Verdict | StoreUnknown, reason: str | None):
    """The request goes on before the store has answered."""
    counted: list[str] = []
    given: list[Any] = []
    amend = asyncio.get_running_loop().create_future()

    class Pushed(Driver):
        def push(self, event: Any) -> None:
            given.append(event)

    driver = Pushed.__new__(Pushed)
    driver._gate = SimpleNamespace(holds=SimpleNamespace(amend=lambda _: amend), metrics=SimpleNamespace(trusted_untaken=counted.append))
    driver._amend(Amend(amendment=SimpleNamespace(hold_id="h"), waits=False))
    assert [type(event) for event in given] == [Amended]
    if isinstance(answer, StoreUnknown):
        amend.set_exception(answer)
    else:
        amend.set_result(answer)
    await asyncio.sleep(0)
    assert counted == ([] if reason is None else [reason])
