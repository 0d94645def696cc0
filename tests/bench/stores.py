"""The two stores by themselves, through our own adapters: exchanges a second on Redis from one process, rows a second into PostgreSQL."""

from __future__ import annotations

import asyncio
import gc
import random
import shutil
import tempfile
import time
import uuid
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import psycopg

from extproc.app.settler import GC_YOUNG
from extproc.exchange.record import Record
from extproc.holds.fresh import open_fresh
from extproc.holds.redis import RedisHolds
from extproc.holds.stream import RedisEventStream
from extproc.ledger.leadership import PostgresLeadership
from extproc.ledger.port import START, EventType, Grant
from extproc.ledger.postgres import PostgresLedger
from extproc.local import valkey as valkey_engine
from extproc.money.hold import NO_LIMITS, Admission, Amendment, Ending, EndKind, EndResult, Granted, uuid7
from extproc.money.price import Price, Rates
from extproc.money.receipt import receipt
from extproc.money.usage import Usage
from extproc.settlement.meter import Series
from extproc.settlement.pace import Pace
from extproc.settlement.poster import Poster
from extproc.stores.pipeline import Pipeline
from extproc.stores.postgres import Database
from extproc.stores.shards import SHARDS, TAGS, shard_of

FLIGHTS = 64  # exchanges at the same time: calls that meet in a tick share a write, as they do in a busy worker
PAYERS = 64
RESERVED, CHARGE = 200_000, 100_000  # nanos
PRICE = Price(model="m", priority="standard", tier="t", currency="EUR", rates=Rates(input=500_000, cached_input=0, output=1_000_000))
PG_WARM_ROWS = 100  # before the clock runs: connections, prepared statements, the price
PG_PAYERS = 256  # about four a shard
PG_WRITE_ROWS = 1_000  # sent to Redis at once
EPOCH = f"{'0' * 40}.1"  # as long as a real one


@dataclass(frozen=True, slots=True, kw_only=True)
class Rate:
    """``per_s`` by the wall clock; CPU in µs for each of them, here and at the server."""

    per_s: float
    client_us: float
    server_us: float


def unix_ms() -> int:
    return time.time_ns() // 1_000_000


def new_id() -> str:
    return uuid7(unix_ms=unix_ms(), random_bits=random.getrandbits(74))


async def redis_pairs(url: str, count: int, server_ns: Callable[[], int], *, scripts: int = 3) -> Rate:
    """Hold and settle, ``count`` times. ``scripts`` 3: entry hold, exact hold, settle, as a request does; 2: entry hold and void."""
    pipeline = Pipeline(url, timeout_ms=5_000)
    holds = RedisHolds(pipeline)
    await pipeline.open()
    await open_fresh(holds)
    payers = [f"bench-{place}" for place in range(PAYERS)]
    for payer in payers:
        total = 10**15
        await holds.install_payer(payer, version=1, total_nanos=total, available_nanos=total, credit_nanos=0)
        await holds.put_key(payer, "key", version=1, fields={"revoked": "0", "expires_ms": "0", "budget_nanos": "", "budget_period": ""})
    turns = iter(range(count))

    async def flight() -> None:
        for turn in turns:
            await _pair(holds, payers[turn % PAYERS], scripts)

    before = (time.perf_counter(), time.process_time_ns(), server_ns())
    await asyncio.gather(*(flight() for _ in range(FLIGHTS)))
    rate = _rate(count, before, server_ns)
    await pipeline.close()
    return rate


async def _pair(holds: RedisHolds, payer: str, scripts: int) -> None:
    hold = new_id()
    row = b'{"id":"' + hold.encode() + b'","model":"qwen2.5-7b","stream":true,"input_tokens":200,"output_tokens":100}'
    admission = Admission(
        hold_id=hold,
        payer_id=payer,
        key_id="key",
        request_id=hold,
        entry_nanos=1_000,
        account_limits=NO_LIMITS,
        key_limits=NO_LIMITS,
        row=row,
    )
    assert isinstance(await holds.admit(admission), Granted)
    if scripts == 3:
        amendment = Amendment(
            hold_id=hold, owner=hold, payer_id=payer, key_id="key", reserved_nanos=RESERVED, cap_nanos=RESERVED, tokens=300,
            account_limits=NO_LIMITS, key_limits=NO_LIMITS, row=row,
        )  # fmt: skip
        assert isinstance(await holds.amend(amendment), Granted)
    kind, charge = (EndKind.SETTLE, CHARGE) if scripts == 3 else (EndKind.VOID, 0)
    ending = Ending(hold_id=hold, owner=hold, payer_id=payer, key_id="key", kind=kind, charge_nanos=charge, tokens=300, row=row)
    assert await holds.end(ending) is EndResult.ENDED


