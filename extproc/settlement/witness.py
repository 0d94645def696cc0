"""The second witness: Envoy's access log has a line for every request, whatever became of the worker that served it.

Who was served pays for it, up to what the gate said last (``exchange/figures.py``), though his worker was killed; and a request that was
cut off learns why. A witness ends nothing: it raises the checkpoint of a hold and lowers its lease. The owner's ending wins if it comes,
else the reaper ends the hold at the higher one of the two. If Redis has lost the hold, ``witness_endings.py`` ends it.

Lines of requests whose end the gate has told itself are passed over unread. What is left is few: who hung up, what failed, and what a
killed worker had open. Lines may come twice and late; everything here may be done twice.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, Protocol, TypeVar

from extproc.errors import StoreError, StoreFenced, StoreRefused
from extproc.holds.port import Sight, Witnessing
from extproc.settlement.meter import Meter, Series
from extproc.settlement.pace import Pace, keep_doing
from extproc.settlement.prices import Prices
from extproc.settlement.witness_endings import to_keep
from extproc.settlement.witness_lines import Statement, read_lines
from extproc.settlement.witness_log import Log, Place, Read
from extproc.settlement.witnessed import price_of, witnessed_by

Asked = TypeVar("Asked")
Answer = TypeVar("Answer")

log = logging.getLogger(__name__)

LOOK_EVERY_S = 0.25
FILE_EVERY_S = 0.5
MOMENT_S = 0.25  # for the owner of a hold to end it: his call and Envoy's line are on their way at once
UNFILED_MAX = 20_000  # statements kept while PostgreSQL is away: 10 MB; more are read again when it is back
ASIDE_MAX = 20_000  # statements of holds whose shard is closed: 10 MB; with more the reader waits until it opens
TAIL_BYTES = 67_108_864  # read by a settler that starts while PostgreSQL is away: 90,000 requests, 0.2 s
PATIENCE_S = 5.0  # of the reaper: with its rhythm it must stay below its pause (10 s), after which nothing would expire


class Register(Protocol):
    """What of all this is in the ledger's database. A place is a :class:`Place`."""

    async def place(self, log: str) -> tuple[int, int, str] | None:
        """Up to where a log has been read; ``None``: it never was."""

    async def prices(self, price_ids: Collection[str]) -> Mapping[str, str]:
        """Price id → price in full, of those that the ledger has."""

    async def file(
        self, log: str, place: tuple[int, int, str], reasons: Mapping[str, str], endings: Sequence[Mapping[str, Any]]
    ) -> tuple[int, int]:
        """Keep reasons (hold → reason), endings (as :func:`to_keep` makes them) and the place together; tell rows what waits for them: how
        many were told, how many wait.
        """


