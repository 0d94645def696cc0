"""Months that are closed: nothing is booked into them any more (``journal`` sees to that), and their sums are frozen.

A close is two steps. The first takes a moment and keeps everybody who books waiting for it: the month is marked. The second reads what was
booked into it, which nobody can change any more, a day at a time, and freezes the sums; cut off, it is taken up by closing the month again.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from datetime import date, timedelta

from extproc.errors import UsageError
from extproc.ledger.audit import audit
from extproc.ledger.journal import PERIODS_LOCK
from extproc.ledger.port import Period, PeriodSum, PeriodSums, midnight, next_month
from extproc.stores.postgres import Database, Row, Transaction
from extproc.stores.queries import load_queries

PAGE_MAX = 1_000  # months of one answer: eighty years
DAY = timedelta(days=1)


class PostgresPeriods:
    """The port Periods."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._queries = load_queries("extproc.ledger")

    async def check(self, month: date) -> None:
        """``UsageError``: this month cannot be closed (yet): it is not over, not the next one, or was closed before."""
        async with self._database.transaction() as transaction:
            await self._check(transaction, month)

    async def close(self, month: date, *, audit_id: str, actor: str, reason: str) -> None:
        """From its commit on nothing is booked into the month. A month that was closed, but not summed, is left as it is."""
        async with self._database.transaction() as transaction:
            await transaction.fetch(self._queries["lock_periods"], {"class": PERIODS_LOCK})
            if await self._check(transaction, month):
                return
            subject = f"{month:%Y-%m}"
            params = {"month": month, "actor": actor, "reason": reason}
            told = audit(self._queries, audit_id, actor=actor, action="close_period", subject=subject, reason=reason, detail={})
            await transaction.run([(self._queries["close_month"], params), told])

    async def sum_up(self, month: date, *, progress: Callable[[date], None] = lambda _: None) -> PeriodSums:
        """What was booked into a month, worked out from its entries; ``progress`` hears of each day. Writes nothing."""
        events = late = 0
        sums: Counter[tuple[str, str, str]] = Counter()
        begin, end = midnight(month), midnight(next_month(month))
        while begin < end:
            progress(begin.date())
            # What came late, whenever it occurred, is read with the first day.
            span = {"begin": begin, "end": begin + DAY, "ids_begin": begin - DAY, "late": month if begin.day == 1 else None}
            async with self._database.transaction() as transaction:
                counted, summed = await transaction.run([(self._queries["sum_events"], span), (self._queries["sum_entries"], span)])
            events += counted[0]["events"]
            late += counted[0]["late"]
            sums.update({(row["kind"], row["name"], row["unit"]): int(row["sum"]) for row in summed})
            begin += DAY
        lines = tuple(PeriodSum(kind=kind, name=name, unit=unit, sum=total) for (kind, name, unit), total in sorted(sums.items()))
        return PeriodSums(events=events, late=late, lines=lines)

    async def freeze(self, month: date, sums: PeriodSums) -> None:
        """Once: a month whose sums are frozen keeps them."""
        async with self._database.transaction() as transaction:
            counts = {"month": month, "events": sums.events, "late": sums.late}
            if await transaction.fetch(self._queries["mark_summed"], counts):
                lines = [{"kind": line.kind, "name": line.name, "unit": line.unit, "sum": line.sum} for line in sums.lines]
                await transaction.fetch(self._queries["insert_sums"], {"month": month, "rows": json.dumps(lines)})

    async def closed(self, *, limit: int = PAGE_MAX) -> list[Period]:
        """Newest first."""
        return [_period(row) for row in await self._database.fetch(self._queries["list_periods"], {"limit": min(limit, PAGE_MAX)})]

    async def period(self, month: date) -> tuple[Period, PeriodSums]:
        """A closed month as it was frozen. ``UsageError``: it is not closed, or its close was cut off."""
        async with self._database.transaction() as transaction:
            rows = await transaction.fetch(self._queries["period_of_month"], {"month": month})
            lines = await transaction.fetch(self._queries["sums_of_month"], {"month": month})
        if not rows:
            raise UsageError(f"{month:%Y-%m} is not closed")
        period = _period(rows[0])
        if not period.is_complete:
            raise UsageError(f"the close of {month:%Y-%m} was cut off: close it again")
        found = tuple(PeriodSum(kind=row["kind"], name=row["name"], unit=row["unit"], sum=int(row["sum"])) for row in lines)
        return period, PeriodSums(events=period.events, late=period.late, lines=found)

    async def _check(self, transaction: Transaction, month: date) -> bool:
        """True: it is closed already, but not summed."""
        rows = await transaction.fetch(self._queries["period_of_month"], {"month": month})
        if rows and _period(rows[0]).is_complete:
            raise UsageError(f"{month:%Y-%m} was closed at {rows[0]['closed_at']:%Y-%m-%d %H:%M} UTC by {rows[0]['actor']}")
        if rows:
            return True
        (following,) = await transaction.fetch(self._queries["next_month"])
        if following["month"] is None or month < following["month"]:
            raise UsageError(f"{month:%Y-%m} is before the first account: there is nothing to close")
        if month > following["month"]:
            raise UsageError(f"months are closed in order: close {following['month']:%Y-%m} first")
        if not following["is_over"]:
            raise UsageError(f"{month:%Y-%m} is not over")
        return False


def _period(row: Row) -> Period:
    return Period(
        month=row["month"],
        closed_at=row["closed_at"].isoformat(timespec="seconds"),
        actor=row["actor"],
        reason=row["reason"],
        is_complete=row["summed_at"] is not None,
        events=row["events"] or 0,
        late=row["late"] or 0,
    )
