"""Whoever dies, and however a request is cut off: the access log knows how much was delivered and why it ended.

The reasons are those of docs/decisions/witness.md, a row of its table each. Leases are longer here than a witness needs.
"""

from __future__ import annotations

import asyncio
import re
import shutil
import signal
import time
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import pytest
from breakable import BreakableHouse
from house import SMALL, Guest, short_directory, until
from wire import Line, Told, Trunk, call, chat, figure, steering

LEASE_S, BEAT_S, GRACE_S = 9, 4, 1
EVENT_MS = 20
FLUSH_S = 0.25  # the first checkpoint of a stream comes so long after its first output
BODY = chat(SMALL, max_tokens=2_000)
LONG: dict[str, str | int] = {"tokens": 1_500, "delay_ms": EVENT_MS}


@pytest.fixture(scope="module")
def house() -> Iterator[BreakableHouse]:
    directory = short_directory()
    holds = f"holds.lease_s={LEASE_S};holds.beat_s={BEAT_S};holds.witness_grace_s={GRACE_S}"
    built = BreakableHouse(directory, settings=f'{holds};access_log.file="{directory}/envoy/access.jsonl"')
    yield built
    built.stop()
    shutil.rmtree(directory, ignore_errors=True)


@pytest.fixture
def guest(house: BreakableHouse) -> Guest:
    return house.guest()


def sent(guest: Guest, **orders: str | int) -> dict[str, str]:
    return {**guest.headers, **steering(**(orders or LONG))}


async def running(house: BreakableHouse, guest: Guest, tokens: int) -> tuple[Told, asyncio.Task[Told]]:
    """A stream that has come so far."""
    told = Told()
    stream = asyncio.create_task(call(house, sent(guest), BODY, told=told))
    end = time.monotonic() + 20
    while told.tokens < tokens:
        assert time.monotonic() < end, told
        await asyncio.sleep(0.01)
    return told, stream


def ended_as(guest: Guest, reason: str) -> dict[str, Any]:
    """The one row of the guest, once it knows its reason."""

    def known() -> list[dict[str, Any]]:
        return [row for row in guest.rows() if row["end_reason"] == reason]

    until(known, f"{reason}; {[(row['ending'], row['end_reason']) for row in guest.rows()]}")
    (row,) = guest.rows()
    return row


# --- how a request is cut off: does it to a stream


async def a_client_hangs_up(house: BreakableHouse, guest: Guest) -> None:
    await call(house, sent(guest), BODY, leave_after=10)


async def a_client_resets_its_stream(house: BreakableHouse, guest: Guest) -> None:
    trunk = await Trunk.open(house)
    await trunk.ask(sent(guest), BODY, leave_after=10)
    await trunk.leave()


async def a_client_hangs_up_before_the_first_token(house: BreakableHouse, guest: Guest) -> None:
    line = await Line.open(house)
    await line.send(sent(guest, fault="hang_headers"), BODY)
    await asyncio.to_thread(until, lambda: house.seen_of(guest), "the simulator has it")
    await line.leave()


async def the_backend_resets(house: BreakableHouse, guest: Guest) -> None:
    await call(house, sent(guest, tokens=50, delay_ms=10, fault="reset_after=5"), BODY)


async def the_backend_is_silent(house: BreakableHouse, guest: Guest) -> None:
    with patient(house, r"idle_timeout: 600s", "idle_timeout: 1s"):
        await call(house, sent(guest, tokens=50, fault="stall_after=5"), BODY)


async def the_backend_takes_too_long(house: BreakableHouse, guest: Guest) -> None:
    with patient(house, r"(?<!_)timeout: 0s", "timeout: 1s"):
        await call(house, sent(guest), BODY)


