"""The Redis client over a Redis Cluster: a :class:`~extproc.stores.pipeline.Pipeline` to each master, and the map from shard to master.

Every call of ours is about one shard, and a shard's keys share a slot, so a call goes to one master and shares its write with the others
of that tick. A master that no longer has the slot answers MOVED, which means not executed: the caller is told so (:class:`StoreRefused`),
and the map is read again at once. It is read once a second anyway, and whenever a master is lost.

Slots: CRC16 (XMODEM) of what stands in braces, modulo 16,384 (Redis Cluster specification, "Key distribution model").
"""

from __future__ import annotations

import asyncio
import binascii
import logging
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final

from extproc.errors import StoreError, StoreRefused
from extproc.stores.pipeline import Listener, Pipeline
from extproc.stores.redis_link import as_it_is
from extproc.stores.scripts import Script
from extproc.stores.shards import TAGS

log = logging.getLogger(__name__)

SCHEME: Final = "redis+cluster://"
SLOTS: Final = 16_384
LOOK_EVERY_S: Final = 1.0
LOOK_AGAIN_S: Final = 0.05  # while a slot has no master, or after MOVED: an election takes a second
TAG_CHARS: Final = len(TAGS[0])


def slot_of(key: str) -> int:
    """The slot of a key: that of its tag, if it begins with one of a shard."""
    return binascii.crc_hqx((key[1 : TAG_CHARS - 1] if key.startswith("{s") else key).encode(), 0) % SLOTS


