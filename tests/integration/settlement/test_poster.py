"""From the streams into the ledger: everything, once, whoever is killed and whatever is away."""

from __future__ import annotations

import asyncio
import contextlib

import pytest
from ledger_invariants import ledger_faults
from town import new_id, unix_ms, until

from extproc.errors import StoreError, StoreRefused, StoreUnknown
from extproc.exchange.record import Record
from extproc.ledger.leadership import PostgresLeadership
from extproc.settlement import poster as poster_module
from extproc.settlement.meter import Series
from extproc.settlement.pace import Pace
from extproc.settlement.poster import STALLED_S
from extproc.stores.shards import SHARDS, shard_of


class Interrupted:
    """A port whose named verb fails a number of times, before or after it was carried out."""

    def __init__(self, port, verb: str, error: BaseException, *, after: bool, times: int = 1) -> None:
        self._port, self._verb, self._error, self._after, self._times = port, verb, error, after, times

    def __getattr__(self, verb):
        real = getattr(self._port, verb)
        if verb != self._verb or self._times == 0:
            return real

        async def fail(*args, **fields):
            self._times -= 1
            if self._after:
                await real(*args, **fields)
            raise self._error

        return fail


class Killed(BaseException):
    """The end of a process, as far as its code can tell."""


async def test_requests_become_rows_and_the_streams_become_empty(town):
    payers = [await town.customer(100_000) for _ in range(5)]
    for payer, key in payers * 4:
        await town.serve(payer, key)
    poster = town.poster()
    await poster.step()
    assert (town.count("requests"), await town.waiting()) == (20, 0)
    for payer, _ in payers:
        assert await town.at_rest(payer) == (99_900, 99_900, 0), "invariant 3"
    assert town.meter.counts[Series.POSTED_ENDINGS] == 20
    assert town.meter.counts[Series.FENCE_VIOLATIONS] == town.meter.counts[Series.CONFLICTS] == 0
    assert town.meter.gauges[Series.LED_SHARDS] == 64
    assert ledger_faults(town.dsn) == []


async def test_it_runs_until_it_is_told_to_stop(town):
    payer, key = await town.customer()
    running = asyncio.create_task(town.poster().run())
    for _ in range(3):
        await town.serve(payer, key)

    async def all_posted() -> bool:
        return town.count("requests") == 3

    await until(all_posted)
    town.stop.set()
    async with asyncio.timeout(5):
        await running


@pytest.mark.parametrize(("verb", "after"), [("post", False), ("post", True)])
async def test_killed_before_or_after_the_commit(town, verb, after):
    payer, key = await town.customer()
    for _ in range(3):
        await town.serve(payer, key)
    dying = town.poster(ledger=Interrupted(town.ledger, verb, Killed(), after=after))
    with pytest.raises(Killed):
        await dying.step()
    await dying._leadership.release()
    assert await town.waiting() == 3, "nothing was trimmed"
    await town.poster().step()
    assert (town.count("requests"), await town.waiting()) == (3, 0)
    assert ledger_faults(town.dsn) == []


async def test_killed_between_commit_and_trim(town):
    payer, key = await town.customer()
    await town.serve(payer, key)
    dying = town.poster(stream=Interrupted(town.stream, "trim", Killed(), after=False))
    with pytest.raises(Killed):
        await dying.step()
    await dying._leadership.release()
    assert (town.count("requests"), await town.waiting()) == (1, 1)
    await town.poster().step()
    assert (town.count("requests"), await town.waiting()) == (1, 0), "the next one trims what was committed"
    assert town.meter.counts[Series.POSTED_ENDINGS] == 1


async def test_a_commit_of_unknown_outcome_is_asked_after(town):
    payer, key = await town.customer()
    await town.serve(payer, key)
    poster = town.poster(ledger=Interrupted(town.ledger, "post", StoreUnknown("the answer was lost"), after=True))
    with pytest.raises(StoreUnknown):
        await poster.step()
    await town.serve(payer, key)
    await poster.step()
    assert (town.count("requests"), await town.waiting()) == (2, 0)
    assert ledger_faults(town.dsn) == []


