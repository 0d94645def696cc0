"""Damage of every kind, done behind our back to real stores: each is found, and nothing is found where nothing is wrong."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import psycopg
import pytest
from town import new_id, unix_ms, until

from extproc.app.backends import LedgerBills
from extproc.holds.fact_reader import RedisFacts
from extproc.ledger import fact_reader
from extproc.ledger.fact_reader import PostgresFacts
from extproc.ledger.facts import FIRST_ID
from extproc.ledger.leadership import PostgresLeadership
from extproc.ledger.outboxes import PostgresOutboxes
from extproc.money.usage import Quota
from extproc.settlement import reconciler
from extproc.settlement.invariants import Finding
from extproc.settlement.outbox_file import Claim, OutboxFile, Watermark, Written, confirm
from extproc.settlement.reconcile_outboxes import confirmed_rows
from extproc.settlement.reconcile_unbilled import Billed
from extproc.settlement.reconciler import SHARDS_A_ROUND, Auditor, Reconciler
from extproc.stores.shards import SHARDS, shard_of, tag_of

GRACE_MS = 8_000
QUOTA = Quota(input_tokens=5, output_tokens=60)
SINCE = "-infinity"
CONFLICT = """
INSERT INTO conflicts (hold_id, reason, kind, charge_nanos, shard, stream_id, payload, digest)
VALUES ('x', 'other_amount', 'settle', 5, 1, '1-1', '{}', 'd')
"""


class Bell:
    """An alarm that remembers."""

    def __init__(self) -> None:
        self.findings: list[Finding] = []
        self.stands: dict[int, tuple[int, int]] = {}
        self.open_holds = self.oldest_ms = self.reconciled_ms = 0

    def found(self, finding):
        self.findings.append(finding)

    def standing(self, findings):
        self.stands = dict(findings)

    def reconciled(self, finished_ms):
        self.reconciled_ms = finished_ms

    def holds(self, count, oldest_age_ms):
        self.open_holds, self.oldest_ms = count, oldest_age_ms


async def no_rest(_seconds: float) -> None:
    await asyncio.sleep(0.01)


@pytest.fixture
def auditor(town, tmp_path):
    return Auditor(
        ledger=PostgresFacts(town.database),
        holds=RedisFacts(town.pipeline),
        shard_of=shard_of,
        grace_ms=GRACE_MS,
        rest=no_rest,
        outboxes=lambda: confirmed_rows(tmp_path, PostgresOutboxes(town.database)),
    )


async def everything(auditor) -> list[Finding]:
    return [finding async for step in auditor.everything(since=SINCE) for finding in step.findings]


def numbers(findings: list[Finding]) -> set[int]:
    return {finding.invariant for finding in findings}


def past_the_triggers(town, *statements: str) -> None:
    with psycopg.connect(town.dsn) as connection:
        connection.execute("SET session_replication_role = replica")
        for statement in statements:
            connection.execute(statement.encode())


async def a_day(town, *, has_quota: bool = False) -> tuple[str, str, str]:
    """Payer, key, and the hold that is open; two requests are posted, one waits in its stream; if there is a quota, one each that uses it."""
    payer, key = await town.customer()
    for _ in range(2):
        await town.serve(payer, key)
    if has_quota:
        await town.grant_quota(payer, 100, 2_000)
        await town.serve(payer, key, quota=QUOTA)
    await town.poster().step()
    await town.close()
    await town.serve(payer, key)
    if has_quota:
        await town.serve(payer, key, quota=QUOTA)
        await town.hold(payer, key, quota=QUOTA)
    return payer, key, await town.hold(payer, key)


@pytest.mark.parametrize("has_quota", [False, True])
async def test_nothing_is_wrong_with_a_good_day(town, auditor, has_quota):
    await a_day(town, has_quota=has_quota)
    await town.deposits.deposit((await town.customer())[0], 5, method="manual", actor="test")
    assert await everything(auditor) == []


@pytest.mark.parametrize(
    ("command", "invariants"),
    [
        (("HINCRBY", "payer:{payer}", "spendable", "7"), {3}),
        (("HINCRBY", "payer:{payer}", "held", "-7"), {3, 4}),
        (("HINCRBY", "payer:{payer}", "entry_held", "7"), {4}),
        (("HINCRBY", "payer:{payer}", "open", "1"), {4}),
        (("HINCRBY", "key:{payer}:{key}", "open", "1"), {4}),
        (("DEL", "payer:{payer}"), {3}),
        (("HINCRBY", "payer:{payer}", "spendable", "-2000000"), {3, 5}),
        (("DEL", "hold:{hold}"), {4, 11}),
        (("ZREM", "leases", "{hold}"), {4}),
        (("ZADD", "leases", "1", "{hold}"), {11}),
        (("HSET", "hold:{hold}", "reserved", "1"), {4}),
        (("HSET", "hold:{hold}", "checkpoint", "1001"), {18}),
        (("HSET", "hold:{hold}", "used", "1:0"), {18}),
        (("HSET", "hold:{hold}", "free", "0:1"), {4}),
        (("HINCRBY", "payer:{payer}", "free_input", "7"), {3}),
        (("HINCRBY", "payer:{payer}", "held_output", "-7"), {3, 4}),
        (("HINCRBY", "payer:{payer}", "total_output", "-7"), {3}),
        (("HINCRBY", "shard", "seq", "1"), {12}),
        (("XTRIM", "events", "MAXLEN", "0"), {12}),
        (("HSET", "payer:{payer}", "credit", "100", "spendable", "999000"), {3}),
    ],
)
async def test_damage_in_redis_is_found(town, auditor, command, invariants):
    payer, key, hold = await a_day(town, has_quota=True)
    verb, name, *rest = (part.format(payer=payer, key=key, hold=hold) for part in command)
    await town.pipeline.execute(verb, f"{tag_of(payer)}:{name}", *rest)
    assert numbers(await everything(auditor)) == invariants


@pytest.mark.parametrize(
    ("statements", "invariants"),
    [
        (["UPDATE balances SET balance = balance + 3"], {2, 3}),
        (["DELETE FROM entries WHERE kind = 'revenue'"], {1}),
        (["DELETE FROM entries WHERE kind = 'customer' AND amount < 0"], {1, 2}),
        (["DELETE FROM billing_events WHERE event_type = 'settle'"], {2, 6}),
        (["DELETE FROM requests"], {6}),
        (["UPDATE requests SET cost = cost - 1, refund_nanos = refund_nanos + 1"], {8, 10}),
        (["UPDATE requests SET output_tokens = output_tokens + 1"], {10}),
        (["ALTER TABLE requests DROP CONSTRAINT requests_check3", "UPDATE requests SET refund_nanos = 0"], {9}),
        (["UPDATE requests SET hold_nanos = 10, refund_nanos = 0"], {8}),
        (["UPDATE requests SET ending = 'expire'"], {6}),
        (["DELETE FROM price_versions"], {10}),
        (["UPDATE stream_cursors SET seq = seq - 1 WHERE seq > 0"], {12}),
        (["UPDATE stream_cursors SET stream_id = '0-1' WHERE seq > 0"], set()),
        (["UPDATE balances SET credited_total = credited_total + 9"], {3}),
        (
            ["INSERT INTO fence_violations (shard, kind, epoch, expected_seq, seq, stream_id) VALUES (1, 'gap', '0.0', 3, 5, '1-1')"],
            {12},
        ),
        (
            [CONFLICT],
            {6},
        ),
    ],
)
async def test_damage_in_postgres_is_found(town, auditor, statements, invariants):
    await a_day(town)
    past_the_triggers(town, *statements)
    assert numbers(await everything(auditor)) == invariants


@pytest.mark.parametrize(
    ("statement", "invariants"),
    [
        ("UPDATE balances SET free_quota_input = free_quota_input + 3", {2, 3}),
        ("UPDATE balances SET credited_output = credited_output + 3", {3}),
        ("DELETE FROM entries WHERE unit = 'free_output' AND kind = 'revenue'", {1, 2}),
        ("DELETE FROM entries WHERE unit <> 'nanos' AND event_id IN (SELECT event_id FROM entries WHERE kind = 'promo')", {2}),
        ("UPDATE billing_events SET free_input = free_input + 1 WHERE free_input = 5", {2, 8}),
        ("UPDATE requests SET free_output = free_output - 1 WHERE free_output > 0", {8, 10}),
    ],
)
async def test_damage_to_free_tokens_is_found(town, auditor, statement, invariants):
    await a_day(town, has_quota=True)
    past_the_triggers(town, statement)
    assert numbers(await everything(auditor)) == invariants


async def test_a_finding_says_whose_and_how_much(town, auditor):
    payer, _, _ = await a_day(town)
    await town.pipeline.execute("HINCRBY", f"{tag_of(payer)}:payer:{payer}", "spendable", 7)
    (finding,) = await everything(auditor)
    assert (finding.invariant, finding.account, finding.drift_nanos) == (3, payer, 7)
    assert int(finding.found) - int(finding.expected) == 7
    assert "rebuild" in finding.advice
    steps = [step async for step in auditor.account(payer)]
    assert [one for step in steps for one in step.findings] == [finding]


async def test_a_long_account_is_summed_up_in_pieces(town, auditor, monkeypatch):
    payer, _, _ = await a_day(town, has_quota=True)
    monkeypatch.setattr(fact_reader, "LINES_A_STATEMENT", 2)
    assert await everything(auditor) == []
    past_the_triggers(town, "UPDATE balances SET balance = balance + 3")
    assert [(one.account, one.drift_nanos) for one in await auditor.balances([payer], lines_max=None)] == [(payer, 3)]
    assert await auditor.balances([payer], lines_max=2) == [], "between two nights a long account is left alone"


async def test_a_confirmed_row_of_an_outbox_is_in_the_ledger(town, auditor, tmp_path):
    payer, key, _ = await a_day(town)
    claim = Claim.first_of(tmp_path, 0)
    booked = (await auditor._ledger.events_by_id(FIRST_ID, limit=10))[1:3]
    holds = [*(one.id for one in booked if one.event["event_type"] == "settle"), new_id(), new_id()]
    outbox = OutboxFile.owned(claim, new_id=new_id(), unix_ms=unix_ms())
    outbox.append([Written(unix_ms(), shard_of(payer), hold, payer, key, "settle", 25, 1_000, b"{}") for hold in holds])
    confirm(claim.path, Watermark(outbox_id=outbox.outbox_id, below=len(holds), ledger_id="any"))
    (lost,) = await everything(auditor)
    assert (lost.invariant, lost.subject, lost.account, lost.drift_nanos) == (15, holds[-2], payer, -25)
    outbox.close()
    claim.release()


async def test_credits_on_their_way_are_no_drift(town, auditor):
    """Booked and not delivered; and the other way round, delivered by the time Redis is read."""
    payer, _, _ = await a_day(town)

    class Away:
        def epoch_of(self, payer):
            return ""

        async def credit(self, *args, **fields):
            return False

    await town.deposits_over(Away()).deposit(payer, 500, method="manual", actor="test")
    assert await everything(auditor) == []
    await town.sweep().step()
    assert await everything(auditor) == []


async def test_a_busy_town_is_whole(town, auditor):
    """Everything at once: requests, deposits, posters, sweeps, the reaper's shards; and every look finds nothing."""
    payers = [await town.customer(10_000_000) for _ in range(8)]
    stop = asyncio.Event()

    async def over_and_over(work: Callable[[], Awaitable[object]]) -> None:
        while not stop.is_set():
            await work()
            await asyncio.sleep(0)

    async def serve() -> None:
        await asyncio.gather(*(town.serve(payer, key) for payer, key in payers))

    async def pay() -> None:
        for payer, _ in payers:
            await town.deposits.deposit(payer, 11, method="manual", actor="test")

    poster = town.poster(batch_wait_ms=1)
    others = [asyncio.create_task(over_and_over(work)) for work in (serve, serve, pay, poster.step, town.sweep().step)]
    try:
        looks = 0
        async with asyncio.timeout(60):
            while looks < 30:
                for shard in {shard_of(payer) for payer, _ in payers}:
                    its_payers = [payer for payer, _ in payers if shard_of(payer) == shard]
                    assert (await auditor.shard(shard, its_payers))[0] == []
                looks += 1
            assert await everything(auditor) == []
    finally:
        stop.set()
        await asyncio.gather(*others)
    assert town.count("requests") > 100


