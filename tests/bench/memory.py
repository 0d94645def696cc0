"""Memory of the processes of ours after many requests: a million may not take more than ten thousand did.

    python -m tests.bench.memory [REQUESTS]          1,000,000 take about ten minutes on two free cores

Everything that leaves something behind takes its turn: JSON, streams, clients that leave in the middle or at once, keys that nobody has, empty
accounts, models that nobody sells, bodies that are no JSON. Memory is read when all is quiet: answered, settled and posted.
"""

# ruff: noqa: T201 - it is there to print
from __future__ import annotations

import asyncio
import itertools
import shutil
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1] / "e2e"))
from house import SMALL, House, short_directory, until
from multiplexed import Line, Reading, block_of, chat_body, connect

from extproc.accounts.keys import new_key
from extproc.stores.shards import tag_of

from .memory_of import rss_bytes
from .plan import prompt

CLIENTS = 64
PAYERS = 8
BASE = 10_000  # requests after which memory should not grow any more
SAMPLES = 20
ANSWER_S_MAX = 30.0
POSTED_S_MAX = 120.0
TOKENS = 16
LEAVES_AFTER = 5  # events
LEAVERS_A_LINE = 200  # Envoy closes a connection with 250 early resets, or with more than 1,000 at once and 33 a second of any kind
GROUPS = ("gate-0", "settler", "supervisor")


@dataclass(frozen=True, slots=True, kw_only=True)
class Kind:
    """One way to ask. ``statuses``: how it may end; ``leaves``: after so many events, -1 = never."""

    blocks: tuple[bytes, ...]
    body: bytes
    status: int = 200
    leaves: int = -1
    unknown_key: bool = False

    def block(self, place: int) -> bytes:
        return block_of(new_key(), {}) if self.unknown_key else self.blocks[place % len(self.blocks)]

    @property
    def tokens(self) -> int:
        """Billed for each."""
        return TOKENS if self.status == 200 and self.leaves < 0 else 0


def mix_of(house: House, secrets: list[str], penniless: str) -> tuple[Kind, ...]:
    """Of twenty requests ten are JSON, five are streams, and five end otherwise."""
    text = prompt()
    paying = tuple(block_of(secret, {"x-sim-tokens": str(TOKENS)}) for secret in secrets)
    slow = tuple(block_of(secret, {"x-sim-tokens": "40", "x-sim-delay-ms": "2"}) for secret in secrets)
    stream = chat_body(SMALL, text, max_tokens=100, stream=True)
    answer = Kind(blocks=paying, body=chat_body(SMALL, text, max_tokens=100))
    streamed = Kind(blocks=paying, body=stream)
    others = (
        Kind(blocks=slow, body=stream, leaves=LEAVES_AFTER),
        Kind(blocks=slow, body=stream, leaves=0),
        Kind(blocks=(), body=stream, status=401, unknown_key=True),
        Kind(blocks=(block_of(penniless, {}),), body=stream, status=402),
        Kind(blocks=paying, body=chat_body("nobody-sells-this", text), status=404),
        Kind(blocks=paying, body=b'{"model": ', status=400),
    )
    return (*(kind for other in others[:5] for kind in (answer, streamed, answer, other)), *others[5:])


