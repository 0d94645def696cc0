"""The Redis client of this house: every call is a plain future, and the calls that meet in one tick of the loop share a write.

Nothing is ever repeated here but a script that the server did not know (its cache is empty after a restart): that is loaded and called
once more. A call that finds no connection is refused at once; the client connects again by itself – but never to a server that evicts keys
when it is full: holds and balances are not a cache.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable
from typing import Any, Final, Protocol

from extproc.errors import StoreError, StoreRefused
from extproc.stores.redis_link import Link, as_it_is
from extproc.stores.redis_url import Address
from extproc.stores.scripts import Script

log = logging.getLogger(__name__)

RECONNECT_FIRST_S: Final = 0.02  # a restarted server is met at once …
RECONNECT_MAX_S: Final = 1.0  # … and one that stays away is not hammered
KEEPS_ALL: Final = "noeviction"
HANDSHAKE_S: Final = 2.0  # connect, AUTH, SELECT and loading the scripts


class Listener(Protocol):
    """Who has to know what happens to connections."""

    def connected(self) -> None:
        """There is a new one, perhaps to another server than before."""

    def fenced(self, text: str) -> None:
        """A script was fenced off; ``text`` is its error reply."""


class Client(Protocol):
    """What the adapters of Redis call: one :class:`Pipeline`, or one to each master of a cluster.

    ``shards_apart``: a command reaches one shard only, and may not wait on several.
    """

    shards_apart: bool

    @property
    def connected(self) -> bool:
        """Calls are accepted."""

    @property
    def connects(self) -> int:
        """Connections so far: another number means that something may have been missed."""

    @property
    def fault(self) -> str:
        """Why the server that is there is not one for us: an operator has to change it."""

    def register(self, scripts: Iterable[Script]) -> None:
        """Scripts to load with every connection."""

    def listen(self, listener: Listener) -> None:
        """Tell it of connections to come, and of calls that were fenced off."""

    def run_id(self, key: str) -> str:
        """Which life of which server a call on this key would reach, "" = none, or unknown."""

    async def open(self) -> None:
        """Begin to connect, and go on until ``close``."""

    async def close(self) -> None:
        """Drop what is connected. What is in flight is unknown."""

    def call(
        self, script: Script, key: str, args: Iterable[str | bytes | int], decode: Callable[[Any], Any] = as_it_is
    ) -> asyncio.Future[Any]:
        """Run a script on one key. The future is resolved with ``decode(reply)``."""

    def execute(self, *command: str | bytes | int, allow_ms: int = 0) -> asyncio.Future[Any]:
        """Any command. ``allow_ms`` is what it may take beyond the time-out (a blocking read)."""

    def everywhere(self, *command: str) -> list[asyncio.Future[Any]]:
        """The same command, without a key, for every server that has shards."""


class Pipeline:
    """For one event loop, over one connection. ``timeout_ms`` bounds the wait for an answer; ``pipeline_max`` the calls of one write."""

    shards_apart = False

    def __init__(self, url: str, *, timeout_ms: int = 500, pipeline_max: int = 256, password: str | None = None) -> None:
        self._address = Address.parse(url, password=password)
        self._timeout_s = timeout_ms / 1000
        self._pipeline_max = pipeline_max
        self._scripts: dict[str, Script] = {}
        self._link: Link | None = None
        self._keeper: asyncio.Task[None] | None = None
        self._tried = asyncio.Event()
        self._listeners: list[Listener] = []
        self._why_not = "not opened"
        self._fault = ""
        self._connects = 0

    @property
    def fault(self) -> str:
        """Why the server that is there is not one for us: an operator has to change it."""
        return self._fault

    @property
    def connects(self) -> int:
        """Connections so far: another number means that something may have been missed."""
        return self._connects

    @property
    def connected(self) -> bool:
        """Calls are accepted."""
        return self._link is not None and not self._link.lost.is_set()

    def register(self, scripts: Iterable[Script]) -> None:
        """Scripts to load with every connection. (One that comes later is loaded when it is first called.)"""
        self._scripts.update((script.sha, script) for script in scripts)

    def listen(self, listener: Listener) -> None:
        """Tell it of connections to come, and of calls that were fenced off."""
        self._listeners.append(listener)

    def run_id(self, key: str) -> str:  # noqa: ARG002 - one server has all keys
        """Which life of the server a call on this key would reach: another one after a restart or a promotion. "" = none, or unknown."""
        return "" if self._link is None else self._link.run_id

    async def open(self) -> None:
        """Begin to connect, and go on until ``close``. Returns when the first attempt has succeeded or failed: see ``connected``."""
        assert self._keeper is None, "open it once"
        self._keeper = asyncio.create_task(self._keep_connected())
        await self._tried.wait()

    async def close(self) -> None:
        """Drop the connection. What is in flight is unknown."""
        self._why_not = "closed"
        if self._keeper is not None:
            self._keeper.cancel()
            await asyncio.gather(self._keeper, return_exceptions=True)

    def call(
        self, script: Script, key: str, args: Iterable[str | bytes | int], decode: Callable[[Any], Any] = as_it_is
    ) -> asyncio.Future[Any]:
        """Run a script on one key. The future is resolved with ``decode(reply)``."""
        link = self._link
        return self._refused() if link is None else link.call(("EVALSHA", script.sha, 1, key, *args), decode, script=script)

    def execute(self, *command: str | bytes | int, allow_ms: int = 0) -> asyncio.Future[Any]:
        """Any command. ``allow_ms`` is what it may take beyond the time-out (a blocking read)."""
        link = self._link
        return self._refused() if link is None else link.call(command, allow_ms=allow_ms)

    def everywhere(self, *command: str) -> list[asyncio.Future[Any]]:
        """The same command, without a key, for every server that has shards."""
        return [self.execute(*command)]

    def _refused(self) -> asyncio.Future[Any]:
        future = asyncio.get_running_loop().create_future()
        future.set_exception(StoreRefused(f"Redis is not connected: {self._why_not}"))
        return future

    async def _keep_connected(self) -> None:
        delay_s = RECONNECT_FIRST_S
        while True:
            link = Link(timeout_s=self._timeout_s, pipeline_max=self._pipeline_max, fenced=self._fenced)
            try:
                if await self._connect(link):
                    delay_s = RECONNECT_FIRST_S
                    await link.lost.wait()
                    self._why_not = link.why
                    self._link = None
            finally:
                link.fail(self._why_not)
                await link.gone.wait()
            await asyncio.sleep(delay_s)
            delay_s = min(2 * delay_s, RECONNECT_MAX_S)

    async def _connect(self, link: Link) -> bool:
        """Connect and greet; a server that is loading, or that does not know us, is as good as none."""
        try:
            async with asyncio.timeout(HANDSHAKE_S):
                await self._address.connect(lambda: link)
                await self._greet(link)
        except (OSError, StoreError) as error:
            self._why_not = str(error) or f"no answer within {HANDSHAKE_S} s"
            return False
        else:
            self._link = link
            self._connects += 1
            for listener in self._listeners:
                listener.connected()
            return True
        finally:
            self._tried.set()

    def _fenced(self, text: str) -> None:
        for listener in self._listeners:
            listener.fenced(text)

    async def _greet(self, link: Link) -> None:
        loads = (("SCRIPT", "LOAD", script.text) for script in self._scripts.values())
        await asyncio.gather(*(link.call(command) for command in (*self._address.greeting, *loads, ("PING",))))
        told = await self._ask(link)
        link.run_id = told.get("run_id", "")
        fault = _fault_of(told)
        if fault and fault != self._fault:
            log.error("%s", fault)
        self._fault = fault
        if fault:
            raise StoreRefused(fault)

    async def _ask(self, link: Link) -> dict[str, str]:
        """What the server says of itself. One that does not let us ask may be read from; for holds its shards are closed."""
        try:
            told: dict[str, str] = await link.call(("INFO", "server", "memory"), info)
        except StoreError as error:
            if link.lost.is_set():
                raise
            log.warning("Redis could not be asked which run it is, nor whether it evicts keys when it is full: %s", error)
            return {}
        return told


def _fault_of(told: dict[str, str]) -> str:
    """Why a server is not one for us, by what it says of itself."""
    policy = told.get("maxmemory_policy", KEEPS_ALL)
    if policy == KEEPS_ALL or told.get("maxmemory", "0") == "0":
        return ""
    return f"Redis evicts keys when it is full (maxmemory-policy {policy}), balances and holds too: set maxmemory-policy {KEEPS_ALL}"


def info(reply: bytes) -> dict[str, str]:
    """``name:value`` lines of INFO."""
    return dict(line.split(":", 1) for line in reply.decode().splitlines() if ":" in line)