class patient:  # noqa: N801 - reads as a word
    """Routes with another patience, for a moment."""

    def __init__(self, house: BreakableHouse, pattern: str, text: str) -> None:
        self._house = house
        self._shipped = (house.envoy.directory / "routes.yaml").read_text()
        self._changed, times = re.subn(pattern, text, self._shipped)
        assert times

    def __enter__(self) -> None:
        self._put(self._changed)

    def __exit__(self, *_: object) -> None:
        self._put(self._shipped)

    def _put(self, text: str) -> None:
        before = self._house.envoy.stat("http.edge.rds.models.update_success")
        self._house.envoy.replace("routes.yaml", text)
        until(lambda: self._house.envoy.stat("http.edge.rds.models.update_success") > before, "new routes")


@pytest.mark.parametrize(
    ("cut_off", "reason"),
    [
        (a_client_hangs_up, "client_gone"),
        (a_client_resets_its_stream, "client_gone"),
        (a_client_hangs_up_before_the_first_token, "client_gone"),
        (the_backend_resets, "upstream_reset"),
        (the_backend_is_silent, "upstream_error"),
        (the_backend_takes_too_long, "upstream_error"),
    ],
)
async def test_why_it_ended(house: BreakableHouse, guest: Guest, cut_off: Callable[[BreakableHouse, Guest], Awaitable[None]], reason: str):
    await cut_off(house, guest)
    row = await asyncio.to_thread(ended_as, guest, reason)
    assert row["ending"] == "settle"
    assert row["cost"] > 0
    await asyncio.to_thread(guest.check)


@pytest.mark.long
async def test_the_backend_dies(house: BreakableHouse, guest: Guest):
    _, stream = await running(house, guest, 10)
    simulator = house.simulators[SMALL]
    house.kill(simulator.pid)
    await stream
    simulator.start_again()
    house.envoy.wait_healthy({SMALL: 1})
    row = await asyncio.to_thread(ended_as, guest, "upstream_reset")
    assert row["output_tokens"] >= 9
    await asyncio.to_thread(guest.check)


async def test_workers_are_killed(house: BreakableHouse, guest: Guest):
    """Their last words were in the dynamic metadata: Envoy's bytes say what came later. Nobody waits for the lease."""
    streams = [await running(house, guest, 40) for _ in range(8)]
    await asyncio.to_thread(until, lambda: min(told.tokens for told, _ in streams) >= 60, "some more")
    tokens = {told.request_id: told.tokens for told, _ in streams}
    killed_s = time.time()
    for name, pid in (await asyncio.to_thread(house.pids)).items():
        if name.startswith("gate-"):
            house.kill(pid)
    await asyncio.gather(*(stream for _, stream in streams))
    ended = lambda: [row for row in guest.rows() if row["ending"] == "expire"]  # noqa: E731
    await asyncio.to_thread(until, lambda: len(ended()) == len(streams), "its holds have ended")
    short = []
    for told, _ in streams:
        (row,) = [row for row in guest.rows() if row["request_id"] == told.request_id]
        assert (row["end_reason"], "witnessed" in row["usage_flags"]) == ("sidecar_lost", True)
        short.append(told.tokens - row["output_tokens"])
    after_s = max(row["occurred_at"].timestamp() for row in ended()) - killed_s
    figure(f"delivered {sorted(tokens.values())}, {sorted(short)} of them not charged; ended {after_s:.1f} s after the kill")
    assert -1 <= min(short) <= max(short) <= 1
    await asyncio.to_thread(house.wait_serving)
    await asyncio.to_thread(house.judge, guest, [told for told, _ in streams], killed=frozenset(tokens))


@pytest.mark.long
async def test_a_killed_worker_had_used_free_tokens(house: BreakableHouse):
    """It costs nothing, so only its tokens say that its checkpoint is less than the witness knows; what was not used is there again."""
    guest = house.guest(deposit="0")
    grant = {"input_tokens": 1_000, "output_tokens": 2_000, "reason": "r", "actor": "test"}
    house.run(house.stores.deposits.grant_quota(guest.id, **grant))
    told, stream = await running(house, guest, 60)
    for name, pid in (await asyncio.to_thread(house.pids)).items():
        if name.startswith("gate-"):
            house.kill(pid)
    await stream
    row = await asyncio.to_thread(ended_as, guest, "sidecar_lost")
    figure(f"{told.tokens} delivered, {row['free_output']} free ones used")
    assert (row["ending"], row["cost"], "witnessed" in row["usage_flags"]) == ("expire", 0, True)
    assert (row["free_input"], row["free_output"]) == (row["input_tokens"], row["output_tokens"])
    assert -1 <= told.tokens - row["free_output"] <= 1
    await asyncio.to_thread(house.wait_serving)
    await asyncio.to_thread(guest.check)
    left = (1_000 - row["free_input"], 2_000 - row["free_output"])
    (posted,) = house.rows("SELECT free_quota_input, free_quota_output FROM balances WHERE user_id = %s", guest.id)
    assert guest.view().quota.both == tuple(posted.values()) == left


