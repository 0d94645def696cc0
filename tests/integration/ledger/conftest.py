"""A ledger on a fresh database, and endings to post into it."""

from __future__ import annotations

import secrets
import time
from collections.abc import AsyncIterator
from typing import Any

import psycopg
import pytest

from extproc.exchange.record import Record
from extproc.ledger.port import EventType, Grant
from extproc.ledger.postgres import PostgresLedger
from extproc.money.hold import uuid7
from extproc.money.posting import Posting
from extproc.money.price import Price, Rates
from extproc.money.receipt import receipt
from extproc.money.usage import Usage
from extproc.stores.postgres import Database

PRICE = Price(model="m", priority="standard", tier="t", currency="EUR", rates=Rates(input=1_000_000, cached_input=0, output=2_000_000))


def new_id() -> str:
    return uuid7(unix_ms=time.time_ns() // 1_000_000, random_bits=secrets.randbits(74))


class Bench:
    """A ledger with accounts; makes postings whose rows explain their charge. 1 nano a prompt token, 2 an output token."""

    def __init__(self, ledger: PostgresLedger, dsn: str) -> None:
        self.ledger = ledger
        self.dsn = dsn
        self._seq: dict[int, int] = {}

    async def account(self, balance: int = 1_000_000) -> str:
        payer = new_id()
        self.sql("INSERT INTO users (id, name, tier) VALUES (%s, 'n', 't')", payer)
        self.sql("INSERT INTO balances (user_id) VALUES (%s)", payer)
        if balance:
            await self.ledger.grant(self.grant(payer, balance))
        return payer

    def grant(self, payer: str, amount: int, **fields: Any) -> Grant:
        values = {
            "id": new_id(),
            "event_type": EventType.DEPOSIT,
            "provider": "manual",
            "actor": "test",
            "occurred_ms": time.time_ns() // 1_000_000,
        }
        return Grant(payer_id=payer, amount_nanos=amount, **(values | fields))

    def posting(
        self,
        payer: str,
        output: int = 10,
        *,
        kind: str = "settle",
        shard: int = 0,
        past_redis: bool = False,
        cap: int = 1_000,
        **fields: Any,
    ) -> Posting:
        """Usage of 5 prompt tokens and ``output``; a void has none."""
        hold = fields.pop("hold_id", None) or new_id()
        usage = Usage() if kind == "void" else Usage(input_tokens=5, output_tokens=output)
        sum_ = receipt(usage, PRICE, cap_nanos=cap)
        record = {
            "id": hold,
            "request_id": f"envoy-{hold}",
            "user_id": payer,
            "model": "m",
            "input_tokens": usage.input_tokens,
            "output_tokens": usage.output_tokens,
            "cost_nanos": sum_.charge_nanos,
            "list_nanos": sum_.cost_nanos,
            "overage_nanos": sum_.overage_nanos,
            "price_id": PRICE.price_id,
            "price": PRICE.text,
            "created_ms": time.time_ns() // 1_000_000,
        } | fields.pop("record", {})
        seq = 0 if past_redis else self.next_seq(shard)
        values = {
            "shard": shard,
            "stream_id": f"{seq}-0" if seq else "",
            "kind": kind,
            "hold_id": hold,
            "payer_id": payer,
            "key_id": "",
            "charge_nanos": sum_.charge_nanos,
            "reserved_nanos": cap,
            "epoch": "0.0",
            "seq": seq,
            "occurred_ms": time.time_ns() // 1_000_000,
            "row": Record(**record).to_row(),
        }
        return Posting(**(values | fields))

    def next_seq(self, shard: int = 0) -> int:
        self._seq[shard] = self._seq.get(shard, 0) + 1
        return self._seq[shard]

    def note(self, payer: str, **record: Any) -> Posting:
        values = {"id": new_id(), "user_id": payer, "error_code": "insufficient_quota", "status": 402, "created_ms": 1_760_000_000_000}
        stream = f"{self.next_seq(1)}-0"
        return self.posting(
            payer, kind="note", shard=1, hold_id="", row=Record(**(values | record)).to_row(), charge_nanos=0, stream_id=stream, seq=0
        )

    def sql(self, statement: str, *params: object) -> list[tuple[Any, ...]]:
        with psycopg.connect(self.dsn, autocommit=True) as connection:
            cursor = connection.execute(statement.encode(), params)
            return cursor.fetchall() if cursor.description else []

    def count(self, table: str, where: str = "true") -> int:
        return int(self.sql(f"SELECT count(*) FROM {table} WHERE {where}")[0][0])


@pytest.fixture
async def bench(database: str) -> AsyncIterator[Bench]:
    async with Database(database) as pool:
        yield Bench(PostgresLedger(pool), database)
