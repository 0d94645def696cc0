"""``extproc serve``: starts gate workers and the settler, keeps them alive, replaces them, and leads them out.

It holds the sockets that the gates listen on, so that a worker may end and another one begin without a refused connection. Signals:
SIGTERM and SIGINT drain and end everything; SIGHUP is handed on (reload); SIGUSR2 replaces one process after the other, with the code and
the settings that are there now. The supervisor itself serves the ops port and touches no request.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path

from extproc import metrics
from extproc.app import room
from extproc.app.endpoint import Endpoint, endpoints_of
from extproc.app.ops import Ops
from extproc.app.post import Post
from extproc.app.process import LEAVE_S, SETTLER_LEAVE_S
from extproc.errors import ConfigError, UsageError
from extproc.settings import Settings, load_settings

log = logging.getLogger(__name__)

ORPHANS_S = (
    3.0  # children of a supervisor that was killed, still starting, hold its sockets for so long; then they see that they are orphans
)
ORPHANS_LOOK_S = 0.1


class Supervisor:
    """One instance of the sidecar on this machine."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._gates: list[Post] = []
        self._posts: list[Post] = []  # the gates, then the settler
        self._leaving = asyncio.Event()
        self._wanted = asyncio.Event()  # a round of replacements: asked for twice while one is under way, there is one more
        self._processes = metrics.Processes()
        self._metrics_dir = Path(tempfile.mkdtemp(prefix="extproc-metrics-"))

    async def run(self) -> int:
        """Until SIGTERM or SIGINT; the exit code."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._leaving.set)
        loop.add_signal_handler(signal.SIGHUP, self._hang_up)
        loop.add_signal_handler(signal.SIGUSR2, self._wanted.set)
        metrics.wipe(self._metrics_dir)
        with contextlib.ExitStack() as stack:
            stack.callback(shutil.rmtree, self._metrics_dir, ignore_errors=True)
            room.reserve(self._metrics_dir, metrics.DEAD)
            ops = Ops(
                self._settings.listen.ops_address,
                render=self._render,
                is_ready=self._is_ready,
                settings=lambda: self._settings,
                pids=self._pids,
            )
            stack.callback(ops.stop)
            ops.start()
            self._gates = [self._post(f"gate-{slot}", slot, endpoint) for slot, endpoint in enumerate(await self._endpoints())]
            self._posts = [*self._gates, *([self._post("settler", -1, None)] if self._settings.settler.enabled else [])]
            for post in self._posts:
                await post.open()
            rounds = asyncio.create_task(self._rounds())
            await self._leaving.wait()
            rounds.cancel()
            await asyncio.gather(rounds, return_exceptions=True)
            # Gate workers drain first; the settler posts what they settled, then leaves.
            await asyncio.gather(*(gate.close() for gate in self._gates))
            await asyncio.gather(*(post.close() for post in self._posts))
        return 0

    async def _endpoints(self) -> list[Endpoint] | list[None]:
        """Raises UsageError if the addresses cannot be had for longer than orphans may live."""
        deadline_s = time.monotonic() + ORPHANS_S
        while True:
            try:
                return endpoints_of(self._settings)
            except UsageError:
                if time.monotonic() > deadline_s:
                    raise
            await asyncio.sleep(ORPHANS_LOOK_S)

    def _post(self, name: str, slot: int, endpoint: Endpoint | None) -> Post:
        module = "extproc.app.settler" if slot < 0 else "extproc.app.worker"
        argv = [sys.executable, "-m", module, "--slot", str(slot)]
        if self._settings.file is not None:
            argv += ["--config", str(self._settings.file)]
        return Post(
            name,
            argv,
            endpoint=endpoint,
            environ={**os.environ, "PROMETHEUS_MULTIPROC_DIR": str(self._metrics_dir)},
            patience_s=self._patience_s(slot),
            buried=lambda pid: metrics.reap(self._metrics_dir, pid),
            lost=self._processes.ended,
            elsewhere=self._is_ready,
        )

    def _patience_s(self, slot: int) -> float:
        """Longer than a child's own: who leaves by its rules is never killed."""
        return SETTLER_LEAVE_S if slot < 0 else self._settings.drain.grace_s + LEAVE_S

    async def _rounds(self) -> None:
        while True:
            await self._wanted.wait()
            self._wanted.clear()
            if not (self._reread() and await self._round()):
                self._processes.replacement_failed()

    def _reread(self) -> bool:
        """The settings as they are now. What the supervisor itself has made of them cannot change while it lives."""
        try:
            fresh = load_settings(self._settings.file, os.environ)
        except ConfigError as error:
            log.error("nothing is replaced: %s", error)
            return False
        if (fresh.listen, fresh.settler.enabled) != (self._settings.listen, self._settings.settler.enabled):
            log.error("nothing is replaced: section listen or settler.enabled has changed, which needs a restart")
            return False
        self._settings = fresh
        for gate in self._gates:
            gate.patience_s = self._patience_s(0)
        return True

    async def _round(self) -> bool:
        log.info("replacing %d processes, one after the other", len(self._posts))
        for post in self._posts:
            if not await post.replace():
                log.error("the new %s did not become ready; it and those after it were not replaced", post.name)
                return False
        log.info("all processes are replaced")
        return True

    def _hang_up(self) -> None:
        for child in [child for post in self._posts for child in post.children]:
            # Before it is ready it would die of it.
            child.ready.add_done_callback(lambda _, child=child: child.signal(signal.SIGHUP))  # type: ignore[misc]

    def _is_ready(self, but: Post | None = None) -> bool:
        serving = [gate.serving for gate in self._gates if gate is not but]
        return not self._leaving.is_set() and any(child is not None and child.is_ready for child in serving)

    def _render(self) -> bytes:
        return metrics.render_merged(self._metrics_dir) + self._processes.render()

    def _pids(self) -> dict[str, int]:
        return {name: pid for post in self._posts for name, pid in post.pids().items()}
