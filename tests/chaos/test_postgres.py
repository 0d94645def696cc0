"""PostgreSQL is away: known keys go on, unknown ones are told to come back, and everything is posted afterwards."""

from __future__ import annotations

import asyncio
import os
import time
from collections import Counter

from breakable import BreakableHouse
from house import SMALL, Guest, until
from traffic import Traffic
from wire import call, chat, figure

from extproc.accounts.keys import new_key

AWAY_S = float(os.environ.get("EXTPROC_POSTGRES_AWAY_S", "5"))
A_SECOND = 50


async def test_known_keys_do_not_notice(house: BreakableHouse, guest: Guest):
    stranger = {"authorization": f"Bearer {new_key()}"}  # well-formed, and nobody's
    async with Traffic(house, guest, a_second=A_SECOND) as traffic:
        await asyncio.to_thread(until, lambda: traffic.answered > 20, "load")
        house.postgres.kill()
        gone = time.monotonic()
        before = len(traffic.told)
        asked = []
        while time.monotonic() < gone + AWAY_S:
            asked.append(await call(house, stranger, chat(SMALL, max_tokens=10)))
            await asyncio.sleep(min(1.0, AWAY_S / 5))
        meanwhile = traffic.told[before:]
        house.postgres.start_again()
        back = time.monotonic()
        figure(f"away for {time.monotonic() - gone:.1f} s at {A_SECOND} requests/s; {len(meanwhile)} requests meanwhile")
        await asyncio.to_thread(until, lambda: traffic.answered >= before + len(meanwhile) + 20, "load")
    statuses = Counter(told.status for told in traffic.told)
    figure(f"answers: {dict(statuses)}; a key that nobody knows: {dict(Counter((told.status, told.error) for told in asked))}")
    assert set(statuses) == {200}
    assert all(told.whole for told in traffic.told)
    assert {(told.status, told.error) for told in asked} == {(503, "unavailable")}
    await asyncio.to_thread(house.wait_serving)
    rows = await asyncio.to_thread(house.judge, guest, traffic.told)
    figure(f"{len(rows)} rows of {len(traffic.told)} requests")
    assert {row["request_id"] for row in rows} == {told.request_id for told in traffic.told}
    assert all(row["ending"] == "settle" and row["usage_source"] == "upstream" for row in rows)
    async with asyncio.timeout(20):  # as soon as PostgreSQL can say
        while (told := await call(house, stranger, chat(SMALL, max_tokens=10))).status == 503:
            await asyncio.sleep(0.1)
    assert (told.status, told.error) == (401, "invalid_api_key")
    figure(f"an unknown key is told so {time.monotonic() - back:.1f} s after PostgreSQL was back")
