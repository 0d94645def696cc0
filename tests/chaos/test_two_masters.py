"""A replica is promoted while its old master still serves: two sidecars of one masters, each with its own Redis, spend the same balances."""

from __future__ import annotations

import asyncio
import json
import shutil
import socket
import tempfile
import time
import urllib.request
from collections import Counter
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from urllib.parse import quote

import pytest
import redis
from house import NANOS_IN, NANOS_OUT, SMALL, Guest, until
from pair import Pair
from severable import Severable
from test_overspend import exact_hold
from test_redis_lost import charged_once
from test_valkey import served
from test_workers import begin, reached
from traffic import Traffic
from wire import Told, call, chat, figure, steering

from extproc.local import postgres, valkey
from extproc.settlement.poster import STALLED_S
from extproc.stores.shards import TAGS, tag_of

pytestmark = pytest.mark.long

A_SECOND = 20
STREAMS, STREAM_TOKENS = 12, 300  # at 20 ms: six seconds, longer than a lease and its grace
AFFORDED, TOKENS = 10, 5
WAVE, WAVES_MAX = 12, 20


class TwoMasters(Pair):
    """The first sidecar goes over to the successor. The other one stays with the old master, cut off from the ledger as well."""

    def __init__(self, directory: Path) -> None:
        (directory / "pg-b").mkdir()
        self.other_valkey = Severable(directory / "valkey/valkey.sock", directory / "px-b.sock")
        self.other_ledger = Severable(directory / "postgres/run/.s.PGSQL.5432", directory / "pg-b/.s.PGSQL.5432")
        dsn = f"postgresql://{postgres.SUPERUSER}@/{postgres.DATABASE}?host={quote(str(directory / 'pg-b'), safe='')}"
        super().__init__(
            directory,
            settings='holds.entry="0.000001"',
            of_other={
                "redis": {"url": self.other_valkey.url},
                "postgres": {"dsn": dsn},
                "outbox": {"dir": str(directory / "outbox-b")},  # of another machine: its own settler reads it
            },
        )
        self.replica = valkey.start(directory / "replica", durable=True)

    def stop(self) -> None:
        super().stop()
        self.replica.stop()
        for proxy in (self.other_valkey, self.other_ledger):
            proxy.stop()

    def successor(self) -> redis.Redis:
        return redis.Redis.from_url(self.replica.url, decode_responses=True)

    def replicate(self) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        with self.redis() as old, self.successor() as new:
            old.config_set("repl-diskless-sync-delay", 0)
            old.config_set("port", port)
            new.execute_command("REPLICAOF", "127.0.0.1", port)
            until(lambda: new.info("replication")["master_link_status"] == "up", "it replicates")

    def part(self) -> None:
        """On one side the successor, the ledger and the first sidecar; on the other the old master and the other sidecar."""
        self.other_ledger.server = self.directory / "nowhere"
        self.other_ledger.sever()
        self.promote()
        until(self.is_built, "the successor is built")

    def promote(self) -> None:
        """The first sidecar is led there."""
        with self.successor() as new:
            new.execute_command("REPLICAOF", "NO", "ONE")
        self.redis_url = self.replica.url
        self.valkey_proxy.server = self.replica.socket_file
        self.valkey_proxy.sever()

    def is_built(self) -> bool:
        """The successor serves. As if the workers beyond had been silent for 15 s: it is built without them."""
        others = {str(pid) for pid in pids(self.second_ops).values()}
        with self.database() as connection:
            for row in connection.execute("SELECT id, name FROM gate_workers").fetchall():
                if row["name"].split()[-2] in others:
                    connection.execute("DELETE FROM gate_workers WHERE id = %s", (row["id"],))
        return len(self.open_shards(self.successor())) == 64

    def the_ledger_is_back(self) -> None:
        self.other_ledger.server = self.directory / "postgres/run/.s.PGSQL.5432"

    def the_old_master_is_taken_away(self) -> None:
        if self.valkey.engine.alive:
            self.valkey.kill()
        self.other_valkey.server = self.replica.socket_file
        self.other_valkey.sever()

    def open_shards(self, server: redis.Redis) -> list[str]:
        """In the present life of the server."""
        with server:
            run_id = server.info("server")["run_id"]
            epochs = [server.hget(f"{tag}:shard", "epoch") for tag in TAGS]
        return [epoch for epoch in epochs if epoch and epoch.startswith(run_id)]

    def spendable(self, guest: Guest) -> tuple[int, int]:
        """By the old master, and by its successor."""
        with self.redis() as old, self.successor() as new:
            return tuple(int(server.hget(f"{tag_of(guest.id)}:payer:{guest.id}", "spendable")) for server in (old, new))

    def alarms(self) -> set[str]:
        return {json.loads(line)["msg"] for line in self.log_file.read_text().splitlines() if '"alarm: ' in line}