async def test_a_trim_that_fails_is_made_up_for(town):
    payer, key = await town.customer()
    await town.serve(payer, key)
    poster = town.poster(stream=Interrupted(town.stream, "trim", StoreRefused("away"), after=False))
    await poster.step()
    assert (town.meter.counts[Series.TRIM_FAILURES], await town.waiting()) == (1, 1)
    await town.serve(payer, key)
    await poster.step()
    assert (town.count("requests"), await town.waiting()) == (2, 0)


async def test_poison_does_not_stop_a_shard(town):
    payer, key = await town.customer()
    await town.serve(payer, key)
    before = (await town.stream.read(dict.fromkeys(range(64), "0-0"), count=1, block_ms=0))[0]
    name = f"{{s{before.shard:02d}}}:events"
    template = {"h": "x", "p": payer, "c": key, "a": "1", "r": "1", "e": "0.0", "t": "1760000000000", "d": "{}"}
    for seq, poison in enumerate([{"k": "explode"}, {"k": "settle", "h": "\0"}, {"k": "settle", "a": str(9 * 10**18), "h": new_id()}], 2):
        flat = [part for field in (template | poison | {"s": str(seq)}).items() for part in field]
        await town.pipeline.execute("XADD", name, "*", *flat)
    await town.pipeline.execute("HINCRBY", f"{{s{before.shard:02d}}}:shard", "seq", 3)
    await town.serve(payer, key)
    await town.poster().step()
    assert (town.count("requests"), await town.waiting()) == (2, 0)
    assert town.count("conflicts", "reason = 'bad_event'") == 2
    assert town.count("conflicts", "reason IN ('rejected')") == 1
    assert (town.meter.counts[Series.CONFLICTS], town.meter.counts[Series.QUARANTINED]) == (3, 1)
    assert town.count("fence_violations") == 0
    assert ledger_faults(town.dsn) == []


@pytest.mark.parametrize("poison", [{"s": str(2**63 - 1)}, {"s": str(2**70)}, {"e": "0.\0"}])
async def test_what_no_cursor_can_keep_does_not_stop_a_shard(town, poison):
    payer, key = await town.customer()
    await town.serve(payer, key)
    shard = shard_of(payer)
    entry = {"k": "settle", "h": new_id(), "p": payer, "c": key, "a": "1", "r": "1", "e": "0.0", "s": "2", "t": "1760000000000", "d": "{}"}
    await town.pipeline.execute("XADD", f"{{s{shard:02d}}}:events", "*", *[part for field in (entry | poison).items() for part in field])
    await town.serve(payer, key)
    await town.poster().step()
    assert await town.waiting() == 0
    assert town.count("requests", "cost = 25") == 2
    assert town.count("fence_violations") == 0


async def test_an_entry_that_no_script_of_ours_wrote_is_set_aside(town):
    payer, key = await town.customer()
    await town.serve(payer, key)
    shard = (await town.stream.read(dict.fromkeys(range(64), "0-0"), count=1, block_ms=0))[0].shard
    for strange in (("hello", "world"), ("k", "settle", "h", new_id()), ("k", "\xff")):
        await town.pipeline.execute("XADD", f"{{s{shard:02d}}}:events", "*", *strange)
    await town.serve(payer, key)
    await town.poster().step()
    assert (town.count("requests"), town.count("conflicts", "reason = 'bad_event'"), await town.waiting()) == (2, 3, 0)
    assert town.count("fence_violations") == 0


async def backlog(town, *, payers: int, requests: int) -> list[str]:
    """Payer ids: so many of even shards and of odd ones, each with his requests."""
    found: dict[bool, list[tuple[str, str]]] = {True: [], False: []}
    while min(map(len, found.values())) < payers:
        payer, key = await town.customer()
        found[bool(shard_of(payer) % 2)].append((payer, key))
    chosen = [*found[True][:payers], *found[False][:payers]]
    for payer, key in chosen * requests:
        await town.serve(payer, key)
    return [payer for payer, _ in chosen]


async def test_a_backlog_is_worked_off_in_one_round(town):
    await backlog(town, payers=2, requests=30)
    await town.poster(batch_rows=8).step()
    assert (town.count("requests"), await town.waiting()) == (120, 0)
    assert ledger_faults(town.dsn) == []


