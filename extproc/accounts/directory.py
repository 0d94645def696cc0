"""From a client's key to :class:`Key`: process → Redis → PostgreSQL.

- **process**: found keys 60 s, unknown ones 5 s, both bounded. :meth:`Directory.peek` answers from it without an await.
- **Redis** (``extproc:key:<hash>``): known keys work while PostgreSQL is away. What is older than ten minutes is used once more, and read
  again meanwhile: no cache here refreshes itself from itself for ever, and nobody waits for a PostgreSQL that does not answer.
- **PostgreSQL** is the truth. A key that neither store can be asked about is ``StoreRefused`` (503), never "no such key" (401).

Revocation, expiry and budget do not depend on any of this: ``admit`` reads them from the payer's shard.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Mapping
from enum import Enum
from typing import Any, Generic, Protocol, TypeVar

from extproc.accounts.codec import Shared, delivery_of_row, enforced, from_json, to_json
from extproc.accounts.keys import hash_of, is_well_formed
from extproc.accounts.model import Key, KeyDelivery
from extproc.errors import StoreError, StoreRefused
from extproc.stores.postgres import Database
from extproc.stores.queries import load_queries

KNOWN_MAX = 20_000  # keys in a process: about 1 KB each
UNKNOWN_MAX = 10_000  # hashes of keys that do not exist: a flood of them must not push out what is known
LOOKUPS_MAX = 4_096  # at once, in Redis, which is where keys in use are found
LOADS_MAX = 256  # … of them in PostgreSQL: a flood of made-up keys gets 503 above it, and who is known does not notice
SHARED_TTL_S = 7 * 86_400  # in Redis; longer than any outage of PostgreSQL that anybody would sit out
SHARED_FRESH_MS = 600_000  # younger than this, what Redis says is not asked of PostgreSQL again
AWAY_S = 5  # after a failure PostgreSQL is left alone for so long: its time-outs would be everybody's latency


RELOADS_MAX = 10_000  # keys that Redis was found to lack and that wait for their next look-up
RELOAD_TTL_S = 60.0
RECALL_S = 300.0  # a key that was verified so long ago may be served on credit while the stores are away (MONEY.md)

Value = TypeVar("Value")


class Commands(Protocol):
    """Redis, as far as this needs it (``stores.pipeline.Pipeline`` is one)."""

    def execute(self, *command: str | bytes | int) -> Awaitable[Any]:
        """One command; ``StoreRefused`` or ``StoreUnknown`` if it did not answer."""


class KeyDeliveries(Protocol):
    """The part of ``holds.port.Delivery`` that a look-up needs."""

    async def put_key(self, payer_id: str, key_id: str, *, version: int, fields: Mapping[str, str]) -> None:
        """Install what ``admit`` enforces of this key."""


class Miss(Enum):
    """``peek``'s third answer."""

    MISS = "miss"


MISS = Miss.MISS


def shared_name(key_hash: bytes) -> str:
    """Where Redis keeps a key's JSON."""
    return f"extproc:key:{key_hash.hex()}"


class KeyStore:
    """Keys in Redis and PostgreSQL: what the directory reads through and the registry writes through."""

    def __init__(self, database: Database, redis: Commands, delivery: KeyDeliveries, *, unix_ms: Callable[[], int]) -> None:
        self.database = database
        self._redis = redis
        self._delivery = delivery
        self.unix_ms = unix_ms
        self._queries = load_queries("extproc.accounts")

    async def shared(self, key_hash: bytes) -> Shared | None:
        """What Redis has."""
        data = await self._redis.execute("GET", shared_name(key_hash))
        return None if data is None else from_json(data)

    async def load(self, key_hash: bytes) -> KeyDelivery | None:
        """What PostgreSQL has. ``None``: there is no such key."""
        rows = await self.database.fetch(self._queries["key_of_hash"], {"hash": key_hash})
        return delivery_of_row(rows[0]) if rows else None

    async def deliver(self, found: KeyDelivery) -> None:
        """Bring a key to Redis: first what is enforced (the newest version wins), then what is known of it.

        Of two deliveries at once the older may write its JSON last; it is read again from PostgreSQL within ten minutes, and what is
        enforced does not come from it.
        """
        key = found.key
        await self._delivery.put_key(key.payer_id, key.id, version=found.version, fields=enforced(found))
        shared = to_json(Shared(key=key, loaded_ms=self.unix_ms()))
        await self._redis.execute("SET", shared_name(found.hash), shared, "EX", SHARED_TTL_S)

    def is_fresh(self, shared: Shared) -> bool:
        return 0 <= self.unix_ms() - shared.loaded_ms < SHARED_FRESH_MS


