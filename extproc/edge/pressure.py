"""Whether the hold store has room for what begins now.

While PostgreSQL is away, endings wait in the hold store's streams. Long before it is full, nobody new is let in: what runs has still to
beat and to end there, and a server at its limit would refuse new holds anyway, each after a round trip, and its replicas might follow.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Final

from extproc.errors import StoreError
from extproc.metrics import Metrics

LOOK_S: Final = 1.0  # 10,000 requests in between write some 10 MB: far less than the third of a server that is left
HIGH: Final = 0.70  # of maxmemory
LOW: Final = 0.65  # lower, so that it does not open and close with every batch that is posted


class Pressure:
    """``used_ratio``: of the fullest server; :class:`StoreError` = unknown."""

    def __init__(self, used_ratio: Callable[[], Awaitable[float]], metrics: Metrics) -> None:
        self._used_ratio = used_ratio
        self._metrics = metrics
        self.is_high = False

    async def watch(self) -> None:
        """For ever."""
        while True:
            await self.look()
            await asyncio.sleep(LOOK_S)

    async def look(self) -> None:
        """Once. A store that does not say is as it was: it serves nobody meanwhile, and is asked again."""
        try:
            ratio = await self._used_ratio()
        except StoreError:
            return
        self.is_high = ratio >= (LOW if self.is_high else HIGH)
        self._metrics.store_used(ratio)
