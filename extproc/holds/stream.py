"""The event streams of all shards, for the poster."""

from __future__ import annotations

from collections.abc import Mapping
from operator import itemgetter
from typing import Any, Final

from extproc.money.posting import Posting
from extproc.stores.pipeline import Pipeline
from extproc.stores.shards import TAGS

UNREADABLE: Final = "unreadable"  # the kind of an entry that our scripts did not write: the ledger knows no such ending, and sets it aside

_SHARD_OF_STREAM: Final = {f"{tag}:events".encode(): shard for shard, tag in enumerate(TAGS)}
_FIELDS: Final = itemgetter(b"k", b"h", b"p", b"c", b"a", b"r", b"e", b"s", b"t", b"d")  # as the scripts name them


class RedisEventStream:
    """The port EventStream. Give it a :class:`Pipeline` of its own: a blocking read keeps a connection from everybody else."""

    def __init__(self, pipeline: Pipeline) -> None:
        self._pipeline = pipeline

    async def read(self, cursors: Mapping[int, str], *, count: int, block_ms: int) -> list[Posting]:
        """One XREAD over all shards of ``cursors``; ``block_ms`` 0 does not wait."""
        if not cursors:
            return []
        block = ("BLOCK", str(block_ms)) if block_ms else ()
        streams = [f"{TAGS[shard]}:events" for shard in cursors]
        reply = await self._pipeline.execute("XREAD", "COUNT", count, *block, "STREAMS", *streams, *cursors.values(), allow_ms=block_ms)
        return [_posting(_SHARD_OF_STREAM[stream], *entry) for stream, entries in reply or () for entry in entries]

    async def trim(self, shard: int, stream_id: str) -> None:
        milliseconds, _, sequence = stream_id.partition("-")
        await self._pipeline.execute("XTRIM", f"{TAGS[shard]}:events", "MINID", "=", f"{milliseconds}-{int(sequence) + 1}")


def _posting(shard: int, stream_id: bytes, flat: list[Any]) -> Posting:
    try:
        kind, hold, payer, key, charge, reserved, epoch, seq, occurred, row = _FIELDS(dict(zip(flat[::2], flat[1::2], strict=True)))
        return Posting(
            shard,
            stream_id.decode(),
            kind.decode(),
            hold.decode(),
            payer.decode(),
            key.decode(),
            int(charge),
            int(reserved),
            epoch.decode(),
            int(seq),
            int(occurred),
            row,
        )
    except (KeyError, ValueError):
        return Posting(shard, stream_id.decode(), UNREADABLE, "", "", "", 0, 0, "", 0, 0, repr(flat).encode())
