"""Thousands of open streams on one gate worker: what they cost in memory and CPU, and that everybody pays for exactly what was read.

    python -m tests.bench.open_streams [STREAMS] [HOLD_S]

One run: a first thousand, then all; each speaks once in 0.9 s. Memory is read when every open stream has seen twenty events; the
difference, divided by the streams between, is what one costs. Then all are held, and end by themselves. Needs a stage with one gate worker.
"""

# ruff: noqa: T201 - it is there to print
from __future__ import annotations

import asyncio
import dataclasses
import resource
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1] / "e2e"))
from house import SMALL
from multiplexed import Line, Reading, block_of, chat_body, connect
from witnesses import assert_agreed

from .edge import Target
from .memory_of import rss_bytes
from .plan import QUICK, prompt
from .stage import GATE, Stage, stage

TURN_S = 0.02
PATIENCE_S = 60.0  # for streams to see their events
UNANSWERED_MAX = 100  # more at once would measure how a worker is flooded
ENDS = 10  # kinds of length, so that not all end in the same second: ten thousand settlements are another bench


@dataclass(frozen=True, slots=True, kw_only=True)
class Crowd:
    """``first`` of ``count`` are open when memory is read for the first time; ``rate``: opened in a second."""

    count: int = 10_000
    first: int = 1_000
    seen: int = 20  # events of each, before memory is read
    rate: int = 500
    delay_ms: int = 900
    hold_s: float = 60.0
    slack_s: float = 12.0  # answers are so much longer than planned, or a slow machine would end some before the others have begun

    @property
    def gap_s(self) -> float:
        return self.delay_ms / 1_000

    @property
    def until_s(self) -> float:
        """From the first stream to the end of all."""
        return self.count / self.rate + 2 * (self.seen + 1) * self.gap_s + self.hold_s + self.slack_s


