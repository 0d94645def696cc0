"""The instruments that run by hand, small, so that they cannot rot."""

from __future__ import annotations

import asyncio
import dataclasses

from .memory import memory
from .plan import JSON, SMOKE
from .scale_workers import scale_workers
from .stage import stage


def test_memory_and_two_workers_are_measured() -> None:
    with stage(dataclasses.replace(SMOKE, workers=2)) as running:
        scaled = asyncio.run(scale_workers(running, 1, {JSON: 16}))
        kept = asyncio.run(memory(running.house, 200))
    assert 0.5 <= scaled["workers2_busiest_share_json"] <= 1
    assert min(scaled.values()) > 0
    assert kept["memory_requests"] == 200
    assert min(kept[f"memory_{name}_mb_first"] for name in ("gate", "settler", "supervisor")) > 10
