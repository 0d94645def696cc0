"""Books what was read, wherever it was read: whole if it can be, else by halves down to what the ledger can never book, which is set aside.

Poster and replay share it, so that poison does the same everywhere: it stops nobody, and nothing of it is lost.
"""

from __future__ import annotations

from collections.abc import Sequence

from extproc.errors import StoreError, StoreRejected
from extproc.ledger.port import Posted, Postings
from extproc.money.posting import Posting
from extproc.settlement.meter import Meter, Series


class Booking:
    """``book`` posts in order and counts what became of it."""

    def __init__(self, ledger: Postings, meter: Meter) -> None:
        self._ledger = ledger
        self._meter = meter

    async def book(self, postings: Sequence[Posting]) -> Posted:
        """All of them are booked or set aside. :class:`StoreError`: the ledger is away; what was booked may be repeated."""
        try:
            posted = await self._ledger.post(postings)
        except StoreRejected as error:
            return await self._divide(postings, error)
        except StoreError:
            raise
        except Exception as error:  # noqa: BLE001 - whatever it is, it must not stop the others: it ends in quarantine, and that alarms
            return await self._divide(postings, error)
        return self._counted(posted)

    async def _divide(self, postings: Sequence[Posting], error: Exception) -> Posted:
        """By halves, in order, down to the one that cannot be booked."""
        if len(postings) > 1:
            middle = len(postings) // 2
            return await self.book(postings[:middle]) + await self.book(postings[middle:])
        posted = await self._ledger.quarantine(postings[0], f"{type(error).__name__}: {error}")
        self._meter.add(Series.QUARANTINED)
        return self._counted(posted)

    def _counted(self, posted: Posted) -> Posted:
        figures = {
            Series.POSTED_ENDINGS: posted.booked,
            Series.POSTED_NOTES: posted.noted,
            Series.REPEATED_EVENTS: posted.repeated,
            Series.ADJUSTS: posted.adjusted,
            Series.CONFLICTS: posted.conflicts,
            Series.FENCE_VIOLATIONS: posted.violations,
            Series.OVERAGE_NANOS: posted.overage_nanos,
            Series.LATE_LOSS_NANOS: posted.loss_nanos,
        }
        for series, amount in figures.items():
            if amount:
                self._meter.add(series, amount)
        return posted
