"""Closing a month: when all of it that is known here is in the ledger. What comes later is late, and booked in the open month."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from datetime import UTC, date, datetime, timedelta
from pathlib import Path

from extproc.errors import StoreError, UsageError
from extproc.holds.port import EventStream
from extproc.ledger.port import Periods, PeriodSums, Postings, midnight, next_month
from extproc.settlement.outbox_file import OutboxFile, outboxes, watermark_of


class MonthEnd:
    """``unconfirmed_ms``: when the oldest ending occurred that an outbox here has not confirmed; ``None``: there is none."""

    def __init__(
        self,
        *,
        periods: Periods,
        ledger: Postings,
        stream: EventStream,
        shards: int,
        unconfirmed_ms: Callable[[], int | None],
        new_id: Callable[[], str],
    ) -> None:
        self._periods = periods
        self._ledger = ledger
        self._stream = stream
        self._shards = shards
        self._unconfirmed_ms = unconfirmed_ms
        self._new_id = new_id

    async def close(self, month: date, *, actor: str, reason: str, progress: Callable[[date], None] = lambda _: None) -> PeriodSums:
        """``UsageError``: it cannot be closed yet, and why. One that was cut off is taken up where it was."""
        await self._periods.check(month)
        await self._all_is_booked(month)
        await self._periods.close(month, audit_id=self._new_id(), actor=actor, reason=reason)
        sums = await self._periods.sum_up(month, progress=progress)
        await self._periods.freeze(month, sums)
        return sums

    async def _all_is_booked(self, month: date) -> None:
        end_ms = int(midnight(next_month(month)).timestamp()) * 1_000
        try:
            cursors = await self._ledger.cursors(range(self._shards))
            waiting = await self._stream.read({shard: cursor.stream_id for shard, cursor in cursors.items()}, count=1, block_ms=0)
            unconfirmed_ms = self._unconfirmed_ms()
        except StoreError as error:
            raise UsageError(f"{month:%Y-%m} cannot be closed: what waits to be booked is not known ({error})") from error
        oldest_ms = min((event.occurred_ms for event in waiting), default=end_ms)
        if oldest_ms < end_ms:
            since = _moment(oldest_ms)
            raise UsageError(f"{month:%Y-%m} cannot be closed yet: events since {since} wait to be posted; does the settler run?")
        if unconfirmed_ms is not None and unconfirmed_ms < end_ms:
            since = _moment(unconfirmed_ms)
            raise UsageError(f"{month:%Y-%m} cannot be closed yet: an outbox has endings since {since} that are not in the ledger for sure")


def oldest_unconfirmed_ms(directory: Path) -> int | None:
    """When the oldest ending occurred that an outbox has and the ledger is not known to have. Blocks; :class:`StoreError`."""
    found = [at_ms for path in outboxes(directory) if (at_ms := _unconfirmed_ms(path)) is not None]
    return min(found, default=None)


def _unconfirmed_ms(path: Path) -> int | None:
    watermark = watermark_of(path)
    with closing(OutboxFile.read_only(path)) as file:
        below = watermark.below if watermark is not None and watermark.outbox_id == file.outbox_id else 0
        rows = file.read(below - 1, 1)
    return rows[0].posting.occurred_ms if rows else None


def _moment(unix_ms: int) -> str:
    return f"{datetime(1970, 1, 1, tzinfo=UTC) + timedelta(milliseconds=unix_ms):%Y-%m-%d %H:%M:%S} UTC"
