"""Which shard a payer lives on. Every key of a shard carries its tag, so that a script meets one slot of Redis Cluster."""

from __future__ import annotations

from typing import Final
from zlib import crc32

SHARDS: Final = 64  # fixed for ever: another number would move payers; enough for 64 masters, few enough to poll
TAGS: Final = tuple(f"{{s{shard:02d}}}" for shard in range(SHARDS))


def shard_of(payer_id: str) -> int:
    """0 … 63, the same in every process and every release."""
    return crc32(payer_id.encode()) % SHARDS


def tag_of(payer_id: str) -> str:
    """``{s00}`` … ``{s63}``: what every key of this payer begins with."""
    return TAGS[crc32(payer_id.encode()) % SHARDS]
