"""Endings that outlive an RPC.

An exchange hands its ending over synchronously and may be gone the next moment (an ``await`` in the handler's ``finally`` is often
killed, ENVOY.md). Here it is repeated until the hold store acknowledges it: an ending is idempotent by hold id, and an unknown outcome
is never taken for a failure.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable

from extproc.errors import StoreError, StoreRejected
from extproc.holds.port import Holds
from extproc.metrics import Metrics
from extproc.money.hold import Ending, EndKind, EndResult

log = logging.getLogger(__name__)

RETRY_S_FIRST = 0.05
RETRY_S_MAX = 2.0  # a store that comes back is noticed within this
RETRY_BATCH = 256  # one write's worth: a store that comes back is not run over
PENDING_MAX = 20_000  # about 1 KB each with their rows; as many as may be open. Above it new requests are refused, endings never
NOTES_PENDING_MAX = 10_000  # refusals on their way; above it they are counted and dropped: they carry no money


Done = asyncio.Future[EndResult | None]


class Closing:
    """Every ending of one worker that is not acknowledged yet. What failed waits in one line and is repeated in batches."""

    def __init__(self, holds: Holds, metrics: Metrics, *, jitter: Callable[[], float]) -> None:
        """``jitter``: a number from 0 to 1, so that workers do not come back to a store all at once."""
        self._holds = holds
        self._metrics = metrics
        self._jitter = jitter
        self._pending: set[Done] = set()
        self._failed: deque[tuple[Ending, Done]] = deque()
        self._timer: asyncio.TimerHandle | None = None
        self._wait_s = RETRY_S_FIRST
        self._notes = 0
        self._idle = asyncio.Event()
        self._idle.set()

    @property
    def full(self) -> bool:
        """More endings are waiting for the store than a worker may have: no new hold is to be taken until it keeps up."""
        return len(self._pending) >= PENDING_MAX

    def end(self, ending: Ending) -> Done:
        """Done once the store has acknowledged it, whoever ended the hold. Never fails; it may take as long as the store is away.

        ``None``: the store rejects it whenever it is asked (a bug of ours); the lease ends the hold.
        """
        done: Done = asyncio.get_running_loop().create_future()
        self._pending.add(done)
        self._idle.clear()
        self._attempt(ending, done)
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

    def _attempt(self, ending: Ending, done: Done) -> None:
        answer = asyncio.ensure_future(self._holds.end(ending))
        answer.add_done_callback(lambda answer: self._answered(ending, done, answer))

    def _answered(self, ending: Ending, done: Done, answer: asyncio.Future[EndResult]) -> None:
        error = answer.exception() if not answer.cancelled() else asyncio.CancelledError()
        if error is None:
            self._wait_s = RETRY_S_FIRST
            self._acknowledged(ending, answer.result())
            self._finish(done, answer.result())
        elif isinstance(error, StoreError) and not isinstance(error, StoreRejected):
            self._metrics.store_failed("redis")
            self._failed.append((ending, done))
        else:
            # Not to be had by repeating. The lease ends the hold at its last checkpoint; nobody must wait for it here.
            log.error("ending %s of hold %s failed: %r", ending.kind, ending.hold_id, error)
            self._metrics.illegal_event()
            self._finish(done, None)
        if self._failed and self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(self._wait_s * (1 + self._jitter()), self._repeat)

    def _repeat(self) -> None:
        """The next batch. While the store is away the pause grows; the first success makes it short again."""
        self._timer = None
        self._wait_s = min(2 * self._wait_s, RETRY_S_MAX)
        for _ in range(min(len(self._failed), RETRY_BATCH)):
            self._attempt(*self._failed.popleft())

    def _acknowledged(self, ending: Ending, result: EndResult) -> None:
        self._metrics.hold_ended(result)
        if result is EndResult.UNKNOWN and ending.kind is EndKind.SETTLE and ending.charge_nanos:
            log.error("the hold store does not know hold %s, charge %d nanos is not booked", ending.hold_id, ending.charge_nanos)

    def _finish(self, done: Done, result: EndResult | None) -> None:
        self._pending.discard(done)
        if not done.done():
            done.set_result(result)
        if not self._pending:
            self._idle.set()

    def _noted(self, answer: asyncio.Future[None]) -> None:
        self._notes -= 1
        if not answer.cancelled() and answer.exception() is not None:
            self._metrics.store_failed("redis_note")
