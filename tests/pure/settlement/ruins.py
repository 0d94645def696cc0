"""A hold store and a ledger in memory, as far as a rebuild meets them: what is refused, what is kept, and how the money stands."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from typing import Any

from extproc.errors import StoreFenced
from extproc.holds.port import KeyState, OpenHold, PayerState, Reassertion, ShardState
from extproc.ledger.port import Cursor, Page, PostedKey, PostedPayer, ShardEpoch
from extproc.money.posting import Posting
from extproc.settlement.pace import Pace

RUN = "a" * 40


def number(epoch: str) -> int:
    return int(epoch.rpartition(".")[2] or 0)


class Clock(Pace):
    """Rests take no time, but the clock moves, and everybody else has a turn."""

    def __init__(self) -> None:
        super().__init__(asyncio.Event(), monotonic_s=lambda: self.now_s, unix_ms=lambda: int(self.now_s * 1_000))
        self.now_s = 0.0
        self.during: Callable[[], object] = lambda: None

    async def rest(self, seconds: float) -> None:
        self.now_s += seconds
        self.during()
        await asyncio.sleep(0)


@dataclass
class Shard:
    epoch: str = ""
    rebuilding: str = ""
    counting: bool = False
    holds: dict[str, OpenHold] = field(default_factory=dict)
    ended: set[str] = field(default_factory=set)
    stream: list[Posting] = field(default_factory=list)
    asserted: set[str] = field(default_factory=set)
    payers: dict[str, PayerState] = field(default_factory=dict)
    keys: dict[str, KeyState] = field(default_factory=dict)


class Ruins:
    """Redis. ``fail`` is called before each call, with its name: it may raise, or do what somebody else does meanwhile."""

    def __init__(self, shards: int) -> None:
        self.run_id = RUN
        self.shards = [Shard() for _ in range(shards)]
        self.fail: Callable[[str], object] = lambda _: None

    def lose(self) -> None:
        """FLUSHALL."""
        self.shards = [Shard() for _ in self.shards]

    async def states(self) -> list[ShardState]:
        self.fail("states")
        return [
            ShardState(shard=number, run_id=self.run_id, epoch=shard.epoch, rebuilding=shard.rebuilding)
            for number, shard in enumerate(self.shards)
        ]

    def _building(self, verb: str, shard: int, epoch: str) -> Shard:
        self.fail(verb)
        found = self.shards[shard]
        if found.rebuilding != epoch:
            raise StoreFenced(f"{verb}: {epoch}, but {found.rebuilding or found.epoch}")
        return found

    async def begin(self, shard: int, *, epoch: str, cursor: str) -> None:
        self.fail("begin")
        found = self.shards[shard]
        if max(number(found.epoch), number(found.rebuilding)) >= number(epoch):
            raise StoreFenced(f"begin: {epoch}, but {found.rebuilding or found.epoch}")
        found.epoch, found.rebuilding, found.counting, found.asserted = "", epoch, False, set()

    async def asserted(self, shard: int, *, epoch: str) -> frozenset[str]:
        return frozenset(self._building("asserted", shard, epoch).asserted)

    async def reassert(
        self, worker_id: str, shard: int, *, epoch: str, holds: Sequence[Reassertion], endings: Sequence[Posting], is_all: bool
    ) -> None:
        found = self._building(f"reassert by {worker_id}", shard, epoch)
        if found.counting:
            raise StoreFenced("counted already")
        for hold in holds:
            if hold.hold_id not in found.ended:
                found.holds.setdefault(hold.hold_id, open_hold(hold))
        for ending in endings:
            found.holds.pop(ending.hold_id, None)
            found.ended.add(ending.hold_id)
            found.stream.append(ending)
        if is_all:
            found.asserted.add(worker_id)

    async def count(self, shard: int, *, epoch: str) -> list[OpenHold]:
        found = self._building("count", shard, epoch)
        found.counting = True
        return list(found.holds.values())

    async def waiting(self, shard: int) -> int:
        self.fail("waiting")
        return len(self.shards[shard].stream)

    async def restore(self, shard: int, *, epoch: str, payers: Sequence[PayerState], keys: Sequence[KeyState]) -> None:
        found = self._building("restore", shard, epoch)
        assert found.counting
        found.payers |= {payer.payer_id: payer for payer in payers}
        found.keys |= {key.key_id: key for key in keys}

    async def open(self, shard: int, *, epoch: str) -> None:
        if self.shards[shard].epoch != epoch:
            found = self._building("open", shard, epoch)
            assert not found.stream, "opened before everything was posted"
            found.epoch, found.rebuilding, found.counting = epoch, "", False

    async def open_holds(self, payer_id: str | None = None) -> list[OpenHold]:
        self.fail("open_holds")
        return [hold for shard in self.shards for hold in shard.holds.values() if payer_id in (None, hold.payer_id)]

    async def trim(self, shard: int, stream_id: str) -> None:
        self.fail("trim")


def open_hold(hold: Reassertion) -> OpenHold:
    return OpenHold(
        hold_id=hold.hold_id,
        payer_id=hold.payer_id,
        key_id=hold.key_id,
        owner=hold.owner,
        state="exact" if hold.is_exact else "entry",
        entry_nanos=hold.entry_nanos,
        reserved_nanos=hold.reserved_nanos,
        checkpoint_nanos=hold.charge_nanos,
        budget_id="",
        period="",
        lease_ms=0,
        created_ms=hold.created_ms,
    )


class Archive:
    """PostgreSQL: balances by payer, one key each; posts what waits in the ruins whenever it is asked to."""

    def __init__(self, ruins: Ruins, payers: Mapping[str, tuple[int, int]], *, page: int = 2) -> None:
        self.ruins = ruins
        self.shard_of = {payer: shard for payer, (shard, _) in payers.items()}
        self.balances = {payer: balance for payer, (_, balance) in payers.items()}
        self.known: dict[int, ShardEpoch] = {}
        self.live: set[str] = set()
        self.booked: dict[str, Posting] = {}
        self.page = page
        self.fail: Callable[[str], object] = lambda _: None

    def post(self) -> None:
        """What the poster does all the time."""
        for shard in self.ruins.shards:
            for event in shard.stream:
                if event.hold_id not in self.booked:
                    self.booked[event.hold_id] = event
                    self.balances[event.payer_id] -= event.charge_nanos
            shard.stream.clear()

    async def epochs(self) -> dict[int, ShardEpoch]:
        self.fail("epochs")
        return dict(self.known)

    async def take(self, servers: Mapping[int, tuple[str, int]]) -> dict[int, str]:
        self.fail("take")
        taken = {}
        for shard, (run_id, above) in servers.items():
            before = self.known[shard].number if shard in self.known else 0
            n = max(before, above) + 1
            taken[shard] = f"{run_id}.{n}"
            self.known[shard] = ShardEpoch(shard=shard, number=n, epoch=taken[shard], is_open=False, is_wanted=False)
        return taken

    async def opened(self, epochs: Mapping[int, str]) -> None:
        self.fail("opened")
        for shard, epoch in epochs.items():
            if self.known[shard].epoch == epoch:
                self.known[shard] = replace(self.known[shard], is_open=True)

    async def want(self, shards: Sequence[int]) -> None:
        self.known |= {shard: replace(self.known[shard], is_wanted=True) for shard in shards}

    async def miss(self, payer_id: str) -> None:
        await self.want([self.shard_of[payer_id]])

    async def workers(self, *, seen_within_s: float) -> frozenset[str]:
        self.fail("workers")
        return frozenset(self.live)

    async def cursors(self, shards: Sequence[int]) -> dict[int, Cursor]:
        self.fail("cursors")
        return {shard: Cursor(shard) for shard in shards}

    async def endings(self, hold_ids: Sequence[str]) -> list[Posting]:
        self.fail("endings")
        return [self.booked[hold] for hold in hold_ids if hold in self.booked]

    @asynccontextmanager
    async def snapshot(self) -> Any:
        self.fail("snapshot")
        yield Frozen(self, dict(self.balances))


class Frozen:
    def __init__(self, archive: Archive, balances: Mapping[str, int]) -> None:
        self._archive = archive
        self._balances = balances

    async def pages(self, after: Mapping[int, str]) -> dict[int, Page]:
        self._archive.fail("pages")
        return {shard: self._page(shard, last) for shard, last in after.items()}

    def _page(self, shard: int, last: str) -> Page:
        of_shard = sorted(payer for payer, its in self._archive.shard_of.items() if its == shard and payer > last)
        some = of_shard[: self._archive.page]
        return Page(
            payers=[self._payer(payer) for payer in some],
            keys=[
                PostedKey(payer_id=payer, key_id=f"key of {payer}", version=1, fields={}, budget_id=f"key of {payer}", spent_nanos={})
                for payer in some
            ],
            after=some[-1] if len(some) == self._archive.page else None,
        )

    def _payer(self, payer: str) -> PostedPayer:
        return PostedPayer(
            payer_id=payer,
            balance_nanos=self._balances[payer],
            version=1,
            credited_total=0,
            credit_nanos=5,
            frozen=False,
            frozen_version=0,
        )