def pids(ops: str) -> dict[str, int]:
    with urllib.request.urlopen(f"http://{ops}/debug/config", timeout=5) as page:
        return json.load(page)["pids"]


@pytest.fixture
def masters() -> Iterator[TwoMasters]:
    directory = Path(tempfile.mkdtemp(prefix="xt-", dir="/tmp"))
    directory.chmod(0o711)
    built = TwoMasters(directory)
    yield built
    built.stop()
    shutil.rmtree(directory, ignore_errors=True)


async def spent_twice(masters: TwoMasters, poor: Guest, hold: int) -> list[Told]:
    """Asks until neither master lets him in any more."""
    tolds: list[Told] = []
    headers = {**poor.headers, **steering(tokens=TOKENS)}
    for _ in range(WAVES_MAX):
        tolds += await asyncio.gather(*(call(masters, headers, chat(SMALL, max_tokens=TOKENS)) for _ in range(WAVE)))
        if max(await asyncio.to_thread(masters.spendable, poor)) < hold:
            return tolds
    raise AssertionError(f"still spendable: {masters.spendable(poor)}, hold {hold}")


async def test_two_masters_serve_at_once(masters: TwoMasters):
    hold = await asyncio.to_thread(exact_hold, masters, chat(SMALL, max_tokens=TOKENS))
    rich = await asyncio.to_thread(masters.guest)
    poor = await asyncio.to_thread(masters.guest, deposit=str(Decimal(AFFORDED * hold).scaleb(-9)))
    await asyncio.to_thread(masters.replicate)
    async with Traffic(masters, rich, a_second=A_SECOND) as traffic:
        await served(traffic, 20)
        tolds, streams = begin(masters, rich, streams=STREAMS, tokens=STREAM_TOKENS)
        await reached(tolds, 5)
        await asyncio.to_thread(masters.part)
        assert len(masters.open_shards(masters.redis())) == len(masters.open_shards(masters.successor())) == 64, "both serve"
        of_poor = await spent_twice(masters, poor, hold)
        await served(traffic, 20)
        await asyncio.gather(*streams)

        masters.the_ledger_is_back()
        await asyncio.to_thread(until, lambda: not masters.open_shards(masters.redis()), "the old master is closed by its own settler")
        assert len(masters.open_shards(masters.successor())) == 64
        await served(traffic, 10)
        masters.the_old_master_is_taken_away()
        await asyncio.to_thread(masters.wait_serving)
        await served(traffic, 20)
    assert {told.status for told in traffic.told} <= {200, 503}
    assert all(told.whole for told in traffic.told)
    assert all(told.done and told.tokens == STREAM_TOKENS and not told.error for told in tolds), tolds

    of_rich = [*traffic.told, *tolds]
    await asyncio.to_thread(until, lambda: booked(rich, of_rich) and booked(poor, of_poor), "everything is booked", 30)
    await asyncio.to_thread(charged_once, masters, rich, of_rich)
    await asyncio.to_thread(paid_or_lost, masters, poor, of_poor)
    loss = sum(row["loss_nanos"] for row in poor.rows())
    figure(
        f"rich: {dict(Counter(told.status for told in of_rich))}, {dict(Counter(row['ending'] for row in rich.rows()))}; "
        f"poor: {dict(Counter(told.status for told in of_poor))}, {loss} of {loss + poor.deposited} nanos lost; {sorted(masters.alarms())}"
    )
    assert not any(row["loss_nanos"] for row in rich.rows())
    assert "alarm: old_masters rose by 64" in masters.alarms()
    assert any(alarm.startswith("alarm: late_loss_nanos rose") for alarm in masters.alarms())


