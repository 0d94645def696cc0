"""How full the hold store is: its streams grow while PostgreSQL is away."""

from __future__ import annotations

import asyncio

from extproc.errors import StoreRefused
from extproc.stores.pipeline import Client, info


async def used_ratio(pipeline: Client) -> float:
    """What the fullest server has used of its ``maxmemory``; 0: none has a limit. :class:`StoreError`: none answers."""
    answers = await asyncio.gather(*pipeline.everywhere("INFO", "memory"), return_exceptions=True)
    told = [info(answer) for answer in answers if isinstance(answer, bytes)]
    if not told:
        raise StoreRefused("no server says how full it is")
    return max(_used_ratio(one) for one in told)


def _used_ratio(told: dict[str, str]) -> float:
    """As the server itself reckons: buffers of replicas and of the append-only file do not count against its limit."""
    limit_bytes = int(told.get("maxmemory", 0))
    used_bytes = int(told.get("used_memory", 0)) - int(told.get("mem_not_counted_for_evict", 0))
    return used_bytes / limit_bytes if limit_bytes else 0.0
