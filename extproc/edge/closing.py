"""Endings that outlive an RPC.

An exchange hands its ending over synchronously and may be gone the next moment (an ``await`` in the handler's ``finally`` is often
killed, ENVOY.md). Here it is repeated until the hold store acknowledges it: an ending is idempotent by hold id, and an unknown outcome
is never taken for a failure.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from extproc.errors import StoreError
from extproc.holds.port import Holds
from extproc.metrics import Metrics
from extproc.money.hold import Ending, EndKind, EndResult

log = logging.getLogger(__name__)

RETRY_S_FIRST = 0.05
RETRY_S_MAX = 2.0  # a store that comes back is noticed within this
NOTES_PENDING_MAX = 10_000  # refusals on their way; above it they are counted and dropped: they carry no money


class Closing:
    """Every ending of one worker that is not acknowledged yet."""

    def __init__(self, holds: Holds, metrics: Metrics) -> None:
        self._holds = holds
        self._metrics = metrics
        self._pending: set[asyncio.Future[EndResult | None]] = set()
        self._notes = 0
        self._idle = asyncio.Event()
        self._idle.set()

    @property
    def pending(self) -> int:
        """Endings that nobody has acknowledged."""
        return len(self._pending)

    def end(self, ending: Ending) -> asyncio.Future[EndResult | None]:
        """Done once the store has acknowledged it, whoever ended the hold. Never fails; it may take as long as the store is away.

        ``None``: a bug of ours kept it from being asked; the lease ends the hold.
        """
        done: asyncio.Future[EndResult | None] = asyncio.get_running_loop().create_future()
        self._pending.add(done)
        self._idle.clear()
        self._attempt(ending, done, RETRY_S_FIRST)
        return done

    def note(self, payer_id: str, row: bytes) -> None:
        """Hand over the row of a refusal, once, without waiting."""
        if self._notes >= NOTES_PENDING_MAX:
            self._metrics.store_failed("redis_note")
            return
        self._notes += 1
        asyncio.ensure_future(self._holds.note(payer_id, row)).add_done_callback(self._noted)

    async def drain(self, grace_s: float) -> int:
        """Wait until every ending is acknowledged; the number of those that were not within ``grace_s``."""
        try:
            await asyncio.wait_for(self._idle.wait(), grace_s)
        except TimeoutError:
            log.error("endings that were not acknowledged before the worker had to leave: %d", len(self._pending))
        return len(self._pending)

    def _attempt(self, ending: Ending, done: asyncio.Future[EndResult | None], wait_s: float) -> None:
        answer = asyncio.ensure_future(self._holds.end(ending))
        answer.add_done_callback(lambda answer: self._answered(ending, done, wait_s, answer))

    def _answered(self, ending: Ending, done: asyncio.Future[EndResult | None], wait_s: float, answer: asyncio.Future[EndResult]) -> None:
        error = answer.exception() if not answer.cancelled() else asyncio.CancelledError()
        if error is None:
            self._acknowledged(ending, answer.result())
            self._finish(done, answer.result())
        elif isinstance(error, StoreError):
            self._metrics.store_failed("redis")
            again_s = min(2 * wait_s, RETRY_S_MAX)
            asyncio.get_running_loop().call_later(wait_s, self._attempt, ending, done, again_s)
        else:
            # Not the store's fault: a bug. The lease ends the hold at its last checkpoint; nobody must wait for it here.
            log.error("ending %s of hold %s failed: %r", ending.kind, ending.hold_id, error)
            self._metrics.illegal_event()
            self._finish(done, None)

    def _acknowledged(self, ending: Ending, result: EndResult) -> None:
        self._metrics.hold_ended(result)
        if result is EndResult.UNKNOWN and ending.kind is EndKind.SETTLE and ending.charge_nanos:
            log.error("the hold store does not know hold %s, charge %d nanos is not booked", ending.hold_id, ending.charge_nanos)

    def _finish(self, done: asyncio.Future[EndResult | None], result: EndResult | None) -> None:
        self._pending.discard(done)
        if not done.done():
            done.set_result(result)
        if not self._pending:
            self._idle.set()

    def _noted(self, answer: asyncio.Future[None]) -> None:
        self._notes -= 1
        if not answer.cancelled() and answer.exception() is not None:
            self._metrics.store_failed("redis_note")


class Announced:
    """Prices that the ledger has in full, as far as this worker knows: (shard, price id) of acknowledged endings.

    A shard's stream is ordered, so whatever this worker adds later is posted later.
    """

    PRICES_MAX = 65_536  # prices × shards of many reloads; above it prices are sent along again

    def __init__(self, shard_of: Callable[[str], int]) -> None:
        self._shard_of = shard_of
        self._known: set[tuple[int, str]] = set()

    def known(self, payer_id: str, price_id: str) -> bool:
        """The price need not travel with a row of this payer."""
        return (self._shard_of(payer_id), price_id) in self._known

    def ended(self, payer_id: str, price_id: str, ending: asyncio.Future[EndResult | None]) -> None:
        """An ending with the price in full was acknowledged; only one that wrote its event has brought the price along."""
        if ending.result() is EndResult.ENDED and len(self._known) < self.PRICES_MAX:
            self._known.add((self._shard_of(payer_id), price_id))