FULL_CROWD = Crowd(slack_s=30.0)
QUICK_CROWD = Crowd(count=2_000, first=500, delay_ms=400, hold_s=2.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Moment:
    """What had been used when."""

    at_s: float
    cpu_ns: dict[str, int]
    tokens: int


class _Run:
    """One run on a stage. Its guests pay."""

    def __init__(self, running: Stage, crowd: Crowd, lines: Sequence[Line]) -> None:
        self.stage = running
        self.crowd = crowd
        self.readings: list[Reading] = []
        self._unanswered: list[Reading] = []
        self._lines = lines
        self._start_s = time.monotonic()
        (self.worker,) = running.accounts.pids(GATE)

    async def grow(self, count: int) -> None:
        """Open more at the crowd's rate. Each is asked for as many tokens as last until the common end."""
        crowd, guests = self.crowd, self.stage.guests
        begun, start_s = len(self.readings), time.monotonic()
        while (place := len(self.readings)) < count:
            left_s = self._start_s + crowd.until_s - time.monotonic()
            tokens = max(1, int(left_s / crowd.gap_s)) + place % ENDS
            block = block_of(guests[place % len(guests)].secret, {"x-sim-tokens": str(tokens), "x-sim-delay-ms": str(crowd.delay_ms)})
            body = chat_body(SMALL, prompt(), stream=True, max_tokens=2 * tokens)
            self.readings.append(self._lines[place % len(self._lines)].ask(block, body))
            await self._answered()
            ahead_s = start_s + (place - begun) / crowd.rate - time.monotonic()
            if ahead_s > 0 or place % 16 == 0:
                await asyncio.sleep(ahead_s)

    async def _answered(self) -> None:
        """Until few have no answer yet."""
        self._unanswered.append(self.readings[-1])
        while len(self._unanswered) > UNANSWERED_MAX:
            self._unanswered = [reading for reading in self._unanswered if not reading.block]
            await asyncio.sleep(0)

    async def seen(self, tokens: int) -> None:
        """Until each has read so many."""
        await self._until(lambda: min(reading.tokens for reading in self.readings) >= tokens, f"{tokens} events of every stream")

    async def ended(self) -> None:
        async with asyncio.timeout(self.crowd.until_s):
            await asyncio.gather(*(reading.over for reading in self.readings))

    def moment(self) -> _Moment:
        return _Moment(at_s=time.monotonic(), cpu_ns=self.stage.accounts.read(), tokens=sum(one.tokens for one in self.readings))

    def assert_open(self) -> None:
        ended = {f"{one.status} {one.fault or 'ended'} {one.body[:200]!r}" for one in self.readings if one.over.done()}
        assert not ended, f"of {len(self.readings)} streams some are not open: {sorted(ended)[:5]}"

    async def _until(self, condition: Callable[[], bool], what: str) -> None:
        async with asyncio.timeout(PATIENCE_S):
            while not condition():
                self.assert_open()
                await asyncio.sleep(TURN_S)
        assert condition(), what


async def open_streams(running: Stage, crowd: Crowd = FULL_CROWD) -> dict[str, float]:
    """All of it. Raises when a stream was refused, broke or was billed for something else than what was read.

    ``open_streams``, ``kb_per_open_stream``, ``kb_per_open_stream_held`` (after the hold), ``open_streams_worker_mb``,
    ``open_streams_ramp_per_s``, ``open_streams_events_per_s``, ``open_streams_events_per_s_min`` (of the slowest stream), and for each group
    of processes ``open_streams_…_cores`` while held.
    """
    _assert_files(crowd)
    lines = await connect(running.edge.ports[Target.OURS], streams=crowd.count)
    run = _Run(running, crowd, lines)
    await run.grow(crowd.first)
    await run.seen(crowd.seen)
    small = rss_bytes(run.worker)
    before = time.monotonic()
    await run.grow(crowd.count)
    ramp_s = time.monotonic() - before
    await run.seen(crowd.seen)
    large = rss_bytes(run.worker)
    begin, had = run.moment(), [reading.tokens for reading in run.readings]
    await asyncio.sleep(crowd.hold_s)
    run.assert_open()
    end = run.moment()
    held = rss_bytes(run.worker)
    slowest = min(reading.tokens - tokens for reading, tokens in zip(run.readings, had, strict=True))
    await run.ended()
    for line in lines:
        line.close()
    running.sent += len(run.readings)
    running.tokens += await asyncio.to_thread(assert_agreed, running.house, running.guests, run.readings)
    await asyncio.to_thread(running.wait_settled)
    held_s = end.at_s - begin.at_s
    return {
        "open_streams": float(crowd.count),
        "kb_per_open_stream": (large - small) / (crowd.count - crowd.first) / 1_024,
        "kb_per_open_stream_held": (held - small) / (crowd.count - crowd.first) / 1_024,
        "open_streams_worker_mb": large / 2**20,
        "open_streams_ramp_per_s": (crowd.count - crowd.first) / ramp_s,
        "open_streams_events_per_s": (end.tokens - begin.tokens) / held_s,
        "open_streams_events_per_s_min": slowest / held_s,
        **{f"open_streams_{name}_cores": (end.cpu_ns[name] - begin.cpu_ns[name]) / held_s / 1e9 for name in end.cpu_ns},
    }


def _assert_files(crowd: Crowd) -> None:
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    assert soft >= crowd.count + 1_000, f"ulimit -n is {soft}: Envoy needs a file for each of {crowd.count} requests to a backend"


def main() -> None:
    count, hold_s = (float(word) for word in [*sys.argv[1:], *("10000", "60")[len(sys.argv) - 1 :]])
    crowd = dataclasses.replace(FULL_CROWD, count=int(count), first=max(1, int(count) // 10), hold_s=hold_s)
    with stage(QUICK) as running:
        found = asyncio.run(open_streams(running, crowd))
    for name, value in found.items():
        print(f"{name:40} {value:12.3f}")


if __name__ == "__main__":
    main()
