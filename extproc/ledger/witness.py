"""What the second witness keeps in PostgreSQL: how far it has read, and of requests that could not tell it themselves why they ended, and
at which figure.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from extproc.errors import StoreRefused
from extproc.stores.postgres import Database
from extproc.stores.queries import load_queries

FILL_MAX = 5_000  # reasons of one look: 20 ms of PostgreSQL
ENDINGS_MAX = 100_000  # kept at once: 50 MB; with more the access log waits. The next ones are filed when the ledger has these
PAGE_ROWS = 2_000  # endings of one look


class PostgresWitness:
    """The ports Register of ``settlement/witness.py`` and Kept of ``settlement/witness_endings.py``.

    A place in a log is (inode, offset, digest of what stands before it).
    """

    def __init__(self, database: Database) -> None:
        self._database = database
        self._queries = load_queries("extproc.ledger")

    async def place(self, log: str) -> tuple[int, int, str] | None:
        """``None``: this log has never been read."""
        rows = await self._database.fetch(self._queries["read_witness_log"], {"log": log})
        return (int(rows[0]["inode"]), rows[0]["offset_bytes"], rows[0]["before"]) if rows else None

    async def prices(self, price_ids: Collection[str]) -> Mapping[str, str]:
        """Price id → the price in full, of those that are known."""
        rows = await self._database.fetch(self._queries["price_texts"], {"price_ids": list(price_ids)})
        return {row["price_id"]: row["price"] for row in rows}

    async def file(
        self, log: str, place: tuple[int, int, str], reasons: Mapping[str, str], endings: Sequence[Mapping[str, Any]]
    ) -> tuple[int, int]:
        """Keep reasons (hold → reason), endings (rows of ``witness_endings``) and place together, then tell rows what waits for them: how
        many were told, how many wait. :class:`StoreRefused`: there are too many endings already.
        """
        inode, offset, before = place
        rows = json.dumps([{"hold_id": hold_id, "end_reason": reason} for hold_id, reason in reasons.items()])
        async with self._database.transaction() as transaction:
            if endings:
                kept = (await transaction.fetch(self._queries["count_witness_endings"], {}))[0]["kept"]
                if kept + len(endings) > ENDINGS_MAX:
                    raise StoreRefused(f"{kept} requests without an ending wait already: the access log waits for them")
                await transaction.fetch(self._queries["keep_witness_endings"], {"rows": json.dumps(list(endings)), "log": log})
            *_, filled, _ = await transaction.run(
                [
                    (self._queries["keep_reasons"], {"rows": rows}),
                    (self._queries["move_witness_log"], {"log": log, "inode": inode, "offset": offset, "before": before}),
                    (self._queries["fill_reasons"], {"limit": FILL_MAX}),
                    (self._queries["forget_witness_logs"], {}),
                ]
            )
        return filled[0]["told"], filled[0]["waiting"]

    async def endings(self, log: str, *, after: str, ripe_s: int, others_s: int) -> Sequence[Mapping[str, Any]]:
        """The next holds that still have no ending, by id; those that have one are forgotten. What another ``log`` said is ripe
        ``others_s`` later.
        """
        params = {"log": log, "after": after, "ripe_s": ripe_s, "others_s": others_s, "limit": PAGE_ROWS}
        return await self._database.fetch(self._queries["look_at_witness_endings"], params)

    async def forget(self, hold_ids: Collection[str]) -> None:
        """They are booked, or never will be."""
        await self._database.fetch(self._queries["forget_witness_endings"], {"hold_ids": list(hold_ids)})
