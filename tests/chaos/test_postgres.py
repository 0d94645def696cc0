"""PostgreSQL is away: known keys go on, unknown ones are told to come back, and everything is posted afterwards."""

from __future__ import annotations

import asyncio
import gc
import os
import time
from collections import Counter

from breakable import GRACE_S, LEASE_S, BreakableHouse
from house import SMALL, Guest, until
from test_workers import begin, reached
from traffic import Traffic
from wire import call, chat, figure

from extproc.accounts.keys import new_key

AWAY_S = float(os.environ.get("EXTPROC_POSTGRES_AWAY_S", "5"))
ALONE = "EXTPROC_CATCH_UP_ALONE" in os.environ  # the load ends before PostgreSQL is back, and begins again when it has everything
ACCOUNTS = 9 if AWAY_S < 60 else 33  # a long backlog is of many; odd, so that each has streams and JSON answers in turn
A_SECOND = float(os.environ.get("EXTPROC_A_SECOND", "50"))


# A row says when its transaction began: what the last of them took is not seen, so its rows are not counted either.
CATCH_UP = """
    WITH waited AS (
        SELECT posted_at FROM requests
        WHERE user_id = ANY(%s::uuid[]) AND occurred_at < to_timestamp(%s) AND posted_at >= to_timestamp(%s)
    ), ends AS (SELECT min(posted_at) AS first, max(posted_at) AS last FROM waited)
    SELECT count(*) AS waited, count(*) FILTER (WHERE posted_at < last) AS rows, extract(epoch FROM last - first)::float AS took_s
    FROM waited, ends GROUP BY first, last
"""


async def test_known_keys_do_not_notice(house: BreakableHouse, guest: Guest):
    stranger = {"authorization": f"Bearer {new_key()}"}  # well-formed, and nobody's
    guests = [guest, *[await asyncio.to_thread(house.guest) for _ in range(ACCOUNTS - 1)]]
    async with Traffic(house, guest, a_second=A_SECOND, others=guests[1:]) as traffic:
        await asyncio.to_thread(until, lambda: traffic.answered > 20 * ACCOUNTS, "load")
        house.postgres.kill()
        gone = time.monotonic()
        before = len(traffic.told)
        asked = []
        while time.monotonic() < gone + AWAY_S:
            asked.append(await call(house, stranger, chat(SMALL, max_tokens=10)))
            await asyncio.sleep(min(1.0, AWAY_S / 5))
        meanwhile = traffic.told[before:]
        traffic.pauses = ALONE
        if ALONE:
            await asyncio.to_thread(until, lambda: traffic.is_idle, "no load")
        house.postgres.start_again()
        back = time.monotonic()
        back_unix_s = time.time()
        for one in guests if ALONE else ():
            await asyncio.to_thread(one.check)
        traffic.pauses = False
        figure(f"away for {time.monotonic() - gone:.1f} s at {A_SECOND} requests/s; {len(meanwhile)} requests meanwhile")
        await asyncio.to_thread(until, lambda: traffic.answered >= before + len(meanwhile) + 20, "load")
    statuses = Counter(told.status for told in traffic.told)
    figure(f"answers: {dict(statuses)}; a key that nobody knows: {dict(Counter((told.status, told.error) for told in asked))}")
    assert set(statuses) == {200}, Counter(told.body for told in traffic.told if told.status != 200)
    assert all(told.whole for told in traffic.told)
    assert {(told.status, told.error) for told in asked} == {(503, "unavailable")}
    await asyncio.to_thread(house.wait_serving)
    for one in guests:
        await asyncio.to_thread(one.check)  # everything is posted
    (caught_up,) = house.rows(CATCH_UP, [one.id for one in guests], back_unix_s, back_unix_s)
    rate = caught_up["rows"] / caught_up["took_s"] if caught_up["took_s"] else 0
    figure(f"{caught_up['waited']} rows waited; {caught_up['rows']} of them in {caught_up['took_s']:.2f} s: {rate:,.0f}/s")
    seen = await asyncio.to_thread(house.seen)
    gc.freeze()  # of 100,000 requests it is looked through for half a second, in which our own store connections time out
    rows = [row for one in guests for row in await asyncio.to_thread(house.judge, one, traffic.told_to(one), seen=seen[one.id])]
    figure(f"{len(rows)} rows of {len(traffic.told)} requests")
    assert {row["request_id"] for row in rows} == {told.request_id for told in traffic.told}
    assert all(row["ending"] == "settle" and row["usage_source"] == "upstream" for row in rows)
    async with asyncio.timeout(20):  # as soon as PostgreSQL can say
        while (told := await call(house, stranger, chat(SMALL, max_tokens=10))).status == 503:
            await asyncio.sleep(0.1)
    assert (told.status, told.error) == (401, "invalid_api_key")
    figure(f"an unknown key is told so {time.monotonic() - back:.1f} s after PostgreSQL was back")


async def test_holds_run_out_without_it(house: BreakableHouse, guest: Guest):
    """The reaper needs no PostgreSQL: workers that die meanwhile leave nothing held."""
    tolds, streams = begin(house, guest, streams=6, tokens=2_000)
    await reached(tolds, 5)
    pids = await asyncio.to_thread(house.pids)
    house.postgres.kill()
    killed = time.monotonic()
    for name in ("gate-0", "gate-1"):
        house.kill(pids[name])
    await asyncio.gather(*streams)
    assert not any(told.whole for told in tolds)
    await asyncio.to_thread(until, lambda: guest.view().open_holds == 0, "every hold has ended", LEASE_S + GRACE_S)
    view = guest.view()
    assert (view.held_nanos, view.entry_held_nanos) == (0, 0)
    figure(f"{len(tolds)} holds ended {time.monotonic() - killed:.1f} s after their workers were killed, PostgreSQL away")
    await house.aside(house.postgres.start_again)
    await asyncio.to_thread(house.wait_serving)
    rows = await asyncio.to_thread(house.judge, guest, tolds, killed=frozenset(told.request_id for told in tolds))
    assert {row["ending"] for row in rows} == {"expire"}
    assert all(row["cost"] for row in rows)


async def test_money_is_not_guessed_without_it(house: BreakableHouse, guest: Guest):
    """Who asks what he has is told to come back, soon; models and their prices are known all the same."""

    def ask(path: str) -> tuple[int, float]:
        began = time.monotonic()
        with house.client() as client:
            return client.get(path, headers=guest.headers).status_code, time.monotonic() - began

    await asyncio.to_thread(until, lambda: ask("/v1/credits")[0] == 200, "told: the test before may have taken PostgreSQL away")
    house.postgres.kill()
    for path in ("/v1/credits", "/v1/key", "/v1/dashboard/billing/subscription"):
        # What was read a moment ago is told once more.
        await asyncio.to_thread(until, lambda path=path: ask(path)[0] == 503, f"{path} is refused")
        status, took_s = await asyncio.to_thread(ask, path)
        assert status == 503, path
        figure(f"{path}: 503 after {took_s:.2f} s")
    assert (await asyncio.to_thread(ask, "/v1/models"))[0] == 200
    await house.aside(house.postgres.start_again)
    await asyncio.to_thread(until, lambda: ask("/v1/credits")[0] == 200, "told again")
    await asyncio.to_thread(house.wait_serving)
