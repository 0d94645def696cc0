"""What a process knows of the shards: the epoch of each, or that it is closed. A closed shard is not called at all.

An epoch begins with the run id of the server that it was opened on, so it is worth nothing on a connection to another one: neither
a restart nor a promotion can be missed. What is known is looked at again once a second, four times a second while a shard is closed, and at
once after a connect or when a script was fenced off.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from typing import Any, Final, Protocol

from extproc.errors import StoreError, StoreFenced
from extproc.holds.port import ShardState
from extproc.stores.shards import SHARDS, TAGS

log = logging.getLogger(__name__)

LOOK_S: Final = 0.8  # whatever happens to a server is noticed within a second, on shards that nobody calls too
LOOK_CLOSED_S: Final = 0.25  # a rebuild waits for workers that have not seen it yet

# What an operator reads first when requests get 503.
ALL_OPEN: Final = "all shards are open"
SOME_CLOSED: Final = (
    "some shards are closed, their requests get 503: their server is away, or a settler that leads them has yet to build them"
)
NO_STORE: Final = "the hold store does not answer, requests get 503"

_SHARD_OF_TAG: Final = {tag: shard for shard, tag in enumerate(TAGS)}

Told = Callable[[Sequence[ShardState]], object]


class Server(Protocol):
    """What this needs of a pipeline: where a call on a key would go, and commands."""

    def run_id(self, key: str) -> str:
        """The run of the server that a call on this key would reach, "" = none."""

    def execute(self, *command: str | bytes | int) -> asyncio.Future[Any]:
        """One command."""


class Epochs:
    """``of`` is asked before every call. A listener of its pipeline."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self._known = [""] * SHARDS
        self._at_once = asyncio.Event()
        self.lives = 0  # another number: a shard may have lost what it was told

    @property
    def closed(self) -> frozenset[int]:
        """Shards that are not called."""
        return frozenset(shard for shard, epoch in enumerate(self._known) if not epoch)

    def of(self, shard: int) -> str:
        """The epoch to call a shard in, "" = it is closed."""
        epoch = self._known[shard]
        return epoch if epoch.startswith(self._server.run_id(TAGS[shard])) else ""

    def connected(self) -> None:
        """Perhaps to another server: :meth:`of` compares, the next look tells."""
        self._at_once.set()

    def fenced(self, text: str) -> None:
        """``FENCED <tag> is not in the epoch <epoch>, …``: unless we know better by now, the shard is closed."""
        _, tag, *_, epoch = text.partition(",")[0].split()
        shard = _SHARD_OF_TAG[tag]
        if self._known[shard] == epoch:
            self._learn([*self._known[:shard], "", *self._known[shard + 1 :]])
            self._at_once.set()

    async def states(self) -> list[ShardState]:
        """Of all shards, one round trip a server. What a server holds that does not answer has no run, and is closed.

        :class:`StoreError`: none answers.
        """
        runs = [self._server.run_id(tag) for tag in TAGS]
        looks = [self._server.execute("HMGET", f"{tag}:shard", "epoch", "rebuilding") for tag in TAGS]
        answers = await asyncio.gather(*looks, return_exceptions=True)
        states = [_state(shard, run_id, answer) for shard, (run_id, answer) in enumerate(zip(runs, answers, strict=True))]
        self._learn([state.epoch if state.is_open else "" for state in states])
        if all(isinstance(answer, StoreError) for answer in answers):
            raise answers[0]
        return states

    def _learn(self, known: list[str]) -> None:
        self.lives += known != self._known
        self._known = known

    async def watch(self, *told: Told) -> None:
        """For ever: look, and tell what was seen; nothing (an empty list) when a server does not answer."""
        was = ALL_OPEN
        while True:
            self._at_once.clear()
            try:
                states = await self.states()
                why = SOME_CLOSED if self.closed else ALL_OPEN
            except StoreError as error:
                states, why = [], f"{NO_STORE}: {error}"
            if why != was:
                log.log(logging.INFO if why is ALL_OPEN else logging.WARNING, "%s", why)
                was = why
            for tell in told:
                tell(states)
            try:
                await asyncio.wait_for(self._at_once.wait(), LOOK_CLOSED_S if self.closed else LOOK_S)
            except TimeoutError:
                continue


def _state(shard: int, run_id: str, answer: Any) -> ShardState:
    if isinstance(answer, StoreError):
        return ShardState(shard=shard, run_id="", epoch="", rebuilding="")
    if isinstance(answer, BaseException):
        raise answer
    epoch, rebuilding = answer
    return ShardState(shard=shard, run_id=run_id, epoch=(epoch or b"").decode(), rebuilding=(rebuilding or b"").decode())


def closed(shard: int) -> asyncio.Future[Any]:
    """The answer of a shard that is not called."""
    future = asyncio.get_running_loop().create_future()
    future.set_exception(StoreFenced(f"shard {shard} is closed: its server was restarted, emptied or promoted, and it is rebuilt"))
    return future
