"""Jobs side by side, in order within a lane, and none behind one that failed."""

from __future__ import annotations

import asyncio

import pytest

from extproc.settlement.lanes import Lanes


class Jobs:
    """Each waits until it is let go."""

    def __init__(self) -> None:
        self.begun: list[str] = []
        self.gates: dict[str, asyncio.Future[None]] = {}

    async def job(self, name: str) -> None:
        self.begun.append(name)
        await self.gates.setdefault(name, asyncio.get_running_loop().create_future())

    def end(self, name: str, error: Exception | None = None) -> None:
        gate = self.gates.setdefault(name, asyncio.get_running_loop().create_future())
        if error is None:
            gate.set_result(None)
        else:
            gate.set_exception(error)


async def test_lanes_go_on_side_by_side_and_each_in_order():
    jobs = Jobs()
    async with Lanes(2) as lanes:
        await lanes.begin(0, jobs.job, "a1")
        await lanes.begin(1, jobs.job, "b1")
        second = asyncio.create_task(lanes.begin(0, jobs.job, "a2"))
        await asyncio.sleep(0)
        assert jobs.begun == ["a1", "b1"]
        jobs.end("a1")
        await second
        for name in ("b1", "a2"):
            jobs.end(name)
    assert jobs.begun == ["a1", "b1", "a2"]


async def test_behind_a_failure_nothing_begins_and_the_other_lane_is_waited_for():
    jobs = Jobs()
    with pytest.raises(ZeroDivisionError):  # noqa: PT012 - the block is what is tested
        async with Lanes(2) as lanes:
            await lanes.begin(0, jobs.job, "a1")
            await lanes.begin(1, jobs.job, "b1")
            jobs.end("a1", ZeroDivisionError())
            asyncio.get_running_loop().call_later(0.01, jobs.end, "b1")
            await lanes.begin(0, jobs.job, "a2")
    assert jobs.begun == ["a1", "b1"]
    assert jobs.gates["b1"].done()


async def test_a_failure_of_the_last_job_is_told():
    jobs = Jobs()
    with pytest.raises(ZeroDivisionError):  # noqa: PT012 - the block is what is tested
        async with Lanes(2) as lanes:
            await lanes.begin(1, jobs.job, "b1")
            jobs.end("b1", ZeroDivisionError())
