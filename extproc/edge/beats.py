"""Checkpoints of a worker on their way to the hold store: what a hold would be charged if this worker died now."""

from __future__ import annotations

import asyncio
import logging

from extproc.errors import StoreError
from extproc.holds.port import Holds
from extproc.metrics import Metrics
from extproc.money.hold import Checkpoint

log = logging.getLogger(__name__)

FLUSH_S = 0.25  # the first checkpoint of a stream is safe this long after its first output
BATCH = 512  # one call's worth


class Beats:
    """The newest checkpoint of each hold, sent together, seldom."""

    def __init__(self, holds: Holds, metrics: Metrics) -> None:
        self._holds = holds
        self._metrics = metrics
        self._waiting: dict[str, Checkpoint] = {}
        self._timer: asyncio.TimerHandle | None = None

    def put(self, checkpoint: Checkpoint) -> None:
        """The newest checkpoint of its hold wins."""
        self._waiting[checkpoint.hold_id] = checkpoint
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(FLUSH_S, self.flush)

    def drop(self, hold_id: str) -> None:
        """The hold has ended."""
        self._waiting.pop(hold_id, None)

    def flush(self) -> None:
        """Send what is waiting. A beat that is lost is made up by the next one; the lease outlives several."""
        self._timer = None
        waiting = list(self._waiting.values())
        self._waiting.clear()
        for start in range(0, len(waiting), BATCH):
            sent = asyncio.ensure_future(self._holds.beat(waiting[start : start + BATCH]))
            sent.add_done_callback(self._sent)

    def _sent(self, sent: asyncio.Future[None]) -> None:
        error = None if sent.cancelled() else sent.exception()
        if error is not None:
            self._metrics.store_failed("redis")
            if not isinstance(error, StoreError):
                log.error("a beat failed: %r", error)
