"""The event streams of all shards, for the poster."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from extproc.holds.port import StreamEvent
from extproc.stores.pipeline import Pipeline
from extproc.stores.shards import TAGS

_SHARD_OF_STREAM: Final = {f"{tag}:events".encode(): shard for shard, tag in enumerate(TAGS)}


class RedisEventStream:
    """The port EventStream. Give it a :class:`Pipeline` of its own: a blocking read keeps a connection from everybody else."""

    def __init__(self, pipeline: Pipeline) -> None:
        self._pipeline = pipeline

    async def read(self, cursors: Mapping[int, str], *, count: int, block_ms: int) -> list[StreamEvent]:
        """One XREAD over all shards of ``cursors``; ``block_ms`` 0 does not wait."""
        if not cursors:
            return []
        block = ("BLOCK", str(block_ms)) if block_ms else ()
        streams = [f"{TAGS[shard]}:events" for shard in cursors]
        reply = await self._pipeline.execute("XREAD", "COUNT", count, *block, "STREAMS", *streams, *cursors.values(), allow_ms=block_ms)
        return [_event(_SHARD_OF_STREAM[stream], *entry) for stream, entries in reply or () for entry in entries]

    async def trim(self, shard: int, stream_id: str) -> None:
        milliseconds, _, sequence = stream_id.partition("-")
        await self._pipeline.execute("XTRIM", f"{TAGS[shard]}:events", "MINID", "=", f"{milliseconds}-{int(sequence) + 1}")


def _event(shard: int, stream_id: bytes, flat: list[Any]) -> StreamEvent:
    fields = dict(zip(flat[::2], flat[1::2], strict=True))
    return StreamEvent(
        shard=shard,
        stream_id=stream_id.decode(),
        kind=fields[b"k"].decode(),
        hold_id=fields[b"h"].decode(),
        payer_id=fields[b"p"].decode(),
        key_id=fields[b"c"].decode(),
        charge_nanos=int(fields[b"a"]),
        reserved_nanos=int(fields[b"r"]),
        epoch=fields[b"e"].decode(),
        seq=int(fields[b"s"]),
        occurred_ms=int(fields[b"t"]),
        row=fields[b"d"],
    )