class Crowd:
    """So many clients, each asking again as soon as it was answered."""

    def __init__(self, house: House, lines: list[Line]) -> None:
        """``lines``: connections of those who stay; those who leave have others."""
        self._house = house
        self._guests = [house.guest(deposit="1000000") for _ in range(PAYERS)]
        penniless = house.guest(deposit="0")
        self._mix = mix_of(house, [guest.secret for guest in self._guests], penniless.secret)
        self._streams = {f"{tag_of(guest.id)}:events" for guest in (*self._guests, penniless)}
        self._redis = house.redis()
        self._places = itertools.count()
        self._lines = lines
        self._leavers: deque[Line] = deque()
        self._left = 0
        self.tokens = 0

    async def ask(self, count: int) -> None:
        places = iter(list(itertools.islice(self._places, count)))
        await asyncio.gather(*(self._client(self._lines[number % len(self._lines)], places) for number in range(CLIENTS)))

    async def _client(self, line: Line, places: Iterator[int]) -> None:
        for place in places:
            kind = self._mix[place % len(self._mix)]
            used = line if kind.leaves < 0 else await self._line_of_leavers()
            reading = used.ask(kind.block(place), kind.body, _leaver(kind.leaves))
            if kind.leaves == 0:
                await asyncio.sleep(0.001 * (place % 8))  # at its headers, at its body, at the first event …
                reading.cancel()
            await asyncio.wait_for(reading.over, ANSWER_S_MAX)
            assert kind.leaves >= 0 or (reading.whole and reading.status == kind.status), (
                kind.status,
                reading.status,
                reading.fault,
                reading.body[:300],
            )
            self.tokens += kind.tokens

    async def _line_of_leavers(self) -> Line:
        if self._left % LEAVERS_A_LINE == 0:
            self._leavers += await connect(self._house.envoy.port, tls=self._house.context(), streams=1)
            if len(self._leavers) > 2:
                self._leavers.popleft().close()
        self._left += 1
        return self._leavers[-1]

    def wait_quiet(self) -> None:
        until(lambda: not any(self._redis.xlen(stream) for stream in self._streams), "everything posted", POSTED_S_MAX)

    def check_billed(self) -> None:
        """What ended by itself. (Who wants to leave may be too late: those streams are billed as well, and are longer.)"""
        sql = """SELECT sum(output_tokens) AS tokens FROM requests
                 WHERE user_id = ANY(%s) AND usage_source = 'upstream' AND end_reason = 'stop' AND output_tokens = %s"""
        (row,) = self._house.rows(sql, [guest.id for guest in self._guests], TOKENS)
        assert row["tokens"] == self.tokens, (row, self.tokens)

    def close(self) -> None:
        self._redis.close()
        for line in (*self._lines, *self._leavers):
            line.close()


def _leaver(after: int) -> Callable[[Reading], None] | None:
    return None if after <= 0 else lambda reading: reading.cancel() if reading.tokens >= after else None


async def memory(house: House, count: int, say: Callable[[str], None] = lambda words: None) -> dict[str, float]:
    """``memory_requests``, ``memory_rps``, and for each process of ours ``memory_…_mb_first``, ``…_mb_last``, ``…_mb_most`` and ``…_growth``:

    last ÷ first − 1, where first is after ten thousand requests (a tenth, of fewer than a hundred thousand). The house has one gate worker.
    """
    lines = await connect(house.envoy.port, tls=house.context(), streams=CLIENTS)
    crowd = await asyncio.to_thread(Crowd, house, lines)
    pids = house.pids() | {"supervisor": house.sidecar.pid}
    first = min(BASE, count // 10)
    marks = sorted({first, *(first + (count - first) * place // SAMPLES for place in range(1, SAMPLES + 1))})
    rss: dict[str, list[float]] = {name: [] for name in GROUPS}
    done, start_s = 0, time.monotonic()
    for mark in marks:
        await crowd.ask(mark - done)
        done = mark
        await asyncio.to_thread(crowd.wait_quiet)
        for name in GROUPS:
            rss[name].append(rss_bytes(pids[name]) / 2**20)
        say(f"{done:>9,}  " + "  ".join(f"{name} {values[-1]:.1f} MB" for name, values in rss.items()))
    took_s = time.monotonic() - start_s
    await asyncio.to_thread(crowd.check_billed)
    crowd.close()
    assert house.pids().items() <= pids.items(), "a process was replaced"
    found = {"memory_requests": float(count), "memory_rps": count / took_s}
    for name, values in rss.items():
        name = name.removesuffix("-0")  # noqa: PLW2901
        found |= {f"memory_{name}_mb_first": values[0], f"memory_{name}_mb_last": values[-1], f"memory_{name}_mb_most": max(values)}
        found[f"memory_{name}_growth"] = values[-1] / values[0] - 1
    return found


def main() -> None:
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 1_000_000
    directory = short_directory()
    house = House(directory, workers=1)
    try:
        found = asyncio.run(memory(house, count, lambda words: print(words, flush=True)))
    finally:
        house.stop()
        shutil.rmtree(directory, ignore_errors=True)
    for name, value in found.items():
        print(f"{name:32} {value:12.3f}")


if __name__ == "__main__":
    main()