@pytest.mark.long
async def test_workers_are_killed_before_the_first_token(house: BreakableHouse, guest: Guest):
    """Nothing was delivered: everything comes back, and soon."""
    line = await Line.open(house)
    await line.send(sent(guest, fault="hang_headers"), BODY)
    await asyncio.to_thread(until, lambda: house.seen_of(guest), "the simulator has it")
    for name, pid in (await asyncio.to_thread(house.pids)).items():
        if name.startswith("gate-"):
            house.kill(pid)
    row = await asyncio.to_thread(ended_as, guest, "sidecar_lost")
    await line.leave()
    assert (row["ending"], row["cost"]) == ("expire", 0)
    await asyncio.to_thread(house.wait_serving)
    await asyncio.to_thread(guest.check)


@pytest.mark.long
async def test_a_drain_cuts(house: BreakableHouse, guest: Guest):
    """A client that leaves at the [DONE] of a cut stream did not cut it."""
    house.sidecar.stop(30)
    house.set("drain", grace_s=0)
    house.sidecar = house.start_sidecar()
    await asyncio.to_thread(house.wait_serving)
    line = await Line.open(house)
    await line.send(sent(guest), BODY)
    told = await line.head()
    async for _ in line.events(told):
        if told.tokens == 20:
            house.sidecar.signal(signal.SIGTERM)
        if told.done:
            break
    await line.leave()
    assert told.error == "stream_cut"
    assert await asyncio.to_thread(house.sidecar.wait, 20) == 0
    house.set("drain", grace_s=20)
    house.sidecar = house.start_sidecar()
    await asyncio.to_thread(house.wait_serving)
    other = house.guest()
    await a_client_hangs_up(house, other)  # its line comes behind
    await asyncio.to_thread(ended_as, other, "client_gone")
    assert guest.row(told.request_id)["end_reason"] == "cut"
    await asyncio.to_thread(guest.check)


@pytest.mark.long
async def test_envoy_is_told_to_end(house: BreakableHouse, guest: Guest):
    _, stream = await running(house, guest, 20)
    await asyncio.to_thread(house.envoy.stop)
    await stream
    house.envoy.start_again()
    await asyncio.to_thread(house.wait_serving)
    await asyncio.to_thread(ended_as, guest, "edge_lost")
    await asyncio.to_thread(guest.check)


@pytest.mark.long
async def test_workers_and_envoy_are_killed(house: BreakableHouse, guest: Guest):
    """Nobody is left to tell: the last checkpoint counts, one beat old at most."""
    told, stream = await running(house, guest, 60)
    pids = await asyncio.to_thread(house.pids)
    for name, pid in pids.items():
        if name.startswith("gate-"):
            house.kill(pid)
    house.envoy.kill()  # within a flush of its log
    await stream
    house.envoy.start_again()
    await asyncio.to_thread(house.wait_serving)
    row = await asyncio.to_thread(guest.row, told.request_id, LEASE_S + 20)
    short = told.tokens - row["output_tokens"]
    figure(f"{told.tokens} delivered, {short} of them not charged")
    assert (row["ending"], row["end_reason"]) == ("expire", "sidecar_lost")
    assert 0 <= short <= (BEAT_S + FLUSH_S) * 1_000 / EVENT_MS + 2
    await asyncio.to_thread(house.judge, guest, [told], killed=frozenset({told.request_id}))
