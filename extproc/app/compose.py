"""The only place that names concrete adapters: settings in, working parts out."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import random
import time
from collections.abc import AsyncIterator, Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial

from extproc import metrics
from extproc.accounts.codec import delivery_of_row, enforced
from extproc.accounts.directory import Directory, KeyStore
from extproc.accounts.registry import Registry
from extproc.app.endpoint import listen_of
from extproc.app.live import LiveCatalog, LivePolicy
from extproc.app.undertaker import worker_name
from extproc.edge.announced import Announced
from extproc.edge.answering import Answering
from extproc.edge.beats import Beats
from extproc.edge.closing import Closing
from extproc.edge.driver import Driver, Gate
from extproc.edge.health import Health
from extproc.edge.lending import Lending
from extproc.edge.pressure import Pressure
from extproc.edge.standing import Standing
from extproc.edge.threads import Threads
from extproc.edge.transport.grpcio import GrpcioTransport
from extproc.edge.transport.lean.server import LeanTransport
from extproc.edge.transport.port import Call, Handler, HandlerFactory, Listen, Transport
from extproc.edge.upstream_tokens import UpstreamTokens
from extproc.errors import ExtprocError, StoreError
from extproc.holds.memory import used_ratio
from extproc.holds.redis import RedisHolds
from extproc.holds.stream import RedisEventStream
from extproc.ledger.audit import PostgresAudit
from extproc.ledger.periods import PostgresPeriods
from extproc.ledger.postgres import PostgresLedger
from extproc.ledger.rebuild import Keys, PostgresEpochs
from extproc.ledger.spending import PostgresSpending
from extproc.money.hold import uuid7
from extproc.settings import Settings
from extproc.settlement.deposit import Deposits
from extproc.settlement.meter import UNMETERED, Meter
from extproc.settlement.month_end import MonthEnd, oldest_unconfirmed_ms
from extproc.settlement.outbox import GATHER_S, GATHER_S_AWAITED, Keeper, Outbox
from extproc.settlement.release import Release
from extproc.stores.cluster import ClusterPipeline, is_cluster
from extproc.stores.pipeline import Client, Pipeline
from extproc.stores.postgres import Database
from extproc.stores.queries import load_queries
from extproc.stores.shards import SHARDS, shard_of

log = logging.getLogger(__name__)

TRANSPORTS: Mapping[str, Callable[[Listen, HandlerFactory, Health], Transport]] = {"lean": LeanTransport, "grpcio": GrpcioTransport}
COUNT_THREADS = 2  # tiktoken releases the GIL; more threads would only stand in each other's way


@dataclass(frozen=True, slots=True, kw_only=True)
class Stores:
    """Redis and PostgreSQL with everything that speaks to them."""

    database: Database
    pipeline: Client
    holds: RedisHolds
    ledger: PostgresLedger
    epochs: PostgresEpochs
    directory: Directory
    registry: Registry
    deposits: Deposits

    async def close(self) -> None:
        """Give connections back."""
        await self.directory.close()
        await self.pipeline.close()
        await self.database.close()


async def open_stores(settings: Settings, *, application: str, meter: Meter = UNMETERED, connections: int = 1) -> Stores:
    """Connect. Neither server has to be there yet: what needs it says so when it is asked.

    ``connections``: to PostgreSQL at the same time, whatever the settings say; as few are open as are in use.
    """
    database = Database(
        settings.postgres.dsn,
        pool_max=max(connections, settings.postgres.pool_max),
        statement_timeout_ms=settings.postgres.statement_timeout_ms,
        password=settings.postgres.password,
        application=f"extproc {application}",
    )
    pipeline = pipeline_of(settings)
    holds = RedisHolds(pipeline, lease_ms=settings.holds.lease_s * 1_000)
    keys = KeyStore(database, pipeline, holds, unix_ms=unix_ms)
    ledger = PostgresLedger(database)
    await database.open()
    await pipeline.open()
    if pipeline.fault:
        await pipeline.close()
        await database.close()
        raise ExtprocError(pipeline.fault)
    with contextlib.suppress(StoreError):  # it need not be there yet: a shard that nobody has looked at is closed
        await holds.states()
    return Stores(
        database=database,
        pipeline=pipeline,
        holds=holds,
        ledger=ledger,
        epochs=PostgresEpochs(database, ledger, keys_of_payers()),
        directory=Directory(
            keys,
            monotonic_s=time.monotonic,
            known_ttl_s=settings.identity.cache_ttl_s,
            unknown_ttl_s=settings.identity.negative_cache_ttl_s,
        ),
        registry=Registry(keys, holds, new_id=new_id),
        deposits=Deposits(ledger=ledger, delivery=holds, meter=meter, new_id=new_id, unix_ms=unix_ms),
    )


def pipeline_of(settings: Settings) -> Client:
    """A client of Redis, or of the cluster that the settings name; not opened yet."""
    redis = settings.redis
    kind = ClusterPipeline if is_cluster(redis.url) else Pipeline
    return kind(redis.url, timeout_ms=redis.timeout_ms, pipeline_max=redis.pipeline_max, password=redis.password)


@asynccontextmanager
async def event_stream(settings: Settings) -> AsyncIterator[RedisEventStream]:
    """The event streams, over a connection of their own: a blocking read would make every other call wait behind it."""
    pipeline = pipeline_of(settings)
    await pipeline.open()
    try:
        yield RedisEventStream(pipeline)
    finally:
        await pipeline.close()


@asynccontextmanager
async def office(settings: Settings) -> AsyncIterator[Stores]:
    """The stores for one command of an operator."""
    stores = await open_stores(settings, application="cli")
    try:
        yield stores
    finally:
        await stores.close()


@dataclass(frozen=True, slots=True, kw_only=True)
class BackOffice:
    """What an operator sets right."""

    audit: PostgresAudit
    periods: PostgresPeriods
    month_end: MonthEnd
    release: Release


def back_office(stores: Stores, settings: Settings) -> BackOffice:
    """Over the stores of an :func:`office`."""
    audit, periods = PostgresAudit(stores.database), PostgresPeriods(stores.database)
    month_end = MonthEnd(
        periods=periods,
        ledger=stores.ledger,
        stream=RedisEventStream(stores.pipeline),
        shards=SHARDS,
        unconfirmed_ms=lambda: oldest_unconfirmed_ms(settings.outbox.dir),
        new_id=new_id,
    )
    return BackOffice(audit=audit, periods=periods, month_end=month_end, release=Release(stores.holds, audit, new_id=new_id))


@dataclass(frozen=True, slots=True, kw_only=True)
class GateWorker:
    """Everything of one gate worker."""

    gate: Gate
    transport: Transport
    health: Health
    stores: Stores
    outbox: Outbox
    standing: Standing
    catalog: LiveCatalog
    policy: LivePolicy
    threads: ThreadPoolExecutor

    def reload(self) -> None:
        """Catalog and policy as their files are now. Blocks: call it in a thread."""
        self.catalog.reload()
        self.policy.reload(os.environ)

    async def close(self) -> None:
        """After the transport has stopped and the endings are acknowledged."""
        await self.stores.close()
        self.threads.shutdown(wait=False, cancel_futures=True)


async def gate_worker(settings: Settings, slot: int, listen_fd: int | None) -> GateWorker:
    """Adapters, catalog and vocabularies of worker ``slot``, which accepts nothing yet. ``listen_fd``: the supervisor's socket for it."""
    meter = metrics.Metrics(metrics.registry())
    catalog = await asyncio.to_thread(LiveCatalog, settings.catalog.file, meter)
    policy = LivePolicy(settings)
    stores = await open_stores(settings, application=f"gate-{slot}")
    meter.shards_closed(len(stores.holds.closed))
    outbox = outbox_of(settings, slot)
    await outbox.start()
    threads = ThreadPoolExecutor(COUNT_THREADS, thread_name_prefix="count")
    drivers: set[Driver] = set()
    standing = Standing(
        new_id(),
        worker_name(slot),
        holds=stores.holds,
        register=stores.epochs,
        exchanges=lambda: (driver.exchange for driver in tuple(drivers)),
        unconfirmed=outbox.unconfirmed,
        shard_of=shard_of,
        metrics=meter,
    )
    gate = Gate(
        directory=stores.directory,
        answering=Answering(stores.holds, PostgresSpending(stores.database), now_s=time.monotonic),
        holds=stores.holds,
        lending=Lending(outbox, workers=settings.listen.worker_count, monotonic_s=time.monotonic),
        closing=Closing(stores.holds, outbox, meter, jitter=random.random, waits_for_disk=settings.outbox.reply_waits_for == "disk"),
        announced=Announced(shard_of, lives=lambda: (stores.holds.lives, outbox.lives)),
        catalog=lambda: catalog.current,
        policy=lambda: policy.current,
        bounds=settings.bounds(),
        counters=lambda: catalog.counters,
        metrics=meter,
        threads=Threads(threads),
        upstream_tokens=UpstreamTokens(dict(settings.body.tokenize_urls), monotonic_s=time.monotonic, metrics=meter),
        open=drivers,
        beats=Beats(stores.holds, meter),
        missed=standing.miss,
        pressure=Pressure(partial(used_ratio, stores.pipeline), meter),
        random=random.Random(),  # noqa: S311 - ids must be unique, not secret
    )

    def handler(call: Call) -> Handler:
        return Driver(gate, call)

    health = Health()
    chosen, why = settings.listen.chosen_transport
    log.info("transport %s: %s", chosen, why)
    transport = TRANSPORTS[chosen](listen_of(settings, slot, listen_fd), handler, health)
    return GateWorker(
        gate=gate,
        transport=transport,
        health=health,
        stores=stores,
        outbox=outbox,
        standing=standing,
        catalog=catalog,
        policy=policy,
        threads=threads,
    )


def outbox_of(settings: Settings, slot: int) -> Outbox:
    """The outbox of worker ``slot``, not opened yet."""
    keeper = Keeper(
        settings.outbox.dir,
        slot,
        bytes_max=settings.outbox.bytes_max,
        shard_of=shard_of,
        new_id=new_id,
        unix_ms=unix_ms,
        monotonic_s=time.monotonic,
    )
    return Outbox(keeper, unix_ms=unix_ms, gather_s=GATHER_S_AWAITED if settings.outbox.reply_waits_for == "disk" else GATHER_S)


def keys_of_payers() -> Keys:
    """How a rebuild reads keys, as the accounts have them."""
    return Keys(query=load_queries("extproc.accounts")["keys_of_payers"], fields=lambda row: enforced(delivery_of_row(row)))


def unix_ms() -> int:
    """The wall clock."""
    return time.time_ns() // 1_000_000


def new_id() -> str:
    """A fresh UUIDv7."""
    return uuid7(unix_ms=unix_ms(), random_bits=random.getrandbits(74))
