"""One connection to Redis: RESP by hiredis on a bare ``asyncio.Protocol``; the calls of one tick of the loop leave in one write.

4 to 17 µs of our CPU a script, where redis-py needs 24 (sharing a pipeline) to 89 (one by one). A link ends once: what was written by
then is :class:`~extproc.errors.StoreUnknown`, what was not is :class:`~extproc.errors.StoreRefused`. It is never repaired.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Any, Final

import hiredis

from extproc.errors import StoreFenced, StoreRefused, StoreUnknown
from extproc.stores.redis_errors import store_error
from extproc.stores.scripts import Script

CALLS_MAX: Final = 8_192  # waiting or in flight: half a second of what one server can do; beyond it a queue only makes everybody late
_MORE: Final = object()

Command = tuple[str | bytes | int, ...]
pack: Callable[[Command], bytes] = hiredis.pack_command  # type: ignore[assignment]  # its stub knows tuples of one element only


def as_it_is(reply: Any) -> Any:
    """What hiredis makes of RESP2: bytes, int, None, or a list of them."""
    return reply


class Call:
    """One command on its way. ``script`` is set as long as it may be loaded and called again; ``allow_ms`` prolongs the time-out."""

    __slots__ = ("allow_ms", "data", "decode", "future", "script")

    def __init__(
        self, future: asyncio.Future[Any], data: bytes, decode: Callable[[Any], Any], script: Script | None, allow_ms: int
    ) -> None:
        self.future = future
        self.data = data
        self.decode = decode
        self.script = script
        self.allow_ms = allow_ms

    def fail(self, error: Exception) -> None:
        """Unless the caller has gone."""
        if not self.future.done():
            self.future.set_exception(error)


class Link(asyncio.Protocol):
    """A queue of this tick, a queue in flight, and one timer for the oldest write.

    ``lost``: it has ended (``why``); ``gone``: its socket is closed.
    """

    def __init__(self, *, timeout_s: float, pipeline_max: int, fenced: Callable[[str], None]) -> None:
        """``fenced`` is told of every reply that a script was fenced off."""
        self._timeout_s = timeout_s
        self._pipeline_max = pipeline_max
        self._fenced = fenced
        self._loop = asyncio.get_running_loop()
        self._reader = hiredis.Reader(notEnoughData=_MORE)
        self._transport: asyncio.WriteTransport | None = None
        self._queue: list[Call] = []
        self._flight: deque[Call] = deque()
        self._writes: deque[tuple[float, int]] = deque()  # (deadline, how many calls were written up to it)
        self._written = 0
        self._answered = 0
        self._timer: asyncio.TimerHandle | None = None
        self._loading: set[str] = set()
        self.lost = asyncio.Event()  # not a future: waiting tasks that are cancelled would cancel it
        self.gone = asyncio.Event()
        self.why = ""
        self.run_id = ""  # of the server's life that this connection leads to

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport  # type: ignore[assignment]  # uvloop's transports do not derive from asyncio's

    def connection_lost(self, exc: Exception | None) -> None:
        self.fail(f"connection lost: {exc or 'closed by the server'}")
        self.gone.set()

    def call(
        self, command: Command, decode: Callable[[Any], Any] = as_it_is, *, script: Script | None = None, allow_ms: int = 0
    ) -> asyncio.Future[Any]:
        """``decode(reply)``, later. ``script``: what to load if the server does not know it; ``allow_ms`` prolongs the time-out."""
        future = self._loop.create_future()
        self._send(Call(future, pack(command), decode, script, allow_ms))
        return future

    def _send(self, call: Call) -> None:
        """Queue for the write at the end of this tick."""
        if self.lost.is_set():
            call.fail(StoreRefused(f"Redis is not connected: {self.why}"))
        elif len(self._queue) + len(self._flight) >= CALLS_MAX:
            call.fail(StoreRefused(f"{CALLS_MAX} calls to Redis are waiting"))
        else:
            if not self._queue:
                self._loop.call_soon(self._flush)
            self._queue.append(call)

    def _flush(self) -> None:
        if self._transport is None or self.lost.is_set():
            return
        queue, self._queue = self._queue, []
        now = self._loop.time()
        for start in range(0, len(queue), self._pipeline_max):
            batch = queue[start : start + self._pipeline_max]
            self._flight.extend(batch)
            self._written += len(batch)
            allow_ms = max([call.allow_ms for call in batch])
            self._writes.append((now + self._timeout_s + allow_ms / 1000, self._written))
            self._transport.write(b"".join([call.data for call in batch]))
        if self._timer is None and self._writes:
            self._timer = self._loop.call_at(self._writes[0][0], self._check)

    def _check(self) -> None:
        """A write whose calls are not all answered by its deadline: the server hangs, and with it everything behind."""
        self._timer = None
        if not self._writes:
            return
        deadline = self._writes[0][0]
        if deadline <= self._loop.time():
            self.fail(f"no answer within {self._timeout_s * 1000:.0f} ms")
        else:
            self._timer = self._loop.call_at(deadline, self._check)

    def data_received(self, data: bytes) -> None:
        self._reader.feed(data)
        gets, flight = self._reader.gets, self._flight
        try:
            while (reply := gets()) is not _MORE:
                self._answered += 1
                self._resolve(flight.popleft(), reply)
        except (hiredis.ProtocolError, IndexError) as error:
            self.fail(f"not the answers that we asked for: {error}")
        while self._writes and self._writes[0][1] <= self._answered:
            self._writes.popleft()

    def _resolve(self, call: Call, reply: Any) -> None:
        if isinstance(reply, hiredis.ReplyError):
            text = str(reply)
            if call.script is not None and text.startswith("NOSCRIPT"):
                self._load_and_repeat(call, call.script)
            else:
                error = store_error(text)
                if isinstance(error, StoreFenced):
                    self._fenced(text)
                call.fail(error)
            return
        try:
            result = call.decode(reply)
        except (ValueError, LookupError, TypeError, AttributeError) as error:
            call.fail(StoreUnknown(f"an answer of Redis that we do not understand: {error!r}"))
            return
        if not call.future.done():
            call.future.set_result(result)

    def _load_and_repeat(self, call: Call, script: Script) -> None:
        """Once: NOSCRIPT means not executed. One load serves all calls that met it, since the server keeps their order."""
        call.script = None
        if script.sha not in self._loading:
            self._loading.add(script.sha)
            load = self.call(("SCRIPT", "LOAD", script.text))
            load.add_done_callback(lambda done: self._loaded(script.sha, done))
        self._send(call)

    def _loaded(self, sha: str, done: asyncio.Future[Any]) -> None:
        """Whatever came of it: the calls behind it meet the same fate, or NOSCRIPT for good."""
        self._loading.discard(sha)
        done.exception()

    def fail(self, why: str) -> None:
        """The end of this connection."""
        if self.lost.is_set():
            return
        self.why = why
        self.lost.set()
        if self._timer is not None:
            self._timer.cancel()
        if self._transport is None:
            self.gone.set()
        else:
            self._transport.abort()  # connection_lost follows
        for call in self._flight:
            call.fail(StoreUnknown(f"Redis: {why}"))
        for call in self._queue:
            call.fail(StoreRefused(f"Redis: {why}"))
        self._flight.clear()
        self._queue.clear()
