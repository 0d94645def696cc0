"""Replies wait for the disk (``outbox.reply_waits_for: disk``), and it hangs: not for ever, and nobody is charged for an answer without its end."""

from __future__ import annotations

import asyncio
import sqlite3
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, closing, contextmanager

import pytest
from breakable import BreakableHouse
from house import SMALL, Guest
from test_cut_off import all_serve, gauge, until_aside
from wire import call, chat, figure, steering

from extproc.edge.driver import SAFE_WAIT_S
from extproc.settlement.outbox_file import outboxes

pytestmark = pytest.mark.long

ENVOY_S = 3.0  # its message_timeout: then it would cut the answer
TOKENS = 5


@contextmanager
def hanging(house: BreakableHouse) -> Iterator[None]:
    """Nobody can commit to an outbox."""
    with ExitStack() as stack:
        for path in outboxes(house.directory / "data/outbox"):
            other = stack.enter_context(closing(sqlite3.connect(path, isolation_level=None)))
            other.execute("BEGIN IMMEDIATE")
        yield


@pytest.fixture
async def waiting(house: BreakableHouse) -> AsyncIterator[None]:
    house.set("outbox", reply_waits_for="disk")
    await house.aside(house.restart_sidecar)
    await asyncio.to_thread(house.wait_serving)
    yield
    house.set("outbox", reply_waits_for="either")
    await house.aside(house.restart_sidecar)


@pytest.mark.usefixtures("waiting")
async def test_the_end_of_an_answer_waits_for_the_disk_and_not_for_ever(house: BreakableHouse, guest: Guest):
    before = await all_serve(house, guest)
    assert gauge(house, "extproc_unsafe_ends_total") == 0
    headers = {**guest.headers, **steering(tokens=TOKENS)}
    with hanging(house):
        began_s = time.monotonic()
        tolds = await asyncio.gather(*(call(house, headers, chat(SMALL, max_tokens=TOKENS, stream=stream)) for stream in (True, False)))
        took_s = time.monotonic() - began_s
        assert all((told.status, told.whole) == (200, True) for told in tolds)
        assert SAFE_WAIT_S <= took_s < ENVOY_S
        await until_aside(lambda: gauge(house, "extproc_unsafe_ends_total") == len(tolds), "they are counted")
        await until_aside(lambda: gauge(house, "extproc_outbox_full") == 1, "nobody new is let in")
        refused = await asyncio.gather(*(call(house, headers, chat(SMALL)) for _ in range(4)))
        assert 503 in {told.status for told in refused}
        charged = {row["request_id"] for row in guest.rows() if row["cost"]}
        assert {told.request_id for told in tolds} <= charged, "by way of Redis"
    named = [line for line in house.log_file.read_text().splitlines() if "before its charge is safe" in line]
    assert all(any(told.request_id in line for line in named) for told in tolds)
    figure(f"{len(tolds)} ends waited for {took_s:.2f} s; then {[told.status for told in refused]}")
    everything = [*before, *tolds, *refused, *await all_serve(house, guest)]
    await asyncio.to_thread(house.judge, guest, everything)