class ClusterPipeline:
    """The same calls as a :class:`Pipeline`; a key's tag says which master they go to."""

    shards_apart = True

    def __init__(self, url: str, *, timeout_ms: int = 500, pipeline_max: int = 256, password: str | None = None) -> None:
        """``redis+cluster://[user[:password]@]host:port,host:port…``: any nodes, of which one must answer."""
        who, _, hosts = url.removeprefix(SCHEME).rpartition("@")
        self._who = f"{who}@" if who else ""
        self._seeds = [host for host in hosts.partition("/")[0].split(",") if host]
        self._options: dict[str, Any] = {"timeout_ms": timeout_ms, "pipeline_max": pipeline_max, "password": password}
        self._scripts: list[Script] = []
        self._listeners: list[Listener] = []
        self._nodes: dict[str, Pipeline] = {}
        self._host_of: dict[str, str] = {}  # tag of a shard → master
        self._ranges: list[tuple[int, int, str]] = []  # first and last slot, master
        self._moved = asyncio.Event()
        self._keeper: asyncio.Task[None] | None = None

    @property
    def connected(self) -> bool:
        """Every shard has a master that accepts calls."""
        return all(self._of_tag(tag) is not None for tag in TAGS)

    @property
    def connects(self) -> int:
        """Connections so far, of all nodes together."""
        return sum(node.connects for node in self._nodes.values())

    @property
    def fault(self) -> str:
        """Why a server that is there is not one for us."""
        return next((node.fault for node in self._nodes.values() if node.fault), "")

    def register(self, scripts: Iterable[Script]) -> None:
        """Scripts to load with every connection."""
        self._scripts += scripts
        for node in self._nodes.values():
            node.register(self._scripts)

    def listen(self, listener: Listener) -> None:
        """As :meth:`Pipeline.listen`, of every node."""
        self._listeners.append(listener)
        for node in self._nodes.values():
            node.listen(listener)

    def run_id(self, key: str) -> str:
        """As :meth:`Pipeline.run_id`, of the master of the key's shard: another one when the shard has another master."""
        node = self._of_tag(key[:TAG_CHARS])
        return "" if node is None else node.run_id(key)

    async def open(self) -> None:
        """Begin to connect, and go on until ``close``. Returns when the first look has succeeded or every seed has failed."""
        assert self._keeper is None, "open it once"
        await self._look()
        self._keeper = asyncio.create_task(self._keep_looking())

    async def close(self) -> None:
        """Drop the connections. What is in flight is unknown."""
        if self._keeper is not None:
            self._keeper.cancel()
            await asyncio.gather(self._keeper, return_exceptions=True)
        await asyncio.gather(*(node.close() for node in self._nodes.values()))

    def call(
        self, script: Script, key: str, args: Iterable[str | bytes | int], decode: Callable[[Any], Any] = as_it_is
    ) -> asyncio.Future[Any]:
        """As :meth:`Pipeline.call`, of the master of the key's shard."""
        node = self._of_tag(key[:TAG_CHARS])
        return self._nobody(key) if node is None else self._watched(node.call(script, key, args, decode))

    def execute(self, *command: str | bytes | int, allow_ms: int = 0) -> asyncio.Future[Any]:
        """As :meth:`Pipeline.execute`, of the master of the command's key: the first that is of a shard, else its first word."""
        key = next((word for word in command if isinstance(word, str) and word.startswith("{s")), str(command[1]))
        node = self._of_tag(key[:TAG_CHARS]) if key.startswith("{s") else self._of_slot(slot_of(key))
        return self._nobody(key) if node is None else self._watched(node.execute(*command, allow_ms=allow_ms))

    def everywhere(self, *command: str) -> list[asyncio.Future[Any]]:
        """As :meth:`Pipeline.everywhere`: every master."""
        return [self._watched(self._nodes[host].execute(*command)) for host in sorted(set(self._host_of.values())) if host in self._nodes]

    def _of_tag(self, tag: str) -> Pipeline | None:
        node = self._nodes.get(self._host_of.get(tag, ""))
        return node if node is not None and node.connected else None

    def _of_slot(self, slot: int) -> Pipeline | None:
        """Of what belongs to no shard: the keys that are looked up by their hash."""
        node = self._nodes.get(next((host for first, last, host in self._ranges if first <= slot <= last), ""))
        return node if node is not None and node.connected else None

    def _nobody(self, key: str) -> asyncio.Future[Any]:
        self._moved.set()
        future = asyncio.get_running_loop().create_future()
        future.set_exception(StoreRefused(f"Redis Cluster: no master serves {key[:TAG_CHARS]}"))
        return future

    def _watched(self, future: asyncio.Future[Any]) -> asyncio.Future[Any]:
        future.add_done_callback(self._looked_at)
        return future

    def _looked_at(self, future: asyncio.Future[Any]) -> None:
        """What was refused may have been moved; what is unknown may have died."""
        if not future.cancelled() and isinstance(future.exception(), StoreError):
            self._moved.set()

    # --- who serves what

    async def _keep_looking(self) -> None:
        while True:
            wait_s = LOOK_EVERY_S if self.connected else LOOK_AGAIN_S
            try:
                await asyncio.wait_for(self._moved.wait(), wait_s)
                await asyncio.sleep(LOOK_AGAIN_S)  # a storm of refusals is one look
            except TimeoutError:
                pass
            self._moved.clear()
            await self._look()

    async def _look(self) -> None:
        """Ask everybody, believe the newest: a master that was cut off does not know that another one was elected."""
        hosts = list(self._nodes) or self._seeds
        await asyncio.gather(*(self._open(host) for host in hosts))
        answers = await asyncio.gather(*(self._view_of(host) for host in hosts if self._nodes[host].connected), return_exceptions=True)
        views = [answer for answer in answers if not isinstance(answer, BaseException)]
        if not views:
            await asyncio.gather(*(self._open(host) for host in self._seeds))
            return
        _, ranges, everybody = max(views, key=lambda view: view[0])
        await asyncio.gather(*(self._open(host) for host in everybody))
        self._ranges = ranges
        self._host_of = {tag: host for tag, slot in _SLOT_OF_TAG.items() for first, last, host in self._ranges if first <= slot <= last}
        for host in self._nodes.keys() - everybody - set(self._seeds):
            await self._nodes.pop(host).close()

    async def _view_of(self, host: str) -> tuple[int, list[tuple[int, int, str]], set[str]]:
        """The epoch of its configuration, slots with their master, and all nodes. :class:`StoreError`: it does not say."""
        node = self._nodes[host]
        told, ranges = await asyncio.gather(node.execute("CLUSTER", "INFO"), node.execute("CLUSTER", "SLOTS"))
        epoch = int(dict(line.split(":", 1) for line in told.decode().split() if ":" in line)["cluster_current_epoch"])
        masters: list[tuple[int, int, str]] = []
        everybody: set[str] = set()
        for first, last, *servers in ranges:
            names = [_named(server, host) for server in servers]
            everybody.update(names)
            masters.append((first, last, names[0]))
        return epoch, masters, everybody

    async def _open(self, host: str) -> None:
        if host in self._nodes:
            return
        node = self._nodes[host] = Pipeline(f"redis://{self._who}{host}", **self._options)
        node.register(self._scripts)
        for listener in self._listeners:
            node.listen(listener)
        await node.open()


def _named(server: list[Any], asked: str) -> str:
    """``host:port`` of a server as CLUSTER SLOTS tells it; without a host it is the one that was asked."""
    host = (server[0] or b"").decode() or asked.rpartition(":")[0]
    return f"{host}:{server[1]}"


_SLOT_OF_TAG: Final[Mapping[str, int]] = {tag: slot_of(tag) for tag in TAGS}


def is_cluster(url: str) -> bool:
    """Whether a URL names a cluster."""
    return url.startswith(SCHEME)