@pytest.mark.parametrize("fails", [1, 2, 5])
async def test_nothing_is_booked_behind_a_batch_that_failed(town, fails):
    """The other lane may go on; this one begins again where the ledger says. Else the cursor would pass events that nobody booked."""
    await backlog(town, payers=1, requests=60)

    class Failing:
        calls = 0

        def __getattr__(self, verb):
            return getattr(town.ledger, verb)

        async def post(self, postings):
            self.calls += 1
            if self.calls == fails:
                await asyncio.sleep(0.05)  # the other lane is ahead
                raise StoreRefused("away")
            return await town.ledger.post(postings)

    poster = town.poster(ledger=Failing(), batch_rows=8)
    with pytest.raises(StoreRefused):
        await poster.step()
    assert 0 < town.count("requests") + await town.waiting() == 120, "what is not booked is still in the stream"
    await poster.step()
    assert (town.count("requests"), await town.waiting(), town.count("fence_violations")) == (120, 0, 0)
    assert ledger_faults(town.dsn) == []


async def test_shards_come_and_go_while_a_backlog_is_worked_off(town, monkeypatch):
    """The lanes stay busy: what is ours now is read from where the ledger says, what is not ours any more is left to its settler."""
    mine, others = await backlog(town, payers=1, requests=60)
    led = [frozenset({shard_of(mine)}), frozenset({shard_of(others)})]

    class Changing:
        async def held(self):
            return led.pop(0) if len(led) > 1 else led[0]

        async def release(self):
            return None

    monkeypatch.setattr(poster_module, "LEAD_CHECK_S", 0)  # always time to look
    monkeypatch.setattr(poster_module, "SHARD_ROWS_MIN", 1)
    await town.poster(leadership=Changing(), batch_rows=4).step()
    of_mine = town.count("requests", f"user_id = '{mine}'")
    assert 0 < of_mine < 60
    assert town.count("requests") == of_mine + 60
    await town.poster(batch_rows=4).step()
    assert (town.count("requests"), await town.waiting(), town.count("fence_violations")) == (120, 0, 0)
    assert ledger_faults(town.dsn) == []


async def test_all_shards_go_while_a_backlog_is_worked_off(town, monkeypatch):
    """Nothing is read of nothing; what was begun is posted, and the rest is there for whoever leads now."""
    await backlog(town, payers=1, requests=60)
    led = [frozenset(range(SHARDS)), frozenset()]

    class Losing:
        async def held(self):
            return led.pop(0) if len(led) > 1 else led[0]

        async def release(self):
            return None

    monkeypatch.setattr(poster_module, "LEAD_CHECK_S", 0)
    await town.poster(leadership=Losing(), batch_rows=4).step()
    assert 0 < town.count("requests") + await town.waiting() == 120
    await town.poster(batch_rows=4).step()
    assert (town.count("requests"), await town.waiting(), town.count("fence_violations")) == (120, 0, 0)


async def test_the_smallest_batches_get_through_whatever_waits(town):
    """A PostgreSQL that manages eight rows and no more: what is only asked for makes no batch larger, or all of them would fail for ever."""
    await backlog(town, payers=1, requests=60)

    class Slow:
        def __getattr__(self, verb):
            return getattr(town.ledger, verb)

        async def post(self, postings):
            if len(postings) > poster_module.ROWS_MIN:
                raise StoreRefused("took too long")
            return await town.ledger.post(postings)

    poster = town.poster(ledger=Slow(), batch_rows=1_000)
    for _ in range(60):
        with contextlib.suppress(StoreRefused):
            await poster.step()
        if town.count("requests") == 120:
            break
    assert (town.count("requests"), await town.waiting(), town.count("fence_violations")) == (120, 0, 0)


