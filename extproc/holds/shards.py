"""The lives of shards in Redis: what each of them is known to be, and how one is rebuilt. Keys: docstring of ``extproc/holds/redis.py``."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

from extproc.errors import StoreFenced
from extproc.holds.epochs import Epochs, Told
from extproc.holds.port import KeyState, OpenHold, PayerState, Reassertion, ShardState, Tokens
from extproc.holds.words import quota_of, tokens_word
from extproc.money.amount import BALANCE_NANOS_MAX
from extproc.money.posting import Posting
from extproc.stores.pipeline import Client
from extproc.stores.scripts import load_scripts
from extproc.stores.shards import TAGS

log = logging.getLogger(__name__)

HOLD_AGE_MS_MAX: Final = 4 * 3_600_000  # longer than any stream: what a live worker leaks ends all the same
LIST_BATCH: Final = 512  # holds of one page of a list
ASSERT_BATCH: Final = 64  # holds or endings of one script: 2 ms of a server that everybody waits for
RESTORE_BATCH: Final = 256  # payers, keys or budgets of one script, likewise
DAY_MS: Final = 86_400_000
FORGET_MS: Final = {len("2026-01-31"): 2 * DAY_MS, len("2026-01"): 32 * DAY_MS}  # a budget's span, and a day; "all" is kept

Words = list[str | bytes | int]


class RedisShards:
    """The ports Reasserting and Rebuilding. Calls of a rebuild carry the epoch that they build, whatever is known of the shard."""

    def __init__(self, pipeline: Client, *, lease_ms: int) -> None:
        self._pipeline = pipeline
        self._scripts = load_scripts("extproc.holds.lua")
        self._lease_ms = lease_ms
        self._epochs = Epochs(pipeline)
        pipeline.register(self._scripts.values())
        pipeline.listen(self._epochs)

    @property
    def closed(self) -> frozenset[int]:
        """Shards that are not called: nobody has looked yet, or they have to be rebuilt."""
        return self._epochs.closed

    @property
    def lives(self) -> int:
        """Another number: a shard may have lost what it was told."""
        return self._epochs.lives

    async def states(self) -> list[ShardState]:
        return await self._epochs.states()

    async def watch(self, *told: Told) -> None:
        """A task for every process that lives on: looks for ever, and tells each time what it has seen (nothing: no server answers)."""
        await self._epochs.watch(*told)

    # --- Reasserting

    async def reassert(
        self, worker_id: str, shard: int, *, epoch: str, holds: Sequence[Reassertion], endings: Sequence[Posting], is_all: bool
    ) -> None:
        parts = [
            *((holds[start : start + ASSERT_BATCH], ()) for start in range(0, len(holds), ASSERT_BATCH)),
            *(((), endings[start : start + ASSERT_BATCH]) for start in range(0, len(endings), ASSERT_BATCH)),
        ] or [((), ())]
        refused = 0
        for number, (some_holds, some_endings) in enumerate(parts, 1):
            worker = worker_id if is_all and number == len(parts) else ""
            args: Words = [epoch, worker, self._lease_ms, HOLD_AGE_MS_MAX, len(some_holds)]
            args += (word for hold in some_holds for word in _asserted(hold))
            args += (word for ending in some_endings for word in _ended(ending))
            refused += await self._pipeline.call(self._scripts["reassert"], TAGS[shard], args)
        if refused:
            log.error("shard %d is open and lacks payer or key of %d holds that are reasserted", shard, refused)

    # --- Rebuilding

    async def begin(self, shard: int, *, epoch: str, cursor: str) -> None:
        await self._build("begin", shard, epoch, cursor)

    async def asserted(self, shard: int, *, epoch: str) -> frozenset[str]:
        workers, building = await asyncio.gather(
            self._pipeline.execute("SMEMBERS", f"{TAGS[shard]}:asserted"),
            self._pipeline.execute("HGET", f"{TAGS[shard]}:shard", "rebuilding"),
        )
        if building != epoch.encode():
            raise StoreFenced(f"shard {shard} is not being built as {epoch} any more")
        return frozenset(worker.decode() for worker in workers)

    async def count(self, shard: int, *, epoch: str) -> list[OpenHold]:
        await self._build("count", shard, epoch)
        return await self._holds_of(shard)

    async def waiting(self, shard: int) -> int:
        return int(await self._pipeline.execute("XLEN", f"{TAGS[shard]}:events"))

    async def restore(self, shard: int, *, epoch: str, payers: Sequence[PayerState], keys: Sequence[KeyState]) -> None:
        hashes = [_payer(payer) for payer in payers]
        hashes += (words for key in keys for words in (_key(key), *_budgets(key)))
        for start in range(0, len(hashes), RESTORE_BATCH):
            await self._build("restore", shard, epoch, *(word for words in hashes[start : start + RESTORE_BATCH] for word in words))

    async def open(self, shard: int, *, epoch: str) -> None:
        await self._build("open", shard, epoch)

    async def _build(self, verb: str, shard: int, *args: str | bytes | int) -> None:
        await self._pipeline.call(self._scripts[verb], TAGS[shard], args)

    async def _holds_of(self, shard: int) -> list[OpenHold]:
        tag = TAGS[shard]
        found: list[OpenHold] = []
        start = 0
        while leases := await self._pipeline.execute("ZRANGE", f"{tag}:leases", start, start + LIST_BATCH - 1, "WITHSCORES"):
            pairs = list(zip(leases[::2], leases[1::2], strict=True))
            fields = ("payer", "key", "owner", "state", "entry", "reserved", "checkpoint", "budget", "period", "created", "free")
            holds = await asyncio.gather(*(self._pipeline.execute("HMGET", f"{tag}:hold:{hold.decode()}", *fields) for hold, _ in pairs))
            found += (_open_hold(hold, lease, values) for (hold, lease), values in zip(pairs, holds, strict=True) if values[0] is not None)
            start += LIST_BATCH
        return found


def amount(nanos: int) -> int:
    """In the range in which no sum in a script can leave int64: checked before anything is sent, since scripts do not roll back."""
    assert 0 <= nanos <= BALANCE_NANOS_MAX, nanos
    return nanos


def _asserted(hold: Reassertion) -> Words:
    return [
        hold.hold_id,
        hold.owner,
        hold.payer_id,
        hold.key_id,
        "exact" if hold.is_exact else "entry",
        amount(hold.entry_nanos),
        amount(hold.reserved_nanos),
        amount(hold.cap_nanos),
        amount(hold.charge_nanos),
        hold.tokens,
        hold.row,
        hold.created_ms,
        tokens_word(hold.quota),
        tokens_word(hold.used),
    ]


def _ended(ending: Posting) -> Words:
    return [
        ending.kind,
        ending.hold_id,
        ending.payer_id,
        ending.key_id,
        amount(ending.charge_nanos),
        amount(ending.reserved_nanos),
        ending.occurred_ms,
        ending.row,
        f"{ending.free_input}:{ending.free_output}",
    ]


def _hash(name: str, fields: Mapping[str, str | int], *, forget_ms: int | None = None) -> Words:
    """One hash, as the script ``restore`` reads it."""
    words: Words = [word for field in fields.items() for word in field]
    return [name, "" if forget_ms is None else forget_ms, len(words), *words]


def _payer(payer: PayerState) -> Words:
    fields: dict[str, str | int] = {
        "version": payer.version,
        "total": payer.total_nanos,
        "spendable": payer.spendable_nanos,
        "credit": payer.credit_nanos,
        "held": payer.held_nanos,
        "entry_held": payer.entry_held_nanos,
        "open": payer.open_holds,
        "frozen": int(payer.frozen),
        "frozen_version": payer.frozen_version,
        **tokens_fields(free=payer.free, held=payer.held, total=payer.total),
    }
    return _hash(f":payer:{payer.payer_id}", fields)


def tokens_fields(**named: Tokens) -> dict[str, int]:
    """Fields of a payer's hash; none, if he never had free tokens."""
    if not any(map(any, named.values())):
        return {}
    fields = {f"{name}_{what}": number for name, both in named.items() for what, number in both._asdict().items()}
    assert max(map(abs, fields.values())) <= BALANCE_NANOS_MAX
    return fields


def _key(key: KeyState) -> Words:
    return _hash(f":key:{key.payer_id}:{key.key_id}", {"version": key.version, **key.fields, "open": key.open_holds})


def _budgets(key: KeyState) -> Iterator[Words]:
    for span in key.spent_nanos.keys() | key.held_nanos.keys():
        held = key.held_nanos.get(span, 0)
        fields = {"used": key.spent_nanos.get(span, 0) + held, "held": held}
        yield _hash(f":budget:{key.payer_id}:{key.budget_id or key.key_id}:{span}", fields, forget_ms=FORGET_MS.get(len(span)))


def _open_hold(hold_id: bytes, lease: bytes, values: list[Any]) -> OpenHold:
    payer, key, owner, state, entry, reserved, checkpoint, budget, period, created, free = values
    return OpenHold(
        hold_id=hold_id.decode(),
        payer_id=payer.decode(),
        key_id=key.decode(),
        owner=owner.decode(),
        state=state.decode(),
        entry_nanos=int(entry),
        reserved_nanos=int(reserved),
        checkpoint_nanos=int(checkpoint),
        budget_id=(budget or b"").decode(),
        period=(period or b"").decode(),
        lease_ms=int(lease),
        created_ms=int(created),
        quota=quota_of(free),
    )
