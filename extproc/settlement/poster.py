"""From the event streams of Redis into the ledger: one poster for all shards that this settler leads.

Read from the committed cursors, post, trim up to what is committed – in that order, so that a poster killed anywhere goes on where the
ledger says, and posts nothing twice. PostgreSQL away: wait; the streams keep. An event that the ledger can never book is found by halves
and set aside whole, and the shard goes on.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from collections.abc import Mapping, Sequence

from extproc.errors import StoreError
from extproc.holds.port import EventStream
from extproc.ledger.port import POSTINGS_MAX, START, Leadership, Postings
from extproc.money.posting import Posting
from extproc.settlement.booking import Booking
from extproc.settlement.lanes import Lanes
from extproc.settlement.meter import Meter, Series
from extproc.settlement.pace import Pace, keep_doing

BLOCK_MS = 500  # a read waits so long for an event; a stop waits for it
LEAD_CHECK_S = 1.0  # how soon a dead settler's shards are taken over: those that are broken serve nobody until then
FAREWELL_S = 5.0  # of a stop, for what is left in the streams: below the supervisor's patience
SHARD_ROWS_MIN = 16  # of one shard in one read: below it a busy shard would cost a round trip an event
STALLED_S = 6.0  # without a batch that was posted, or nothing to post: from then on the lag grows with the clock
LAG_EVERY_S = 1.0
LANES = 2  # connections that post at once: one prepares while the other waits; more would only share the same two processors
BACKLOG_BATCHES = 4  # so many batches a transaction grows to while all goes well: fewer slow commits; 4,000 rows are 16 MB here
ROWS_MIN = 8  # to which one that fails halves it: what takes PostgreSQL too long gets through in smaller pieces


class Poster:
    """``step`` is one round; ``run`` repeats it until the pace is over."""

    def __init__(
        self,
        *,
        stream: EventStream,
        ledger: Postings,
        leadership: Leadership,
        meter: Meter,
        pace: Pace,
        shards: int,
        batch_rows: int = 1_000,
        batch_wait_ms: int = 50,
    ) -> None:
        assert batch_rows > 0
        self._stream = stream
        self._ledger = ledger
        self._booking = Booking(ledger, meter)
        self._leadership = leadership
        self._meter = meter
        self._pace = pace
        self._shards = shards
        self._batch_rows = min(batch_rows, POSTINGS_MAX)
        self._rows_max = min(BACKLOG_BATCHES * batch_rows, POSTINGS_MAX)
        self._rows = self._batch_rows  # of one transaction, at present
        self._batch_wait_s = batch_wait_ms / 1000
        self._cursors: dict[int, str] = {}
        self._checked_s: float | None = None
        self._busy_shards = 0
        self._is_backlog = False  # a shard had more than was read of it
        self._good_s = pace.monotonic_s()  # when a batch was posted last, or nothing waited
        self._lag_ms = 0  # at that time

    async def run(self) -> None:
        """Until the pace is over; leadership is given up at the end."""
        lag = asyncio.create_task(self._tell_lag())
        try:
            await keep_doing(self.step, pace=self._pace, meter=self._meter, failures=Series.POST_FAILURES)
            await self._leave_nothing()
        finally:
            lag.cancel()
            await self._leadership.release()

    async def step(self) -> float:
        """One round; how long to rest. :class:`StoreError`: a store is away; nothing is lost, and the next round starts from the ledger."""
        events = await self._round(BLOCK_MS)
        if not self._cursors:
            return LEAD_CHECK_S
        return 0 if self._is_backlog or not events else self._batch_wait_s

    async def _round(self, block_ms: int) -> int:
        """Read and post; how many events."""
        try:
            await self._lead()
            count = await self._work_off(block_ms) if self._cursors else 0
        except BaseException:
            # What is committed is the ledger's to say: ask it before reading on. And after an outage every shard has a backlog.
            self._checked_s, self._cursors, self._busy_shards = None, {}, 0
            raise
        if not count:
            oldest_ms = await self._oldest_of_others()
            self._lag_ms = max(0, self._pace.unix_ms() - oldest_ms) if oldest_ms else 0
            self._meter.set(Series.POSTER_LAG_MS, self._lag_ms)
            self._good_s = self._pace.monotonic_s()
        return count

    async def _work_off(self, block_ms: int) -> int:
        """Post what waits; how many events. A backlog is posted to its end.

        Shards are independent of each other, so a backlog goes in lanes: while PostgreSQL works on a batch of one, the next batch of the
        other is read and prepared. They are kept busy while shards come and go: a shard that another settler has taken over meanwhile is
        posted by both, once.
        """
        read_to, count = dict(self._cursors), 0
        events = await self._read(read_to, block_ms)
        async with Lanes(LANES) as lanes:
            while self._is_backlog:
                for lane in range(LANES):
                    await lanes.begin(lane, self._post_batches, [event for event in events if event.shard % LANES == lane])
                count += len(events)
                if self._pace.is_over:
                    return count
                await self._lead()
                read_to = {shard: read_to.get(shard, cursor) for shard, cursor in self._cursors.items()}
                events = await self._read(read_to, 0)
        await self._post_batches(events)
        return count + len(events)

    async def _read(self, read_to: dict[int, str], block_ms: int) -> list[Posting]:
        """What comes next: a batch for every lane. ``read_to`` is moved on; only what is committed is in ``_cursors``."""
        limit = self._rows_a_shard()
        events = await self._stream.read(read_to, count=limit, block_ms=block_ms)
        read_to |= {event.shard: event.stream_id for event in events}
        counts = Counter([event.shard for event in events])
        self._busy_shards = len(counts)
        self._is_backlog = max(counts.values(), default=0) >= limit
        return events

    async def _post_batches(self, postings: Sequence[Posting]) -> None:
        rows = self._rows
        for start in range(0, len(postings), rows):
            await self._post(postings[start : start + rows])

    async def _oldest_of_others(self) -> int:
        """Who leads nothing looks what waits all the same: the locks may be those of a session that is frozen. 0: nothing waits."""
        if self._cursors:
            return 0
        waiting = await self._stream.read(dict.fromkeys(range(self._shards), START), count=1, block_ms=0)
        return min((event.occurred_ms for event in waiting), default=0)

    async def _tell_lag(self) -> None:
        """From the clock, whatever the rounds are waiting for: a poster that posts nothing must not look like one with nothing to post."""
        while True:
            stalled_s = self._pace.monotonic_s() - self._good_s
            if stalled_s > STALLED_S:
                self._meter.set(Series.POSTER_LAG_MS, self._lag_ms + int(stalled_s * 1_000))
            await asyncio.sleep(LAG_EVERY_S)

    async def _leave_nothing(self) -> None:
        """Gate workers leave before us: what they settled last is posted now. A backlog, or a store that is away, is the next settler's."""
        with contextlib.suppress(StoreError, TimeoutError):
            async with asyncio.timeout(FAREWELL_S):
                while await self._round(0):
                    pass

    async def _lead(self) -> None:
        """Now and then: which shards are ours, and from where those that are new are to be read."""
        if not self._is_time_to_lead():
            return
        if self._pace.monotonic_s() - self._good_s > STALLED_S:
            await self._read_or_let_go()
        held = await self._leadership.held()
        new = held - self._cursors.keys()
        committed = {shard: cursor.stream_id for shard, cursor in (await self._ledger.cursors(sorted(new))).items()} if new else {}
        self._cursors = {shard: cursor for shard, cursor in self._cursors.items() if shard in held} | committed
        self._checked_s = self._pace.monotonic_s()
        self._meter.set(Series.LED_SHARDS, len(held))
        await self._trim(committed)  # a poster killed between commit and trim left this to do

    async def _read_or_let_go(self) -> None:
        """Whoever does not reach Redis leads nothing, and begins to when it does: another settler may reach it, or its successor, which is
        served by nobody until a leader has built its shards.
        """
        try:
            await self._stream.read({0: START}, count=1, block_ms=0)
        except StoreError:
            await self._leadership.release()
            raise

    def _is_time_to_lead(self) -> bool:
        return self._checked_s is None or self._pace.monotonic_s() - self._checked_s >= LEAD_CHECK_S

    def _rows_a_shard(self) -> int:
        """Fair among busy shards, and bounded together: a backlog of all shards must not fill the memory."""
        return max(SHARD_ROWS_MIN, LANES * self._rows // (self._busy_shards or len(self._cursors)))

    async def _post(self, postings: Sequence[Posting]) -> None:
        try:
            posted = await self._booking.book(postings)
        except StoreError:
            self._rows = max(ROWS_MIN, self._rows // 2)
            raise
        if 2 * len(postings) > self._rows:  # what was tried has been managed, not what was only asked for
            self._rows = min(2 * self._rows, self._rows_max)
        oldest_ms = min([posting.occurred_ms for posting in postings], default=0)
        self._lag_ms = max(0, self._pace.unix_ms() - oldest_ms)
        self._meter.set(Series.POSTER_LAG_MS, self._lag_ms)
        self._good_s = self._pace.monotonic_s()
        self._cursors |= {shard: cursor for shard, cursor in posted.cursors.items() if shard in self._cursors}
        await self._trim(posted.cursors)

    async def _trim(self, cursors: Mapping[int, str]) -> None:
        """Failures are counted only: the next trim of the shard does this one's work."""
        wanted = [(shard, cursor) for shard, cursor in cursors.items() if cursor != START]
        results = await asyncio.gather(*(self._stream.trim(shard, cursor) for shard, cursor in wanted), return_exceptions=True)
        for result in results:
            if isinstance(result, StoreError):
                self._meter.add(Series.TRIM_FAILURES)
            elif isinstance(result, BaseException):
                raise result