class Witness:
    """Reads ``source``, which is known as ``name``. Redis and PostgreSQL are told in loops of their own: neither waits for the other."""

    def __init__(
        self, *, source: Log, name: str, holds: Witnessing, register: Register, meter: Meter, pace: Pace, grace_s: int = 5
    ) -> None:
        self._source = source
        self._name = name
        self._holds = holds
        self._register = register
        self._meter = meter
        self._pace = pace
        self._grace_ms = grace_s * 1_000
        self._at: Place | None = None
        self._filed: Place | None = None
        self._prices = Prices(register.prices)
        self._aside: dict[str, Statement] = {}  # their shards are closed
        self._unfiled: dict[str, Statement] = {}  # which say why a request has ended, or what it is to be charged if nobody ends it
        self._waiting = 1  # unknown: perhaps some
        self._reads_again = False  # from the filed place on: not every statement since then was kept
        self._is_there = True
        self._told_s = float("-inf")  # what the log had at this moment has been told
        self._has_told = asyncio.Event()

    async def run(self) -> None:
        """Until the pace is over."""
        loops = (keep_doing(step, pace=self._pace, meter=self._meter, failures=Series.WITNESS_FAILURES) for step in (self.look, self.file))
        await asyncio.gather(*loops)
        self._has_told.set()

    async def caught_up(self) -> None:
        """Everything that the log has by now has been told. Patience is limited: a log that cannot be read keeps no hold open for ever."""
        now_s = self._pace.monotonic_s()
        try:
            async with asyncio.timeout(PATIENCE_S):
                while self._told_s < now_s and not self._pace.is_over:
                    await self._has_told.wait()
        except TimeoutError:
            log.warning("access log %s: holds expire though it has not been read to its end", self._name)

    async def look(self) -> float:
        """The next lines; holds that are still open learn of it. A store that fails: the same lines again."""
        now_s = self._pace.monotonic_s()
        if self._at is None:
            self._at = await self._begin()
        at, read = self._at, await self._read(self._at)
        statements, unreadable = read_lines(read.lines)
        await self._tell(self._aside | {one.hold_id: one for one in statements if one.payer_id})
        if self._at == at:  # else it was set back meanwhile
            self._at = read.end
            self._keep({one.hold_id: one for one in statements if one.reason or to_keep(one)})
        for series, count in {Series.WITNESS_LINES: len(read.lines), Series.UNREADABLE_LINES: unreadable + read.torn}.items():
            if count:
                self._meter.add(series, count)
        self._meter.set(Series.WITNESS_LAG_BYTES, read.left_bytes)
        if read.left_bytes and read.end != at:
            return 0
        self._told_s, has_told, self._has_told = now_s, self._has_told, asyncio.Event()
        has_told.set()
        return LOOK_EVERY_S

    async def file(self) -> float:
        """What was learnt, into the ledger. While PostgreSQL is away it is kept, up to a point; beyond it, it is read again.

        The place stays behind what was put aside: if this settler dies, another one reads it again.
        """
        if self._aside:
            return FILE_EVERY_S
        if self._reads_again:
            self._at = self._filed = Place(*(await self._register.place(self._name) or ()))
            self._reads_again = False
        at, unfiled = self._at, dict(self._unfiled)
        if at is not None and (at != self._filed or self._waiting):
            reasons = {hold_id: one.reason for hold_id, one in unfiled.items() if one.reason}
            endings = [row for row in map(to_keep, unfiled.values()) if row]
            told, self._waiting = await self._register.file(self._name, at, reasons, endings)
            self._filed = at
            self._unfiled = {hold_id: one for hold_id, one in self._unfiled.items() if hold_id not in unfiled}
            if told:
                self._meter.add(Series.TOLD_REASONS, told)
        return FILE_EVERY_S

    async def _begin(self) -> Place:
        """Where the ledger says; if it is away, a piece before the end: holds do not wait for it. Reasons do, they are read again."""
        try:
            return Place(*(await self._register.place(self._name) or ()))
        except StoreError:
            self._reads_again = True
            return await self._of_log(self._source.tail, TAIL_BYTES)

    async def _read(self, at: Place) -> Read:
        read = await self._of_log(self._source.read, at)
        self._say(is_there=read.is_there, why="there is no such file")
        return read

    async def _of_log(self, ask: Callable[[Asked], Answer], asked: Asked) -> Answer:
        try:
            return await asyncio.to_thread(ask, asked)
        except OSError as error:
            self._say(is_there=False, why=str(error))
            raise StoreRefused(f"the access log cannot be read: {error}") from error

    def _say(self, *, is_there: bool, why: str) -> None:
        """Once, when it changes."""
        if is_there != self._is_there:
            self._is_there = is_there
            log.warning("access log %s: %s", self._name, "it is there again" if is_there else why)

    async def _tell(self, statements: Mapping[str, Statement]) -> None:
        """Whoever is open gets a moment for his owner. Statements of closed shards are put aside, and told with the next lines again."""
        sight = await self._sight(statements)
        if sight.open:
            prices, _ = await asyncio.gather(self._prices.of(map(price_of, sight.open)), self._pace.rest(MOMENT_S))
            sight = await self._sight(statements)
            witnessed = [witnessed_by(statements[hold.hold_id].figures, hold, prices.get(price_of(hold).price_id)) for hold in sight.open]
            if witnessed:
                self._meter.add(Series.WITNESSED_HOLDS, await self._holds.witness(witnessed, grace_ms=self._grace_ms))
        self._aside = {hold_id: statements[hold_id] for hold_id in sight.closed}

    async def _sight(self, statements: Mapping[str, Statement]) -> Sight:
        if not statements:
            return Sight(open=(), closed=())
        sight = await self._holds.sight({one.hold_id: one.payer_id for one in statements.values()})
        if len(sight.closed) > ASIDE_MAX:
            raise StoreFenced("too many requests have ended in closed shards: the access log waits for them")
        return sight

    def _keep(self, statements: Mapping[str, Statement]) -> None:
        if len(self._unfiled) + len(statements) > UNFILED_MAX:
            self._reads_again, self._unfiled = True, {}
        if not self._reads_again:
            self._unfiled = {**statements, **self._unfiled}