class Directory:
    """The look-up of one process. ``monotonic_s`` is injected: seconds that only grow."""

    def __init__(self, store: KeyStore, *, monotonic_s: Callable[[], float], known_ttl_s: float = 60, unknown_ttl_s: float = 5) -> None:
        self._store = store
        self._now_s = monotonic_s
        self._known = _Bounded[Key](KNOWN_MAX, ttl_s=known_ttl_s)
        self._unknown = _Bounded[None](UNKNOWN_MAX, ttl_s=unknown_ttl_s)
        self._verified = _Bounded[Key](KNOWN_MAX, ttl_s=RECALL_S)
        self._reload = _Bounded[None](RELOADS_MAX, ttl_s=RELOAD_TTL_S)
        self._asking: dict[bytes, asyncio.Task[Key | None]] = {}
        self._renewing: dict[bytes, asyncio.Task[None]] = {}
        self._loading = 0
        self._away_until_s = 0.0

    def peek(self, secret: str) -> Key | Miss | None:
        """What the process knows, at once: the key, ``None`` (no such key, or not even the shape of one), or ``MISS``."""
        key_hash = hash_of(secret)
        now_s = self._now_s()
        key = self._known.get(key_hash, now_s)
        if not isinstance(key, Miss):
            return key
        if not is_well_formed(secret):
            return None
        return self._unknown.get(key_hash, now_s)

    async def find(self, secret: str) -> Key | None:
        """The key, or ``None``: there is none. :class:`StoreError`: nobody can say."""
        found = self.peek(secret)
        if not isinstance(found, Miss):
            return found
        key_hash = hash_of(secret)
        task = self._asking.get(key_hash)
        if task is None:
            if len(self._asking) >= LOOKUPS_MAX:
                known = self.recall(secret)
                if known is None:
                    raise StoreRefused(f"{LOOKUPS_MAX} keys are being looked up already")
                return known
            task = self._asking[key_hash] = asyncio.create_task(self._ask(key_hash))
            task.add_done_callback(lambda done: self._answered(key_hash, done))
        # A caller who leaves does not take the answer away from the others.
        return await asyncio.shield(task)

    def recall(self, secret: str) -> Key | None:
        """A key that some store has known within the last :data:`RECALL_S`; for when none of them can be asked."""
        key = self._verified.get(hash_of(secret), self._now_s())
        return None if isinstance(key, Miss) else key

    def forget(self, key: str | bytes) -> None:
        """Redis lacks this key (``DenyReason.MISSING``): the next :meth:`find` reads PostgreSQL and installs it again.

        ``key`` is the secret, or its hash.
        """
        key_hash = hash_of(key) if isinstance(key, str) else key
        self._known.drop(key_hash)
        self._verified.drop(key_hash)
        self._unknown.drop(key_hash)
        self._reload.put(key_hash, None, self._now_s())

    async def close(self) -> None:
        """Wait for look-ups under way."""
        await asyncio.gather(*self._asking.values(), *self._renewing.values(), return_exceptions=True)

    async def _ask(self, key_hash: bytes) -> Key | None:
        return self._learn(key_hash, await self._from_stores(key_hash))

    def _learn(self, key_hash: bytes, key: Key | None) -> Key | None:
        if key is None:
            self._known.drop(key_hash)
            self._verified.drop(key_hash)
            self._unknown.put(key_hash, None, self._now_s())
        else:
            self._known.put(key_hash, key, self._now_s())
            self._verified.put(key_hash, key, self._now_s())
        return key

    async def _from_stores(self, key_hash: bytes) -> Key | None:
        if not isinstance(self._reload.get(key_hash, self._now_s()), Miss):
            found = await self._from_postgres(key_hash)
            self._reload.drop(key_hash)
            return found
        shared = await self._shared(key_hash)
        if shared is None:
            return await self._from_postgres(key_hash)
        if not self._store.is_fresh(shared) and key_hash not in self._renewing and len(self._renewing) < LOADS_MAX:
            task = self._renewing[key_hash] = asyncio.create_task(self._renew(key_hash))
            task.add_done_callback(lambda _: self._renewing.pop(key_hash))
        return shared.key

    async def _renew(self, key_hash: bytes) -> None:
        """What PostgreSQL says is in force from then on; while it is away, what was known is."""
        with contextlib.suppress(StoreError):
            self._learn(key_hash, await self._from_postgres(key_hash))

    async def _shared(self, key_hash: bytes) -> Shared | None:
        try:
            return await self._store.shared(key_hash)
        except StoreError:
            return None  # PostgreSQL may still know; admit will say that Redis is away

    async def _from_postgres(self, key_hash: bytes) -> Key | None:
        if self._now_s() < self._away_until_s:
            raise StoreRefused("PostgreSQL was away a moment ago")
        if self._loading >= LOADS_MAX:
            raise StoreRefused(f"{LOADS_MAX} keys are being looked up in PostgreSQL already")
        self._loading += 1
        try:
            found = await self._store.load(key_hash)
        except StoreError:
            self._away_until_s = self._now_s() + AWAY_S
            raise
        finally:
            self._loading -= 1
        if found is None:
            return None
        await self._store.deliver(found)
        return found.key

    def _answered(self, key_hash: bytes, task: asyncio.Task[Key | None]) -> None:
        del self._asking[key_hash]
        if not task.cancelled():
            task.exception()  # every caller may have left: the failure has been seen all the same


class _Bounded(Generic[Value]):
    """The most recently used entries, each for a time. Times are handed in: it has no clock."""

    def __init__(self, size: int, *, ttl_s: float) -> None:
        self._size = size
        self._ttl_s = ttl_s
        self._entries: OrderedDict[bytes, tuple[Value, float]] = OrderedDict()

    def get(self, name: bytes, now_s: float) -> Value | Miss:
        entry = self._entries.get(name)
        if entry is None:
            return MISS
        if entry[1] <= now_s:
            del self._entries[name]
            return MISS
        self._entries.move_to_end(name)
        return entry[0]

    def put(self, name: bytes, value: Value, now_s: float) -> None:
        self._entries[name] = (value, now_s + self._ttl_s)
        self._entries.move_to_end(name)
        if len(self._entries) > self._size:
            self._entries.popitem(last=False)

    def drop(self, name: bytes) -> None:
        self._entries.pop(name, None)
