"""Credit of a worker while the hold store is away (policy ``stores_away: {credit: …}``): bounded, and only for whom was seen with money.

What is lent is the cap of a request; what it is charged in the end stays lent until the ledger has it, and has surely told Redis. So an
outage, or many short ones, cost at most the credit for each payer who had money when he was seen last.

A loan is on the disk before anything is forwarded, and so are its checkpoints: whoever takes over the outbox of a worker that was killed
ends what it had lent at that. Its ending, or :meth:`Outbox.forget`, takes it off the disk.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Final, Protocol

from extproc.money.hold import Amendment, Checkpoint, Ending, Granted, Loan

PAYERS_MAX: Final = 50_000  # seen last, about 200 bytes each; who was pushed out is refused as if there were no such policy
SETTLED_S: Final = 60.0  # after the ledger has the last end: the credit back to Redis takes seconds when nothing is wrong


class Outbox(Protocol):
    """``settlement/outbox.py``, as far as loans are concerned."""

    @property
    def behind_s(self) -> float:
        """How long ago the oldest ending was put in that the ledger may not have; 0 = it has all."""

    def lend(self, loan: Loan, stored: Callable[[], object]) -> bool:
        """What is known of a loan now. ``stored`` is called when it is on the disk. False: it is not kept."""

    def forget(self, hold_id: str) -> None:
        """It has ended, and no ending of it goes into the outbox."""


@dataclass(slots=True)
class _Lent:
    nanos: int = 0
    open: int = 0
    ended_s: float = 0.0


class Lending:
    """Of one worker. ``workers``: among how many the credit is shared out."""

    def __init__(self, outbox: Outbox, *, workers: int, monotonic_s: Callable[[], float]) -> None:
        self._outbox = outbox
        self._workers = workers
        self._now_s = monotonic_s
        self._seen: OrderedDict[str, int] = OrderedDict()
        self._lent: dict[str, _Lent] = {}  # no more than there are payers that were seen, and requests that are open

    def saw(self, payer_id: str, spendable_nanos: int) -> None:
        """The hold store has answered, and this is what he may spend."""
        seen = self._seen
        seen[payer_id] = spendable_nanos
        seen.move_to_end(payer_id)
        if len(seen) > PAYERS_MAX:
            seen.popitem(last=False)
        if self._lent and (lent := self._lent.get(payer_id)) and not lent.open and self._is_settled(lent):
            del self._lent[payer_id]

    def _is_settled(self, lent: _Lent) -> bool:
        """While PostgreSQL is away Redis hears nothing of what was charged, however long ago."""
        return self._now_s() - lent.ended_s > SETTLED_S + self._outbox.behind_s

    def lend(self, asked: Amendment, *, credit_nanos: int) -> tuple[Loan, asyncio.Future[Granted]] | None:
        """The cap of one request: never more than the payer was last seen with, nor than this worker's share of the credit.

        The loan is to be ended, whatever comes; it is granted when it is on the disk. ``None``: nothing is lent.
        """
        most = min(self._seen.get(asked.payer_id, 0), credit_nanos // self._workers)
        lent = self._lent.get(asked.payer_id) or _Lent()
        if most <= 0 or lent.nanos + asked.cap_nanos > most:
            return None
        loan = Loan(
            hold_id=asked.hold_id, payer_id=asked.payer_id, key_id=asked.key_id, cap_nanos=asked.cap_nanos, charge_nanos=0, row=asked.row
        )
        granted: asyncio.Future[Granted] = asyncio.get_running_loop().create_future()
        if not self._outbox.lend(loan, partial(_grant, granted, Granted(hold_id=asked.hold_id, spendable_nanos=0))):
            return None
        lent.nanos += asked.cap_nanos
        lent.open += 1
        self._lent[asked.payer_id] = lent
        return loan, granted

    def beat(self, loan: Loan, checkpoint: Checkpoint) -> Loan:
        """The loan as it is known to the outbox, with what it would be charged if this worker died now."""
        if checkpoint.charge_nanos <= loan.charge_nanos:
            return loan
        newer = replace(loan, charge_nanos=checkpoint.charge_nanos, row=checkpoint.row)
        return newer if self._outbox.lend(newer, _tell_nobody) else loan

    def end(self, loan: Loan, ending: Ending) -> None:
        """What the request did not use can be lent again."""
        lent = self._lent[loan.payer_id]
        lent.nanos -= loan.cap_nanos - ending.charge_nanos
        lent.open -= 1
        lent.ended_s = self._now_s()
        if not ending.is_forwarded:
            self._outbox.forget(loan.hold_id)


def _grant(granted: asyncio.Future[Granted], word: Granted) -> None:
    if not granted.done():  # whoever waited has lost patience
        granted.set_result(word)


def _tell_nobody() -> None:
    """A checkpoint is not waited for: the next one makes up for it."""
