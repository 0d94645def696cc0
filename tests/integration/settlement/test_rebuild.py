"""Redis lost and built again, with real stores: afterwards it is as it was (invariant 14), or as it ought to be."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from zlib import crc32

import psycopg
import pytest
import redis
from town import CAP, SHARDS, Town, new_id, unix_ms

from extproc.accounts.model import Period
from extproc.accounts.registry import Scopes
from extproc.app.rebuilding import rebuild as by_hand
from extproc.edge.standing import Standing
from extproc.holds.port import OpenHold, Reassertion
from extproc.holds.stream import RedisEventStream
from extproc.metrics import Metrics, registry
from extproc.money.hold import NO_LIMITS, Admission, Ending, EndKind, EndResult
from extproc.money.posting import Posting
from extproc.money.usage import Quota
from extproc.settings import load_settings
from extproc.settlement.meter import Series
from extproc.settlement.rebuild import Rebuild
from extproc.stores.shards import TAGS, shard_of

UNCOMPARED = {"rpm", "rph", "tpm", "minute", "tokens", "row", "checkpoint"}  # rates begin at nothing, the rest is the worker's to say
OPENED = 2  # the number under which all shards are open: 1 was the fixture's, without a ledger


class Settler:
    """Poster and rebuild, while the block lasts."""

    def __init__(self, town: Town) -> None:
        self.town = town
        self.said: list[str] = []
        self.leadership = town.leader()

    def rebuild(self) -> Rebuild:
        return Rebuild(
            holds=self.town.holds,
            epochs=self.town.epochs,
            stream=RedisEventStream(self.town.pipeline),
            led=lambda: self.leadership.current,
            meter=self.town.meter,
            pace=self.town.pace,
            say=self.said.append,
        )

    async def run(self, *jobs: Any) -> None:
        await asyncio.gather(self.town.poster(leadership=self.leadership).run(), self.rebuild().run(), *jobs)


@asynccontextmanager
async def settler(town: Town, *jobs: Any) -> AsyncIterator[Settler]:
    works = Settler(town)
    task = asyncio.create_task(works.run(*jobs))
    try:
        yield works
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


class Worker:
    """A gate worker, as far as a rebuild meets it: what it has open, and endings that the ledger has not confirmed."""

    def __init__(self, town: Town) -> None:
        self.town = town
        self.open: list[Reassertion] = []
        self.endings: list[Posting] = []
        self.id = new_id()
        self.standing = Standing(
            self.id,
            "worker",
            holds=town.holds,
            register=town.epochs,
            exchanges=lambda: (),
            unconfirmed=self._unconfirmed,
            shard_of=shard_of,
            metrics=Metrics(registry()),
        )
        self.standing._open = self._open  # type: ignore[method-assign]

    async def _unconfirmed(self, shards: Sequence[int]) -> list[Posting]:
        return [ending for ending in self.endings if ending.shard in shards]

    def _open(self, shards: Any) -> Any:
        found: dict[int, list[Reassertion]] = {shard: [] for shard in shards}
        for hold in self.open:
            if shard_of(hold.payer_id) in found:
                found[shard_of(hold.payer_id)].append(hold)
        return found

    def holds(self, hold: OpenHold, *, charge: int = 0) -> None:
        """It is this worker's."""
        self.open.append(
            Reassertion(
                hold_id=hold.hold_id,
                owner=hold.owner,
                payer_id=hold.payer_id,
                key_id=hold.key_id,
                is_exact=hold.state == "exact",
                entry_nanos=hold.entry_nanos,
                reserved_nanos=hold.reserved_nanos,
                cap_nanos=hold.reserved_nanos,
                charge_nanos=charge,
                tokens=1,
                row=b"{}",
                created_ms=hold.created_ms,
                quota=hold.quota,
            )
        )

    async def works(self) -> None:
        await asyncio.gather(self.standing.register(), self.town.holds.watch(self.standing.look))


