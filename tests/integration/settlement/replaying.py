"""A worker's outbox, and settlers that read it: what the tests of replay have in common."""

from __future__ import annotations

import asyncio
import contextlib
import time
from pathlib import Path
from typing import Any

from town import Town, new_id, unix_ms

from extproc.errors import StoreRefused
from extproc.holds.stream import RedisEventStream
from extproc.ledger.outboxes import PostgresOutboxes
from extproc.money.hold import Ending
from extproc.settlement.meter import Series
from extproc.settlement.outbox_file import Claim, OutboxFile, Written, watermark_of
from extproc.settlement.pace import Pace
from extproc.settlement.replay import Replay
from extproc.stores.shards import SHARDS, shard_of


class Outbox:
    """One worker's."""

    def __init__(self, directory: Path, slot: int = 0, *, host: str = "") -> None:
        self.claim = Claim.first_of(directory, slot)
        self.path = self.claim.path
        self.file = OutboxFile.owned(self.claim, new_id=new_id(), unix_ms=unix_ms(), host=host)

    def promise(self, *endings: Ending, **fields: Any) -> None:
        self.file.append([self.row(ending)._replace(**fields) for ending in endings])

    def row(self, ending: Ending) -> Written:
        one = ending
        return Written(
            at_ms=unix_ms(),
            shard=shard_of(one.payer_id),
            hold_id=one.hold_id,
            payer_id=one.payer_id,
            key_id=one.key_id,
            kind=one.kind,
            charge_nanos=one.charge_nanos,
            reserved_nanos=one.reserved_nanos,
            row=one.row,
        )

    @property
    def below(self) -> int:
        mark = watermark_of(self.path)
        return 0 if mark is None else mark.below

    def leave(self) -> None:
        self.file.close()
        self.claim.release()


class Settler:
    """Replays over the town's stores, whose clocks can be set ahead."""

    def __init__(self, town: Town, directory: Path) -> None:
        self.town = town
        self.directory = directory
        self.renewed = 0
        self.ahead_ms = 0
        self.ahead_s = 0.0

    def replay(self, **fields: Any) -> Replay:
        pace = Pace(self.town.stop, monotonic_s=lambda: time.monotonic() + self.ahead_s, unix_ms=lambda: unix_ms() + self.ahead_ms)
        parts = {
            "directory": self.directory,
            "ledger": PostgresOutboxes(self.town.database),
            "postings": self.town.ledger,
            "stream": RedisEventStream(self.town.pipeline),
            "renew": self.renew,
            "meter": self.town.meter,
            "pace": pace,
            "shards": SHARDS,
        }
        return Replay(**(parts | fields))

    async def renew(self) -> None:
        self.renewed += 1

    def count(self, series: Series) -> int:
        return self.town.meter.counts[series]


async def endings_of(town: Town, count: int, *, redis: bool) -> tuple[str, list[Ending]]:
    """A payer and settles of his holds, told to Redis or not."""
    payer, key = await town.customer()
    endings = [town.settle(await town.hold(payer, key), payer, key) for _ in range(count)]
    if redis:
        await asyncio.gather(*(town.holds.end(ending) for ending in endings))
    return payer, endings


async def patiently(replay: Replay) -> None:
    """As its loop does: one that was overtaken tries again."""
    for _ in range(20):
        with contextlib.suppress(StoreRefused):
            await replay.step()
            return
        await asyncio.sleep(0.01)
