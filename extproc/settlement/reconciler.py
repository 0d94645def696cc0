"""Who reads the facts for the checks of ``invariants``, and when: a little all the time, everything every night, or when an operator asks.

Nothing is stopped, locked or corrected. Both stores are read one after the other; what lies between is accounted for (:class:`Moment`), and
what seems wrong is looked at again, :data:`LOOKS` times, before it is said.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Final, Protocol
from zoneinfo import ZoneInfo

from extproc.holds.facts import HoldFactsReader, ShardFacts
from extproc.ledger.facts import FIRST_ID, LedgerFactsReader, Mark, Run
from extproc.ledger.port import Leadership
from extproc.settlement.invariants import (
    Finding,
    Moment,
    balance_is_its_entries,
    conflicts_are_resolved,
    nothing_is_orphaned,
    of_event,
    of_moment,
    violations_are_known,
)
from extproc.settlement.meter import Meter, Series
from extproc.settlement.pace import Pace, keep_doing

LOOKS: Final = 3  # a fault of the stores stays, one of our looking does not
LOOK_AGAIN_S: Final = 2.0  # long enough for a batch to be posted, a lease to be reaped
RETRIES: Final = 3  # of one look, when the poster came between the two stores
ROUND_S: Final = 5.0
EVENTS_A_ROUND: Final = 1_000  # 30 ms of both sides; busier hours are left to the night
EVENTS_A_PAGE: Final = 1_000
SHARDS_A_ROUND: Final = 8  # all of them in less than a minute
PAYERS_A_LOOK: Final = 50
ACTIVE_MAX: Final = 1_000  # payers of a shard that wait for a look; more are left to the night
ACCOUNTS_A_PAGE: Final = 500
LINES_A_ROUND: Final = 20_000  # entries summed for one account between two nights
BEHIND_S: Final = 60.0  # events booked longer ago are left to the night
LAST_ID: Final = "ffffffff-ffff-ffff-ffff-ffffffffffff"
PHASES: Final = ("events", "accounts", "outboxes", "notes")
LEADER_CHECK_S: Final = 30.0
MONEY: Final = (3, 5)  # invariants that need a comparable moment


class Findings(Protocol):
    """What is remembered."""

    async def record(self, findings: Sequence[Mapping[str, Any]], *, whole: Sequence[Mapping[str, Any]] = ()) -> None:
        """Keep these; ``whole`` are over."""

    async def standing(self) -> dict[int, tuple[int, int]]:
        """Invariant → number of findings, drift in nanos."""

    async def last_run(self) -> Run | None:
        """The newest full run, finished or not."""

    async def last_finished_ms(self) -> int | None:
        """When one was finished."""

    async def begin_run(self) -> Run:
        """A new one."""

    async def advance_run(self, run_id: int, *, phase: str, after: str, looked_at: int, findings: int) -> None:
        """A step of it is done."""

    async def finish_run(self, run: Run) -> None:
        """It is done; what it did not find again is over."""


class Alarm(Protocol):
    """Where findings and figures go."""

    def found(self, finding: Finding) -> None:
        """An invariant is broken."""

    def standing(self, findings: Mapping[int, tuple[int, int]]) -> None:
        """Invariant → number of findings, drift in nanos."""

    def reconciled(self, finished_ms: int) -> None:
        """A full run was finished then."""

    def holds(self, count: int, oldest_age_ms: int) -> None:
        """Open holds of all shards."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """A piece of a run. ``after``: where its phase goes on."""

    phase: str
    after: str
    looked_at: int
    findings: tuple[Finding, ...]


class Auditor:
    """Reads and checks. ``shard_of`` names the shard of a payer, ``rest`` waits so many seconds, ``outboxes`` reads those of this host."""

    def __init__(
        self,
        *,
        ledger: LedgerFactsReader,
        holds: HoldFactsReader,
        shard_of: Callable[[str], int],
        grace_ms: int,
        rest: Callable[[float], Awaitable[None]],
        outboxes: Callable[[], AsyncIterator[tuple[int, list[Finding]]]],
    ) -> None:
        self._ledger = ledger
        self._holds = holds
        self._shard_of = shard_of
        self._grace_ms = grace_ms
        self._rest = rest
        self._outboxes = outboxes

    async def look(self, shard: int, payers: Sequence[str]) -> Moment:
        """Both stores, the ledger first; again, if the poster came between them."""
        for _ in range(RETRIES):
            money = await self._ledger.shard_money(shard, payers)
            redis = await self._holds.shard(shard, cursor=money.cursor.stream_id, payers=payers, keys=money.keys)
            moment = Moment(ledger=money, redis=redis, grace_ms=self._grace_ms)
            if moment.is_comparable:
                break
        below = [payer for payer, facts in redis.payers.items() if facts is not None and facts.spendable_nanos < 0]
        if not below:
            return moment
        return Moment(ledger=money, redis=redis, grace_ms=self._grace_ms, excused=await self._ledger.named_causes(below))

    async def shard(self, shard: int, payers: Sequence[str]) -> tuple[list[Finding], Moment]:
        """What is wrong with a shard and these payers of it, in every one of several looks; the last of them."""
        moment = await self.look(shard, payers)
        found = of_moment(moment)
        for _ in range(LOOKS - 1):
            if not found:
                break
            await self._rest(LOOK_AGAIN_S)
            before, moment = found, await self.look(shard, payers)
            found = [finding for finding in of_moment(moment) if any(finding.is_like(other) for other in before)]
        return found, moment

    async def balances(self, payers: Sequence[str], *, lines_max: int | None) -> list[Finding]:
        """Invariant 2 of these accounts."""
        sums = await self._ledger.sums(payers, lines_max=lines_max) if payers else []
        return [finding for one in sums for finding in balance_is_its_entries(one)]

    async def everything(self, phase: str = PHASES[0], after: str = "", *, since: str) -> AsyncIterator[Step]:
        """All events, accounts and notes of the poster, from there on. ``since``: of violations."""
        phases: dict[str, Callable[[str], AsyncIterator[Step]]] = {
            "events": self._events,
            "accounts": self._accounts,
            "outboxes": lambda _: self._outboxes_of_host(),
            "notes": lambda _: self._notes(since),
        }
        for name in PHASES[PHASES.index(phase) :]:
            async for step in phases[name](after):
                yield step
            after = ""

    async def account(self, payer: str) -> AsyncIterator[Step]:
        """One account: its events, its sums, its shard."""
        mark = Mark(moment="-infinity")
        while events := await self._ledger.events_by_time(mark, limit=EVENTS_A_PAGE, payer=payer):
            mark = Mark(moment=events[-1].event["created_at"], after=events[-1].id)
            found = [finding for one in events for finding in of_event(one)]
            yield Step(phase="events", after=events[-1].id, looked_at=len(events), findings=tuple(found))
        found = await self.balances([payer], lines_max=None) + (await self.shard(self._shard_of(payer), [payer]))[0]
        found = [finding for finding in found if finding.account in ("", payer)]
        yield Step(phase="accounts", after=payer, looked_at=1, findings=tuple(found))

    async def _events(self, after: str) -> AsyncIterator[Step]:
        after = after or FIRST_ID
        while events := await self._ledger.events_by_id(after, limit=EVENTS_A_PAGE):
            found = [finding for one in events for finding in of_event(one)]
            found += await self._orphans(after, events[-1].id)
            after = events[-1].id
            yield Step(phase="events", after=after, looked_at=len(events), findings=tuple(found))
        yield Step(phase="events", after=after, looked_at=0, findings=tuple(await self._orphans(after, LAST_ID)))

    async def _orphans(self, after: str, last: str) -> list[Finding]:
        """Of one moment, so what was booked after the events were read has its event too."""
        return [finding for orphan in await self._ledger.orphans(after, last) for finding in nothing_is_orphaned(orphan)]

    async def _accounts(self, after: str) -> AsyncIterator[Step]:
        while payers := await self._ledger.accounts(after or FIRST_ID, limit=ACCOUNTS_A_PAGE):
            found = await self.balances(payers, lines_max=None)
            for shard, its_payers in self._by_shard(payers).items():
                found += (await self.shard(shard, its_payers))[0]
            after = payers[-1]
            yield Step(phase="accounts", after=after, looked_at=len(payers), findings=tuple(found))

    async def _outboxes_of_host(self) -> AsyncIterator[Step]:
        async for looked_at, found in self._outboxes():
            yield Step(phase="outboxes", after="", looked_at=looked_at, findings=tuple(found))

    async def _notes(self, since: str) -> AsyncIterator[Step]:
        conflicts, violations = await self._ledger.conflicts(), await self._ledger.violations(since)
        found = [finding for row in conflicts for finding in conflicts_are_resolved(row)]
        found += [finding for row in violations for finding in violations_are_known(row)]
        yield Step(phase="notes", after="", looked_at=len(conflicts) + len(violations), findings=tuple(found))

    def _by_shard(self, payers: Iterable[str]) -> dict[int, list[str]]:
        by_shard: dict[int, list[str]] = defaultdict(list)
        for payer in payers:
            by_shard[self._shard_of(payer)].append(payer)
        return by_shard


class Reconciler:
    """``run`` is the settler's loop: one settler at a time, a round of bounded work every few seconds, and the run of the night."""

    def __init__(
        self,
        *,
        auditor: Auditor,
        ledger: LedgerFactsReader,
        holds: HoldFactsReader,
        findings: Findings,
        leadership: Leadership,
        shard_of: Callable[[str], int],
        shards: int,
        alarm: Alarm,
        meter: Meter,
        pace: Pace,
        full_at: str = "03:30",
        time_zone: str = "Etc/UTC",
    ) -> None:
        self._auditor = auditor
        self._ledger = ledger
        self._holds = holds
        self._findings = findings
        self._leadership = leadership
        self._shard_of = shard_of
        self._shards = shards
        self._alarm = alarm
        self._meter = meter
        self._pace = pace
        self._full_at = full_at
        self._time_zone = time_zone
        self._started_ms = pace.unix_ms()
        self._mark = Mark(moment=moment_of(self._started_ms))
        self._active: dict[int, dict[str, None]] = {shard: {} for shard in range(shards)}
        self._said: dict[int, dict[tuple[int, str, str], Finding]] = {}
        self._oldest_ms: dict[int, int] = {}
        self._next_shard = 0
        self._night: AsyncIterator[Step] | None = None
        self._run: Run | None = None

    async def run(self) -> None:
        """Until the pace is over."""
        try:
            await keep_doing(self.step, pace=self._pace, meter=self._meter, failures=Series.RECONCILE_FAILURES)
        finally:
            await self._leadership.release()

    async def step(self) -> float:
        """One round; how long to rest. At night a page of the full run comes with it, and as much rest as it took."""
        if not await self._leads():
            return LEADER_CHECK_S
        began_s = self._pace.monotonic_s()
        try:
            if self._night is None:
                await self._round()
                await self._begin_night()
                return ROUND_S
            await self._night_step(self._night)
        except BaseException:
            self._night = None  # taken up again from where PostgreSQL has it
            raise
        return self._pace.monotonic_s() - began_s

    async def _leads(self) -> bool:
        held = await self._leadership.held()
        if not held:
            self._night = None
            self._alarm.standing({})
        return bool(held)

    # --- all the time

    async def _round(self) -> None:
        found = await self._booked_lately()
        for _ in range(SHARDS_A_ROUND):
            found += await self._next()
        await self._say(found)
        oldest_ms = min(self._oldest_ms.values(), default=0)
        age_ms = max(0, self._pace.unix_ms() - oldest_ms) if oldest_ms else 0
        self._alarm.holds(await self._holds.open_holds(), age_ms)
        self._alarm.standing(await self._findings.standing())
        finished_ms = await self._findings.last_finished_ms()
        if finished_ms:
            self._alarm.reconciled(finished_ms)

    async def _booked_lately(self) -> list[Finding]:
        """Check the newest events; whom they are of is active."""
        events = await self._ledger.events_by_time(self._mark, limit=EVENTS_A_ROUND)
        if events:
            self._mark = Mark(moment=events[-1].event["created_at"], after=events[-1].id)
        behind_ms = self._pace.unix_ms() - _unix_ms(self._mark.moment)
        if len(events) == EVENTS_A_ROUND and behind_ms > BEHIND_S * 1_000:
            self._mark = Mark(moment=moment_of(self._pace.unix_ms() - int(ROUND_S * 1_000)))
        for one in events:
            self._is_active(one.account)
        return [finding for one in events for finding in of_event(one)]

    def _is_active(self, payer: str) -> None:
        waiting = self._active[self._shard_of(payer)]
        if len(waiting) < ACTIVE_MAX:
            waiting[payer] = None

    async def _next(self) -> list[Finding]:
        """The next shard in turn, with its active payers and those of whom something was said."""
        shard = self._next_shard
        self._next_shard = (shard + 1) % self._shards
        said = self._said.get(shard, {})
        payers = [*dict.fromkeys([*list(self._active[shard])[:PAYERS_A_LOOK], *(one.account for one in said.values() if one.account)])]
        found, moment = await self._auditor.shard(shard, payers)
        found += await self._auditor.balances(payers, lines_max=LINES_A_ROUND)
        self._note_active(shard, payers, moment.redis)
        unseen = () if moment.is_comparable else MONEY
        places = {finding.place for finding in found}
        over = [one for place, one in said.items() if place not in places and one.invariant not in unseen]
        if over:
            await self._findings.record([], whole=[_row(one) for one in over])
        kept = {place: one for place, one in said.items() if one.invariant in unseen}
        self._said[shard] = kept | {finding.place: finding for finding in found}
        return [finding for finding in found if finding.place not in said]

    def _note_active(self, shard: int, looked_at: Sequence[str], redis: ShardFacts) -> None:
        """Who was looked at waits no more; who holds something is looked at next time."""
        for payer in looked_at:
            self._active[shard].pop(payer, None)
        for hold in redis.holds[:PAYERS_A_LOOK]:
            self._is_active(hold.payer_id)
        self._oldest_ms.pop(shard, None)
        if redis.holds:
            ahead_ms = redis.now_ms - self._pace.unix_ms()
            self._oldest_ms[shard] = min(hold.created_ms for hold in redis.holds) - ahead_ms

    async def _say(self, found: Sequence[Finding]) -> None:
        if found:
            await self._findings.record([_row(finding) for finding in found])
        for finding in found:
            self._alarm.found(finding)

    # --- at night

    async def _begin_night(self) -> None:
        """A run that was cut off goes on; a new one begins when its time has come."""
        last = await self._findings.last_run()
        due_ms = last_due_ms(self._pace.unix_ms(), self._full_at, self._time_zone)
        if last is None or last.finished_ms is not None:
            if due_ms <= (last.started_ms if last else self._started_ms):
                return
            last = await self._findings.begin_run()
        self._run = last
        since = moment_of(last.started_ms - 24 * 3_600_000)
        self._night = self._auditor.everything(last.phase, last.after, since=since)

    async def _night_step(self, night: AsyncIterator[Step]) -> None:
        run = self._run
        assert run is not None
        step = await anext(night, None)
        if step is None:
            await self._findings.finish_run(run)
            self._night = self._run = None
            return
        await self._say(step.findings)
        place = {"phase": step.phase, "after": step.after}
        await self._findings.advance_run(run.id, **place, looked_at=step.looked_at, findings=len(step.findings))


def last_due_ms(now_ms: int, at: str, zone: str) -> int:
    """When the time of day ``at`` (``"03:30"``) was last in that zone, unix ms."""
    hour, _, minute = at.partition(":")
    now = datetime.fromtimestamp(now_ms / 1_000, ZoneInfo(zone))
    due = now.replace(hour=int(hour), minute=int(minute), second=0, microsecond=0)
    if due.timestamp() * 1_000 > now_ms:
        due = (due - timedelta(days=1)).replace(fold=0)
    return int(due.timestamp() * 1_000)


def _row(finding: Finding) -> dict[str, Any]:
    return {
        "invariant": finding.invariant,
        "what": finding.what,
        "subject": finding.subject,
        "account": finding.account,
        "expected": finding.expected,
        "found": finding.found,
        "drift_nanos": finding.drift_nanos,
    }


def moment_of(unix_ms: int) -> str:
    """As PostgreSQL reads it."""
    return (datetime(1970, 1, 1, tzinfo=UTC) + timedelta(milliseconds=unix_ms)).isoformat()


def _unix_ms(moment: str) -> int:
    return (datetime.fromisoformat(moment) - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(milliseconds=1)
