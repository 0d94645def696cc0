"""One place of the sidecar: who serves there, who is about to, and who is leaving it.

Whoever ends unasked is followed by another one, with a growing pause if it cannot live. Whoever is replaced is told to leave when its
successor is ready: both have the supervisor's socket, so there is no moment at which nobody accepts. Without such a socket (the settler,
and gates over grpcio) one ends before the other starts.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Coroutine, Mapping, Sequence
from typing import Any

from extproc.app.endpoint import Endpoint
from extproc.app.watched import Watched
from extproc.errors import UsageError

log = logging.getLogger(__name__)

PAUSE_S_FIRST = 0.2
PAUSE_S_MAX = 10.0
LIVED_S = 30.0  # a child that lived this long may be followed at once again


class Post:
    """``patience_s``: for how long those that start from now on may take to leave. ``endpoint``: ``None`` = nothing is handed on."""

    def __init__(
        self,
        name: str,
        argv: Sequence[str],
        *,
        endpoint: Endpoint | None,
        environ: Mapping[str, str],
        patience_s: float,
        buried: Callable[[int], None],
        lost: Callable[[str], None],
        elsewhere: Callable[[Post], bool],
    ) -> None:
        """``buried`` is told the pid of every child that has ended, ``lost`` the name of the post when nobody asked it to.

        ``elsewhere``: whether another post can take what comes while nobody accepts here.
        """
        self.name = name
        self.patience_s = patience_s
        self.endpoint = endpoint
        self.serving: Watched | None = None
        self.children: set[Watched] = set()
        self._argv = argv
        self._environ = environ
        self._buried = buried
        self._lost = lost
        self._elsewhere = elsewhere
        self._changing = asyncio.Lock()  # held by whoever chooses who serves here
        self._closed = False
        self._pause_s = PAUSE_S_FIRST
        self._tasks: set[asyncio.Task[None]] = set()  # one for each child, and one for whoever leaves

    async def open(self) -> None:
        """Somebody serves here from now on; soon, if not yet."""
        async with self._changing:
            self.serving = await self._start()

    async def replace(self) -> bool:
        """Somebody new serves here; ``False``: the new one did not become ready, and everything is as before.

        There are never more than two: whoever left before has gone first, which takes until its last stream has ended.
        """
        leaving = {child.ended for child in self.children if child is not self.serving}
        if leaving:
            await asyncio.wait(leaving)
        async with self._changing:
            old = self.serving
            if old is not None and self.endpoint is None:
                await old.leave()
            try:
                new = await self._start("--successor")
            except (OSError, UsageError) as error:
                log.error("%s could not be started: %s", self.name, error)
                return False
            if self.endpoint is None:
                self.serving = new
            await self._ready(new, old)
            if not new.ready.result():
                return False
            self.serving = new
        if self.endpoint is not None:
            self.endpoint.wait()
        if old is not None and not old.ended.done():
            log.info("%s: %d serves, %d leaves", self.name, new.pid, old.pid)
            self._do(old.leave())
        return True

    async def _ready(self, new: Watched, old: Watched | None) -> None:
        """Until it is known whether the new one serves. If the old one does not live so long, what comes meanwhile is turned away."""
        if old is not None and self.endpoint is not None:
            known: set[asyncio.Future[Any]] = {new.ready, old.ended, old.quits}
            await asyncio.wait(known, return_when=asyncio.FIRST_COMPLETED)
            if not new.ready.done():
                self.endpoint.turn_away(lambda: self._elsewhere(self))
        await asyncio.wait({new.ready})

    async def close(self) -> None:
        """Everybody leaves, and nobody follows."""
        self._closed = True
        if self.endpoint is not None:
            self.endpoint.close()
        await asyncio.gather(*(child.leave() for child in self.children))
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def pids(self) -> dict[str, int]:
        """Name → pid. May be called from another thread."""
        serving = self.serving
        living = [child for child in tuple(self.children) if not child.ended.done()]
        roles = ["" if child is serving else " leaving" if child.is_ready else " starting" for child in living]
        return {self.name + role: child.pid for child, role in zip(living, roles, strict=True)}

    async def _start(self, *more: str) -> Watched:
        if self.endpoint is not None:
            self.endpoint.restore()
        fds = [self.endpoint.socket.fileno()] if self.endpoint is not None else []
        argv = [*self._argv, *more, *(word for fd in fds for word in ("--listen-fd", str(fd)))]
        child = await Watched.start(self.name, argv, environ=self._environ, pass_fds=fds, patience_s=self.patience_s)
        self.children.add(child)
        child.ended.add_done_callback(lambda _: self._bury(child))
        self._do(self._guard(child))
        return child

    def _bury(self, child: Watched) -> None:
        self.children.discard(child)
        self._buried(child.pid)

    def _do(self, work: Coroutine[None, None, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _guard(self, child: Watched) -> None:
        """Who serves here and ends, or quits, is followed by another one."""
        ends: set[asyncio.Future[Any]] = {child.ended} if self.endpoint is None else {child.ended, child.quits}
        await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
        async with self._changing:  # a successor that is on its way takes its place
            if self.serving is not child or self._closed:
                return
            if not child.ended.done():
                self._do(child.leave())
            await self._follow(child)

    async def _follow(self, child: Watched) -> None:
        lived_s = time.monotonic() - child.started_s
        how = f"ended with code {child.ended.result()}" if child.ended.done() else "leaves"
        log.error("%s (%d) %s after %.0f s; another one starts", self.name, child.pid, how, lived_s)
        self._lost(self.name)
        endpoint = self.endpoint
        if endpoint is not None:
            endpoint.turn_away(lambda: self._elsewhere(self))
        pause_s = 0.0
        if lived_s > LIVED_S:
            self._pause_s = PAUSE_S_FIRST
        else:
            pause_s, self._pause_s = self._pause_s, min(2 * self._pause_s, PAUSE_S_MAX)
        await asyncio.sleep(pause_s)
        while not self._closed:
            try:
                self.serving = new = await self._start()
            except (OSError, UsageError) as error:
                log.error("%s could not be started: %s", self.name, error)
                await asyncio.sleep(PAUSE_S_MAX)
            else:
                if endpoint is not None:
                    new.ready.add_done_callback(lambda ready: endpoint.wait() if ready.result() else None)
                return
