"""The settler: endings into the ledger, leases that ran out, deliveries into Redis. As many as you like may run; one leads each shard.

It needs neither Envoy nor the gate workers, and they do not need it to serve: while it is away events wait in their streams.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import socket
import time
from collections.abc import Coroutine, Sequence
from functools import partial

from extproc import metrics
from extproc.app import reconcile
from extproc.app.compose import Stores, event_stream, open_stores, unix_ms
from extproc.app.process import SETTLE_S, Child, run
from extproc.app.undertaker import Undertaker
from extproc.errors import ExtprocError
from extproc.holds.stream import RedisEventStream
from extproc.ledger.leadership import PostgresLeadership
from extproc.ledger.outboxes import PostgresOutboxes
from extproc.ledger.witness import PostgresWitness
from extproc.settings import Settings
from extproc.settlement.meter import ALARMS, Series
from extproc.settlement.month_end import oldest_unconfirmed_ms
from extproc.settlement.old_master import OldMaster
from extproc.settlement.pace import Pace
from extproc.settlement.poster import Poster
from extproc.settlement.reaper import Reaper
from extproc.settlement.rebuild import Rebuild
from extproc.settlement.replay import Replay
from extproc.settlement.sweep import Sweep
from extproc.settlement.witness import Witness
from extproc.settlement.witness_endings import WitnessEndings
from extproc.settlement.witness_log import Log
from extproc.stores.shards import SHARDS, shard_of

log = logging.getLogger(__name__)

CONNECTIONS = 12  # two lanes of the poster, two of the replay, and one for each other loop: after an outage none waits for another's
GC_YOUNG = 100_000  # allocations between collections: a batch is some ten thousand values without circles, gone when it is committed


class SettlerMeter:
    """The settlement's figures as series of Prometheus; alarms are logged as well."""

    def __init__(self, meter: metrics.Metrics) -> None:
        self._metrics = meter
        for alarm in ALARMS:
            meter.settlement(alarm.value, 0)  # on the page from the start: else its first rise would be none

    def add(self, series: Series, amount: int = 1) -> None:
        """A counter rises."""
        self._metrics.settlement(series.value, amount)
        if series is Series.EXPIRED_HOLDS:
            self._metrics.holds_expired(amount)
        if series in ALARMS:
            log.error("alarm: %s rose by %d", series.value, amount)

    def set(self, series: Series, value: int) -> None:
        """A gauge stands at."""
        if series is Series.POSTER_LAG_MS:
            self._metrics.settlement_lag(value / 1_000)
        elif series is Series.LED_SHARDS:
            self._metrics.shards_led(value)
        elif series is Series.OUTBOX_AGE_MS:
            self._metrics.outbox_age(value / 1_000)
        elif series is Series.REBUILD_MS:
            self._metrics.rebuilt(value / 1_000)
        elif series is Series.WITNESS_LAG_BYTES:
            self._metrics.witness_lag(value)


async def main(settings: Settings, child: Child) -> None:
    """Until SIGTERM. A loop that fails for no store's fault ends the process: the supervisor starts another one."""
    series = metrics.Metrics(metrics.registry())
    child.chores.append(series.flush)
    meter = SettlerMeter(series)
    stores = await open_stores(settings, application="settler", meter=meter, connections=CONNECTIONS)
    pace = Pace(child.stop, monotonic_s=time.monotonic, unix_ms=unix_ms)
    witness = _witness(settings, stores, meter, pace)
    reaper = Reaper(
        holds=stores.holds,
        shards=SHARDS,
        meter=meter,
        pace=pace,
        reap_every_s=settings.holds.reap_every_s,
        caught_up=witness.caught_up if witness else None,
    )
    sweep = Sweep(
        ledger=stores.ledger,
        registry=stores.registry,
        delivery=stores.holds,
        housekeep=stores.ledger.housekeep,
        missed=stores.epochs.miss,
        meter=meter,
        pace=pace,
    )
    leadership = PostgresLeadership(stores.database, range(SHARDS))
    rebuild = Rebuild(
        holds=stores.holds,
        epochs=stores.epochs,
        stream=RedisEventStream(stores.pipeline),
        led=lambda: leadership.current,
        meter=meter,
        pace=pace,
        say=log.info,
    )
    gc.freeze()
    gc.set_threshold(GC_YOUNG)
    async with event_stream(settings) as stream:
        poster = Poster(
            stream=stream,
            ledger=stores.ledger,
            leadership=leadership,
            meter=meter,
            pace=pace,
            shards=SHARDS,
            batch_rows=settings.settler.batch_rows,
            batch_wait_ms=settings.settler.batch_wait_ms,
        )
        watch = stores.holds.watch(lambda _: series.shards_closed(len(stores.holds.closed)))
        old_master = OldMaster(holds=stores.holds, epochs=stores.epochs, led=lambda: leadership.current, meter=meter, pace=pace)
        loops = [poster.run(), reaper.run(), sweep.run(), rebuild.run(), old_master.run()]
        loops += reconcile.loops(settings, stores, series, meter=meter, pace=pace)
        loops += [_replay(settings, stores, meter, pace).run(), Undertaker(stores.epochs, meter=meter, pace=pace).run()]
        loops += [witness.run(), _witness_endings(settings, stores, meter, pace).run()] if witness else []
        failure = await _until_over(loops, watch, child)
    await stores.close()
    series.flush()
    if failure is not None:
        raise ExtprocError(f"the settler failed: {failure!r}") from failure


