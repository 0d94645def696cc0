"""Which settler posts which shard: session advisory locks on one connection. Whoever dies lets go."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable

from extproc.errors import StoreError
from extproc.stores.postgres import Database, Session
from extproc.stores.queries import load_queries

LOCK_CLASS = 0x65787073  # "exps": our first key of two, so that nobody else's advisory locks are met


class PostgresLeadership:
    """The port Leadership."""

    def __init__(self, database: Database, shards: Iterable[int]) -> None:
        self._database = database
        self._shards = frozenset(shards)
        self._queries = load_queries("extproc.ledger")
        self._session: Session | None = None
        self._held: frozenset[int] = frozenset()
        self._busy = asyncio.Lock()  # a connection that is closed under a query of another task ends the process, in libpq

    @property
    def current(self) -> frozenset[int]:
        """What :meth:`held` has answered last, or nothing since it failed."""
        return self._held

    async def held(self) -> frozenset[int]:
        """One round trip, which also proves that the connection, and so every lock of it, still stands."""
        async with self._busy:
            try:
                if self._session is None:
                    self._session = await self._database.session()
                wanted = {"class": LOCK_CLASS, "shards": sorted(self._shards - self._held)}
                rows = await self._session.fetch(self._queries["try_shards"], wanted)
            except StoreError:
                await self._drop()
                raise
            self._held |= {row["shard"] for row in rows}
            return self._held

    async def release(self) -> None:
        async with self._busy:
            await self._drop()

    async def _drop(self) -> None:
        session, self._session, self._held = self._session, None, frozenset()
        if session is not None:
            await session.close()
