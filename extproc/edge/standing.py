"""What this worker has open, told to whoever rebuilds a shard: after a loss of Redis nobody else knows it.

A worker registers in PostgreSQL, so that a rebuild waits for it. It hears of a rebuild by looking at the shards, as it does all the time
(``RedisShards.watch``), and answers with the holds of its exchanges and the endings that the ledger has not confirmed. When the shard is
open again it says the same once more: what came between its answer and the opening, and what it could not say in time, is taken under the
open epoch. A hold that is there already is left as it is, so saying it twice does no harm.

What if a hold ends while it is told? Holds are looked at first, endings after them: an exchange that ends between the two is told as both,
and the ending takes the hold away again. One that ends later is told as open, and settled by its own ending as soon as the shard serves.
One that had ended before either was acknowledged (the shard or the ledger has it) or is among the endings. And one whose amend nobody has
answered is not told: its outcome is unknown, so it is voided.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import defaultdict
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import Final, NamedTuple, Protocol

from extproc.errors import StoreError
from extproc.exchange.machine import Exchange
from extproc.exchange.state import State
from extproc.exchange.tab import Tab
from extproc.holds.port import PayerView, Reasserting, Reassertion, ShardState
from extproc.metrics import Metrics
from extproc.money.posting import Posting
from extproc.money.quote import Terms
from extproc.money.usage import NO_QUOTA

log = logging.getLogger(__name__)

SEE_S: Final = 5.0  # a third of what a rebuild takes for a dead worker
SEE_AGAIN_S: Final = 1.0  # while PostgreSQL is away: it is to know us soon after it is back
SHARDS_AT_ONCE: Final = 8  # all of one worker's holds at once would keep everybody else from Redis for longer than a time-out
MISSED_MAX: Final = 16  # payers that are looked for at the same time: one is enough to have its shard rebuilt
ENTRY: Final = frozenset({State.OPEN, State.COUNTING})
EXACT: Final = frozenset({State.FORWARDED, State.STREAMING})

Unconfirmed = Callable[[Sequence[int]], Awaitable[Iterable[Posting]]]


class Store(Reasserting, Protocol):
    """The hold store, as far as this needs it."""

    async def view(self, payer_id: str) -> PayerView | None:
        """``None``: it does not have this payer."""


class Register(Protocol):
    """Where a rebuild finds out whom it has to hear."""

    async def see(self, worker_id: str, name: str) -> None:
        """A worker lives."""

    async def dismiss(self, worker_id: str) -> None:
        """It has nothing open any more."""

    async def miss(self, payer_id: str) -> None:
        """Redis lacks a payer that it has had: his shard is to be rebuilt."""


class Told(NamedTuple):
    """Up to where a shard has heard us."""

    epoch: str
    is_open: bool


class Standing:
    """Of one worker. ``exchanges``: all that are open; ``unconfirmed``: endings of these shards that the ledger has not confirmed."""

    def __init__(
        self,
        worker_id: str,
        name: str,
        *,
        holds: Store,
        register: Register,
        exchanges: Callable[[], Iterable[Exchange]],
        unconfirmed: Unconfirmed,
        shard_of: Callable[[str], int],
        metrics: Metrics,
    ) -> None:
        self._worker_id = worker_id
        self._name = name
        self._holds = holds
        self._register = register
        self._exchanges = exchanges
        self._unconfirmed = unconfirmed
        self._shard_of = shard_of
        self._metrics = metrics
        self._told: dict[int, Told] = {}
        self._telling: asyncio.Task[None] | None = None
        self._missed: dict[str, asyncio.Task[None]] = {}

    # the register

    async def register(self) -> None:
        """For ever: show that we live. A worker whose PostgreSQL is away goes on."""
        while True:
            pause_s = SEE_S
            try:
                await self._register.see(self._worker_id, self._name)
            except StoreError:
                pause_s = SEE_AGAIN_S
            await asyncio.sleep(pause_s)

    async def leave(self) -> None:
        """Nothing is open any more, and every ending is where it belongs."""
        with contextlib.suppress(StoreError):
            await self._register.dismiss(self._worker_id)

    # what is open

    def look(self, states: Sequence[ShardState]) -> None:
        """What was seen of the shards just now: tell those that have not heard us yet."""
        due = {state.shard: Told(state.rebuilding or state.epoch, state.is_open) for state in states if state.rebuilding or state.is_open}
        due = {shard: told for shard, told in due.items() if self._told.get(shard) != told}
        if due and self._telling is None:
            self._telling = asyncio.create_task(self._tell(due))
            self._telling.add_done_callback(self._has_told)

    async def _tell(self, due: dict[int, Told]) -> None:
        holds = self._open(due.keys())
        endings = defaultdict(list)
        for ending in await self._unconfirmed(sorted(due)):
            endings[ending.shard].append(ending)
        silent = [shard for shard, told in due.items() if told.is_open and not holds[shard] and not endings[shard]]
        self._told |= {shard: due[shard] for shard in silent}
        speaking = sorted(due.keys() - set(silent))
        for start in range(0, len(speaking), SHARDS_AT_ONCE):
            batch = speaking[start : start + SHARDS_AT_ONCE]
            await asyncio.gather(*(self._tell_one(shard, due[shard], holds[shard], endings[shard]) for shard in batch))

    async def _tell_one(self, shard: int, told: Told, holds: Sequence[Reassertion], endings: Sequence[Posting]) -> None:
        try:
            await self._holds.reassert(self._worker_id, shard, epoch=told.epoch, holds=holds, endings=endings, is_all=True)
        except StoreError as error:
            # The next look finds the shard as it is by then.
            log.info("shard %d did not hear us: %s", shard, error)
            return
        self._told[shard] = told

    def _has_told(self, telling: asyncio.Task[None]) -> None:
        self._telling = None
        error = None if telling.cancelled() else telling.exception()
        if error is not None:
            self._metrics.store_failed("outbox")
            log.error("what is open could not be told: %r", error)

    def _open(self, shards: Iterable[int]) -> defaultdict[int, list[Reassertion]]:
        wanted = frozenset(shards)
        found = defaultdict(list)
        for exchange in self._exchanges():
            hold = reassertion_of(exchange)
            if hold is not None and (shard := self._shard_of(hold.payer_id)) in wanted:
                found[shard].append(hold)
        return found

    # what is missing

    def miss(self, payer_id: str) -> None:
        """A script found no such payer. If Redis has really lost it (a hold is missed in the same way), its shard is rebuilt."""
        if payer_id in self._missed or len(self._missed) >= MISSED_MAX:
            return
        task = self._missed[payer_id] = asyncio.create_task(self._look_for(payer_id))
        task.add_done_callback(lambda _: self._missed.pop(payer_id))

    async def _look_for(self, payer_id: str) -> None:
        with contextlib.suppress(StoreError):
            if await self._holds.view(payer_id) is None:
                log.error("Redis has no payer %s: if it ever had it, its shard is rebuilt", payer_id)
                await self._register.miss(payer_id)


def reassertion_of(exchange: Exchange) -> Reassertion | None:
    """The hold that surely stands: an entry hold, or an exact one that a backend has been asked for. ``None``: there is none."""
    if exchange.state not in ENTRY | EXACT or exchange.tab.key is None:
        return None
    if exchange.state in ENTRY:
        return _reassertion(exchange.tab, is_exact=False, entry_nanos=exchange.tab.admission().entry_nanos)
    return _exact(exchange.tab)


def _exact(tab: Tab) -> Reassertion | None:
    worst, sized = tab.quote, tab.sized
    assert worst is not None
    assert sized is not None
    if tab.terms is Terms.LENT:
        return None  # the store was away: it never held anything
    return _reassertion(
        tab, is_exact=True, reserved_nanos=worst.reserved_nanos, cap_nanos=worst.cap_nanos, tokens=sized.demand.limited_tokens
    )


def _reassertion(
    tab: Tab, *, is_exact: bool, entry_nanos: int = 0, reserved_nanos: int = 0, cap_nanos: int = 0, tokens: int = 0
) -> Reassertion:
    last, key = tab.checkpoint, tab.key
    assert key is not None
    return Reassertion(
        hold_id=tab.hold_id,
        owner=tab.owner,
        payer_id=key.payer_id,
        key_id=key.id,
        is_exact=is_exact,
        entry_nanos=entry_nanos,
        reserved_nanos=reserved_nanos,
        cap_nanos=cap_nanos,
        charge_nanos=last.charge_nanos if last else 0,
        tokens=tokens,
        row=last.row if last else tab.admission().row,
        created_ms=tab.created_ms,
        quota=tab.quota,
        used=last.quota if last else NO_QUOTA,
    )
