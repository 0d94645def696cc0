"""A child process as its parent sees it: started by exec, heard once a second, killed when it is silent for too long.

By exec, never by fork: gRPC and prometheus_client do not survive one. The child writes to a pipe from its own loop, so a loop that hangs
is silent.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import time
from asyncio.subprocess import Process
from collections.abc import Mapping, Sequence

from extproc.app.process import HEARTBEAT_S, QUITS

log = logging.getLogger(__name__)

SILENCE_S_MAX = 5.0  # a loop that has not run for this long is hung (ENVOY.md, "Failures")
START_S_MAX = 60.0  # loading vocabularies and connecting may take this long before the first heartbeat
BEATS_BYTES_MAX = 4_096  # of one read: what a child has said while its parent was stopped


class Watched:
    """``ready``: true with the first heartbeat, false if there never was one. ``quits``: it leaves, whoever told it to."""

    def __init__(self, name: str, process: Process, read_end: int, *, patience_s: float) -> None:
        loop = asyncio.get_running_loop()
        self.name = name
        self.pid = process.pid
        self.started_s = time.monotonic()
        self.ready: asyncio.Future[bool] = loop.create_future()
        self.quits: asyncio.Future[None] = loop.create_future()
        self.ended = asyncio.create_task(process.wait())
        self._process = process
        self._patience_s = patience_s
        self._beats = 0
        self._watch = asyncio.create_task(self._kill_if_silent())
        loop.add_reader(read_end, self._heard, read_end)

    @classmethod
    async def start(
        cls, name: str, argv: Sequence[str], *, environ: Mapping[str, str], pass_fds: Sequence[int], patience_s: float
    ) -> Watched:
        """``patience_s``: for how long it may take to leave."""
        read_end, write_end = os.pipe()
        os.set_blocking(read_end, False)
        words = [*argv, "--heartbeat-fd", str(write_end), "--parent", str(os.getpid())]
        try:
            process = await asyncio.create_subprocess_exec(*words, pass_fds=(write_end, *pass_fds), env=environ)
        except BaseException:
            os.close(read_end)
            raise
        finally:
            os.close(write_end)
        return cls(name, process, read_end, patience_s=patience_s)

    @property
    def is_ready(self) -> bool:
        """It has been heard, and has not ended."""
        return self.ready.done() and self.ready.result() and not self.ended.done()

    def signal(self, number: signal.Signals) -> None:
        """Nothing happens if it has ended."""
        with contextlib.suppress(ProcessLookupError):
            self._process.send_signal(number)

    async def leave(self) -> None:
        """Tell it to leave, and wait until it has. Whoever is still there when patience is over is killed."""
        self.signal(signal.SIGTERM)
        await asyncio.wait({self.ended}, timeout=self._patience_s)
        if not self.ended.done():
            log.error("%s (%d) did not leave within %.0f s: killed", self.name, self.pid, self._patience_s)
            self.signal(signal.SIGKILL)
        await asyncio.wait({self.ended})

    def _heard(self, read_end: int) -> None:
        try:
            data = os.read(read_end, BEATS_BYTES_MAX)
        except BlockingIOError:
            return
        if not data:
            asyncio.get_running_loop().remove_reader(read_end)
            os.close(read_end)
            return
        self._beats += 1
        if not self.ready.done():
            self.ready.set_result(True)
        if QUITS in data and not self.quits.done():
            self.quits.set_result(None)

    async def _kill_if_silent(self) -> None:
        """A stopped supervisor must not blame its children, so silence is counted in small steps."""
        silent_s, seen = 0.0, 0
        while not self.ended.done() and silent_s < (SILENCE_S_MAX if self.ready.done() else START_S_MAX):
            await asyncio.wait({self.ended}, timeout=HEARTBEAT_S)
            silent_s = 0.0 if self._beats != seen else silent_s + HEARTBEAT_S
            seen = self._beats
        if not self.ended.done():
            log.error("%s (%d) has been silent for %.0f s: killed", self.name, self.pid, silent_s)
            self.signal(signal.SIGKILL)
            await asyncio.wait({self.ended})
        if not self.ready.done():
            self.ready.set_result(False)