async def test_an_outage_makes_batches_no_smaller(town):
    """PostgreSQL away for ten minutes says nothing of what it can do in one transaction: what has waited is posted in large ones."""
    await backlog(town, payers=1, requests=60)
    sizes = []

    class Away:
        is_away = True

        def __getattr__(self, verb):
            return getattr(town.ledger, verb)

        async def cursors(self, shards):
            if self.is_away:
                raise StoreRefused("away")
            return await town.ledger.cursors(shards)

        async def post(self, postings):
            sizes.append(len(postings))
            return await town.ledger.post(postings)

    ledger = Away()
    poster = town.poster(ledger=ledger, batch_rows=100)
    for _ in range(20):
        with pytest.raises(StoreRefused):
            await poster.step()
    ledger.is_away = False
    await poster.step()
    assert (sum(sizes), max(sizes)) == (120, 88), "a first look at every shard, then all of it"


async def test_a_backlog_does_not_keep_a_settler_that_is_to_stop(town):
    await backlog(town, payers=1, requests=60)
    poster = town.poster(batch_rows=8)
    town.stop.set()
    await poster.step()
    assert 0 < town.count("requests") < 120


async def test_a_bug_in_one_event_does_not_stop_the_others(town):
    """Whatever a posting makes the program raise: it is set aside, the rest is booked."""
    payer, key = await town.customer()
    holds = [await town.serve(payer, key) for _ in range(9)]

    class Buggy:
        def __getattr__(self, verb):
            return getattr(town.ledger, verb)

        async def post(self, postings):
            if any(one.hold_id == holds[4] for one in postings):
                raise ZeroDivisionError
            return await town.ledger.post(postings)

    await town.poster(ledger=Buggy()).step()
    assert (town.count("requests"), town.count("conflicts", "detail LIKE 'ZeroDivisionError%'")) == (8, 1)


async def test_refusals_are_rows_without_money(town):
    payer, _ = await town.customer(0)
    for _ in range(12):
        await town.holds.note(
            payer, Record(id=new_id(), user_id=payer, error_code="insufficient_quota", status=402, created_ms=60_000).to_row()
        )
    await town.poster().step()
    assert (town.count("requests", "times = 1"), town.count("requests", "times = 2")) == (10, 1)
    assert (town.count("billing_events"), town.meter.counts[Series.POSTED_NOTES]) == (0, 12)


async def test_postgres_restarts_in_the_middle(town, postgres):
    """Requests go on in Redis; everything is posted afterwards, once."""
    payer, key = await town.customer()
    running = asyncio.create_task(town.poster().run())
    for round_ in range(3):
        for _ in range(5):
            await town.serve(payer, key)
        if round_ == 1:
            postgres.stop()
            for _ in range(5):
                await town.serve(payer, key)

            async def failing() -> bool:
                return town.meter.counts[Series.POST_FAILURES] > 0

            await until(failing)
            postgres.start_again()  # in this thread: an engine dies with the thread that started it

    async def all_posted() -> bool:
        try:
            return (await town.at_rest(payer))[0] == 1_000_000 - 20 * 25
        except StoreError:
            return False

    await until(all_posted)
    town.stop.set()
    await running
    assert (town.count("requests"), town.count("fence_violations"), await town.waiting()) == (20, 0, 0)
    assert await town.at_rest(payer) == (999_500, 999_500, 0)
    assert ledger_faults(town.dsn) == []


async def test_two_settlers_share_nothing_and_one_takes_over(town):
    payer, key = await town.customer()
    first, second = town.poster(), town.poster()
    await first.step()
    assert await second.step() >= 1, "no shard is free: it waits"
    await town.serve(payer, key)
    await first._leadership.release()

    async def taken_over() -> bool:
        second._checked_s = None  # it is time to look again
        await second.step()
        return town.count("requests") == 1

    await until(taken_over)


async def test_two_posters_that_both_think_they_lead(town):
    """Leadership is for efficiency; the cursors' locks keep it right."""
    payer, key = await town.customer()
    for _ in range(30):
        await town.serve(payer, key)

    class Everyone:
        async def held(self):
            return frozenset(range(64))

        async def release(self):
            return None

    posters = [town.poster(stream=await town.new_stream(), leadership=Everyone(), batch_rows=4) for _ in range(3)]
    for _ in range(3):
        await asyncio.gather(*(poster.step() for poster in posters))
    assert (town.count("requests"), town.count("fence_violations"), town.count("conflicts")) == (30, 0, 0)
    assert await town.at_rest(payer) == (999_250, 999_250, 0)
    assert ledger_faults(town.dsn) == []


