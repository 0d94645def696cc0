"""The pieces of Lua that calculate, held against Python."""

from __future__ import annotations

import datetime as dt
import random
from importlib.resources import files

import pytest

from extproc.stores.pipeline import Pipeline

SHARED = files("extproc.holds.lua") / "shared"


async def _evaluate(pipeline: Pipeline, snippet: str, expression: str, *args: int | str) -> list[bytes | int]:
    text = (SHARED / f"{snippet}.lua").read_text()
    found: list[bytes | int] = await pipeline.execute("EVAL", f"{text}\nreturn {expression}", 0, *args)
    return found


async def test_text_is_compared_as_numbers_are(pipeline: Pipeline) -> None:
    amounts = [0, 1, -1, 9, 10, -9, -10, 2**53 - 1, 2**53, 2**53 + 1, -(2**53) - 1, 4 * 10**18, -4 * 10**18]
    for a in amounts:
        for b in amounts:
            less, negative = await _evaluate(pipeline, "amount", "{ tostring(less(ARGV[1], ARGV[2])), neg(ARGV[1]) }", str(a), str(b))
            assert (less == b"true", int(negative)) == (a < b, -a)
            assert negative != b"-0"


@pytest.mark.parametrize("seed", range(3))
async def test_retry_after_is_the_first_moment_at_which_there_is_room(pipeline: Pipeline, seed: int) -> None:
    rng = random.Random(seed)
    width = 60_000
    for _ in range(150):
        index = 29_000_000
        now = index * width + rng.choice([0, 1, 30_000, 59_999, rng.randrange(width)])
        current, previous, room = rng.choice([0, 1, 5, 1_000]), rng.choice([0, 1, 7, 100_000]), rng.choice([0, 1, 4, 90, 50_000])

        async def used(at: int, text: str = f"{index}:{current}:{previous}") -> int:
            (value,) = await _evaluate(pipeline, "window", "{ window(ARGV[1], tonumber(ARGV[2]), 60000).used }", text, at)
            return int(value)

        if await used(now) <= room:
            continue
        expression = "{ until_used(window(ARGV[1], tonumber(ARGV[2]), 60000), tonumber(ARGV[3])) }"
        (wait,) = await _evaluate(pipeline, "window", expression, f"{index}:{current}:{previous}", now, room)
        assert isinstance(wait, int)
        assert 0 < wait <= 2 * width
        assert await used(now + wait) <= room
        assert await used(now + wait - 1) > room


async def test_a_window_slides(pipeline: Pipeline) -> None:
    expression = "{ window(ARGV[1], tonumber(ARGV[2]), 60000).used }"
    for at, expected in [(0, 10), (60_000, 10), (90_000, 5), (119_000, 0), (120_000, 0), (600_000, 0)]:
        assert await _evaluate(pipeline, "window", expression, "0:10:0", at) == [expected]


async def test_periods_are_the_dates_of_utc(pipeline: Pipeline) -> None:
    days = [dt.date(1970, 1, 1), dt.date(2000, 2, 29), dt.date(2024, 2, 29), dt.date(2024, 12, 31), dt.date(2100, 3, 1)]
    rng = random.Random(7)
    days += [dt.date(1970, 1, 1) + dt.timedelta(days=rng.randrange(60_000)) for _ in range(200)]
    for day in days:
        ms = ((day - dt.date(1970, 1, 1)).days * 86_400 + rng.randrange(86_400)) * 1_000
        found = await _evaluate(
            pipeline, "period", "{ (period('day', tonumber(ARGV[1]))), (period('month', tonumber(ARGV[1]))), (period('none', 0)) }", ms
        )
        assert found == [day.isoformat().encode(), day.isoformat()[:7].encode(), b"all"]


async def test_counters_of_past_periods_are_forgotten(pipeline: Pipeline) -> None:
    found = await _evaluate(
        pipeline, "period", "{ select(2, period('day', 0)), select(2, period('month', 0)), select(2, period('none', 0)) }"
    )
    assert found == [str(2 * 86_400_000).encode(), str(32 * 86_400_000).encode(), b""]
