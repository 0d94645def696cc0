"""A handler whose behaviour is a function of the test, and a record of what happened to it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field

from extproc.edge.transport.port import Call, GoneReason

Script = Callable[["Scripted", bytes], None]


def echo(handler: Scripted, data: bytes) -> None:
    handler.call.send(data)


def silent(handler: Scripted, data: bytes) -> None:
    """A phase that waits for a store."""


@dataclass(eq=False)
class Scripted:
    call: Call
    script: Script
    messages: list[bytes] = field(default_factory=list)
    gones: list[str] = field(default_factory=list)
    late: int = 0
    changed: asyncio.Event = field(default_factory=asyncio.Event)

    def message(self, data: bytes) -> None:
        self.late += bool(self.gones)
        self.messages.append(data)
        self.changed.set()
        self.script(self, data)

    def gone(self, reason: GoneReason) -> None:
        self.gones.append(reason)
        self.changed.set()
        self.call.send(b"too late")  # must be ignored


@dataclass
class Factory:
    """HandlerFactory that keeps what it made."""

    script: Script = echo
    made: list[Scripted] = field(default_factory=list)

    def __call__(self, call: Call) -> Scripted:
        handler = Scripted(call=call, script=self.script)
        self.made.append(handler)
        return handler

    async def settled(self, count: int = 1, within_s: float = 10) -> None:
        """Wait until ``count`` handlers were made and each is gone; then: exactly once, and nothing after it."""
        async with asyncio.timeout(within_s):
            while len(self.made) < count or not all(handler.gones for handler in self.made):
                await asyncio.sleep(0.005)
        for handler in self.made:
            assert len(handler.gones) == 1, handler.gones
            assert handler.gones[0] in ("closed", "edge_lost", "sidecar_error")
            assert handler.late == 0


async def until(condition: Callable[[], object], within_s: float = 10) -> None:
    async with asyncio.timeout(within_s):
        while not condition():
            await asyncio.sleep(0.005)
