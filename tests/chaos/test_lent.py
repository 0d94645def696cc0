"""Redis is away, requests are served on the workers' credit, a worker is killed: each is charged once, and never less than its last beat said."""

from __future__ import annotations

import asyncio
import contextlib
import json
import signal
import sqlite3
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from breakable import BEAT_S, BreakableHouse
from house import NANOS_OUT, SMALL, Guest, until
from test_cut_off import EVENT_MS, IN_A_ROW, all_serve, begin, gauge, until_aside
from wire import Told, call, chat, figure, steering

from extproc.money.amount import parse_amount
from extproc.settings import load_settings
from extproc.settlement.outbox_file import OutboxFile, outboxes

pytestmark = pytest.mark.long

CREDIT = "0.05"
SHARE = parse_amount(CREDIT) // 2
LARGEST = 8_000  # tokens; a worker lends three of these
STREAMS, TOKENS = 10, 300  # each of them lends two thousand tokens: a worker could lend twelve of these at once
BEAT_TOKENS = 1_000 * BEAT_S // EVENT_MS
LATE_TOKENS = 1_500 // EVENT_MS  # of a busy machine: timers, and the disk


@pytest.fixture
def credit(house: BreakableHouse) -> Iterator[None]:
    """Both workers lend, as long as the test takes."""
    shipped = house.settings_file.read_text()

    def change(**keys: Any) -> None:
        begin = house.log_file.stat().st_size
        house.settings_file.write_text(json.dumps({**json.loads(shipped), "policy": keys}))
        house.sidecar.signal(signal.SIGHUP)
        until(lambda: house.log_file.read_bytes()[begin:].count(b"the policy has changed") == house.workers, "both workers know")

    change(stores_away={"credit": CREDIT})
    yield
    change()


def dies(house: BreakableHouse) -> Callable[[], object]:
    house.valkey.kill()
    return house.valkey.start_again


def hangs(house: BreakableHouse) -> Callable[[], object]:
    """What was asked meanwhile is done afterwards: admissions of requests that are served on credit."""
    house.kill(house.valkey.pid, signal.SIGSTOP)
    return lambda: house.kill(house.valkey.pid, signal.SIGCONT)


def lent(house: BreakableHouse) -> dict[str, dict[str, int]]:
    """Outbox → hold → what it would be charged now, as the disk has it."""
    found: dict[str, dict[str, int]] = {}
    for path in outboxes(load_settings(house.settings_file, {}).outbox.dir):
        with contextlib.closing(OutboxFile.read_only(path)) as file:
            found[path.stem] = {one.hold_id: one.charge_nanos for one in file.loans()}
    return found


def at_stake(house: BreakableHouse) -> dict[str, int]:
    """Outbox → what may be charged at most for what is lent."""
    found = {}
    for path in outboxes(load_settings(house.settings_file, {}).outbox.dir):
        with contextlib.closing(OutboxFile.read_only(path)) as file:
            found[path.stem] = sum(one.cap_nanos for one in file.loans())
    return found


async def the_credit_ends(house: BreakableHouse, guest: Guest) -> list[Told]:
    """More is asked at once than anybody lends. Who took over from the killed one has seen nobody, and lends nothing."""
    headers = {**guest.headers, **steering(tokens=50, delay_ms=EVENT_MS)}
    tasks = [asyncio.create_task(call(house, headers, chat(SMALL, max_tokens=LARGEST))) for _ in range(IN_A_ROW)]
    while not all(task.done() for task in tasks):
        stake = await asyncio.to_thread(at_stake, house)
        assert stake["gate-0-0"] <= SHARE
        assert stake["gate-1-0"] == 0
        await asyncio.sleep(0.05)
    tolds = await asyncio.gather(*tasks)
    assert {told.status for told in tolds} == {200, 503}
    assert sum(told.status == 200 for told in tolds) <= SHARE // (LARGEST * NANOS_OUT)
    return tolds


