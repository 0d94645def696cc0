"""A town of both stores, real: accounts, holds, ledger and the settler's parts, wired as in production. Time moves by itself, rests are short."""

from __future__ import annotations

import asyncio
import secrets
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import psycopg

from extproc.accounts.directory import KeyStore
from extproc.accounts.registry import Registry, Scopes
from extproc.app.compose import keys_of_payers
from extproc.exchange.record import Record
from extproc.holds.fresh import open_fresh
from extproc.holds.redis import RedisHolds
from extproc.holds.stream import RedisEventStream
from extproc.ledger.leadership import PostgresLeadership
from extproc.ledger.postgres import PostgresLedger
from extproc.ledger.rebuild import PostgresEpochs
from extproc.money.hold import NO_LIMITS, Admission, Amendment, Denied, Ending, EndKind, EndResult, uuid7
from extproc.money.price import Price, Rates
from extproc.money.receipt import receipt
from extproc.money.usage import NO_QUOTA, Quota, Usage, used_of
from extproc.settlement.deposit import Deposits
from extproc.settlement.meter import Series
from extproc.settlement.pace import Pace
from extproc.settlement.poster import Poster
from extproc.settlement.sweep import Sweep
from extproc.stores.pipeline import Pipeline
from extproc.stores.postgres import Database
from extproc.stores.shards import SHARDS

# The ledger's invariants are said once, beside its tests.
sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "ledger"))

PRICE = Price(model="m", priority="standard", tier="t", currency="EUR", rates=Rates(input=1_000_000, cached_input=0, output=2_000_000))
CAP = 1_000


def unix_ms() -> int:
    return time.time_ns() // 1_000_000


def new_id() -> str:
    return uuid7(unix_ms=unix_ms(), random_bits=secrets.randbits(74))


class Tally:
    """A meter that remembers."""

    def __init__(self) -> None:
        self.counts: Counter[Series] = Counter()
        self.gauges: dict[Series, int] = {}

    def add(self, series: Series, amount: int = 1) -> None:
        self.counts[series] += amount

    def set(self, series: Series, value: int) -> None:
        self.gauges[series] = value


