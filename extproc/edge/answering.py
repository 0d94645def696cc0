"""Finds what a client is told who asks about his money: live from the hold store, posted from the ledger.

Whoever asks again and again costs the hold store 20 µs each time and the ledger a query a second: an answer of the ledger serves everybody
who asks the same within :data:`FRESH_S`, and only :data:`ASKED_MAX` questions are waiting for it at once, few of them of one account.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Protocol

from extproc.edge.threads import Share
from extproc.errors import StoreRefused
from extproc.holds.port import Purses
from extproc.money.hold import Denied
from extproc.money.statement import Enquiry, Spent, Statement

FRESH_S = 1.0
ASKED_MAX = 16  # that wait for the ledger, in a worker
ASKED_EACH_MAX = 4  # … of one account: other dates are other questions, and nobody may take all the places
AT_LEDGER_MAX = 3  # at once: key look-ups share its connections (4, if nobody says otherwise), and must find one
REMEMBERED_MAX = 1_024  # answers, of 1 KB and less


class Spending(Protocol):
    """``ledger/spending.py``."""

    def spent(self, enquiry: Enquiry) -> Awaitable[Spent]:
        """As posted. Raises StoreError."""


class Answering:
    """Of one worker. ``now_s``: seconds that only grow."""

    def __init__(self, purses: Purses, spending: Spending, *, now_s: Callable[[], float]) -> None:
        self._purses = purses
        self._spending = spending
        self._now_s = now_s
        self._asked: dict[Enquiry, asyncio.Task[Spent]] = {}
        self._share = Share(places=ASKED_MAX, places_each=ASKED_EACH_MAX)
        self._at_ledger = asyncio.Semaphore(AT_LEDGER_MAX)
        self._told: dict[Enquiry, tuple[float, Spent]] = {}  # in the order of their times

    async def find(self, enquiry: Enquiry) -> Statement | Denied:
        """Raises StoreError. The ledger is asked only for a key that the hold store lets ask."""
        purse = await self._purses.purse(enquiry.payer_id, enquiry.key_id)
        if isinstance(purse, Denied):
            return purse
        return Statement(purse=purse, spent=await self._spent(enquiry))

    async def _spent(self, enquiry: Enquiry) -> Spent:
        found = self._told.get(enquiry)
        if found is not None and self._now_s() - found[0] < FRESH_S:
            return found[1]
        task = self._asked.get(enquiry)
        if task is None:
            if not self._share.take(enquiry.payer_id):
                raise StoreRefused("too many ask the ledger about their money already, or this account does")
            task = self._asked[enquiry] = asyncio.create_task(self._ask(enquiry))
            task.add_done_callback(lambda done: self._answered(enquiry, done))
        # A caller who leaves does not take the answer away from the others, nor cut a connection in the middle of its query.
        return await asyncio.shield(task)

    async def _ask(self, enquiry: Enquiry) -> Spent:
        async with self._at_ledger:
            asked_s = self._now_s()
            spent = await self._spending.spent(enquiry)
        self._told.pop(enquiry, None)
        self._told[enquiry] = asked_s, spent
        if len(self._told) > REMEMBERED_MAX:
            del self._told[next(iter(self._told))]
        return spent

    def _answered(self, enquiry: Enquiry, task: asyncio.Task[Spent]) -> None:
        del self._asked[enquiry]
        self._share.give_back(enquiry.payer_id)
        if not task.cancelled():
            task.exception()  # every caller may have left: the failure has been seen all the same
