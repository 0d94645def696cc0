"""Tokens of the backends against those billed: alarmed for what nobody paid, and for nothing else."""

from __future__ import annotations

import asyncio

import pytest

from extproc.settlement.meter import Unmetered
from extproc.settlement.pace import Pace
from extproc.settlement.reconcile_unbilled import TOLERANCE, WINDOW_LOOKS, Billed, Counters, Look, Unbilled, unbilled_ratio


def page(prompt: float, generated: float, *, running: int = 0, model: str = "served") -> str:
    label = f'{{engine="0",model_name="{model}"}}'
    return (
        f"# TYPE vllm:prompt_tokens_total counter\nvllm:prompt_tokens_total{label} {prompt}\n"
        f"vllm:generation_tokens_total{label} {generated}\nvllm:num_requests_running{label} {running}\n"
        f'vllm:request_success_total{{finished_reason="stop",model_name="{model}"}} 99999\nprocess_cpu_seconds_total 5.0\n'
    )


def test_counters_grow_and_begin_anew():
    counters = Counters("served")
    assert counters.growth(page(100.0, 50.0, running=2)) == (0, 2), "the first look is where counting begins"
    assert counters.growth(page(1.1e2, 55)) == (15, 0)
    assert counters.growth(page(3, 55)) == (3, 0), "a restarted backend has counted 3 since"
    assert counters.growth(page(3, 55) + page(7, 0, model="other")) == (0, 0), "another model of the same backend"
    assert Counters("by another name").growth(page(1, 1, running=4)) == (0, 4)
    assert counters.growth("<html>none</html>") == (0, 0)


def looks(theirs: int, ours: int, *, in_flight: int = 0, requests: int = 10) -> list[Look]:
    """A window of minutes that are all alike."""
    billed = Billed(tokens=ours, requests=requests if ours else 0)
    return [Look(theirs=theirs, ours=billed, in_flight=in_flight)] * (WINDOW_LOOKS + 1)


@pytest.mark.parametrize(
    ("window", "is_alarm"),
    [
        (looks(10_000, 10_000), False),
        (looks(10_000, 9_000), False),
        (looks(10_000, 8_900), True),
        (looks(10_000, 0), True),
        (looks(10, 0), False),
        (looks(0, 10_000), False),
        (looks(10_000, 5_000, in_flight=30), False),
        (looks(10_000, 5_000, in_flight=20), True),
        (looks(10_000, 0, in_flight=1), True),
        (looks(10_000, 0)[:1], False),
    ],
    ids=["alike", "last look not booked", "11 %", "all", "too few", "more billed", "in flight", "too few in flight", "one", "one look"],
)
def test_what_is_an_alarm(window, is_alarm):
    assert (unbilled_ratio(window) > TOLERANCE) is is_alarm


class World:
    """Two replicas of one model; each minute they make tokens, of which some are billed a minute later."""

    def __init__(self) -> None:
        self.made = {"one": [0, 0], "two": [0, 0]}
        self.to_bill = self.billed_tokens = 0
        self.away = False
        self.told: list[float] = []
        pace = Pace(asyncio.Event(), monotonic_s=lambda: 0.0, unix_ms=lambda: 0)
        self.leading = True
        self.unbilled = Unbilled(
            models={"m": ("served", ["one", "two"])},
            backends=self,
            bills=self,
            leads=lambda: self.leading,
            tell=lambda _, ratio: self.told.append(ratio),
            meter=Unmetered(),
            pace=pace,
        )

    async def page(self, url: str) -> str | None:
        return None if self.away and url == "two" else page(*self.made[url])

    async def billed(self) -> dict[str, Billed]:
        tokens, self.billed_tokens, self.to_bill = self.billed_tokens, self.to_bill, 0
        return {"m": Billed(tokens=tokens, requests=tokens // 100), "unknown": Billed(tokens=5, requests=1)} if tokens else {}

    async def minute(self, *, made: int = 1_000, billed: int | None = None) -> None:
        for counters in self.made.values():
            counters[0] += made // 4
            counters[1] += made // 4
        self.to_bill += made if billed is None else billed
        await self.unbilled.step()


async def test_replicas_are_summed_and_bills_may_come_later():
    world = World()
    for _ in range(3 * WINDOW_LOOKS):
        await world.minute()
    assert max(world.told) == 0.0
    for _ in range(WINDOW_LOOKS + 2):
        await world.minute(billed=900)
    assert world.told[-1] == pytest.approx(0.01, abs=0.011), "a tenth, less the look that ours are ahead"
    for _ in range(WINDOW_LOOKS + 2):
        await world.minute(billed=500)
    assert world.told[-1] > 0.4


async def test_restarts_and_backends_that_are_away_are_no_alarm():
    world = World()
    for minute in range(6 * WINDOW_LOOKS):
        if minute % 7 == 3:
            world.made["one"] = [0, 0]
        world.away = minute % 11 in (4, 5, 6)
        await world.minute()
    assert max(world.told) <= TOLERANCE


async def test_who_does_not_lead_forgets():
    world = World()
    for _ in range(2 * WINDOW_LOOKS):
        await world.minute(billed=0)
    assert world.told[-1] > 0.9
    world.leading, told = False, len(world.told)
    await world.minute(billed=0)
    world.leading = True
    await world.minute(billed=0)
    assert world.told[told:] == [0.0]
