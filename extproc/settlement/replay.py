"""From the outboxes into the ledger: what never came through Redis, or was lost there, is booked all the same.

Every file of the directory is read in the order of its rows, whoever owns it, as far as they are old enough to have come by the stream::

    read ─▶ read back: which of them does the ledger have? ─┬─ all ─▶ the watermark moves beyond them: they are confirmed
                                                            └─ not these ─▶ has their stream more to say? ─▶ book them, read them back

Nothing is confirmed that was not read back, by the transaction that moves the position. That is said twice: in the ledger, and in the
watermark beside the file, where its owner reads it. A ledger that says less than the watermark, or is another cluster or timeline, has
lost what was confirmed: everything that the outboxes still keep (24 hours) is gone through again, and then Redis is rebuilt from it.

What a worker had lent when it was killed stands beside its endings; it is no ending until somebody takes the file over and makes one of it:
the next worker of its slot, or we, if nobody owns it.

It needs no leadership: two settlers that read one directory do each other's work, and neither does harm.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final, ParamSpec, TypeVar

from extproc.errors import ExtprocError, StoreError
from extproc.holds.port import EventStream
from extproc.ledger.port import POSTINGS_MAX, Outboxes, OutboxRow, Positions, Postings
from extproc.money.posting import Posting
from extproc.settlement.booking import Booking
from extproc.settlement.lanes import Lanes
from extproc.settlement.meter import Meter, Series
from extproc.settlement.outbox_file import KEEP_MS, Claim, OutboxFile, Watermark, confirm, outboxes, watermark_of
from extproc.settlement.pace import Pace, keep_doing

log = logging.getLogger(__name__)

LOOK_EVERY_S: Final = 2.0
RIPE_S: Final = 5.0  # so long ago was a row there before it is looked for: the stream brings it within a second
SKEW_MS: Final = 1_000  # between the clocks of a worker and of Redis, when it is asked what the stream has yet to say
STREAM_PATIENCE_S: Final = 60.0  # then a row is booked, whatever still waits in its stream: what comes twice is booked once
LANES: Final = 2  # as the poster's
ROWS_MIN: Final = 8  # of a lane, to which it is halved while PostgreSQL does not manage more
ROWS_MAX: Final = 4_000  # of a lane: with two of them, some 12 MB
BATCHES_MAX: Final = 50  # of one file in one look, so that a backlog does not keep the other files waiting
AHEAD_BATCHES: Final = 12  # that are booked before they are read back: what a settler that dies has to ask for again
RETIRE_EVERY_S: Final = 60.0
NEVER_MS: Final = 2**62

assert ROWS_MAX <= POSTINGS_MAX

Args = ParamSpec("Args")
Value = TypeVar("Value")


class _Unreadable(ExtprocError):
    """One file cannot be read now. The others can."""


@dataclass(slots=True)
class _Place:
    """Where this settler is in a file. ``known``: the position in the ledger; ``written``: the mark as it stands beside the file."""

    mark: Watermark
    written: Watermark | None
    known: int = 0
    ripe_id: int = 0  # rows up to this one were there a while ago
    seen: deque[tuple[float, int]] = field(default_factory=deque)  # when which id was the last
    oldest_ms: int = NEVER_MS  # of the rows that are not confirmed
    waits_since_s: float | None = None


class Replay:
    """``step`` is one look at all files. ``renew`` has Redis rebuilt, from a ledger that had lost something."""

    def __init__(
        self,
        *,
        directory: Path,
        ledger: Outboxes,
        postings: Postings,
        stream: EventStream,
        renew: Callable[[], Awaitable[object]],
        meter: Meter,
        pace: Pace,
        shards: int,
    ) -> None:
        self._directory = directory
        self._ledger = ledger
        self._postings = postings
        self._booking = Booking(postings, meter)
        self._stream = stream
        self._renew = renew
        self._meter = meter
        self._pace = pace
        self._shards = shards
        self._places: dict[Path, _Place] = {}
        self._unreadable: Collection[Path] = ()
        self._gives_way_since_s: float | None = None
        self._rows = ROWS_MAX  # of a lane, at present
        self._retired_s = pace.monotonic_s()

    async def run(self) -> None:
        """Until the pace is over."""
        await keep_doing(self.step, pace=self._pace, meter=self._meter, failures=Series.REPLAY_FAILURES)

    async def step(self) -> float:
        """One look; how long to rest. :class:`StoreError`: the ledger is away, and nothing is lost."""
        try:
            return await self._look()
        except StoreError:
            self._places = {}  # where to go on is for the ledger and the watermarks to say
            raise

    async def _look(self) -> float:
        positions = await self._ledger.positions()
        paths = await asyncio.to_thread(outboxes, self._directory)
        gives_way = await self._gives_way()
        unreadable: dict[Path, str] = {}
        is_behind = False
        for path in paths:
            try:
                is_behind |= await self._visit(path, positions, gives_way=gives_way)
            except _Unreadable as error:
                unreadable[path] = str(error)
        self._places = {path: place for path, place in self._places.items() if path in paths and path not in unreadable}
        await self._after_all()
        self._tell(unreadable)
        if self._pace.monotonic_s() - self._retired_s >= RETIRE_EVERY_S:
            self._retired_s = self._pace.monotonic_s()
            await self._retire()
        return 0 if is_behind else LOOK_EVERY_S

    async def _gives_way(self) -> bool:
        """To a poster that is behind, as after an outage: what waits in the streams would be looked for in vain, and the processor is its.

        Until its patience is over, whatever the streams still have.
        """
        cursors = await self._postings.cursors(range(self._shards))
        try:
            waiting = await self._stream.read({shard: cursor.stream_id for shard, cursor in cursors.items()}, count=1, block_ms=0)
        except StoreError:
            waiting = []
        now_s, old_ms = self._pace.monotonic_s(), self._pace.unix_ms() - int(RIPE_S * 1_000)
        if all(event.occurred_ms >= old_ms for event in waiting):
            self._gives_way_since_s = None
            return False
        if self._gives_way_since_s is None:
            self._gives_way_since_s = now_s
        return now_s - self._gives_way_since_s < STREAM_PATIENCE_S

    async def _visit(self, path: Path, positions: Positions, *, gives_way: bool) -> bool:
        """One file: confirm what can be confirmed; whether there is more to do at once."""
        file = await _disk(OutboxFile.read_only, path)
        try:
            place = await self._find(path, file, positions)
            is_behind = False
            if gives_way and not place.mark.again_below:
                place.waits_since_s = self._gives_way_since_s
            else:
                is_behind = await self._batches(file, place)
            if await _disk(lambda: file.has_loans):
                await _disk(_end_loans, path, self._pace.unix_ms())
            first = await _disk(file.read, place.mark.below - 1, 1)
            place.oldest_ms = first[0].posting.occurred_ms if first else NEVER_MS
        finally:
            await asyncio.to_thread(file.close)
        await _write(path, place)
        return is_behind

    async def _batches(self, file: OutboxFile, place: _Place) -> bool:
        try:
            for _ in range(BATCHES_MAX):
                if not await self._batch(file, place):
                    return False
                if self._pace.is_over:
                    break
        except StoreError:
            self._rows = max(ROWS_MIN, self._rows // 2)
            raise
        return True

    # --- where to go on

    async def _find(self, path: Path, file: OutboxFile, positions: Positions) -> _Place:
        """Where the mark says, even if the ledger says more: that may be of another copy of this file. From the beginning, if the ledger is
        not the one that has confirmed what is marked.
        """
        place = self._places.get(path)
        if place is None or place.mark.outbox_id != file.outbox_id:
            there = await _disk(watermark_of, path)
            if there is not None and there.outbox_id != file.outbox_id:
                there = None
            fresh = Watermark(outbox_id=file.outbox_id, below=1, ledger_id=positions.ledger_id)
            place = self._places[path] = _Place(mark=there or fresh, written=there)
        place.known = positions.below.get(file.outbox_id, 0)
        last_id = (await _disk(file.extent)).last
        self._ripen(place, last_id)
        if 0 < last_id < place.mark.below - 1:  # the file is older than its mark, and gives numbers a second time
            await self._ledger.forget(file.outbox_id)
            self._again(place, positions, below=last_id + 1)
            place.known = 0
        elif place.mark.ledger_id != positions.ledger_id or place.mark.below > max(1, await self._known(place)):
            self._again(place, positions, below=max(place.mark.below, place.mark.again_below))
        return place

    async def _known(self, place: _Place) -> int:
        """The position of the ledger as it is now, if it was below the mark a moment ago: another settler may be ahead of us."""
        if place.mark.below > max(1, place.known):
            place.known = (await self._ledger.positions()).below.get(place.mark.outbox_id, 0)
        return place.known

    def _ripen(self, place: _Place, last_id: int) -> None:
        """By our own clock. What is in a file when it is met first may be of any age: it is taken for old."""
        now_s = self._pace.monotonic_s()
        if not place.seen:
            place.seen.append((now_s - RIPE_S, last_id))
        place.seen.append((now_s, last_id))
        while place.seen and place.seen[0][0] <= now_s - RIPE_S:
            _, place.ripe_id = place.seen.popleft()

    def _again(self, place: _Place, positions: Positions, *, below: int) -> None:
        self._meter.add(Series.OUTBOX_RESTARTS)
        place.mark = replace(place.mark, below=1, ledger_id=positions.ledger_id, again_below=below)

    async def _after_all(self) -> None:
        """When everything that was confirmed by a ledger that is no more is in this one: Redis still counts by the former."""
        again = {path: place for path, place in self._places.items() if place.mark.again_below}
        if again and all(place.mark.below >= place.mark.again_below for place in again.values()):
            await self._renew()
            for path, place in again.items():
                place.mark = replace(place.mark, again_below=0)
                await _write(path, place)

    # --- a batch of rows

    async def _batch(self, file: OutboxFile, place: _Place) -> bool:
        """Whether all of it is in the ledger, perhaps because it was booked now, and another one may follow."""
        rows = await self._next(file, place, place.mark.below)
        if not rows:
            return False
        missing = await self._read_back(place, rows, is_first=True)
        if missing:
            await self._book(file, place, rows, missing)
            missing = await self._read_back(place, [row for row in rows if row.id >= place.mark.below])
        if missing:
            return False
        place.waits_since_s = None
        self._rows = min(2 * self._rows, ROWS_MAX)
        return place.mark.below <= place.ripe_id

    async def _next(self, file: OutboxFile, place: _Place, from_id: int) -> Sequence[OutboxRow]:
        limit = min(LANES * self._rows, place.ripe_id + 1 - from_id)
        return await _disk(file.read, from_id - 1, limit) if limit > 0 else ()

    async def _read_back(self, place: _Place, rows: Sequence[OutboxRow], *, is_first: bool = False) -> Sequence[OutboxRow]:
        """Those that are missing; the mark is moved to the first of them, or beyond all."""
        found = await self._ledger.read_back(place.mark.outbox_id, rows, known=place.known, is_first=is_first)
        self._meter.add(Series.OUTBOX_CONFIRMED, sum([row.id < found.below for row in rows]))
        place.mark = replace(place.mark, below=found.below)
        place.known = max(place.known, found.below)
        return found.missing

    async def _due(self, place: _Place, missing: Sequence[OutboxRow]) -> Sequence[OutboxRow]:
        """Those of which their streams have nothing more to say.

        What is booked past Redis and then comes through it is put right, but until then Redis counts it twice: so the poster goes first, as
        long as it is worth waiting for.
        """
        now_s = self._pace.monotonic_s()
        if place.waits_since_s is None:
            place.waits_since_s = now_s
        if now_s - place.waits_since_s >= STREAM_PATIENCE_S:
            return missing
        cursors = await self._postings.cursors(sorted({row.posting.shard for row in missing}))
        try:
            waiting = await self._stream.read({shard: cursor.stream_id for shard, cursor in cursors.items()}, count=1, block_ms=0)
        except StoreError:
            return ()
        next_ms = {event.shard: event.occurred_ms for event in waiting}
        return [row for row in missing if next_ms.get(row.posting.shard, NEVER_MS) > row.posting.occurred_ms + SKEW_MS]

    async def _book(self, file: OutboxFile, place: _Place, rows: Sequence[OutboxRow], missing: Sequence[OutboxRow]) -> None:
        """In lanes by shards: a payer is of one shard, so that no lane waits for the other's locks.

        Where a whole batch was missing the next one will be: it is begun while this one is written, and read back with all the others.
        """
        async with Lanes(LANES) as lanes:
            for _ in range(AHEAD_BATCHES):
                due = await self._due(place, missing)
                for lane in range(LANES):
                    await lanes.begin(lane, self._book_lane, [row.posting for row in due if row.posting.shard % LANES == lane])
                rows = missing = await self._next(file, place, rows[-1].id + 1) if len(due) == len(rows) else ()
                if not rows or self._pace.is_over:
                    break

    async def _book_lane(self, postings: Sequence[Posting]) -> None:
        rows = self._rows
        for start in range(0, len(postings), rows):
            posted = await self._booking.book(postings[start : start + rows])
            self._meter.add(Series.OUTBOX_POSTED, posted.booked + posted.adjusted)

    # --- what is left

    def _tell(self, unreadable: Mapping[Path, str]) -> None:
        """A file that cannot be read is told once, when it begins."""
        for path in unreadable.keys() - self._unreadable:
            log.error("an outbox cannot be read: %s", unreadable[path])
            self._meter.add(Series.UNREADABLE_OUTBOXES)
        self._unreadable = unreadable.keys()
        oldest_ms = min([place.oldest_ms for place in self._places.values()], default=NEVER_MS)
        self._meter.set(Series.OUTBOX_AGE_MS, max(0, self._pace.unix_ms() - oldest_ms))

    async def _retire(self) -> None:
        """Files that nobody owns any more, when nothing in them is needed: all of it is confirmed, and from yesterday."""
        before_ms = self._pace.unix_ms() - KEEP_MS
        for path, place in list(self._places.items()):
            if place.oldest_ms == NEVER_MS and not place.mark.again_below:
                try:
                    is_gone = await _disk(_remove_if_left, path, place.mark.below, before_ms, self._pace.unix_ms())
                except _Unreadable:
                    continue
                if is_gone:
                    del self._places[path]
                    await self._ledger.forget(place.mark.outbox_id)


def _end_loans(path: Path, now_ms: int) -> None:
    """If their owner is no more."""
    claim = Claim.of(path)
    if claim is not None:
        try:
            OutboxFile.inherited(claim, unix_ms=now_ms).close()
        finally:
            claim.release()


def _remove_if_left(path: Path, below: int, before_ms: int, now_ms: int) -> bool:
    claim = Claim.of(path)
    if claim is None:
        return False
    try:
        file = OutboxFile.inherited(claim, unix_ms=now_ms)
        try:
            last = file.read(file.extent().last - 1, 1)
        finally:
            file.close()
        is_done = last[0].id < below and last[0].posting.occurred_ms < before_ms if last else path.stat().st_mtime * 1_000 < before_ms
        if is_done:
            claim.remove()
        return is_done
    finally:
        claim.release()


async def _write(path: Path, place: _Place) -> None:
    if place.mark != place.written:
        await _disk(confirm, path, place.mark)
        place.written = place.mark


async def _disk(do: Callable[Args, Value], *args: Args.args, **fields: Args.kwargs) -> Value:
    """In a thread. What the file cannot give is no fault of the ledger's."""
    try:
        return await asyncio.to_thread(do, *args, **fields)
    except StoreError as error:
        raise _Unreadable(str(error)) from error