def picture(town: Town) -> dict[str, Any]:
    """Everything that money depends on, read with another client: payers, keys, budgets, open holds."""
    found: dict[str, Any] = {}
    with redis.Redis.from_url(town.url, decode_responses=True) as client:
        for key in client.scan_iter("{s*", count=1_000):
            kind = key.split(":")[1]
            if kind in ("payer", "key", "budget", "hold"):
                found[key] = {
                    name: value for name, value in client.hgetall(key).items() if name not in UNCOMPARED and value not in ("", "0")
                }
    return {key: fields for key, fields in found.items() if fields and fields.get("state") not in ("ended", "alias")}


async def until_open(town: Town, *, above: int = 0, deadline_s: float = 20) -> None:
    """All shards serve, and the ledger knows."""
    async with asyncio.timeout(deadline_s):
        while True:
            known, states = await town.epochs.epochs(), await town.holds.states()
            if all(state.is_open and state.shard in known and known[state.shard].is_open for state in states):  # noqa: SIM102
                if all(one.number > above and states[one.shard].epoch == one.epoch for one in known.values()):
                    return
            await asyncio.sleep(0.01)


async def entry_hold(town: Town, payer: str, key: str, nanos: int = 3) -> str:
    hold = new_id()
    await town.holds.admit(
        Admission(
            hold_id=hold,
            payer_id=payer,
            key_id=key,
            request_id="",
            entry_nanos=nanos,
            account_limits=NO_LIMITS,
            key_limits=NO_LIMITS,
            row=b"{}",
        )
    )
    return hold


async def a_full_town(town: Town) -> Worker:
    """Balances above and below nothing, credit lines, frozen accounts, keys of all kinds with budgets of all periods, open holds, …"""
    worker = Worker(town)
    for period in (None, Period.NONE, Period.DAY, Period.MONTH):
        payer, plain = await town.customer(1_000_000)
        scopes = Scopes(budget_nanos=None if period is None else 500_000, budget_period=period or Period.NONE)
        key = (await town.registry.create_key(payer, name="b", scopes=scopes, actor="t")).id
        rotated = (await town.registry.rotate(key, actor="t")).id
        await town.serve(payer, plain)
        await town.serve(payer, rotated, output=100)
        await town.hold(payer, rotated)
        await town.hold(payer, plain)
        await entry_hold(town, payer, plain)
        await town.deposits.set_credit(payer, 5_000, actor="t", reason="r")
    free, key = await town.customer(0)
    await town.grant_quota(free, 100, 2_000)
    await town.serve(free, key, quota=Quota(input_tokens=5, output_tokens=600))
    await town.hold(free, key, quota=Quota(input_tokens=7, output_tokens=500))
    poor, key = await town.customer(100)
    await town.deposits.correct(poor, -1_000, reason="r", actor="t")
    await town.registry.revoke(key, actor="t")
    await town.registry.freeze(poor, frozen=True, actor="t", reason="r")
    thawed, _ = await town.customer(0)
    await town.registry.freeze(thawed, frozen=True, actor="t", reason="r")
    await town.registry.freeze(thawed, frozen=False, actor="t", reason="r")
    for hold in await town.holds.open_holds():
        worker.holds(hold)
    return worker


@pytest.fixture
async def whole(town: Town) -> AsyncIterator[Settler]:
    """A settler, and all shards opened by it."""
    async with settler(town) as works:
        await until_open(town)
        await posted(town)
        yield works


async def posted(town: Town) -> None:
    async with asyncio.timeout(20):
        while await town.waiting():
            await asyncio.sleep(0.01)


# shards in SQL


def test_postgres_knows_the_shard_of_a_payer(town: Town):
    """5,000, because of 500 one time in forty a shard has none."""
    ids = [new_id() for _ in range(5_000)] + ["00000000-0000-0000-0000-000000000000", "ffffffff-ffff-ffff-ffff-ffffffffffff"]
    with psycopg.connect(town.dsn) as connection:
        rows = connection.execute("SELECT shard_of(id) FROM unnest(%s::uuid[]) AS id", (ids,)).fetchall()
    assert [row[0] for row in rows] == [shard_of(payer) for payer in ids] == [crc32(payer.encode()) % 64 for payer in ids]
    assert len({shard_of(payer) for payer in ids}) == SHARDS


