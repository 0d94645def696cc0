"""Endings that outlive an RPC.

An exchange hands its ending over synchronously and may be gone the next moment (an ``await`` in the handler's ``finally`` is often
killed, ENVOY.md). Here it goes to the hold store, and if a backend had the request, to the outbox at the same time: as soon as either
has it, it is safe; or, where the power of the whole machine may fail, as soon as the outbox has it (``waits_for_disk``). To the store it
is repeated until that acknowledges it: an ending is idempotent by hold id, and an unknown outcome is never taken for a failure. Whatever
the store says, the ledger gets what the outbox has.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable
from functools import partial
from typing import Protocol

from extproc.errors import StoreError, StoreRejected
from extproc.holds.port import Holds
from extproc.metrics import Metrics
from extproc.money.hold import Ending, EndKind, EndResult

log = logging.getLogger(__name__)

RETRY_S_FIRST = 0.05
RETRY_S_MAX = 2.0  # a store that comes back is noticed within this
RETRY_BATCH = 256  # one write's worth: a store that comes back is not run over
GIVE_UP_S = 600.0  # what the outbox has need not be repeated any longer: the store's memory of endings lasts fifteen minutes
PENDING_MAX = 20_000  # about 1 KB each with their rows; as many as may be open. Above it new requests are refused, endings never
NOTES_PENDING_MAX = 10_000  # refusals on their way; above it they are counted and dropped: they carry no money
LINGER_S = 3.0  # of a worker that leaves, for endings that are safe and that the store does not have: what is not said expires

Done = asyncio.Future[bool]


class Outbox(Protocol):
    """``settlement/outbox.py``, as far as endings are concerned."""

    @property
    def is_full(self) -> bool:
        """What ends now may not be kept."""

    def put(self, ending: Ending, stored: Callable[[], object]) -> bool:
        """``stored`` is called when it is on the disk. False: it is not kept."""


class _Waiting:
    """An ending that is not safe, or that the store has not acknowledged.

    ``is_ended``: the store has ended it. ``is_kept``: it is in the outbox, or will be; ``is_stored``: it is on the disk.
    """

    __slots__ = ("begun_s", "done", "ending", "is_ended", "is_kept", "is_stored")

    def __init__(self, ending: Ending, done: Done, begun_s: float) -> None:
        self.ending = ending
        self.done = done
        self.begun_s = begun_s
        self.is_ended = self.is_kept = self.is_stored = False

    def stored(self) -> None:
        self.is_stored = True
        if not self.done.done():
            self.done.set_result(self.is_ended)


class Closing:
    """Every ending of one worker that is not acknowledged yet. What failed waits in one line and is repeated in batches."""

    def __init__(
        self, holds: Holds, outbox: Outbox, metrics: Metrics, *, jitter: Callable[[], float], waits_for_disk: bool = False
    ) -> None:
        """``jitter``: a number from 0 to 1, so that workers do not come back to a store all at once.

        ``waits_for_disk``: what the store has acknowledged, and has not synced, is not safe yet.
        """
        self._holds = holds
        self._outbox = outbox
        self._metrics = metrics
        self._jitter = jitter
        self._waits_for_disk = waits_for_disk
        self._pending: set[_Waiting] = set()
        self._failed: deque[_Waiting] = deque()
        self._timer: asyncio.TimerHandle | None = None
        self._wait_s = RETRY_S_FIRST
        self._notes = 0
        self._idle = asyncio.Event()
        self._idle.set()

    @property
    def why_full(self) -> str:
        """Why no new hold is to be taken, "" = there is room: the outbox takes nothing, or as many endings wait as a worker may have."""
        if self._outbox.is_full:
            return "outbox"
        return "endings" if len(self._pending) >= PENDING_MAX else ""

    def end(self, ending: Ending) -> Done:
        """Done once it is safe: the store has acknowledged it (see ``waits_for_disk``), or it is in the outbox, or neither will ever
        take it. Never fails.

        True: the store has written its event by this call, and the outbox has it as well or will have it. So whatever its row brings along
        has reached everybody who reads either.
        """
        loop = asyncio.get_running_loop()
        waiting = _Waiting(ending, loop.create_future(), loop.time())
        self._pending.add(waiting)
        self._idle.clear()
        if ending.is_forwarded:
            waiting.is_kept = self._outbox.put(ending, waiting.stored)
        self._attempt(waiting)
        return waiting.done

    def note(self, payer_id: str, row: bytes) -> None:
        """Hand over the row of a refusal, once, without waiting."""
        if self._notes >= NOTES_PENDING_MAX:
            self._metrics.store_failed("redis_note")
            return
        self._notes += 1
        asyncio.ensure_future(self._holds.note(payer_id, row)).add_done_callback(self._noted)

    async def drain(self, grace_s: float) -> int:
        """Wait until every charge is safe; the number of those that were not within ``grace_s``.

        What is safe gets a little time to reach the store, and so do voids of requests that no backend had: their leases end them.
        """
        linger_s = min(grace_s, LINGER_S)
        try:
            await asyncio.wait_for(self._idle.wait(), linger_s)
        except TimeoutError:
            log.warning("endings that the hold store has not acknowledged before the worker leaves: %d", len(self._pending))
        unsafe = {waiting.done for waiting in self._pending if waiting.ending.is_forwarded and not waiting.done.done()}
        if unsafe:
            _, unsafe = await asyncio.wait(unsafe, timeout=grace_s - linger_s)
        if unsafe:
            log.error("endings that are neither acknowledged nor in the outbox, before the worker has to leave: %d", len(unsafe))
        return len(unsafe)

    def _attempt(self, waiting: _Waiting) -> None:
        asyncio.ensure_future(self._holds.end(waiting.ending)).add_done_callback(partial(self._answered, waiting))

    def _answered(self, waiting: _Waiting, answer: asyncio.Future[EndResult]) -> None:
        error = answer.exception() if not answer.cancelled() else asyncio.CancelledError()
        if error is None:
            self._wait_s = RETRY_S_FIRST
            self._acknowledged(waiting, answer.result())
        elif isinstance(error, StoreError) and not isinstance(error, StoreRejected):
            self._metrics.store_failed("redis")
            self._postpone(waiting)
        else:
            self._rejected(waiting, error)
        if self._failed and self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(self._wait_s * (1 + self._jitter()), self._repeat)

    def _repeat(self) -> None:
        """The next batch. While the store is away the pause grows; the first success makes it short again."""
        self._timer = None
        self._wait_s = min(2 * self._wait_s, RETRY_S_MAX)
        for _ in range(min(len(self._failed), RETRY_BATCH)):
            self._attempt(self._failed.popleft())

    def _acknowledged(self, waiting: _Waiting, result: EndResult) -> None:
        self._metrics.hold_ended(result)
        ending = waiting.ending
        if result is EndResult.UNKNOWN and ending.kind is EndKind.SETTLE and ending.charge_nanos and not waiting.is_kept:
            log.error("the hold store does not know hold %s, charge %d nanos is not booked", ending.hold_id, ending.charge_nanos)
        waiting.is_ended = result is EndResult.ENDED
        if not waiting.is_kept or (waiting.is_ended and not self._waits_for_disk):
            self._finish(waiting, announced=waiting.is_kept)
        else:
            self._leave(waiting)  # the disk is waited for; also if this call has written nothing: whether another one has is not known

    def _postpone(self, waiting: _Waiting) -> None:
        """Again later, unless it is safe and the store has been away for long: the ledger books it, and tells the store what it charged."""
        if waiting.is_stored and asyncio.get_running_loop().time() - waiting.begun_s > GIVE_UP_S:
            self._finish(waiting)
        else:
            self._failed.append(waiting)

    def _rejected(self, waiting: _Waiting, error: BaseException) -> None:
        """Not to be had by repeating: a bug of ours. The outbox brings it to the ledger; without one, the lease ends the hold."""
        log.error("ending %s of hold %s failed: %r", waiting.ending.kind, waiting.ending.hold_id, error)
        self._metrics.illegal_event()
        if not waiting.is_kept:
            self._finish(waiting)
        else:
            self._leave(waiting)

    def _finish(self, waiting: _Waiting, *, announced: bool = False) -> None:
        if not waiting.done.done():
            waiting.done.set_result(announced)
        self._leave(waiting)

    def _leave(self, waiting: _Waiting) -> None:
        self._pending.discard(waiting)
        if not self._pending:
            self._idle.set()

    def _noted(self, answer: asyncio.Future[None]) -> None:
        self._notes -= 1
        if not answer.cancelled() and answer.exception() is not None:
            self._metrics.store_failed("redis_note")
