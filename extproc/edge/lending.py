"""Credit of a worker while the hold store is away (policy ``stores_away: {credit: …}``): bounded, and only for whom was seen with money.

What is lent is the cap of a request; what it is charged in the end stays lent until the ledger has surely told Redis of it. So an outage,
or many short ones, cost at most the credit for each payer who had money when he was seen last.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

PAYERS_MAX: Final = 50_000  # seen last, about 200 bytes each; who was pushed out is refused as if there were no such policy
SETTLED_S: Final = 60.0  # after the last end: outbox, ledger and the credit back to Redis take ten when nothing is wrong


@dataclass(slots=True)
class _Loan:
    nanos: int = 0
    open: int = 0
    ended_s: float = 0.0


class Lending:
    """Of one worker. ``workers``: among how many the credit is shared out."""

    def __init__(self, *, workers: int, monotonic_s: Callable[[], float]) -> None:
        self._workers = workers
        self._now_s = monotonic_s
        self._seen: OrderedDict[str, int] = OrderedDict()
        self._loans: dict[str, _Loan] = {}  # no more than there are payers that were seen, and requests that are open

    def saw(self, payer_id: str, spendable_nanos: int) -> None:
        """The hold store has answered, and this is what he may spend."""
        seen = self._seen
        seen[payer_id] = spendable_nanos
        seen.move_to_end(payer_id)
        if len(seen) > PAYERS_MAX:
            seen.popitem(last=False)
        if self._loans and (loan := self._loans.get(payer_id)) and not loan.open and self._now_s() - loan.ended_s > SETTLED_S:
            del self._loans[payer_id]

    def lend(self, payer_id: str, nanos: int, *, credit_nanos: int) -> bool:
        """For one request. Never more than he was last seen with, nor than this worker's share of the credit."""
        most = min(self._seen.get(payer_id, 0), credit_nanos // self._workers)
        loan = self._loans.get(payer_id) or _Loan()
        if most <= 0 or loan.nanos + nanos > most:
            return False
        loan.nanos += nanos
        loan.open += 1
        self._loans[payer_id] = loan
        return True

    def end(self, payer_id: str, nanos: int, *, charge_nanos: int) -> None:
        """What the request did not use can be lent again."""
        loan = self._loans[payer_id]
        loan.nanos -= nanos - charge_nanos
        loan.open -= 1
        loan.ended_s = self._now_s()