async def all_are_charged(guest: Guest, tolds: list[Told]) -> None:
    """What was served on credit comes by the outboxes: seconds after Redis is at rest."""
    ids = {told.request_id for told in tolds if told.status == 200}
    await until_aside(lambda: ids <= {row["request_id"] for row in guest.rows() if row["cost"]}, "all of them are charged")


@pytest.mark.usefixtures("credit")
@pytest.mark.parametrize("leaves", [dies, hangs])
async def test_a_worker_is_killed_that_has_lent(house: BreakableHouse, guest: Guest, leaves: Callable[..., Callable[[], object]]):
    before = await all_serve(house, guest)
    comes_back = await house.aside(leaves, house)
    try:
        tolds, tasks = begin(house, guest, streams=STREAMS, tokens=TOKENS)
        await until_aside(lambda: min(told.tokens for told in tolds) >= 100, "streams run")
        assert {told.status for told in tolds} == {200}
        stake = at_stake(house)
        assert len([nanos for nanos in stake.values() if nanos]) == 2, "both workers have lent"
        assert max(stake.values()) <= SHARE
        floors = lent(house)["gate-1-0"]
        assert floors
        house.kill(house.pids()["gate-1"])
        await asyncio.gather(*tasks)
        broken = [told for told in tolds if not told.whole]
        assert len(broken) == len(floors), "the streams of one worker broke, and the others ended well"
        await until_aside(lambda: not lent(house)["gate-1-0"], "its successor has ended what it had lent")
        await until_aside(house._is_ready, "both serve again")
        others = await the_credit_ends(house, guest)
    finally:
        await house.aside(comes_back)
    everything = [*before, *tolds, *others, *await all_serve(house, guest)]
    await all_are_charged(guest, everything)
    rows = await asyncio.to_thread(house.judge, guest, everything, killed=frozenset(told.request_id for told in broken))

    by_request = {row["request_id"]: row for row in rows}
    for told in broken:
        row = by_request[told.request_id]
        assert (row["ending"], row["end_reason"], row["policies"]) == ("expire", "sidecar_lost", ["stores_away=credit"])
        assert row["cost"] >= floors[str(row["id"])] > 0
        assert row["output_tokens"] >= told.tokens - BEAT_TOKENS - LATE_TOKENS
    on_credit = [row for row in rows if "stores_away=credit" in row["policies"]]
    charged = sum(row["cost"] for row in on_credit)
    assert charged <= parse_amount(CREDIT)
    assert not any(row["loss_nanos"] for row in on_credit)
    assert gauge(house, "extproc_fail_open_total") >= len(on_credit)
    short = max(told.tokens - by_request[told.request_id]["output_tokens"] for told in broken)
    figure(
        f"{len(broken)} of {STREAMS} streams broke; the shortest charge lacks {short} tokens; {charged // NANOS_OUT} tokens' worth on credit"
    )


@pytest.mark.usefixtures("credit")
async def test_a_disk_that_takes_nothing_lends_nothing(house: BreakableHouse, guest: Guest):
    """Fail-open needs the outbox: without it, closed."""
    before = await all_serve(house, guest)
    comes_back = await house.aside(dies, house)
    try:
        with contextlib.ExitStack() as stack:
            for path in outboxes(load_settings(house.settings_file, {}).outbox.dir):
                other = stack.enter_context(contextlib.closing(sqlite3.connect(path, isolation_level=None)))
                other.execute("BEGIN IMMEDIATE")
            refused = await asyncio.gather(*(call(house, guest.headers, chat(SMALL)) for _ in range(IN_A_ROW)))
            assert {told.status for told in refused} == {503}
            other.execute("ROLLBACK")
    finally:
        await house.aside(comes_back)
    everything = [*before, *refused, *await all_serve(house, guest)]
    await all_are_charged(guest, everything)
    await asyncio.to_thread(house.judge, guest, everything)
