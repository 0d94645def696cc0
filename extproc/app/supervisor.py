"""``extproc serve``: starts gate workers and the settler, keeps them alive, and leads them out.

Children are started by exec, never by fork (gRPC and prometheus_client do not survive one). Each gets a pipe and writes to it once a
second from its own loop: what is silent for too long is hung, and killed. A child that ends is replaced, with a growing pause if it
cannot live. SIGTERM drains all of them; SIGHUP is handed on (reload). The supervisor itself serves the ops port and touches no request.
"""

from __future__ import annotations

import asyncio
import logging
import os
import shutil
import signal
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

from extproc import metrics
from extproc.app.ops import Ops
from extproc.settings import Settings

log = logging.getLogger(__name__)

HEARTBEAT_S = 1.0
SILENCE_S_MAX = 5.0  # a loop that has not run for this long is hung (ENVOY.md, "Failures")
START_S_MAX = 60.0  # loading vocabularies and connecting may take this long before the first heartbeat
PAUSE_S_FIRST = 0.2
PAUSE_S_MAX = 10.0
LIVED_S = 30.0  # a child that lived this long may be replaced at once again
LEAVE_S = 10.0  # beyond drain.grace_s: time to flush


@dataclass(slots=True, kw_only=True)
class Child:
    """One supervised process. ``slot`` −1 is the settler."""

    name: str
    slot: int
    process: asyncio.subprocess.Process
    started_s: float
    beat_s: float
    ready: bool = False
    watcher: asyncio.Task[None] | None = field(default=None, repr=False)


class Supervisor:
    """One instance of the sidecar on this machine."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._workers = settings.listen.worker_count
        self._children: dict[str, Child] = {}
        self._keepers: list[asyncio.Task[None]] = []
        self._leaving = asyncio.Event()
        self._metrics_dir = Path(tempfile.mkdtemp(prefix="extproc-metrics-"))

    async def run(self) -> int:
        """Until SIGTERM or SIGINT; the exit code."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._leaving.set)
        loop.add_signal_handler(signal.SIGHUP, self._hang_up)
        metrics.wipe(self._metrics_dir)
        ops = Ops(self._settings, metrics_dir=self._metrics_dir, is_ready=self._is_ready, pids=self._pids)
        ops.start()
        try:
            names = [(f"gate-{slot}", slot) for slot in range(self._workers)]
            if self._settings.settler.enabled:
                names.append(("settler", -1))
            self._keepers = [asyncio.create_task(self._keep(name, slot)) for name, slot in names]
            await self._leaving.wait()
            await self._lead_out()
        finally:
            ops.stop()
            shutil.rmtree(self._metrics_dir, ignore_errors=True)
        return 0

    async def _keep(self, name: str, slot: int) -> None:
        pause_s = PAUSE_S_FIRST
        while not self._leaving.is_set():
            child = await self._start(name, slot)
            code = await child.process.wait()
            self._forget(child)
            if self._leaving.is_set():
                return
            lived_s = time.monotonic() - child.started_s
            pause_s = PAUSE_S_FIRST if lived_s > LIVED_S else min(2 * pause_s, PAUSE_S_MAX)
            log.error("%s ended with code %s after %.0f s; another one starts", name, code, lived_s)
            await asyncio.sleep(pause_s if lived_s < LIVED_S else 0)

    async def _start(self, name: str, slot: int) -> Child:
        read_end, write_end = os.pipe()
        os.set_blocking(read_end, False)
        module = "extproc.app.settler" if slot < 0 else "extproc.app.worker"
        argv = [sys.executable, "-m", module, "--slot", str(slot), "--heartbeat-fd", str(write_end), "--parent", str(os.getpid())]
        if self._settings.file is not None:
            argv += ["--config", str(self._settings.file)]
        environ = {**os.environ, "PROMETHEUS_MULTIPROC_DIR": str(self._metrics_dir)}
        process = await asyncio.create_subprocess_exec(*argv, pass_fds=(write_end,), env=environ)
        os.close(write_end)
        now_s = time.monotonic()
        child = Child(name=name, slot=slot, process=process, started_s=now_s, beat_s=now_s)
        self._children[name] = child
        asyncio.get_running_loop().add_reader(read_end, self._heard, child, read_end)
        child.watcher = asyncio.create_task(self._watch(child))
        return child

    def _heard(self, child: Child, read_end: int) -> None:
        try:
            data = os.read(read_end, 4_096)
        except BlockingIOError:
            return
        if not data:
            asyncio.get_running_loop().remove_reader(read_end)
            os.close(read_end)
            return
        child.ready = True
        child.beat_s = time.monotonic()

    async def _watch(self, child: Child) -> None:
        """Kill what is hung. A stopped supervisor must not blame its children, so silence is counted in small steps."""
        silent_s, seen_s = 0.0, child.beat_s
        while child.process.returncode is None:
            await asyncio.sleep(HEARTBEAT_S)
            silent_s = 0.0 if child.beat_s != seen_s else silent_s + HEARTBEAT_S
            seen_s = child.beat_s
            if silent_s > (SILENCE_S_MAX if child.ready else START_S_MAX):
                log.error("%s has been silent for %.0f s: killed", child.name, silent_s)
                child.process.kill()
                return

    def _forget(self, child: Child) -> None:
        if child.watcher is not None:
            child.watcher.cancel()
        self._children.pop(child.name, None)
        metrics.reap(self._metrics_dir, child.process.pid)

    def _hang_up(self) -> None:
        for child in self._children.values():
            child.process.send_signal(signal.SIGHUP)

    async def _lead_out(self) -> None:
        """Gate workers drain first; the settler posts what they settled, then leaves."""
        grace_s = self._settings.drain.grace_s + LEAVE_S
        gates = [child for child in self._children.values() if child.slot >= 0]
        await _end(gates, grace_s)
        await _end([child for child in self._children.values() if child.slot < 0], LEAVE_S)
        for keeper in self._keepers:
            keeper.cancel()
        await asyncio.gather(*self._keepers, return_exceptions=True)

    def _is_ready(self) -> bool:
        gates = [child for child in self._children.values() if child.slot >= 0]
        return not self._leaving.is_set() and any(child.ready for child in gates)

    def _pids(self) -> dict[str, int]:
        return {child.name: child.process.pid for child in list(self._children.values())}


async def _end(children: list[Child], grace_s: float) -> None:
    for child in children:
        if child.process.returncode is None:
            child.process.terminate()
    waits = [asyncio.create_task(child.process.wait()) for child in children]
    if waits:
        await asyncio.wait(waits, timeout=grace_s)
    for child in children:
        if child.process.returncode is None:
            log.error("%s did not leave within %.0f s: killed", child.name, grace_s)
            child.process.kill()
    await asyncio.gather(*waits)
