"""What waits in the outboxes after an outage, brought into the ledger as the settler does it: read, looked for, booked, read back, confirmed.

``python -m tests.bench.backlog [ROWS]``: a PostgreSQL, a Valkey and outboxes of its own, on the disk; none of the rows ever passed through Redis.
"""

# ruff: noqa: T201 - it is there to print
from __future__ import annotations

import asyncio
import gc
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import psycopg
import uvloop

from extproc.app.settler import GC_YOUNG
from extproc.exchange.record import Record
from extproc.holds.stream import RedisEventStream
from extproc.ledger.outboxes import PostgresOutboxes
from extproc.ledger.postgres import PostgresLedger
from extproc.local import postgres as postgres_engine
from extproc.local import valkey as valkey_engine
from extproc.money.hold import EndKind
from extproc.settlement.meter import Series
from extproc.settlement.outbox_file import Claim, OutboxFile, Written, outboxes, watermark_of
from extproc.settlement.pace import Pace
from extproc.settlement.replay import Replay
from extproc.stores.migrations import migrate
from extproc.stores.pipeline import Pipeline
from extproc.stores.postgres import Database
from extproc.stores.shards import SHARDS, shard_of

from .cpu import tree_ns
from .memory_of import rss_bytes
from .stores import PG_PAYERS, PRICE, Posted, Rate, account, new_id, settled, unix_ms

FILES = 4  # of as many workers
COMMIT_ROWS = 2_000
LOOK_S = 0.2  # between two looks at the memory
ROWS = 1_000_000  # ten minutes of 1,700 requests a second


@dataclass(frozen=True, slots=True, kw_only=True)
class Backlog:
    """``grown_bytes``: of this process's memory, at most, while it was worked off."""

    rate: Rate
    grown_bytes: int


async def backlog(dsn: str, directory: Path, rows: int, server_ns: Callable[[], int]) -> Backlog:
    """``rows`` of them, into a migrated database; ``directory`` for a Valkey and the outboxes."""
    gc.set_threshold(GC_YOUNG)  # as in the settler
    server = valkey_engine.start(directory / "valkey")
    pipeline = Pipeline(server.url, timeout_ms=5_000)
    try:
        await pipeline.open()
        async with Database(dsn) as pool:
            ledger, tally = PostgresLedger(pool), Posted()
            _promise(directory / "outbox", [await account(dsn, ledger) for _ in range(PG_PAYERS)], rows)
            replay = Replay(
                directory=directory / "outbox",
                ledger=PostgresOutboxes(pool),
                postings=ledger,
                stream=RedisEventStream(pipeline),
                renew=_never,
                meter=tally,
                pace=Pace(asyncio.Event(), monotonic_s=time.monotonic, unix_ms=unix_ms),
                shards=SHARDS,
            )
            with psycopg.connect(dsn, autocommit=True) as connection:
                connection.execute("CHECKPOINT")  # what was written before is not this run's
            found = await _work_off(replay, rows, server_ns)
            assert (tally.counts[Series.OUTBOX_POSTED], tally.counts[Series.OUTBOX_CONFIRMED]) == (rows, rows), tally.counts
            assert sum(mark.below - 1 for path in outboxes(directory / "outbox") if (mark := watermark_of(path))) == rows
            with psycopg.connect(dsn) as connection:
                assert connection.execute("SELECT count(*) FROM requests").fetchone() == (rows,)
            return found
    finally:
        await pipeline.close()
        server.stop()


async def _work_off(replay: Replay, rows: int, server_ns: Callable[[], int]) -> Backlog:
    gc.collect()
    start_s, cpu_ns, server_before_ns = time.perf_counter(), time.process_time_ns(), server_ns()
    rss = most = rss_bytes(os.getpid())
    working = asyncio.create_task(_until_idle(replay))
    while not working.done():
        await asyncio.wait({working}, timeout=LOOK_S)
        most = max(most, rss_bytes(os.getpid()))
    await working
    rate = Rate(
        per_s=rows / (time.perf_counter() - start_s),
        client_us=(time.process_time_ns() - cpu_ns) / rows / 1e3,
        server_us=(server_ns() - server_before_ns) / rows / 1e3,
    )
    return Backlog(rate=rate, grown_bytes=most - rss)


async def _until_idle(replay: Replay) -> None:
    while not await replay.step():
        pass


async def _never() -> None:
    raise AssertionError("nothing was lost, so nothing is rebuilt")


def _promise(directory: Path, payers: Sequence[str], rows: int) -> None:
    """Outboxes of workers that are no more. The first row brings the price along, as it does in life."""
    for slot in range(FILES):
        claim = Claim.first_of(directory, slot)
        file = OutboxFile.owned(claim, new_id=new_id(), unix_ms=unix_ms())
        mine = range(slot, rows, FILES)
        for start in range(0, len(mine), COMMIT_ROWS):
            turns = mine[start : start + COMMIT_ROWS]
            file.append([_written(settled(payers[turn % len(payers)], "" if turn >= FILES else PRICE.text)) for turn in turns])
        file.close()
        claim.release()


def _written(record: Record) -> Written:
    return Written(
        at_ms=record.created_ms,
        shard=shard_of(record.user_id),
        hold_id=record.id,
        payer_id=record.user_id,
        key_id=record.creds_id,
        kind=EndKind.SETTLE.value,
        charge_nanos=record.cost_nanos,
        reserved_nanos=record.hold_nanos,
        row=record.to_row(),
    )


def main() -> None:
    rows = int(sys.argv[1]) if len(sys.argv) > 1 else ROWS
    directory = Path(tempfile.mkdtemp(prefix="xb-", dir="/tmp"))
    directory.chmod(0o711)
    postgres = postgres_engine.start(directory / "postgres", durable=True)
    try:
        dsn = postgres.create_database(name="backlog")
        migrate(dsn)
        found = uvloop.run(backlog(dsn, directory, rows, lambda: tree_ns(postgres.pid)))
    finally:
        postgres.stop()
        shutil.rmtree(directory, ignore_errors=True)
    rate = found.rate
    print(f"{rows:,} rows: {rate.per_s:,.0f}/s, CPU {rate.client_us:.1f} µs here, {rate.server_us:.1f} µs in PostgreSQL, each")
    print(f"memory grew by {found.grown_bytes / 1e6:.0f} MB at most")


if __name__ == "__main__":
    main()
