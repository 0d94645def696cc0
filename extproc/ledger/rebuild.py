"""What rebuilds find in PostgreSQL: numbers of epochs, gate workers that live, and the ledger as it stood at one moment."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Final

from extproc.ledger.port import Cursor, Page, PostedKey, PostedPayer, ShardEpoch
from extproc.ledger.postgres import PostgresLedger
from extproc.money.posting import Posting
from extproc.stores.postgres import Database, Row, Transaction
from extproc.stores.queries import Queries, Query, load_queries
from extproc.stores.shards import shard_of

PAGE_PAYERS: Final = 250  # of one shard; all 64 together are 16,000, some ten megabytes
HOLDS_MAX: Final = 10_000  # ids of one look-up
NOBODY: Final = "00000000-0000-0000-0000-000000000000"


@dataclass(frozen=True, slots=True, kw_only=True)
class Keys:
    """How keys are read, which is for ``accounts`` to say: all of some ``payers``, and what Redis has to know of a row."""

    query: Query
    fields: Callable[[Row], Mapping[str, str]]


class PostgresEpochs:
    """The port Epochs, and the register of gate workers."""

    def __init__(self, database: Database, ledger: PostgresLedger, keys: Keys) -> None:
        self._database = database
        self._keys = keys
        self._queries = load_queries("extproc.ledger")
        self._ledger = ledger

    # --- epochs

    async def epochs(self) -> dict[int, ShardEpoch]:
        return {row["shard"]: ShardEpoch(**row) for row in await self._fetch("read_epochs")}

    async def take(self, servers: Mapping[int, tuple[str, int]]) -> dict[int, str]:
        rows = [{"shard": shard, "run_id": run_id, "above": number} for shard, (run_id, number) in servers.items()]
        return {row["shard"]: row["epoch"] for row in await self._fetch("take_epochs", rows=json.dumps(rows))}

    async def opened(self, epochs: Mapping[int, str]) -> None:
        await self._fetch("open_epochs", rows=json.dumps([{"shard": shard, "epoch": epoch} for shard, epoch in sorted(epochs.items())]))

    async def want(self, shards: Sequence[int]) -> None:
        await self._fetch("want_epochs", shards=list(shards))

    async def miss(self, payer_id: str) -> None:
        await self._fetch("miss_payer", payer=payer_id)

    # --- gate workers

    async def see(self, worker_id: str, name: str) -> None:
        """A gate worker lives, and may hold something open."""
        await self._fetch("see_worker", id=worker_id, name=name)

    async def dismiss(self, worker_id: str) -> None:
        """It holds nothing any more, and never will."""
        await self._fetch("dismiss_worker", id=worker_id)

    async def of_host(self, host: str) -> dict[str, str]:
        """Id → name of those whose name begins with this host's."""
        return {row["id"]: row["name"] for row in await self._fetch("workers_of_host", host=host)}

    async def workers(self, *, seen_within_s: int) -> frozenset[str]:
        await self._fetch("forget_workers")
        return frozenset(row["id"] for row in await self._fetch("live_workers", seconds=seen_within_s))

    # --- the ledger

    async def cursors(self, shards: Sequence[int]) -> dict[int, Cursor]:
        return await self._ledger.cursors(shards)

    async def endings(self, hold_ids: Sequence[str]) -> list[Posting]:
        found: list[Posting] = []
        for start in range(0, len(hold_ids), HOLDS_MAX):
            rows = await self._fetch("endings_of_holds", ids=list(hold_ids[start : start + HOLDS_MAX]))
            found += (Posting(shard=shard_of(row["payer_id"]), stream_id="", epoch="", seq=0, row=b"{}", **row) for row in rows)
        return found

    @asynccontextmanager
    async def snapshot(self) -> AsyncIterator[LedgerSnapshot]:
        async with self._database.transaction() as transaction:
            await transaction.fetch(self._queries["hold_still"])
            yield LedgerSnapshot(transaction, self._queries, self._keys)

    async def _fetch(self, query: str, /, **params: object) -> list[Row]:
        return await self._database.fetch(self._queries[query], params)


class LedgerSnapshot:
    """The port Snapshot: one transaction, read page by page, whatever is posted meanwhile."""

    def __init__(self, transaction: Transaction, queries: Queries, keys: Keys) -> None:
        self._transaction = transaction
        self._queries = queries
        self._keys = keys

    async def pages(self, after: Mapping[int, str]) -> dict[int, Page]:
        query = self._queries["posted_payers"]
        wanted = [(query, {"shard": shard, "after": last or NOBODY, "limit": PAGE_PAYERS}) for shard, last in after.items()]
        found = await self._transaction.run(wanted)
        payers = {shard: [PostedPayer(**row) for row in rows] for shard, rows in zip(after, found, strict=True)}
        keys = await self._keys_of([payer.payer_id for some in payers.values() for payer in some])
        return {
            shard: Page(
                payers=some,
                keys=[key for payer in some for key in keys[payer.payer_id]],
                after=some[-1].payer_id if len(some) == PAGE_PAYERS else None,
            )
            for shard, some in payers.items()
        }

    async def _keys_of(self, payers: Sequence[str]) -> defaultdict[str, list[PostedKey]]:
        rows = await self._transaction.fetch(self._keys.query, {"payers": list(payers)}) if payers else []
        spent = await self._spent({row["budget_id"]: row["budget_period"] for row in rows if row["budget_nanos"] is not None})
        keys = defaultdict(list)
        for row in rows:
            keys[row["user_id"]].append(
                PostedKey(
                    payer_id=row["user_id"],
                    key_id=row["id"],
                    version=row["version"],
                    fields=self._keys.fields(row),
                    budget_id=row["budget_id"],
                    spent_nanos=spent.get(row["budget_id"], {}),
                )
            )
        return keys

    async def _spent(self, periods: Mapping[str, str]) -> dict[str, dict[str, int]]:
        """By budget and span."""
        if not periods:
            return {}
        rows = [{"budget_id": budget, "period": period} for budget, period in periods.items()]
        spent: dict[str, dict[str, int]] = {}
        for row in await self._transaction.fetch(self._queries["budgets_spent"], {"rows": json.dumps(rows)}):
            spent.setdefault(row["budget_id"], {})[row["span"]] = row["nanos"]
        return spent