# what budgets have spent


async def test_what_a_key_has_spent_is_kept_by_the_day(town: Town, whole: Settler):
    payer, plain = await town.customer()
    key = (await town.registry.create_key(payer, name="b", scopes=Scopes(budget_nanos=10_000), actor="t")).id
    rotated = (await town.registry.rotate(key, actor="t")).id
    await town.serve(payer, plain)
    await town.serve(payer, rotated, output=10)
    await town.serve(payer, rotated, output=20)
    await posted(town)
    with psycopg.connect(town.dsn) as connection:
        rows = connection.execute("SELECT budget_id::text, day, nanos FROM budget_spend").fetchall()
    today = datetime.now(UTC).date()
    assert sorted(rows) == sorted([(key, today, 25 + 45), (plain, today, 25)])


# invariant 14


async def test_a_rebuild_is_redis_as_it_was(town: Town, whole: Settler):
    worker = await a_full_town(town)
    await posted(town)
    before = picture(town)
    assert len([name for name in before if ":hold:" in name]) == 13
    await town.pipeline.execute("FLUSHALL")
    task = asyncio.create_task(worker.works())
    try:
        await until_open(town, above=OPENED)
        after = picture(town)
    finally:
        task.cancel()
    assert after == before
    assert town.meter.counts[Series.REBUILDS] == 2 * SHARDS or town.meter.counts[Series.REBUILDS] >= SHARDS


async def test_with_redis_intact_it_changes_nothing(town: Town, whole: Settler):
    """Wanted by an operator: holds are those that Redis has, whoever says nothing."""
    await a_full_town(town)
    await posted(town)
    before = picture(town)
    await town.epochs.want(range(SHARDS))
    await until_open(town, above=OPENED)
    assert picture(town) == before


async def test_open_holds_end_afterwards_as_if_nothing_had_been(town: Town, whole: Settler):
    payer, key = await town.customer(10_000)
    worker = Worker(town)
    hold = await town.hold(payer, key)
    worker.holds((await town.holds.open_holds())[0])
    await town.pipeline.execute("FLUSHALL")
    task = asyncio.create_task(worker.works())
    await until_open(town, above=OPENED)
    task.cancel()
    assert await town.at_rest(payer) == (10_000, 10_000 - CAP, CAP)
    assert await town.holds.end(settle(payer, key, hold, 25)) is EndResult.ENDED
    await posted(town)
    assert await town.at_rest(payer) == (9_975, 9_975, 0)


def settle(payer: str, key: str, hold: str, charge: int) -> Ending:
    return Ending(
        hold_id=hold, owner=hold, payer_id=payer, key_id=key, kind=EndKind.SETTLE, charge_nanos=charge, tokens=1, row=b"{}",
        reserved_nanos=CAP, is_forwarded=True,
    )  # fmt: skip


def past_redis(payer: str, key: str, hold: str, charge: int) -> Posting:
    return Posting(shard_of(payer), "", "settle", hold, payer, key, charge, CAP, "", 0, unix_ms(), b"{}")


async def test_an_ending_that_was_lost_with_redis_is_charged_once(town: Town, whole: Settler):
    """Settled, acknowledged, and gone with the stream before anybody posted it; its worker has it still, and says it again later on."""
    payer, key = await town.customer(10_000)
    worker = Worker(town)
    hold = await town.hold(payer, key)
    worker.endings.append(past_redis(payer, key, hold, 25))
    await town.pipeline.execute("FLUSHALL")
    task = asyncio.create_task(worker.works())
    await until_open(town, above=OPENED)
    task.cancel()
    assert await town.at_rest(payer) == (9_975, 9_975, 0)
    assert await town.holds.end(settle(payer, key, hold, 25)) is EndResult.ALREADY
    await town.ledger.post([past_redis(payer, key, hold, 25)])
    await posted(town)
    assert await town.at_rest(payer) == (9_975, 9_975, 0)


