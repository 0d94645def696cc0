"""Time and the end of a loop, injected: loops rest here, and stop here."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable

from extproc.errors import StoreError
from extproc.settlement.meter import Meter, Series

BACKOFF_S_MIN = 0.2
BACKOFF_S_MAX = 1.0  # a store that is back is found within a second: broken shards wait for it


class Pace:
    """``stop`` ends every loop that rests on it, at once."""

    def __init__(self, stop: asyncio.Event, *, monotonic_s: Callable[[], float], unix_ms: Callable[[], int]) -> None:
        self._stop = stop
        self.monotonic_s = monotonic_s
        self.unix_ms = unix_ms

    @property
    def is_over(self) -> bool:
        return self._stop.is_set()

    async def rest(self, seconds: float) -> None:
        """Until the time is over or the loop is to end."""
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._stop.wait(), seconds)


async def keep_doing(step: Callable[[], Awaitable[float]], *, pace: Pace, meter: Meter, failures: Series) -> None:
    """``step`` over and over; it answers how long to rest. A store that fails is counted and tried again, ever more slowly.

    Anything else that it raises ends the loop and reaches whoever awaits it: a bug is not to be repeated in silence.
    """
    backoff_s = BACKOFF_S_MIN
    while not pace.is_over:
        try:
            rest_s = await step()
            backoff_s = BACKOFF_S_MIN
        except StoreError:
            meter.add(failures)
            rest_s, backoff_s = backoff_s, min(2 * backoff_s, BACKOFF_S_MAX)
        if rest_s:
            await pace.rest(rest_s)
