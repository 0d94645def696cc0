"""Builds a shard of Redis again, from what PostgreSQL has posted and what gate workers hold open.

A shard is broken when its server restarted, was emptied or promoted (its epoch is none, or of another life), when it is open under a lower
number than the ledger has opened since (an old master is back), when a payer is missing from it, or when somebody wants it built. Nobody is
served from it meanwhile: its requests get 503, its endings wait. All broken shards that this settler leads are built together, each on
these steps:

1. ``take``: the next number from PostgreSQL. Whoever still builds or writes under a lower one is refused from ``begin`` on.
2. ``begin``: Redis closes the shard. Holds and events that it has kept stay.
3. The workers tell what they hold open there, and which endings the ledger has not confirmed. One that is silent is not waited for longer
   than :data:`SILENT_S`: what it tells late is taken under the open epoch.
4. Holds that Redis has kept and the ledger knows as ended are taken away: their endings were in what Redis has lost.
5. The poster posts what waits in the stream, to its end.
6. ``count``: from here on nobody may tell anything. What came up to now is posted as well.
7. Of one moment of the ledger: a payer's money is his posted balance less what his open holds have reserved; his keys' budgets likewise.
8. ``open``.

Every wait has an end. A round that fails, or whose leader is killed anywhere, leaves the shard closed, and the next round, here or
elsewhere, starts from the first step with a higher number. What PostgreSQL says of an epoch (rebuilding, open) is for people and for the
next leader; whether a shard serves is told by Redis alone.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Protocol

from extproc.errors import StoreFenced, StoreRefused
from extproc.holds.port import NO_TOKENS, KeyState, OpenHold, PayerState, Reasserting, Rebuilding, ShardState, Tokens
from extproc.ledger.port import START, Epochs, Page, PostedKey, PostedPayer, ShardEpoch
from extproc.money.posting import Posting
from extproc.money.usage import NO_QUOTA
from extproc.settlement.meter import Meter, Series
from extproc.settlement.pace import Pace, keep_doing

LOOK_S: Final = 0.5  # how soon a shard that broke is seen
LEADLESS_S: Final = 0.05  # until the poster leads something: asks nobody
POLL_S: Final = 0.02  # what is awaited is usually there at the first look, or a moment later …
POLL_S_MAX: Final = 0.25  # … and a store that has other work is not hammered
SILENT_S: Final = 15  # a worker that has not been seen for so long is dead, or stopped; and no worker is waited for any longer
UNREGISTERED_S: Final = 0.6  # workers that could not register (PostgreSQL was away) find a closed shard within two of their looks
STUCK_S: Final = 30.0  # nothing more was posted for so long: the round is given up, and the next one begins
RESTORE_ROWS: Final = 200  # payers, or keys, of one call
ENDINGS_BATCH: Final = 200  # of one call
US: Final = "ledger"  # who tells the endings that the ledger knows

Say = Callable[[str], None]


class Builder(Rebuilding, Reasserting, Protocol):
    """What is needed of the hold store."""

    async def open_holds(self, payer_id: str | None = None) -> list[OpenHold]:
        """Pending holds of all shards."""


class Trimming(Protocol):
    """What is needed of the event stream."""

    async def trim(self, shard: int, stream_id: str) -> None:
        """Drop everything up to and including ``stream_id``."""


@dataclass(slots=True)
class _Work:
    """The open holds of one shard, summed by who they are of."""

    epoch: str
    reserved: defaultdict[str, int] = field(default_factory=lambda: defaultdict(int))
    quotas: dict[str, Tokens] = field(default_factory=dict)
    entries: defaultdict[str, int] = field(default_factory=lambda: defaultdict(int))
    of_payer: defaultdict[str, int] = field(default_factory=lambda: defaultdict(int))
    of_key: defaultdict[str, int] = field(default_factory=lambda: defaultdict(int))
    budgets: defaultdict[str, defaultdict[str, int]] = field(default_factory=lambda: defaultdict(lambda: defaultdict(int)))

    def add(self, hold: OpenHold) -> None:
        self.of_payer[hold.payer_id] += 1
        self.of_key[hold.key_id] += 1
        self.reserved[hold.payer_id] += hold.reserved_nanos
        self.entries[hold.payer_id] += hold.entry_nanos
        if hold.quota is not NO_QUOTA:
            held = self.quotas.get(hold.payer_id, NO_TOKENS)
            self.quotas[hold.payer_id] = Tokens(held.input + hold.quota.input_tokens, held.output + hold.quota.output_tokens)
        if hold.period:
            self.budgets[hold.budget_id or hold.key_id][hold.period] += hold.reserved_nanos

    def payer(self, posted: PostedPayer) -> PayerState:
        held, tokens = self.reserved[posted.payer_id], self.quotas.get(posted.payer_id, NO_TOKENS)
        return PayerState(
            payer_id=posted.payer_id,
            version=posted.version,
            total_nanos=posted.credited_total,
            credit_nanos=posted.credit_nanos,
            spendable_nanos=posted.balance_nanos + posted.credit_nanos - held,
            held_nanos=held,
            entry_held_nanos=self.entries[posted.payer_id],
            open_holds=self.of_payer[posted.payer_id],
            frozen=posted.frozen,
            frozen_version=posted.frozen_version,
            free=Tokens(posted.free_input - tokens.input, posted.free_output - tokens.output),
            held=tokens,
            total=Tokens(posted.credited_input, posted.credited_output),
        )

    def key(self, posted: PostedKey) -> KeyState:
        return KeyState(
            payer_id=posted.payer_id,
            key_id=posted.key_id,
            version=posted.version,
            fields=posted.fields,
            open_holds=self.of_key[posted.key_id],
            budget_id=posted.budget_id,
            spent_nanos=posted.spent_nanos,
            held_nanos=dict(self.budgets[posted.budget_id]),
        )


class Rebuild:
    """``led``: the shards that this settler posts, so that their streams run dry. ``say`` tells a human how far it is."""

    def __init__(
        self,
        *,
        holds: Builder,
        epochs: Epochs,
        stream: Trimming,
        led: Callable[[], frozenset[int]],
        meter: Meter,
        pace: Pace,
        say: Say,
    ) -> None:
        self._holds = holds
        self._epochs = epochs
        self._stream = stream
        self._led = led
        self._meter = meter
        self._pace = pace
        self._say = say

    async def run(self) -> None:
        """Until the pace is over."""
        await keep_doing(self.step, pace=self._pace, meter=self._meter, failures=Series.REBUILD_FAILURES)

    async def step(self) -> float:
        """Look, and build what is broken; how long to rest. :class:`StoreError`: what is not open is begun anew by the next step."""
        led = self._led()
        if not led:
            return LEADLESS_S
        states, known = await asyncio.gather(self._holds.states(), self._epochs.epochs())
        ours = [state for state in states if state.shard in led]
        broken = [state for state in ours if is_broken(state, known.get(state.shard))]
        if broken:
            await self._build(broken, known)
            return 0
        late = {state.shard: state.epoch for state in ours if not known[state.shard].is_open}
        if late:  # a leader was killed between opening them and saying so
            await self._epochs.opened(late)
        return LOOK_S

    async def _build(self, broken: Sequence[ShardState], known: Mapping[int, ShardEpoch]) -> None:
        began_s = self._pace.monotonic_s()
        shards = [state.shard for state in broken]
        self._say(f"rebuilding {_named(shards)}")
        try:
            await self._rebuild(broken, known)
        except StoreFenced as error:
            self._say(f"given up, somebody else has begun, or Redis was lost again: {error}")
            self._meter.add(Series.REBUILD_FAILURES)
            await self._pace.rest(POLL_S_MAX)
            return
        took_ms = int(1_000 * (self._pace.monotonic_s() - began_s))
        self._say(f"open again after {took_ms} ms: {_named(shards)}")
        self._meter.add(Series.REBUILDS, len(shards))
        self._meter.set(Series.REBUILD_MS, took_ms)

    async def _rebuild(self, broken: Sequence[ShardState], known: Mapping[int, ShardEpoch]) -> None:
        shards = [state.shard for state in broken]
        epochs, cursors = await asyncio.gather(
            self._epochs.take({state.shard: (state.run_id, number_of(state)) for state in broken}),
            self._epochs.cursors(shards),
        )
        await _each(epochs, lambda shard, epoch: self._holds.begin(shard, epoch=epoch, cursor=cursors[shard].stream_id))
        if any(shard in known for shard in shards):  # else nobody was ever served from them, and has nothing to tell
            await self._hear(epochs)
        await self._take_away_ended(epochs)
        await self._run_dry(shards)
        counted = await _each(epochs, lambda shard, epoch: self._holds.count(shard, epoch=epoch))
        await self._run_dry(shards)
        await self._restore(epochs, counted)

    # 3: what workers tell

    async def _hear(self, epochs: Mapping[int, str]) -> None:
        """Until everybody who lives has said all."""
        began_s = self._pace.monotonic_s()
        poll_s, told = POLL_S, 0
        while True:
            waited_s = self._pace.monotonic_s() - began_s
            workers, heard = await asyncio.gather(
                self._epochs.workers(seen_within_s=SILENT_S),
                _each(epochs, lambda shard, epoch: self._holds.asserted(shard, epoch=epoch)),
            )
            missing = workers - frozenset.intersection(*heard.values())
            if not missing and (workers or waited_s >= UNREGISTERED_S):
                return
            if waited_s >= SILENT_S:
                self._say(f"not waiting any longer for {len(missing)} gate workers that are silent")
                self._meter.add(Series.SILENT_WORKERS, len(missing))
                return
            if len(missing) != told:
                told = len(missing)
                self._say(f"waiting for {told} of {len(workers)} gate workers to say what they hold open")
            await self._rest(poll_s)
            poll_s = min(2 * poll_s, POLL_S_MAX)

    # 4: what the ledger knows better

    async def _take_away_ended(self, epochs: Mapping[int, str]) -> None:
        kept = [hold.hold_id for hold in await self._holds.open_holds()]
        if not kept:
            return
        by_shard: defaultdict[int, list[Posting]] = defaultdict(list)
        for ending in await self._epochs.endings(kept):
            if ending.shard in epochs:
                by_shard[ending.shard].append(ending)
        for shard, endings in by_shard.items():
            for start in range(0, len(endings), ENDINGS_BATCH):
                batch = endings[start : start + ENDINGS_BATCH]
                await self._holds.reassert(US, shard, epoch=epochs[shard], holds=(), endings=batch, is_all=False)

    # 5, 6: what waits in the streams

    async def _run_dry(self, shards: Sequence[int]) -> None:
        """Until the ledger has all of it. :class:`StoreRefused`: nothing was posted for long."""
        poll_s, least, moved_s, told = POLL_S, -1, self._pace.monotonic_s(), False
        while waiting := sum(await asyncio.gather(*(self._holds.waiting(shard) for shard in shards))):
            now_s = self._pace.monotonic_s()
            if least < 0 or waiting < least:
                least, moved_s = waiting, now_s
            if now_s - moved_s > STUCK_S:
                raise StoreRefused(f"{waiting} events are not posted, and for {STUCK_S:.0f} s none was")
            if poll_s == POLL_S_MAX and not told:
                told = True
                self._say(f"waiting for {waiting} events to be posted")
            # A server that is back with older data has again what was posted before: the poster, behind its cursor, never meets it.
            for shard, cursor in (await self._epochs.cursors(shards)).items():
                if cursor.stream_id != START:
                    await self._stream.trim(shard, cursor.stream_id)
            await self._rest(poll_s)
            poll_s = min(2 * poll_s, POLL_S_MAX)

    # 7, 8: what they are to be

    async def _restore(self, epochs: Mapping[int, str], counted: Mapping[int, Iterable[OpenHold]]) -> None:
        works = {shard: _Work(epoch=epoch) for shard, epoch in epochs.items()}
        for shard, holds in counted.items():
            for hold in holds:
                works[shard].add(hold)
        payers = 0
        async with self._epochs.snapshot() as snapshot:
            pages = await snapshot.pages(dict.fromkeys(works, ""))
            while pages:
                after = {shard: page.after for shard, page in pages.items() if page.after is not None}
                writing = asyncio.gather(*(self._write(shard, works[shard], page) for shard, page in pages.items()))
                payers += sum(len(page.payers) for page in pages.values())
                try:
                    pages = await snapshot.pages(after) if after else {}  # the next ones are read while these are written
                finally:
                    await writing
                self._say(f"{payers} accounts written")
        await self._epochs.opened(epochs)

    async def _write(self, shard: int, work: _Work, page: Page) -> None:
        """One page; behind the last one the shard opens."""
        payers, keys = [work.payer(payer) for payer in page.payers], [work.key(key) for key in page.keys]
        for start in range(0, max(len(payers), len(keys)), RESTORE_ROWS):
            end = start + RESTORE_ROWS
            await self._holds.restore(shard, epoch=work.epoch, payers=payers[start:end], keys=keys[start:end])
        if page.after is None:
            await self._holds.open(shard, epoch=work.epoch)

    async def _rest(self, seconds: float) -> None:
        await self._pace.rest(seconds)
        if self._pace.is_over:
            raise StoreRefused("the settler leaves; the next one begins anew")


def is_broken(state: ShardState, known: ShardEpoch | None) -> bool:
    """Not serving, or not as PostgreSQL has it: somebody took a higher number and did not come to its end, or did so elsewhere, or wants
    one.
    """
    if known is None or not state.is_open:
        return True
    return known.is_wanted or (not known.is_open and known.epoch != state.epoch) or is_superseded(state, known)


def is_superseded(state: ShardState, known: ShardEpoch) -> bool:
    """It serves under a number that the ledger has left behind: an old master, which has a successor and does not know it."""
    return state.is_open and known.is_open and _number(known.epoch) > _number(state.epoch)


def number_of(state: ShardState) -> int:
    """The highest number that Redis knows of this shard: a ledger that failed over to an older standby may have forgotten it."""
    return max(_number(state.epoch), _number(state.rebuilding))


def _number(epoch: str) -> int:
    number = epoch.rpartition(".")[2]
    return int(number) if number.isascii() and number.isdigit() else 0


async def _each(epochs: Mapping[int, str], call: Callable[[int, str], Awaitable[Any]]) -> dict[int, Any]:
    """One call a shard, in one write."""
    results = await asyncio.gather(*(call(shard, epoch) for shard, epoch in epochs.items()))
    return dict(zip(epochs, results, strict=True))


def _named(shards: Collection[int]) -> str:
    return f"{len(shards)} shards" if len(shards) > 3 else f"shard {', '.join(map(str, sorted(shards)))}"