class Town:
    """Stores and settler. A request costs 5 prompt tokens at 1 nano and its output tokens at 2."""

    stream: RedisEventStream

    def __init__(self, database: Database, pipeline: Pipeline, dsn: str, url: str) -> None:
        self.dsn = dsn
        self.url = url
        self.database = database
        self.pipeline = pipeline
        self.meter = Tally()
        self.stop = asyncio.Event()
        self.pace = Pace(self.stop, monotonic_s=time.monotonic, unix_ms=unix_ms)
        self.holds = RedisHolds(pipeline)
        self.ledger = PostgresLedger(database)
        self.epochs = PostgresEpochs(database, self.ledger, keys_of_payers())
        self.registry = Registry(KeyStore(database, pipeline, self.holds, unix_ms=unix_ms), self.holds, new_id=new_id)
        self.deposits = self.deposits_over(self.holds)
        self._leaders: list[PostgresLeadership] = []
        self._readings: list[Pipeline] = []

    def deposits_over(self, delivery: Any) -> Deposits:
        return Deposits(self.ledger, delivery, meter=self.meter, new_id=new_id, unix_ms=unix_ms)

    def poster(self, **fields: Any) -> Poster:
        parts = {
            "stream": self.stream,
            "ledger": self.ledger,
            "leadership": self.leader(),
            "meter": self.meter,
            "pace": self.pace,
            "shards": SHARDS,
            "batch_rows": 100,
            "batch_wait_ms": 1,
        }
        return Poster(**(parts | fields))

    def leader(self) -> PostgresLeadership:
        self._leaders.append(PostgresLeadership(self.database, range(SHARDS)))
        return self._leaders[-1]

    async def new_stream(self) -> RedisEventStream:
        """On a connection of its own: a blocking read keeps it from everybody else."""
        self._readings.append(Pipeline(self.url))
        await self._readings[-1].open()
        return RedisEventStream(self._readings[-1])

    async def empty_redis(self) -> None:
        """All is lost, and the shards are opened without having been rebuilt."""
        await self.pipeline.execute("FLUSHALL")
        await open_fresh(self.holds)

    async def close(self) -> None:
        for reading in self._readings:
            await reading.close()
        for leader in self._leaders:
            await leader.release()

    def sweep(self, delivery: Any = None) -> Sweep:
        return Sweep(
            ledger=self.ledger,
            registry=self.registry,
            delivery=delivery or self.holds,
            housekeep=self.ledger.housekeep,
            missed=self.epochs.miss,
            meter=self.meter,
            pace=self.pace,
        )

    async def customer(self, balance: int = 1_000_000) -> tuple[str, str]:
        """Payer and key id."""
        account = await self.registry.create_account(name="n", tier="t", actor="test")
        key = await self.registry.create_key(account.id, name="k", scopes=Scopes(), actor="test")
        if balance:
            assert (await self.deposits.deposit(account.id, balance, method="manual", actor="test")).is_delivered
        return account.id, key.id

    async def grant_quota(self, payer: str, given: int, made: int) -> None:
        """Free tokens of input and output."""
        receipt = await self.deposits.grant_quota(payer, input_tokens=given, output_tokens=made, reason="r", actor="test")
        assert receipt.is_delivered

    async def hold(self, payer: str, key: str, *, quota: Quota = NO_QUOTA, beside: int = 0) -> str:
        """With a quota ``beside`` is reserved beside it."""
        hold = await self.try_to_hold(payer, key, quota=quota, beside=beside)
        assert isinstance(hold, str), hold
        return hold

    async def try_to_hold(self, payer: str, key: str, *, quota: Quota = NO_QUOTA, beside: int = 0) -> str | Denied:
        """The entry hold stays, if it is denied."""
        hold = new_id()
        row = Record(id=hold, user_id=payer, creds_id=key, model="m").to_row()
        entry = await self.holds.admit(
            Admission(
                hold_id=hold,
                payer_id=payer,
                key_id=key,
                request_id="",
                entry_nanos=1,
                account_limits=NO_LIMITS,
                key_limits=NO_LIMITS,
                row=row,
            )
        )
        exact = await self.holds.amend(
            Amendment(
                hold_id=hold,
                owner=hold,
                payer_id=payer,
                key_id=key,
                reserved_nanos=CAP,
                cap_nanos=CAP,
                tokens=1,
                account_limits=NO_LIMITS,
                key_limits=NO_LIMITS,
                row=row,
                quota=quota,
                reserved_beside_nanos=beside,
            )
        )
        denied = next((verdict for verdict in (entry, exact) if isinstance(verdict, Denied)), None)
        return hold if denied is None else denied

    async def serve(self, payer: str, key: str, output: int = 10, *, quota: Quota = NO_QUOTA) -> str:
        """A whole request, settled in Redis."""
        hold = await self.hold(payer, key, quota=quota)
        assert await self.holds.end(self.settle(hold, payer, key, output, quota=quota)) is EndResult.ENDED
        return hold

    def settle(self, hold: str, payer: str, key: str, output: int = 10, *, quota: Quota = NO_QUOTA) -> Ending:
        usage = Usage(input_tokens=5, output_tokens=output)
        sum_, used = receipt(usage, PRICE, cap_nanos=CAP, quota=quota), used_of(quota, usage)
        row = Record(
            id=hold,
            request_id=f"envoy-{hold}",
            user_id=payer,
            creds_id=key,
            model="m",
            input_tokens=5,
            output_tokens=output,
            cost_nanos=sum_.charge_nanos,
            list_nanos=sum_.cost_nanos,
            price_id=PRICE.price_id,
            price=PRICE.text,
            created_ms=unix_ms(),
            free_input=used.input_tokens,
            free_output=used.output_tokens,
        ).to_row()
        return Ending(
            hold_id=hold,
            owner=hold,
            payer_id=payer,
            key_id=key,
            kind=EndKind.SETTLE,
            charge_nanos=sum_.charge_nanos,
            tokens=usage.limited_tokens,
            row=row,
            reserved_nanos=CAP if quota is NO_QUOTA else 0,
            is_forwarded=True,
            quota=used,
        )

    async def waiting(self) -> int:
        """Events that the streams still keep. Not asked through the connection on which a poster may be waiting for some."""
        return len(await RedisEventStream(self.pipeline).read(dict.fromkeys(range(SHARDS), "0-0"), count=10_000, block_ms=0))

    def count(self, table: str, where: str = "true") -> int:
        with psycopg.connect(self.dsn) as connection:
            row = connection.execute(f"SELECT count(*) FROM {table} WHERE {where}".encode()).fetchone()
        assert row is not None
        return int(row[0])

    async def at_rest(self, payer: str) -> tuple[int, int, int]:
        """Balance in the ledger, available and held in Redis."""
        balance, view = await self.ledger.balance(payer), await self.holds.view(payer)
        assert balance is not None
        assert view is not None
        return balance.balance_nanos, view.available_nanos, view.held_nanos


async def until(condition: Any, *, deadline_s: float = 20) -> None:
    async with asyncio.timeout(deadline_s):
        while not await condition():
            await asyncio.sleep(0.01)
