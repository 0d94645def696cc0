from __future__ import annotations

from types import SimpleNamespace

import pytest

from extproc.edge.driver import Gate
from extproc.edge.pressure import Pressure
from extproc.errors import StoreRefused


class Server:
    """``used``: what it says; an exception = it does not."""

    def __init__(self) -> None:
        self.used: float | Exception = 0.0
        self.told: list[float] = []

    async def ratio(self) -> float:
        if isinstance(self.used, Exception):
            raise self.used
        return self.used


async def test_it_closes_at_seventy_percent_and_opens_below_sixty_five():
    server = Server()
    pressure = Pressure(server.ratio, SimpleNamespace(store_used=server.told.append))  # type: ignore[arg-type]
    seen = []
    for used in (0.0, 0.69, 0.70, 0.66, 0.65, 0.64, 0.69, 1.0, StoreRefused("away"), 0.0):
        server.used = used
        await pressure.look()
        seen.append(pressure.is_high)
    assert seen == [False, False, True, True, True, False, False, True, True, False]
    assert server.told == [0.0, 0.69, 0.70, 0.66, 0.65, 0.64, 0.69, 1.0, 0.0]


@pytest.mark.parametrize(
    ("why_full", "is_high", "why"), [("", False, ""), ("outbox", True, "outbox"), ("endings", False, "endings"), ("", True, "store_memory")]
)
def test_a_gate_says_why_nobody_new_is_let_in(why_full: str, is_high: bool, why: str):
    gate = SimpleNamespace(closing=SimpleNamespace(why_full=why_full), pressure=SimpleNamespace(is_high=is_high))
    assert Gate.why_shut.fget(gate) == why  # type: ignore[attr-defined]