async def test_the_leader_stays_with_an_old_master_that_dies(masters: TwoMasters):
    """Nobody builds the successor while somebody else leads; he lets go, and those who were led there are served."""
    rich = await asyncio.to_thread(masters.guest)
    await asyncio.to_thread(masters.replicate)
    masters.kill(pids(masters.first_ops)["settler"])
    await asyncio.to_thread(until, lambda: led(masters.second_ops) == 64, "the other one leads")
    async with Traffic(masters, rich, a_second=A_SECOND) as traffic:
        await served(traffic, 20)
        await asyncio.to_thread(masters.promote)
        await served(traffic, 20)
        assert masters.open_shards(masters.successor()) == [], "one of them serves"
        masters.valkey.kill()
        died_s = time.monotonic()
        await asyncio.to_thread(until, masters.is_built, "the successor is built", 3 * STALLED_S)
        built_s = time.monotonic() - died_s
        await served(traffic, 20)
        masters.the_old_master_is_taken_away()
        await asyncio.to_thread(masters.wait_serving)
        await served(traffic, 20)
    figure(f"built {built_s:.1f} s after the old master's death; {dict(Counter(told.status for told in traffic.told))}")
    await asyncio.to_thread(until, lambda: booked(rich, traffic.told), "everything is booked", 30)
    await asyncio.to_thread(charged_once, masters, rich, traffic.told)
    assert not any(row["loss_nanos"] for row in rich.rows())


def led(ops: str) -> int:
    with urllib.request.urlopen(f"http://{ops}/metrics", timeout=5) as page:
        lines = page.read().decode().splitlines()
    return int(sum(float(line.split()[-1]) for line in lines if line.startswith("extproc_settlement_shards_led")))


def booked(guest: Guest, tolds: list[Told]) -> bool:
    """Every answer of which the client knows has a row of its own."""
    return {told.request_id for told in tolds if told.status == 200} <= {
        row["request_id"] for row in guest.rows() if row["ending"] != "none"
    }


def paid_or_lost(masters: TwoMasters, poor: Guest, tolds: list[Told]) -> None:
    """What both masters have let in is booked in full; he pays what he had, the rest is the operator's loss. No debt, nothing twice."""
    rows = {row["request_id"]: row for row in masters.judge(poor, tolds)}
    answered = [told for told in tolds if told.status == 200]
    assert all(told.done and told.tokens == TOKENS for told in answered)
    assert {told.status for told in tolds} <= {200, 402, 429, 503}
    assert {row["request_id"] for row in rows.values() if row["cost"] or row["loss_nanos"]} == {told.request_id for told in answered}
    for told in answered:
        row = rows[told.request_id]
        assert row["cost"] + row["loss_nanos"] == row["input_tokens"] * NANOS_IN + TOKENS * NANOS_OUT
    used = sum(row["cost"] + row["loss_nanos"] for row in rows.values())
    assert poor.deposited < used <= 2 * poor.deposited, "only one of them has served"
    assert sum(row["loss_nanos"] for row in rows.values()) == used - poor.deposited
    assert poor.posted() == poor.available == 0
    of_loss = masters.rows(
        "SELECT coalesce(sum(e.amount), 0)::bigint AS nanos FROM entries AS e JOIN billing_events AS b ON b.id = e.event_id "
        "WHERE b.user_id = %s AND (e.kind, e.name) = ('loss', 'late')",
        poor.id,
    )
    assert abs(of_loss[0]["nanos"]) == used - poor.deposited
    sums = masters.rows("SELECT event_id FROM entries GROUP BY event_id, unit HAVING sum(amount) <> 0")
    assert sums == []
