"""Shards opened without asking a ledger: a hold store by itself, as benches and tests have it."""

from __future__ import annotations

import asyncio

from extproc.holds.port import Rebuilding, ShardState


async def open_fresh(shards: Rebuilding) -> None:
    """Every shard that is not open: with what is in it, under the next number. Then look, so that it is known to be open."""
    await asyncio.gather(*(_open(shards, state) for state in await shards.states() if not state.is_open))
    await shards.states()


async def _open(shards: Rebuilding, state: ShardState) -> None:
    number = max(int(epoch.rpartition(".")[2] or 0) for epoch in (state.epoch, state.rebuilding))
    epoch = f"{state.run_id}.{number + 1}"
    await shards.begin(state.shard, epoch=epoch, cursor="0-0")
    await shards.count(state.shard, epoch=epoch)
    await shards.open(state.shard, epoch=epoch)
