"""An old master that serves on beside its successor is closed by whoever still reaches it.

A replica was promoted, and the settler that leads has built its shards there, under a higher number. Those whose address still leads to the
old master notice nothing: its run id is the one that they know, and its shards are open. What they let in meanwhile is booked by their
outboxes, and what an account did not have for it is the operator's loss; so it is to end soon. Any settler that sees the ledger's number
above that of the server it is connected to closes the shards there, under the number that has been opened elsewhere, and raises an alarm.

Shards that this settler leads are not its business: they are rebuilt where they are (``rebuild.py``).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from typing import Final, Protocol

from extproc.holds.port import ShardState
from extproc.ledger.port import START, ShardEpoch
from extproc.settlement.meter import Meter, Series
from extproc.settlement.pace import Pace, keep_doing
from extproc.settlement.rebuild import is_superseded

LOOK_S: Final = 1.0


class Server(Protocol):
    """What is needed of the hold store."""

    async def states(self) -> Sequence[ShardState]:
        """All shards as they are now."""

    async def begin(self, shard: int, *, epoch: str, cursor: str) -> None:
        """Close a shard."""


class Known(Protocol):
    """What is needed of the ledger."""

    async def epochs(self) -> Mapping[int, ShardEpoch]:
        """Shards that were ever opened."""


class OldMaster:
    """``step`` is one look. ``led``: the shards that this settler rebuilds itself."""

    def __init__(self, *, holds: Server, epochs: Known, led: Callable[[], frozenset[int]], meter: Meter, pace: Pace) -> None:
        self._holds = holds
        self._epochs = epochs
        self._led = led
        self._meter = meter
        self._pace = pace
        self._seen: Mapping[int, str] = {}  # what was so at the last look: one look may meet a rebuild between the two stores

    async def run(self) -> None:
        """Until the pace is over."""
        await keep_doing(self.step, pace=self._pace, meter=self._meter, failures=Series.REBUILD_FAILURES)

    async def step(self) -> float:
        """:class:`StoreError`: a store is away, or was fenced off."""
        states, known = await asyncio.gather(self._holds.states(), self._epochs.epochs())
        others = [state for state in states if state.shard not in self._led() and state.shard in known]
        seen = {state.shard: known[state.shard].epoch for state in others if is_superseded(state, known[state.shard])}
        certain = {shard: epoch for shard, epoch in seen.items() if self._seen.get(shard) == epoch}
        self._seen = seen
        await asyncio.gather(*(self._holds.begin(shard, epoch=epoch, cursor=START) for shard, epoch in certain.items()))
        if certain:
            self._meter.add(Series.OLD_MASTERS, len(certain))
        return LOOK_S
