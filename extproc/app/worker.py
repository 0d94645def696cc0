"""A gate worker: one endpoint of Envoy's ext_proc cluster, one loop, one core.

It drains on SIGTERM: it listens no more, connections get GOAWAY, open exchanges go on until they end or ``drain.grace_s`` is over, then
streams are cut with an error event; it leaves when every charge is safe. A successor may have taken over its address by then.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import time

from extproc.app.compose import GateWorker, gate_worker
from extproc.app.process import COMMIT_S, CUT_S, FLUSH_S, Child, run
from extproc.errors import ExtprocError, StoreError
from extproc.exchange.events import Stopped, Tick
from extproc.settings import Settings

log = logging.getLogger(__name__)

CATALOG_POLL_S = 1.0  # a changed file is in force within two of these
MEET_AGAIN_S = 0.2
TICKS_AT_ONCE = 64  # checkpoints of about 20 µs each between two looks at the sockets
MEET_S = 10.0  # a store that is away for longer is not a moment's hiccup
GC_YOUNG = 20_000  # allocations between collections: most objects of an exchange die by reference count


async def main(settings: Settings, child: Child) -> None:
    """Serve until SIGTERM, then drain."""
    worker = await gate_worker(settings, child.slot, child.listen_fd)
    if child.is_successor:
        await _meet_stores(worker)
    # What has been loaded stays: vocabularies and modules are not looked at again by the collector.
    gc.collect()
    gc.freeze()
    gc.set_threshold(GC_YOUNG, 20, 50)
    worker.health.serve()  # before we listen: connections may be waiting already
    await worker.transport.start()
    loop = asyncio.get_running_loop()
    child.chores.extend([lambda: worker.outbox.tell(worker.gate.metrics.outbox), worker.gate.metrics.flush])
    child.hang_ups.append(lambda: loop.run_in_executor(None, worker.reload))
    holds, meter, standing = worker.stores.holds, worker.gate.metrics, worker.standing
    watch = holds.watch(lambda _: meter.shards_closed(len(holds.closed)), standing.look)
    jobs = (child.beat(), _watch(worker), _ticks(worker, settings.holds.beat_s), watch, standing.register(), worker.gate.pressure.watch())
    tasks = [asyncio.create_task(job) for job in jobs]
    stop = asyncio.create_task(child.stop.wait())
    # A worker whose beats have stopped must not go on as if nothing had happened: its leases run out. It drains, and another one starts.
    done, _ = await asyncio.wait({stop, *tasks}, return_when=asyncio.FIRST_COMPLETED)
    failures = [task.exception() for task in done if task is not stop and task.exception() is not None]
    for failure in failures:
        log.error("a task of the worker failed: %r", failure, exc_info=failure)
    child.quit()  # whoever told us: if it was not the supervisor, nobody accepts here until it starts another one
    log.info("draining %d exchanges", len(worker.gate.open))
    if child.listen_fd is None:
        worker.health.withdraw()  # else the address is not ours alone: whoever asks it now may be served by our successor
    if not await worker.transport.drain(settings.drain.grace_s):
        await _cut(worker)
    await worker.transport.stop()
    await worker.gate.closing.drain(FLUSH_S)
    await worker.outbox.close(COMMIT_S)
    worker.gate.metrics.flush()
    for task in (stop, *tasks):
        task.cancel()
    await standing.leave()
    await worker.close()
    if failures:
        raise ExtprocError("a task of the worker failed; see above")


async def _meet_stores(worker: GateWorker) -> None:
    """Who serves now has stores and knows keys. We do not take his place before we have both: a wrong address would serve nobody."""
    deadline_s = time.monotonic() + MEET_S
    while (why := await _missed(worker)) is not None:
        if time.monotonic() >= deadline_s:
            await worker.outbox.close(COMMIT_S)
            await worker.close()
            raise ExtprocError(f"nobody is replaced by one who has no stores: {why}")
        await asyncio.sleep(MEET_AGAIN_S)


async def _missed(worker: GateWorker) -> StoreError | None:
    try:
        await asyncio.gather(worker.stores.holds.states(), worker.stores.epochs.epochs())
    except StoreError as error:
        return error
    return None


async def _watch(worker: GateWorker) -> None:
    while True:
        await asyncio.sleep(CATALOG_POLL_S)
        await asyncio.to_thread(worker.catalog.poll)


async def _ticks(worker: GateWorker, beat_s: int) -> None:
    """Renew the leases of everything that is open. From a timer, never from chunks: a stream that says nothing lives too."""
    while True:
        await asyncio.sleep(beat_s)
        for number, driver in enumerate(tuple(worker.gate.open)):
            driver.push(Tick(at_ns=time.monotonic_ns()))
            if number % TICKS_AT_ONCE == TICKS_AT_ONCE - 1:
                worker.gate.beats.flush()
                await asyncio.sleep(0)
        worker.gate.beats.flush()


async def _cut(worker: GateWorker) -> None:
    at_ns = time.monotonic_ns()
    log.warning("patience is over: %d exchanges are cut", len(worker.gate.open))
    for driver in tuple(worker.gate.open):
        driver.push(Stopped(at_ns=at_ns))
    await worker.transport.drain(CUT_S)


if __name__ == "__main__":
    run("gate", main)
