"""Load at a steady rate, and what became of every request of it."""

from __future__ import annotations

import asyncio
import itertools
import json
import time
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Self

from house import SMALL, Guest, House
from wire import BROKEN, Line, Told, chat, steering

IN_FLIGHT_MAX = 200  # more at once would measure the machine
TOKENS = 5


class Traffic:
    """Streams and JSON answers in turn, ``a_second`` of them, from entry to exit; then all are awaited. Connections are used again.

    ``json``: ``False`` = streams only. ``others``: accounts that take turns with ``guest`` (:meth:`told_to`).
    """

    def __init__(
        self,
        house: House,
        guest: Guest,
        *,
        a_second: float,
        stream_orders: Mapping[str, str] | None = None,
        json: bool = True,
        others: Sequence[Guest] = (),
    ) -> None:
        self._house = house
        self._guests = (guest, *others)
        self._pause_s = 1 / a_second
        self._json = json
        self._stream_orders = stream_orders or steering(tokens=TOKENS, delay_ms=20)
        self._idle: list[Line] = []
        self._generation = 0  # of connections
        self._running: set[asyncio.Task[None]] = set()
        self.told: list[Told] = []
        self.pauses = False  # nothing new is sent while it does

    async def __aenter__(self) -> Self:
        self._source = asyncio.create_task(self._flow())
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._source.done():
            self._source.result()  # why it ended
        self._source.cancel()
        await asyncio.gather(self._source, return_exceptions=True)
        await asyncio.gather(*self._running)
        await asyncio.gather(*(line.leave() for line in self._idle))

    def reconnect(self) -> None:
        """Whatever is idle is not used again: requests go where the house says that Envoy is now."""
        idle, self._idle = self._idle, []
        self._generation += 1
        self._running |= {asyncio.create_task(line.leave()) for line in idle}

    @property
    def is_idle(self) -> bool:
        return not self._running

    def told_to(self, guest: Guest) -> list[Told]:
        return self.told[self._guests.index(guest) :: len(self._guests)]

    @property
    def answered(self) -> int:
        return sum(told.whole and told.status == 200 for told in self.told)

    def with_status(self, *statuses: int) -> list[Told]:
        return [told for told in self.told if told.status in statuses]

    async def _flow(self) -> None:
        loop = asyncio.get_running_loop()
        begun = loop.time()
        for number in itertools.count():
            await asyncio.sleep(max(0.0, begun + number * self._pause_s - loop.time()))
            if self.pauses:
                continue
            assert len(self._running) < IN_FLIGHT_MAX
            place, told = len(self.told), Told()
            self.told.append(told)
            task = asyncio.create_task(self._one(told, self._guests[place % len(self._guests)], stream=place % 2 == 0 or not self._json))
            self._running.add(task)
            task.add_done_callback(self._running.discard)

    def _idle_line(self) -> Line | None:
        while self._idle:
            line = self._idle.pop()
            if not line.is_closed:
                return line
            self._running.add(leaving := asyncio.create_task(line.leave()))
            leaving.add_done_callback(self._running.discard)
        return None

    async def _one(self, told: Told, guest: Guest, *, stream: bool) -> None:
        orders = self._stream_orders if stream else steering(tokens=TOKENS)
        line, generation = None, self._generation
        began_s = told.began_s = time.monotonic()
        try:
            line = self._idle_line() or await Line.open(self._house)
            await line.send({**guest.headers, **orders}, chat(SMALL, stream=stream, max_tokens=1_000))
            head = await line.head()
            told.status, told.headers = head.status, head.headers
            async for _ in line.events(told):
                pass
        except BROKEN:
            pass
        told.took_s = time.monotonic() - began_s
        if told.whole and told.status == 200 and not stream:
            told.tokens = json.loads(told.body)["usage"]["completion_tokens"]
        if line is not None and told.whole and told.headers.get("connection") != "close" and generation == self._generation:
            self._idle.append(line)
        elif line is not None:
            await line.leave()
