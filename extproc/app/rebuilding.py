"""``extproc rebuild``: shards of Redis built again because an operator says so, by the settler that leads them, or here if none does."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Collection
from typing import Any, Final

from extproc.app.compose import Stores, event_stream, office, unix_ms
from extproc.errors import StoreError, UsageError
from extproc.holds.stream import RedisEventStream
from extproc.ledger.leadership import PostgresLeadership
from extproc.settings import Settings
from extproc.settlement.meter import UNMETERED
from extproc.settlement.pace import Pace
from extproc.settlement.poster import Poster
from extproc.settlement.rebuild import Rebuild
from extproc.stores.shards import SHARDS

LOOK_S: Final = 0.1

Say = Callable[[str], None]


async def rebuild(settings: Settings, shards: Collection[int], *, everything: bool, say: Say) -> dict[str, Any]:
    """All shards, or these, or where none is named those that are closed; what came of it. Returns when all of them serve."""
    began_s = time.monotonic()
    async with office(settings) as stores:
        wanted = list(range(SHARDS)) if everything else sorted(set(shards)) or await _closed(stores)
        if unknown := [shard for shard in wanted if not 0 <= shard < SHARDS]:
            raise UsageError(f"there is no shard {unknown[0]}: they are 0 to {SHARDS - 1}")
        if wanted:
            await _lead(stores, settings, wanted, say)
        known = await stores.epochs.epochs()
    built = [{"shard": shard, "epoch": known[shard].epoch} for shard in wanted]
    return {"shards": built, "took_ms": int(1_000 * (time.monotonic() - began_s))}


async def until_open(settings: Settings) -> None:
    """Until a settler has opened all shards: a stack that has just been started serves only then. :class:`StoreError`: Redis is away."""
    async with office(settings) as stores:
        while True:
            if not await _closed(stores):
                return
            await asyncio.sleep(LOOK_S)


async def _closed(stores: Stores) -> list[int]:
    return [state.shard for state in await stores.holds.states() if not state.is_open]


async def _lead(stores: Stores, settings: Settings, wanted: list[int], say: Say) -> None:
    """A settler for as long as it takes: of these shards whatever no other settler leads, now or later, is posted and built here."""
    before = {shard: known.number for shard, known in (await stores.epochs.epochs()).items()}
    await stores.epochs.want(wanted)
    over = asyncio.Event()
    pace = Pace(over, monotonic_s=time.monotonic, unix_ms=unix_ms)
    leadership = PostgresLeadership(stores.database, wanted)
    ours = Rebuild(
        holds=stores.holds,
        epochs=stores.epochs,
        stream=RedisEventStream(stores.pipeline),
        led=lambda: leadership.current,
        meter=UNMETERED,
        pace=pace,
        say=say,
    )
    async with event_stream(settings) as stream:
        poster = Poster(stream=stream, ledger=stores.ledger, leadership=leadership, meter=UNMETERED, pace=pace, shards=SHARDS)
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(poster.run())
            tasks.create_task(ours.run())
            await _until_open(stores, wanted, before, say)
            over.set()


async def _until_open(stores: Stores, wanted: list[int], before: dict[int, int], say: Say) -> None:
    """Under numbers that are new."""
    told = ""
    while True:
        try:
            missing = len(wanted) - await _open_anew(stores, wanted, before)
            text = f"{len(wanted) - missing} of {len(wanted)} shards are open"
        except StoreError as error:
            missing, text = len(wanted), f"waiting: {error}"
        if text != told:
            told = text
            say(text)
        if not missing:
            return
        await asyncio.sleep(LOOK_S)


async def _open_anew(stores: Stores, wanted: list[int], before: dict[int, int]) -> int:
    states, known = await asyncio.gather(stores.holds.states(), stores.epochs.epochs())
    is_open = {state.shard for state in states if state.is_open}
    fresh = {shard for shard, epoch in known.items() if epoch.is_open and epoch.number > before.get(shard, 0)}
    return len(is_open & fresh & set(wanted))