async def test_leadership_is_given_up_at_the_end(town, database):
    running = asyncio.create_task(town.poster().run())

    async def leads() -> bool:
        return town.meter.gauges.get(Series.LED_SHARDS) == 64

    await until(leads)
    town.stop.set()
    await running
    other = PostgresLeadership(town.database, range(64))

    async def free() -> bool:
        return len(await other.held()) == 64

    await until(free)
    await other.release()


async def test_the_lag_grows_with_the_clock_while_nothing_is_posted(town):
    """A ledger that neither answers nor fails: the figure comes from the clock, not from a posting."""
    payer, key = await town.customer()
    now_s = 1_000.0
    begun = asyncio.Event()

    class Hanging:
        def __getattr__(self, verb):
            return getattr(town.ledger, verb)

        async def post(self, _postings):
            begun.set()
            await asyncio.Event().wait()

    await town.serve(payer, key)
    running = asyncio.create_task(town.poster(ledger=Hanging(), pace=Pace(town.stop, monotonic_s=lambda: now_s, unix_ms=unix_ms)).run())
    await begun.wait()
    now_s += 100

    async def told() -> bool:
        return town.meter.gauges.get(Series.POSTER_LAG_MS, 0) >= 100_000

    await until(told)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running


async def test_who_leads_nothing_tells_what_waits_all_the_same(town):
    """The locks may be those of a session that hangs: then nobody posts, and nobody fails."""
    payer, key = await town.customer()
    other = town.leader()
    await other.held()
    await town.serve(payer, key)
    idle = town.poster(pace=Pace(town.stop, monotonic_s=lambda: 0, unix_ms=lambda: unix_ms() + 60_000))
    await idle.step()
    assert town.meter.gauges[Series.POSTER_LAG_MS] >= 60_000
    await other.release()
    await town.poster().step()
    await idle.step()
    assert town.meter.gauges[Series.POSTER_LAG_MS] == 0


async def test_who_does_not_reach_redis_lets_another_lead(town):
    """A leader whose Redis is away (its network, or an old master that was taken away) must not keep those from posting who reach it."""
    payer, key = await town.customer()
    moment = [0.0]
    pace = Pace(asyncio.Event(), monotonic_s=lambda: moment[0], unix_ms=unix_ms)
    cut_off = Interrupted(town.stream, "read", StoreRefused("away"), after=False, times=0)
    leading, waiting = town.leader(), town.leader()
    first, second = town.poster(stream=cut_off, leadership=leading, pace=pace), town.poster(leadership=waiting)
    await first.step()
    await second.step()
    assert (len(leading.current), len(waiting.current)) == (64, 0)
    await town.serve(payer, key)
    cut_off._times = 99
    for moment[0] in (1.0, STALLED_S - 1):
        with pytest.raises(StoreRefused):
            await first.step()
        assert len(leading.current) == 64, "a moment is nothing"
    for moment[0] in (STALLED_S + 1, STALLED_S + 2):
        with pytest.raises(StoreRefused):
            await first.step()
        assert len(leading.current) == 0
    second._checked_s = None
    await second.step()
    assert (len(waiting.current), town.count("requests")) == (64, 1)
    cut_off._times = 0
    await first.step()
    assert len(leading.current) == 0, "it is led already"


async def test_a_ledger_that_is_away_is_no_reason_to_let_go(town):
    """Whoever reaches Redis goes on where he is."""
    payer, key = await town.customer()
    moment = [0.0]
    pace = Pace(asyncio.Event(), monotonic_s=lambda: moment[0], unix_ms=unix_ms)
    leading = town.leader()
    ledger = Interrupted(town.ledger, "post", StoreUnknown("away"), after=False, times=3)
    poster = town.poster(ledger=ledger, leadership=leading, pace=pace)
    await town.serve(payer, key)
    for _ in range(3):
        with pytest.raises(StoreUnknown):
            await poster.step()
        assert len(leading.current) == 64
        moment[0] += STALLED_S
    await poster.step()
    assert town.count("requests") == 1