async def test_a_hold_that_ends_while_it_is_told(town: Town, whole: Settler):
    """It is in the worker's list of what is open, and among its endings: it has ended."""
    payer, key = await town.customer(10_000)
    worker = Worker(town)
    hold = await town.hold(payer, key)
    worker.holds((await town.holds.open_holds())[0])
    worker.endings.append(past_redis(payer, key, hold, 25))
    await town.pipeline.execute("FLUSHALL")
    task = asyncio.create_task(worker.works())
    await until_open(town, above=OPENED)
    worker.open.clear()
    task.cancel()
    assert await town.holds.open_holds() == []
    assert await town.at_rest(payer) == (9_975, 9_975, 0)


async def test_a_settle_that_waited_for_the_shard_finds_its_hold(town: Town, whole: Settler):
    """Told as open, ended a moment later: its ending comes as soon as the shard serves; and the outbox was quicker."""
    payer, key = await town.customer(10_000)
    worker = Worker(town)
    hold = await town.hold(payer, key)
    worker.holds((await town.holds.open_holds())[0])
    await town.pipeline.execute("FLUSHALL")
    task = asyncio.create_task(worker.works())
    await until_open(town, above=OPENED)
    task.cancel()
    await town.ledger.post([past_redis(payer, key, hold, 25)])
    assert await town.holds.end(settle(payer, key, hold, 25)) is EndResult.ENDED
    await posted(town)
    await town.sweep().step()
    assert await town.at_rest(payer) == (9_975, 9_975, 0)


async def test_old_data_come_back(town: Town, whole: Settler):
    """A server that has lost its last second: what was posted meanwhile is posted, what was ended is ended, once."""
    payer, key = await town.customer(10_000)
    kept, ended = await town.hold(payer, key), await town.hold(payer, key)
    await posted(town)
    dump = dumped(town)
    assert await town.holds.end(settle(payer, key, ended, 25)) is EndResult.ENDED
    await town.deposits.deposit(payer, 500, method="bank", actor="t")
    served = await town.serve(payer, key)
    await posted(town)
    await town.pipeline.execute("FLUSHALL")
    put_back(town, dump)
    for tag in TAGS:
        await town.pipeline.execute("HSET", f"{tag}:shard", "epoch", f"{'b' * 40}.7")
    await until_open(town, above=7)
    assert [hold.hold_id for hold in await town.holds.open_holds()] == [kept]
    assert await town.at_rest(payer) == (10_000 + 500 - 25 - 25, 10_450 - CAP, CAP)
    assert town.count("conflicts") == 0
    assert town.count("requests", f"id = '{served}'") == 1
    assert await town.holds.end(settle(payer, key, ended, 25)) is EndResult.ALREADY
    assert await town.holds.end(settle(payer, key, kept, 5)) is EndResult.ENDED
    await town.serve(payer, key)
    await posted(town)
    assert await town.at_rest(payer) == (10_420, 10_420, 0)
    assert town.count("fence_violations") == 0


def dumped(town: Town) -> dict[bytes, bytes]:
    with redis.Redis.from_url(town.url) as client:
        return {key: client.dump(key) for key in client.scan_iter("{s*")}


def put_back(town: Town, dump: dict[bytes, bytes]) -> None:
    with redis.Redis.from_url(town.url) as client:
        for key, value in dump.items():
            client.restore(key, 0, value, replace=True)


async def test_events_that_wait_are_posted_first(town: Town, whole: Settler):
    """The stream is there, its poster was not."""
    payer, key = await town.customer(10_000)
    await posted(town)
    async with stopped(whole):
        for _ in range(30):
            await town.serve(payer, key)
        await town.epochs.want([shard_of(payer)])
    async with settler(town):
        async with asyncio.timeout(20):
            while (await town.epochs.epochs())[shard_of(payer)].number == OPENED or not (await town.epochs.epochs())[
                shard_of(payer)
            ].is_open:
                await asyncio.sleep(0.01)
        await town.holds.states()
        assert await town.at_rest(payer) == (10_000 - 30 * 25,) * 2 + (0,)
        assert await town.waiting() == 0


