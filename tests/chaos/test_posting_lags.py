"""PostgreSQL is there, and slow: no request waits for it, and everything is posted afterwards."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

import psycopg
from breakable import BreakableHouse
from house import Guest, until
from traffic import Traffic
from wire import figure

COMMIT_S = 0.5
A_SECOND = 50
REQUESTS = 150


@contextmanager
def slow_commits(house: BreakableHouse) -> Iterator[None]:
    """Every commit that moves a stream's cursor takes half a second, asleep: the machine has nothing to do with it."""
    with psycopg.connect(house.postgres.dsn, autocommit=True) as connection:
        connection.execute(
            f"""CREATE FUNCTION take_long() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN PERFORM pg_sleep({COMMIT_S}); RETURN NULL; END';
            CREATE CONSTRAINT TRIGGER slow AFTER UPDATE ON stream_cursors DEFERRABLE INITIALLY DEFERRED
                FOR EACH ROW EXECUTE FUNCTION take_long()""".encode()
        )
        try:
            yield
        finally:
            connection.execute(b"DROP FUNCTION take_long CASCADE")


async def test_requests_do_not_wait_for_the_ledger(house: BreakableHouse, guest: Guest):
    before = len(guest.rows())
    with slow_commits(house):
        async with Traffic(house, guest, a_second=A_SECOND) as traffic:
            await asyncio.to_thread(until, lambda: traffic.answered > REQUESTS, "load")
        behind = len(traffic.told) - (len(guest.rows()) - before)
    statuses = Counter(told.status for told in traffic.told)
    figure(
        f"commits of {COMMIT_S} s at {A_SECOND} requests/s: answers {dict(statuses)}, {behind} of {len(traffic.told)} not posted at the end"
    )
    assert set(statuses) == {200}
    assert all(told.whole for told in traffic.told)
    rows = await asyncio.to_thread(house.judge, guest, traffic.told)
    assert {row["request_id"] for row in rows} == {told.request_id for told in traffic.told}
    assert all(row["ending"] == "settle" and row["usage_source"] == "upstream" for row in rows)
