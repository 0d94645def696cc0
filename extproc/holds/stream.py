"""The event streams of all shards, for the poster."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from operator import itemgetter
from typing import Any, Final

from extproc.holds.words import quota_of
from extproc.money.posting import Posting
from extproc.stores.pipeline import Client
from extproc.stores.shards import TAGS

UNREADABLE: Final = "unreadable"  # the kind of an entry that our scripts did not write: the ledger knows no such ending, and sets it aside

LOOK_EVERY_S: Final = 0.05  # 64 small reads every time: a thousandth of what a cluster can do

_SHARD_OF_STREAM: Final = {f"{tag}:events".encode(): shard for shard, tag in enumerate(TAGS)}
_FIELDS: Final = itemgetter(b"k", b"h", b"p", b"c", b"a", b"r", b"e", b"s", b"t", b"d")  # as the scripts name them


class RedisEventStream:
    """The port EventStream. Give it a client of its own: a blocking read keeps a connection from everybody else."""

    def __init__(self, pipeline: Client) -> None:
        self._pipeline = pipeline

    async def read(self, cursors: Mapping[int, str], *, count: int, block_ms: int) -> list[Posting]:
        """What each shard has after its cursor; ``block_ms`` 0 does not wait."""
        if not cursors:
            return []
        if self._pipeline.shards_apart:
            return await self._read_apart(cursors, count, block_ms)
        return await self._xread(cursors, count, block_ms)

    async def _xread(self, cursors: Mapping[int, str], count: int, block_ms: int) -> list[Posting]:
        """One XREAD over all shards of ``cursors``."""
        block = ("BLOCK", str(block_ms)) if block_ms else ()
        streams = [f"{TAGS[shard]}:events" for shard in cursors]
        reply = await self._pipeline.execute("XREAD", "COUNT", count, *block, "STREAMS", *streams, *cursors.values(), allow_ms=block_ms)
        return [_posting(_SHARD_OF_STREAM[stream], *entry) for stream, entries in reply or () for entry in entries]

    async def _read_apart(self, cursors: Mapping[int, str], count: int, block_ms: int) -> list[Posting]:
        """One XREAD a shard, again and again until there is something: nobody can wait on several slots at once.

        A master that is away does not keep the shards of the others waiting; :class:`StoreError` if there is nothing but failures.
        """
        loop = asyncio.get_running_loop()
        until = loop.time() + block_ms / 1000
        while True:
            looks = (self._xread({shard: cursor}, count, 0) for shard, cursor in cursors.items())
            answers = await asyncio.gather(*looks, return_exceptions=True)
            found = [posting for answer in answers if isinstance(answer, list) for posting in answer]
            failures = [answer for answer in answers if isinstance(answer, BaseException)]
            if found or loop.time() >= until:
                if failures and not found:
                    raise failures[0]
                return found
            await asyncio.sleep(LOOK_EVERY_S)

    async def trim(self, shard: int, stream_id: str) -> None:
        milliseconds, _, sequence = stream_id.partition("-")
        await self._pipeline.execute("XTRIM", f"{TAGS[shard]}:events", "MINID", "=", f"{milliseconds}-{int(sequence) + 1}")


def _posting(shard: int, stream_id: bytes, flat: list[Any]) -> Posting:
    try:
        fields = dict(zip(flat[::2], flat[1::2], strict=True))
        kind, hold, payer, key, charge, reserved, epoch, seq, occurred, row = _FIELDS(fields)
        posting = Posting(
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
        if b"f" not in fields:
            return posting
        used = quota_of(fields[b"f"])
        return posting._replace(free_input=used.input_tokens, free_output=used.output_tokens)
    except (KeyError, ValueError, AssertionError):
        return Posting(shard, stream_id.decode(), UNREADABLE, "", "", "", 0, 0, "", 0, 0, repr(flat).encode())