@asynccontextmanager
async def stopped(works: Settler) -> AsyncIterator[None]:
    """Another settler has its locks."""
    await works.leadership.release()
    works.town.stop.set()
    await asyncio.sleep(0)
    async with asyncio.timeout(10):
        while works.leadership.current:
            await asyncio.sleep(0.01)
    yield
    works.town.stop.clear()


async def test_a_payer_that_is_missing_is_built_again(town: Town, whole: Settler):
    """Under a valid epoch: never a balance of 0. The others of that shard are as they were, other shards are left alone."""
    payer, _ = await town.customer(10_000)
    shard = shard_of(payer)
    await town.pipeline.execute("DEL", f"{TAGS[shard]}:payer:{payer}")
    worker = Worker(town)
    worker.standing.miss(payer)
    worker.standing.miss(payer)
    async with asyncio.timeout(10):
        while await town.holds.view(payer) is None:
            await asyncio.sleep(0.01)
    assert (await town.at_rest(payer))[:2] == (10_000, 10_000)
    numbers = {known.shard: known.number for known in (await town.epochs.epochs()).values()}
    assert numbers.pop(shard) == OPENED + 1
    assert set(numbers.values()) == {OPENED}


async def test_a_payer_that_redis_never_had_is_no_loss(town: Town, whole: Settler):
    payer, _ = await town.customer(0)
    shard = shard_of(payer)
    with psycopg.connect(town.dsn, autocommit=True) as connection:
        connection.execute("UPDATE balances SET redis_version = NULL WHERE user_id = %s", (payer,))
    await town.epochs.miss(payer)
    assert not (await town.epochs.epochs())[shard].is_wanted


async def test_the_sweep_finds_what_is_missing(town: Town, whole: Settler):
    payer, _ = await town.customer(10_000)
    await town.pipeline.execute("DEL", f"{TAGS[shard_of(payer)]}:payer:{payer}")
    await town.deposits.deposit(payer, 1, method="bank", actor="t")
    await town.sweep().step()
    async with asyncio.timeout(10):
        while not town.holds.epoch_of(payer).endswith(f".{OPENED + 1}"):
            await asyncio.sleep(0.01)
            await town.holds.states()
    await town.sweep().step()
    assert (await town.at_rest(payer))[:2] == (10_001, 10_001)
    balance = await town.ledger.balance(payer)
    assert balance is not None
    assert balance.is_delivered


async def test_a_worker_that_comes_late(town: Town, whole: Settler):
    """It was stopped while the shard was built: what it holds is taken when it comes, once, and ends as always."""
    payer, key = await town.customer(10_000)
    worker = Worker(town)
    hold = await town.hold(payer, key)
    worker.holds((await town.holds.open_holds())[0])
    await town.pipeline.execute("FLUSHALL")
    await until_open(town, above=OPENED)
    assert await town.at_rest(payer) == (10_000, 10_000, 0)
    task = asyncio.create_task(worker.works())
    async with asyncio.timeout(10):
        while not await town.holds.open_holds():
            await asyncio.sleep(0.01)
    await asyncio.sleep(0.1)
    assert await town.at_rest(payer) == (10_000, 10_000 - CAP, CAP)
    task.cancel()
    assert await town.holds.end(settle(payer, key, hold, 25)) is EndResult.ENDED
    await posted(town)
    assert await town.at_rest(payer) == (9_975, 9_975, 0)


async def test_money_that_moves_while_it_is_built(town: Town, whole: Settler):
    """Deposits and credit lines between the snapshot and the opening come by their version."""
    payer, _ = await town.customer(10_000)
    builder = Settler(town).rebuild()
    original: Callable[..., Any] = town.holds.open
    moved = []

    async def late(shard: int, *, epoch: str) -> None:
        if not moved and shard == shard_of(payer):
            moved.append(await town.deposits.deposit(payer, 77, method="bank", actor="t"))
        await original(shard, epoch=epoch)

    town.holds.open = late  # type: ignore[method-assign]
    del builder
    await town.epochs.want([shard_of(payer)])
    async with asyncio.timeout(10):
        while not moved:
            await asyncio.sleep(0.01)
    assert not moved[0].is_delivered
    await until_open(town)
    await town.sweep().step()
    assert (await town.at_rest(payer))[:2] == (10_077, 10_077)


