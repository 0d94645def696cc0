"""A process of its own that refunds: ``python refunder.py DSN REQUEST AMOUNT TIMES PREFIX`` tells each refund that was booked, a line each."""

from __future__ import annotations

import asyncio
import secrets
import sys
import time

from extproc.errors import UsageError
from extproc.ledger.port import EventType, Grant, derived_id
from extproc.ledger.postgres import PostgresLedger
from extproc.money.hold import uuid7
from extproc.stores.postgres import Database


async def refund(dsn: str, request_id: str, amount_nanos: int, times: int, prefix: str) -> None:
    """Without a prefix every refund is one of its own; with one, refund number n of that prefix is booked once, whoever asks for it."""
    async with Database(dsn) as pool:
        ledger = PostgresLedger(pool)
        charge = await ledger.charge(request_id)
        for number in range(times):
            now_ms = time.time_ns() // 1_000_000
            grant = Grant(
                id=derived_id(request_id, f"{prefix}/{number}") if prefix else uuid7(unix_ms=now_ms, random_bits=secrets.randbits(74)),
                payer_id=charge.payer_id,
                event_type=EventType.USAGE_REFUND,
                amount_nanos=amount_nanos,
                provider=charge.model,
                of_id=charge.request_id,
                actor="test",
                reason="test",
                occurred_ms=now_ms,
            )
            try:
                said = "booked" if (await ledger.grant(grant)).fresh else "again"
            except UsageError:
                said = "refused"
            sys.stdout.write(f"{said}\n")
            sys.stdout.flush()


if __name__ == "__main__":
    asyncio.run(refund(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4]), sys.argv[5]))