class Watch:
    """The settler's loop with its bell; ``close`` is its end, wherever it was."""

    def __init__(self, town, auditor, **settings) -> None:
        facts = PostgresFacts(town.database)
        self.bell = Bell()
        self.leadership = PostgresLeadership(town.database, [SHARDS])
        self.reconciler = Reconciler(
            auditor=auditor,
            ledger=facts,
            holds=RedisFacts(town.pipeline),
            findings=facts,
            leadership=self.leadership,
            shard_of=shard_of,
            shards=SHARDS,
            alarm=self.bell,
            meter=town.meter,
            pace=town.pace,
            **settings,
        )

    async def all_shards(self) -> None:
        for _ in range(SHARDS // SHARDS_A_ROUND):
            await self.reconciler.step()


@pytest.fixture
async def watch(town, auditor):
    watch = Watch(town, auditor)
    yield watch
    await watch.leadership.release()


async def test_an_active_account_is_watched_all_the_time(town, watch):
    payer, _, _ = await a_day(town)
    await watch.all_shards()
    assert watch.bell.findings == []
    assert (watch.bell.open_holds, watch.bell.stands) == (1, {})
    assert 0 <= watch.bell.oldest_ms < 60_000
    await town.pipeline.execute("HINCRBY", f"{tag_of(payer)}:payer:{payer}", "spendable", 7)
    await watch.all_shards()
    await watch.all_shards()
    assert [(one.invariant, one.account, one.drift_nanos) for one in watch.bell.findings] == [(3, payer, 7)], "told once"
    await watch.reconciler.step()
    assert watch.bell.stands == {3: (1, 7)}
    await town.pipeline.execute("HINCRBY", f"{tag_of(payer)}:payer:{payer}", "spendable", -7)
    await watch.all_shards()
    await watch.reconciler.step()
    assert watch.bell.stands == {}
    assert town.count("reconcile_findings", "resolved_at IS NOT NULL") == 1


async def test_what_was_booked_lately_is_checked(town, watch):
    await a_day(town)
    past_the_triggers(town, "UPDATE requests SET output_tokens = output_tokens + 1")
    await watch.all_shards()
    assert numbers(watch.bell.findings) == {10}
    assert len(watch.bell.findings) == 4, "two requests, list price and charge, each told once"


async def test_one_settler_watches(town, auditor, watch):
    await watch.reconciler.step()
    other = Watch(town, auditor)
    await other.reconciler.step()
    assert not other.leadership.current
    await watch.leadership.release()

    async def is_taken_over() -> bool:
        await other.reconciler.step()
        return bool(other.leadership.current)

    await until(is_taken_over)
    await other.leadership.release()


async def nights(town, watch, runs: int = 1) -> list[tuple[object, ...]]:
    """Steps until so many full runs are done; their rows."""
    async with asyncio.timeout(30):
        while town.count("reconcile_runs", "finished_at IS NOT NULL") < runs:
            await watch.reconciler.step()
    with psycopg.connect(town.dsn) as connection:
        return connection.execute("SELECT phase, looked_at, findings, finished_at IS NOT NULL FROM reconcile_runs").fetchall()


async def test_a_full_run_at_its_time_of_day(town, auditor, monkeypatch):
    """Seven events and two accounts, one of them damaged long ago."""
    await a_day(town)
    await town.customer()
    past_the_triggers(town, "UPDATE balances SET balance = balance + 3 WHERE balance = (SELECT min(balance) FROM balances)")
    tomorrow = Watch(town, auditor)
    monkeypatch.setattr(tomorrow.reconciler, "_started_ms", 0)
    assert await nights(town, tomorrow) == [("notes", 6, 2, True)]
    assert numbers(tomorrow.bell.findings) == {2, 3}
    await tomorrow.leadership.release()


async def test_a_full_run_goes_on_where_it_was_cut_off(town, auditor, monkeypatch):
    monkeypatch.setattr(reconciler, "EVENTS_A_PAGE", 1)
    await a_day(town)
    first = Watch(town, auditor)
    monkeypatch.setattr(first.reconciler, "_started_ms", 0)
    for _ in range(3):
        await first.reconciler.step()
    await first.leadership.release()
    with psycopg.connect(town.dsn) as connection:
        assert connection.execute("SELECT phase, looked_at, finished_at FROM reconcile_runs").fetchall() == [("events", 2, None)]
    second = Watch(town, auditor)
    assert await nights(town, second) == [("notes", 4, 0, True)]
    await second.leadership.release()


async def test_what_a_full_run_does_not_find_again_is_over(town, auditor, monkeypatch):
    await a_day(town)
    past_the_triggers(town, CONFLICT)
    for run, findings in ((1, 1), (2, 0)):
        night = Watch(town, auditor)
        monkeypatch.setattr(night.reconciler, "_started_ms", 0)
        await nights(town, night, run)
        assert town.count("reconcile_findings", "resolved_at IS NULL") == findings
        past_the_triggers(town, "UPDATE conflicts SET resolved_at = now()", "UPDATE reconcile_runs SET started_at = '2020-01-01'")
        await night.leadership.release()


async def test_what_was_billed_since(town):
    await a_day(town)
    bills = LedgerBills(PostgresFacts(town.database))
    assert await bills.billed() == {}, "the first call is where counting begins"
    past_the_triggers(town, "UPDATE requests SET posted_at = now() - interval '15 seconds'")
    assert await bills.billed() == {"m": Billed(tokens=30, requests=2)}
    assert await bills.billed() == {}


async def test_a_prompt_with_three_answers_is_three_to_a_backend(town):
    await a_day(town)
    bills = LedgerBills(PostgresFacts(town.database))
    await bills.billed()
    past_the_triggers(town, "UPDATE requests SET choices = 3, posted_at = now() - interval '15 seconds'")
    assert await bills.billed() == {"m": Billed(tokens=2 * (3 * 5 + 10), requests=2)}
