"""The two stores by themselves, through our own adapters: exchanges a second on Redis from one process, rows a second into PostgreSQL."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable
from dataclasses import dataclass

import psycopg

from extproc.exchange.record import Record
from extproc.holds.redis import RedisHolds
from extproc.ledger.port import EventType, Grant, Posting
from extproc.ledger.postgres import PostgresLedger
from extproc.money.hold import NO_LIMITS, Admission, Amendment, Ending, EndKind, EndResult, Granted, uuid7
from extproc.money.price import Price
from extproc.money.receipt import receipt
from extproc.money.usage import Usage
from extproc.stores.pipeline import Pipeline
from extproc.stores.postgres import Database

FLIGHTS = 64  # exchanges at the same time: calls that meet in a tick share a write, as they do in a busy worker
PAYERS = 64
RESERVED, CHARGE = 200_000, 100_000  # nanos
PRICE = Price(model="m", priority="standard", tier="t", currency="EUR", input_rate=500_000, cached_input_rate=0, output_rate=1_000_000)
PG_CLIENT_WARM_ROWS = 100


@dataclass(frozen=True, slots=True, kw_only=True)
class Rate:
    """``per_s`` by the wall clock; CPU in µs for each of them, here and at the server."""

    per_s: float
    client_us: float
    server_us: float


def new_id() -> str:
    return uuid7(unix_ms=time.time_ns() // 1_000_000, random_bits=random.getrandbits(74))


async def redis_pairs(url: str, count: int, server_ns: Callable[[], int], *, scripts: int = 3) -> Rate:
    """Hold and settle, ``count`` times. ``scripts`` 3: entry hold, exact hold, settle, as a request does; 2: entry hold and void."""
    pipeline = Pipeline(url, timeout_ms=5_000)
    holds = RedisHolds(pipeline)
    await pipeline.open()
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
    """Settlements into a migrated database: request, event, entries, balance and cursor of each, in transactions of ``batch_rows``."""
    async with Database(dsn) as pool:
        ledger = PostgresLedger(pool)
        payers = [await _account(dsn, ledger) for _ in range(PAYERS)]
        posted = await ledger.post([_posting(payers[0], seq) for seq in range(1, PG_CLIENT_WARM_ROWS + 1)])
        assert posted.booked == PG_CLIENT_WARM_ROWS
        first = PG_CLIENT_WARM_ROWS + 1
        work = [[_posting(payers[row % PAYERS], first + batch * batch_rows + row) for row in range(batch_rows)] for batch in range(batches)]
        before = (time.perf_counter(), time.process_time_ns(), server_ns())
        for batch in work:
            done = await ledger.post(batch)
            assert (done.booked, done.violations, done.conflicts) == (batch_rows, 0, 0), done
        return _rate(batches * batch_rows, before, server_ns)


def _rate(count: int, before: tuple[float, int, int], server_ns: Callable[[], int]) -> Rate:
    start_s, cpu_ns, server_before_ns = before
    wall_s = time.perf_counter() - start_s
    return Rate(
        per_s=count / wall_s,
        client_us=(time.process_time_ns() - cpu_ns) / count / 1e3,
        server_us=(server_ns() - server_before_ns) / count / 1e3,
    )


async def _account(dsn: str, ledger: PostgresLedger) -> str:
    payer = new_id()
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute("INSERT INTO users (id, name, tier) VALUES (%s, 'bench', 't')", (payer,))
        connection.execute("INSERT INTO balances (user_id) VALUES (%s)", (payer,))
    now_ms = time.time_ns() // 1_000_000
    await ledger.grant(
        Grant(
            id=new_id(),
            payer_id=payer,
            event_type=EventType.DEPOSIT,
            amount_nanos=10**15,
            provider="manual",
            actor="bench",
            occurred_ms=now_ms,
        )
    )
    return payer


def _posting(payer: str, seq: int) -> Posting:
    """A settlement as the settler reads it from a shard's stream, with the row of an ordinary streamed request."""
    hold, now_ms = new_id(), time.time_ns() // 1_000_000
    usage = Usage(input_tokens=200, output_tokens=100)
    sum_ = receipt(usage, PRICE, cap_nanos=10**9)
    record = Record(
        id=hold, request_id=f"envoy-{hold}", user_id=payer, creds_id="", model="m", endpoint="chat.completions", priority="standard", tier="t",
        stream=True, input_tokens=200, output_tokens=100, usage_source="upstream", events=100, end_reason="stop", hold_nanos=10**9,
        cost_nanos=sum_.charge_nanos, list_nanos=sum_.cost_nanos, price_id=PRICE.price_id, price=PRICE.text if seq <= PG_CLIENT_WARM_ROWS else "",
        status=200, upstream="10.0.0.1:8000", attempts=1, created_ms=now_ms, duration_ms=2_000, ttft_ms=100,
    )  # fmt: skip
    return Posting(
        shard=0, stream_id=f"{seq}-0", kind="settle", hold_id=hold, payer_id=payer, key_id="", charge_nanos=sum_.charge_nanos,
        reserved_nanos=10**9, epoch="0.0", seq=seq, occurred_ms=now_ms, row=record.to_row(),
    )  # fmt: skip
