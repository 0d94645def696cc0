"""The Redis client of this house: every call is a plain future, and the calls that meet in one tick of the loop share a write.

Nothing is ever repeated here but a script that the server did not know (its cache is empty after a restart): that is loaded and called
once more. A call that finds no connection is refused at once; the client connects again by itself – but never to a server that evicts keys
when it is full: holds and balances are not a cache.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable
from typing import Any, Final

from extproc.errors import StoreError, StoreRefused
from extproc.stores.redis_link import Link, as_it_is
from extproc.stores.redis_url import Address
from extproc.stores.scripts import Script

log = logging.getLogger(__name__)

RECONNECT_FIRST_S: Final = 0.02  # a restarted server is met at once …
RECONNECT_MAX_S: Final = 1.0  # … and one that stays away is not hammered
KEEPS_ALL: Final = "noeviction"
HANDSHAKE_S: Final = 2.0  # connect, AUTH, SELECT and loading the scripts


class Pipeline:
    """For one event loop, over one connection. ``timeout_ms`` bounds the wait for an answer; ``pipeline_max`` the calls of one write."""

    def __init__(self, url: str, *, timeout_ms: int = 500, pipeline_max: int = 256, password: str | None = None) -> None:
        self._address = Address.parse(url, password=password)
        self._timeout_s = timeout_ms / 1000
        self._pipeline_max = pipeline_max
        self._scripts: dict[str, Script] = {}
        self._link: Link | None = None
        self._keeper: asyncio.Task[None] | None = None
        self._tried = asyncio.Event()
        self._why_not = "not opened"
        self.fault = ""  # why the server that is there is not one for us: an operator has to change it
        self.connects = 0  # connections so far: another number means that something may have been missed

    @property
    def connected(self) -> bool:
        """Calls are accepted."""
        return self._link is not None and not self._link.lost.is_set()

    def register(self, scripts: Iterable[Script]) -> None:
        """Scripts to load with every connection. (One that comes later is loaded when it is first called.)"""
        self._scripts.update((script.sha, script) for script in scripts)

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

    def _refused(self) -> asyncio.Future[Any]:
        future = asyncio.get_running_loop().create_future()
        future.set_exception(StoreRefused(f"Redis is not connected: {self._why_not}"))
        return future

    async def _keep_connected(self) -> None:
        delay_s = RECONNECT_FIRST_S
        while True:
            link = Link(timeout_s=self._timeout_s, pipeline_max=self._pipeline_max)
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
            self.connects += 1
            return True
        finally:
            self._tried.set()

    async def _greet(self, link: Link) -> None:
        loads = (("SCRIPT", "LOAD", script.text) for script in self._scripts.values())
        await asyncio.gather(*(link.call(command) for command in (*self._address.greeting, *loads, ("PING",))))
        fault = await self._fault_of(link)
        if fault and fault != self.fault:
            log.error("%s", fault)
        self.fault = fault
        if fault:
            raise StoreRefused(fault)

    async def _fault_of(self, link: Link) -> str:
        """An unsuitable server, by what it says of itself. One that does not let us ask is believed to be a good one."""
        try:
            memory = await link.call(("INFO", "memory"), _info)
        except StoreError as error:
            if link.lost.is_set():
                raise
            log.warning("whether Redis evicts keys when it is full could not be asked: %s", error)
            return ""
        policy = memory.get("maxmemory_policy", KEEPS_ALL)
        if policy == KEEPS_ALL or memory.get("maxmemory", "0") == "0":
            return ""
        return f"Redis evicts keys when it is full (maxmemory-policy {policy}), balances and holds too: set maxmemory-policy {KEEPS_ALL}"


def _info(reply: bytes) -> dict[str, str]:
    """``name:value`` lines of INFO."""
    return dict(line.split(":", 1) for line in reply.decode().splitlines() if ":" in line)