async def pg_rows(dsn: str, *, batches: int, batch_rows: int, server_ns: Callable[[], int]) -> Rate:
    """A backlog worked off as the settler does it, in one process, into a migrated database: read from Redis's streams, parsed, planned, posted
    (request, event, two entries, balance, cursor), committed with fsync, and trimmed from the streams. ``batch_rows`` is the settler's setting.
    """
    gc.set_threshold(GC_YOUNG)  # as in the settler
    directory = Path(tempfile.mkdtemp(prefix="xb-", dir="/tmp"))
    server = valkey_engine.start(directory, durable=True)
    writing, reading = Pipeline(server.url, timeout_ms=5_000), Pipeline(server.url, timeout_ms=5_000)
    try:
        await writing.open()
        await reading.open()
        async with Database(dsn) as pool:
            ledger, tally = PostgresLedger(pool), Posted()
            leadership = PostgresLeadership(pool, range(SHARDS))
            pace = Pace(asyncio.Event(), monotonic_s=time.monotonic, unix_ms=unix_ms)
            stream = RedisEventStream(reading)
            poster = Poster(
                stream=stream, ledger=ledger, leadership=leadership, meter=tally, pace=pace, shards=SHARDS, batch_rows=batch_rows
            )
            payers = [await account(dsn, ledger) for _ in range(PG_PAYERS)]
            seqs: Counter[int] = Counter()
            await _backlog(writing, payers, seqs, PG_WARM_ROWS, price=PRICE.text)
            await poster.step()
            await _backlog(writing, payers, seqs, batches * batch_rows, price="")
            with psycopg.connect(dsn, autocommit=True) as connection:
                connection.execute("CHECKPOINT")  # what was written before is not this run's
            before = (time.perf_counter(), time.process_time_ns(), server_ns())
            while tally.counts[Series.POSTED_ENDINGS] < PG_WARM_ROWS + batches * batch_rows:
                await poster.step()
            rate = _rate(batches * batch_rows, before, server_ns)
            assert set(tally.counts) == {Series.POSTED_ENDINGS}, tally.counts
            assert await stream.read(dict.fromkeys(range(SHARDS), START), count=1, block_ms=0) == [], "all of it is trimmed"
            await leadership.release()
            return rate
    finally:
        await writing.close()
        await reading.close()
        server.stop()
        shutil.rmtree(directory, ignore_errors=True)


class Posted:
    """A meter that counts."""

    def __init__(self) -> None:
        self.counts: Counter[Series] = Counter()

    def add(self, series: Series, amount: int = 1) -> None:
        self.counts[series] += amount

    def set(self, series: Series, value: int) -> None:
        """Gauges are not looked at."""


def _rate(count: int, before: tuple[float, int, int], server_ns: Callable[[], int]) -> Rate:
    start_s, cpu_ns, server_before_ns = before
    wall_s = time.perf_counter() - start_s
    return Rate(
        per_s=count / wall_s,
        client_us=(time.process_time_ns() - cpu_ns) / count / 1e3,
        server_us=(server_ns() - server_before_ns) / count / 1e3,
    )


async def account(dsn: str, ledger: PostgresLedger) -> str:
    """With plenty of money."""
    payer = new_id()
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute("INSERT INTO users (id, name, tier) VALUES (%s, 'bench', 't')", (payer,))
        connection.execute("INSERT INTO balances (user_id) VALUES (%s)", (payer,))
    await ledger.grant(
        Grant(
            id=new_id(),
            payer_id=payer,
            event_type=EventType.DEPOSIT,
            amount_nanos=10**15,
            provider="manual",
            actor="bench",
            occurred_ms=unix_ms(),
        )
    )
    return payer


async def _backlog(pipeline: Pipeline, payers: list[str], seqs: Counter[int], count: int, *, price: str) -> None:
    """Settlements as the scripts leave them in the shards' streams, payers taking turns."""
    for start in range(0, count, PG_WRITE_ROWS):
        turns = range(start, min(start + PG_WRITE_ROWS, count))
        await asyncio.gather(*(pipeline.execute(*_event(payers[turn % len(payers)], seqs, price)) for turn in turns))


def _event(payer: str, seqs: Counter[int], price: str) -> tuple[str | bytes | int, ...]:
    record, shard = settled(payer, price), shard_of(payer)
    seqs[shard] += 1
    return (
        "XADD", f"{TAGS[shard]}:events", "*", "k", "settle", "h", record.id, "p", payer, "c", payer, "a", record.cost_nanos, "r", record.hold_nanos,
        "e", EPOCH, "s", seqs[shard], "t", record.created_ms, "d", record.to_row(),
    )  # fmt: skip


def settled(payer: str, price: str) -> Record:
    """An ordinary streamed request."""
    sum_ = receipt(Usage(input_tokens=200, output_tokens=100), PRICE, cap_nanos=10**9)
    return Record(
        id=new_id(), request_id=str(uuid.uuid4()), user_id=payer, creds_id=payer, model="qwen2.5-7b-instruct", endpoint="chat.completions",
        priority="standard", tier="t", stream=True, input_tokens=200, output_tokens=100, usage_source="upstream", events=100,
        end_reason="stop", hold_nanos=10**9, cost_nanos=sum_.charge_nanos, list_nanos=sum_.cost_nanos, price_id=PRICE.price_id, price=price,
        status=200, upstream="10.0.0.1:8000", attempts=1, created_ms=unix_ms(), duration_ms=2_000, ttft_ms=100,
    )  # fmt: skip