def _replay(settings: Settings, stores: Stores, meter: SettlerMeter, pace: Pace) -> Replay:
    """Each host has its own outboxes: whoever runs there reads them, whoever leads."""
    return Replay(
        directory=settings.outbox.dir,
        ledger=PostgresOutboxes(stores.database),
        postings=stores.ledger,
        stream=RedisEventStream(stores.pipeline),
        renew=lambda: stores.epochs.want(range(SHARDS)),
        meter=meter,
        pace=pace,
        shards=SHARDS,
    )


def _log_name(settings: Settings) -> str:
    """Of the access log, among those of all hosts."""
    return f"{socket.gethostname()}:{settings.access_log.file}"


def _witness(settings: Settings, stores: Stores, meter: SettlerMeter, pace: Pace) -> Witness | None:
    """If there is an access log. Each host has its own: whoever runs there reads it, twice if need be."""
    file = settings.access_log.file
    if file is None:
        return None
    return Witness(
        source=Log(file),
        name=_log_name(settings),
        holds=stores.holds,
        register=PostgresWitness(stores.database),
        meter=meter,
        pace=pace,
        grace_s=settings.holds.witness_grace_s,
    )


def _witness_endings(settings: Settings, stores: Stores, meter: SettlerMeter, pace: Pace) -> WitnessEndings:
    """Of all hosts' logs: several settlers do each other's work, if need be."""
    return WitnessEndings(
        name=_log_name(settings),
        kept=PostgresWitness(stores.database),
        postings=stores.ledger,
        stream=RedisEventStream(stores.pipeline),
        meter=meter,
        pace=pace,
        shard_of=shard_of,
        unconfirmed_ms=partial(oldest_unconfirmed_ms, settings.outbox.dir),
        lease_s=settings.holds.lease_s + settings.holds.grace_s,
    )


async def _until_over(
    loops: Sequence[Coroutine[None, None, None]], watch: Coroutine[None, None, None], child: Child
) -> BaseException | None:
    """All of them, until one fails (that failure) or all but the watch have ended (``None``).

    Of a stop each loop makes what it can, and one that would take longer is given up: wherever it is, its next start goes on from there.
    """
    beat, watching = asyncio.create_task(child.beat()), asyncio.create_task(watch)
    tasks = [asyncio.create_task(loop, name=getattr(loop, "__qualname__", None)) for loop in loops]
    over = asyncio.create_task(asyncio.wait(tasks, return_when=asyncio.FIRST_EXCEPTION))
    patience = asyncio.create_task(_patience(child.stop))
    await asyncio.wait({over, watching, patience}, return_when=asyncio.FIRST_COMPLETED)
    if patience.done():
        log.warning("given up: %s", ", ".join(sorted(task.get_name() for task in tasks if not task.done())))
    done = [task for task in (*tasks, watching) if task.done()]
    for task in (beat, over, watching, patience, *tasks):
        task.cancel()
    await asyncio.gather(beat, over, watching, patience, *tasks, return_exceptions=True)
    return next((task.exception() for task in done if not task.cancelled() and task.exception() is not None), None)


async def _patience(stop: asyncio.Event) -> None:
    await stop.wait()
    await asyncio.sleep(SETTLE_S)


if __name__ == "__main__":
    run("settler", main)
