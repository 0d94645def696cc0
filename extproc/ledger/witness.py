"""What the second witness keeps in PostgreSQL: how far it has read, and why requests ended that could not tell it themselves."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping

from extproc.stores.postgres import Database
from extproc.stores.queries import load_queries

FILL_MAX = 5_000  # reasons of one look: 20 ms of PostgreSQL


class PostgresWitness:
    """The port Register of ``settlement/witness.py``. A place in a log is (inode, offset, digest of what stands before it)."""

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

    async def file(self, log: str, place: tuple[int, int, str], reasons: Mapping[str, str]) -> tuple[int, int]:
        """Keep reasons (hold → reason) and place together, then tell rows what waits for them: how many were told, how many wait."""
        inode, offset, before = place
        rows = json.dumps([{"hold_id": hold_id, "end_reason": reason} for hold_id, reason in reasons.items()])
        async with self._database.transaction() as transaction:
            *_, filled, _ = await transaction.run(
                [
                    (self._queries["keep_reasons"], {"rows": rows}),
                    (self._queries["move_witness_log"], {"log": log, "inode": inode, "offset": offset, "before": before}),
                    (self._queries["fill_reasons"], {"limit": FILL_MAX}),
                    (self._queries["forget_witness_logs"], {}),
                ]
            )
        return filled[0]["told"], filled[0]["waiting"]