async def test_a_budget_of_yesterday_is_still_known(town: Town, whole: Settler):
    """A hold of last night ends in the period that it came from."""
    payer, _ = await town.customer()
    keys = {
        period: (await town.registry.create_key(payer, name="b", scopes=Scopes(budget_nanos=9_999, budget_period=period), actor="t")).id
        for period in Period
    }
    today = datetime.now(UTC).date()
    days = {today: 5, today - timedelta(days=1): 7, today - timedelta(days=40): 100}
    with psycopg.connect(town.dsn, autocommit=True) as connection:
        for key in keys.values():
            for day, nanos in days.items():
                connection.execute("INSERT INTO budget_spend VALUES (%s, %s, %s)", (key, day, nanos))
    async with town.epochs.snapshot() as snapshot:
        page = (await snapshot.pages({shard_of(payer): ""}))[shard_of(payer)]
    spent = {key.key_id: dict(key.spent_nanos) for key in page.keys}
    yesterday = today - timedelta(days=1)
    assert spent[keys[Period.NONE]] == {"all": 112}
    assert spent[keys[Period.DAY]] == {str(today): 5, str(yesterday): 7}
    month = {f"{today:%Y-%m}": 0, f"{yesterday:%Y-%m}": 0}
    for day in (today, yesterday):
        month[f"{day:%Y-%m}"] += days[day]
    assert spent[keys[Period.MONTH]] == month


# pages


async def test_more_accounts_than_a_page(town: Town, whole: Settler, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("extproc.ledger.rebuild.PAGE_PAYERS", 2)
    payers = [(await town.customer(100 + number))[0] for number in range(9)]
    await town.pipeline.execute("FLUSHALL")
    await until_open(town, above=OPENED)
    for number, payer in enumerate(payers):
        assert await town.at_rest(payer) == (100 + number, 100 + number, 0)


# the operator


def settings_of(town: Town, directory: Path) -> Any:
    (directory / "models.yaml").write_text("")
    (directory / "extproc.yaml").write_text(json.dumps({"version": 1, "redis": {"url": town.url}, "postgres": {"dsn": town.dsn}}))
    return load_settings(directory / "extproc.yaml", {})


async def test_by_hand_without_a_settler(town: Town, tmp_path: Path):
    payer, key = await town.customer(10_000)
    await town.serve(payer, key)
    said: list[str] = []
    await town.pipeline.execute("HDEL", f"{TAGS[7]}:shard", "epoch")
    done = await by_hand(settings_of(town, tmp_path), (), everything=False, say=said.append)
    assert [built["shard"] for built in done["shards"]] == [7]
    done = await by_hand(settings_of(town, tmp_path), (), everything=True, say=said.append)
    assert [built["shard"] for built in done["shards"]] == list(range(SHARDS))
    await town.holds.states()
    assert await town.at_rest(payer) == (9_975, 9_975, 0), "what waited in the stream is posted"
    assert "64 of 64 shards are open" in said
    assert (await by_hand(settings_of(town, tmp_path), (), everything=False, say=said.append))["shards"] == []


async def test_by_hand_beside_a_settler(town: Town, whole: Settler, tmp_path: Path):
    """It is the settler that does it."""
    said: list[str] = []
    done = await by_hand(settings_of(town, tmp_path), (3, 5), everything=False, say=said.append)
    assert [built["shard"] for built in done["shards"]] == [3, 5]
    assert any("rebuilding" in text for text in whole.said)
    assert not any("rebuilding" in text for text in said)
    assert said[-1] == "2 of 2 shards are open"


async def test_how_long_a_fresh_start_takes(town: Town):
    began_s = time.monotonic()
    await town.pipeline.execute("FLUSHALL")
    async with settler(town):
        await until_open(town)
    took_s = time.monotonic() - began_s
    print(f"\nfresh stores are open after {took_s * 1_000:.0f} ms")  # noqa: T201 - a figure of the performance table
    assert took_s < 5
