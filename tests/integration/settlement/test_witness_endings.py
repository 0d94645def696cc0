"""Requests of which only Envoy's log knows any more: Redis has lost the hold, and the worker is gone. They are charged, once, and late."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import psycopg
import pytest
from ledger_invariants import ledger_faults
from town import CAP, PRICE, Town, new_id, unix_ms

from extproc.errors import StoreRefused
from extproc.ledger import witness as kept_module
from extproc.ledger.witness import PostgresWitness
from extproc.money.posting import Posting
from extproc.settlement.meter import Series
from extproc.settlement.witness import Witness
from extproc.settlement.witness_endings import FIRST, OTHERS_S, WitnessEndings
from extproc.settlement.witness_log import Log
from extproc.stores.shards import shard_of

LEASE_S = 10
RIPE_S = 15  # with the outbox' five


class Scene:
    def __init__(self, town: Town, log: Path, payer: str, key: str) -> None:
        self.town, self.log, self.payer, self.key = town, log, payer, key
        self.poster = town.poster()
        self.unconfirmed_ms: int | None = None
        self.restart()

    def restart(self) -> None:
        register = PostgresWitness(self.town.database)
        self.endings = self.another()
        self.witness = Witness(
            source=Log(self.log), name="host:log", holds=self.town.holds, register=register, meter=self.town.meter, pace=self.town.pace
        )

    def another(self, name: str = "host:log") -> WitnessEndings:
        return WitnessEndings(
            name=name,
            kept=PostgresWitness(self.town.database),
            postings=self.town.ledger,
            stream=self.town.stream,
            meter=self.town.meter,
            pace=self.town.pace,
            shard_of=shard_of,
            unconfirmed_ms=lambda: self.unconfirmed_ms,
            lease_s=LEASE_S,
        )

    def ending(self, hold: str, kind: str, charge: int) -> Posting:
        """Of its owner, out of an outbox."""
        row = self.town.settle(hold, self.payer, self.key, output=(charge - 5) // 2).row if charge else b"{}"
        return Posting(shard_of(self.payer), "", kind, hold, self.payer, self.key, charge, CAP, "", 0, unix_ms(), row)

    def write(self, hold: str, output: int = 50, *, request_id: str | None = None, **more: str) -> None:
        charge = str(5 + 2 * output)
        billing: dict[str, Any] = {"hold_id": hold, "payer_id": self.payer, "key_id": self.key, "cap_nanos": str(CAP)}
        billing |= {"price_id": PRICE.price_id, "charge_nanos": charge, "input_tokens": "5", "output_tokens": str(output)}
        billing |= {"usage_source": "counted", "delivered": "1000/200/1"} | more
        line = {
            "request_id": request_id or f"envoy-{hold}",
            "status": 200,
            "bytes_sent": 1_400,
            "details": "via_upstream",
            "billing": billing,
        }
        with self.log.open("a") as file:
            file.write(json.dumps(line, separators=(",", ":")) + "\n")

    async def read(self) -> None:
        await self.witness.look()
        await self.witness.file()

    async def book(self, *, after_s: int = RIPE_S + 1) -> None:
        """So long after the line was filed."""
        with psycopg.connect(self.town.dsn) as connection:
            connection.execute("UPDATE witness_endings SET seen_at = seen_at - %s * interval '1 second'", [after_s])
        await self.endings.step()

    async def lost(self) -> str:
        """A hold that Redis had."""
        hold = await self.town.hold(self.payer, self.key)
        await self.town.empty_redis()
        return hold

    async def balance(self) -> int:
        balance = await self.town.ledger.balance(self.payer)
        assert balance is not None
        return balance.balance_nanos

    def rows(self, query: str, *params: object) -> Sequence[tuple[Any, ...]]:
        with psycopg.connect(self.town.dsn) as connection:
            return connection.execute(query.encode(), params).fetchall()

    def events(self, hold: str) -> list[tuple[Any, ...]]:
        return list(self.rows("SELECT event_type, charge_nanos FROM billing_events WHERE %s IN (id, of_id) ORDER BY event_type DESC", hold))


@pytest.fixture
async def scene(town: Town, tmp_path: Path) -> Scene:
    """Its price has been charged before: the ledger has it in full."""
    scene = Scene(town, tmp_path / "access.jsonl", *await town.customer())
    await town.serve(scene.payer, scene.key)
    await scene.poster.step()
    return scene


async def test_a_hold_that_only_the_line_knows_is_charged_when_it_is_ripe(scene: Scene):
    """With what came after the figure: 400 bytes are two events."""
    hold = await scene.lost()
    before = await scene.balance()
    scene.write(hold)
    await scene.read()
    await scene.book(after_s=RIPE_S - 5)
    assert scene.events(hold) == []
    assert scene.town.count("witness_endings") == 1
    await scene.book(after_s=6)
    assert scene.events(hold) == [("expire", 109)]
    assert await scene.balance() == before - 109
    columns = "request_id, creds_id::text, model, output_tokens, cost, list_nanos, hold_nanos, price_id, end_reason, usage_flags, status"
    assert scene.rows(f"SELECT {columns} FROM requests WHERE id = %s", hold) == [
        (f"envoy-{hold}", scene.key, "m", 52, 109, 109, CAP, PRICE.price_id, "sidecar_lost", ["witnessed", "output_estimated"], 200)
    ]
    assert scene.town.count("witness_endings") == 0
    assert scene.town.meter.counts[Series.WITNESSED_ENDINGS] == 1


async def test_what_has_ended_by_then_is_forgotten(scene: Scene):
    """By its owner, however late his event is read: the stream goes first."""
    hold = await scene.town.serve(scene.payer, scene.key, output=20)
    scene.write(hold)
    await scene.read()
    scene.endings._ripe_s = 0
    await scene.endings.step()
    assert scene.town.count("witness_endings") == 1
    await scene.poster.step()
    await scene.endings.step()
    assert scene.events(hold) == [("settle", 45)]
    assert scene.town.count("witness_endings") == 0


async def test_a_settle_that_comes_after_it_becomes_an_adjust(scene: Scene):
    hold = await scene.lost()
    scene.write(hold)
    await scene.read()
    await scene.book()
    ending = scene.town.settle(hold, scene.payer, scene.key, output=60)
    settled = Posting(
        shard_of(scene.payer), "", "settle", hold, scene.payer, scene.key, ending.charge_nanos, CAP, "", 0, unix_ms(), ending.row
    )
    await scene.town.ledger.post([settled])
    await scene.town.ledger.post([settled])
    assert scene.events(hold) == [("expire", 109), ("adjust", 16)]
    assert scene.rows("SELECT cost, output_tokens FROM requests WHERE id = %s", hold) == [(125, 60)]


async def test_lines_that_come_twice_and_settlers_that_are_two_or_killed(scene: Scene):
    hold = await scene.lost()
    scene.write(hold)
    scene.write(hold)
    await scene.read()
    scene.restart()
    scene.write(hold)
    await scene.read()
    assert scene.town.count("witness_endings") == 1
    both = await PostgresWitness(scene.town.database).endings("host:log", after=FIRST, ripe_s=0, others_s=0)
    await scene.book()
    await scene.another()._book(both)  # it had read them before the other one booked
    assert scene.events(hold) == [("expire", 109)]
    scene.write(hold)
    scene.restart()
    await scene.read()
    await scene.book()
    assert scene.events(hold) == [("expire", 109)]
    assert scene.town.count("witness_endings") == 0
    assert scene.town.count("conflicts") == 0


@pytest.mark.parametrize(
    "forged",
    [
        {"charge_nanos": "700"},  # not what the price gives
        {"output_tokens": "51"},
        {"cap_nanos": "104"},  # above its cap
        {"cached_tokens": "6"},
        {"reasoning_tokens": "51"},
        {"key_id": "k"},
        {"key_id": ""},
        {"payer_id": "anna"},
        {"hold_id": "x"},
        {"price_id": "x"},
        {"price_id": "0" * 64},  # nobody knows it
        {"charge_nanos": "0", "list_nanos": "105"},
    ],
)
async def test_a_line_that_cannot_be_true_charges_nobody(scene: Scene, forged: dict[str, str]):
    hold = await scene.lost()
    scene.write(hold, **forged)
    await scene.read()
    await scene.book()
    assert scene.events(hold) == []
    assert scene.town.count("conflicts") == 0


async def test_a_payer_that_does_not_exist_is_a_conflict(scene: Scene):
    hold = await scene.lost()
    scene.write(hold, payer_id=new_id())
    await scene.read()
    await scene.book()
    assert scene.events(hold) == []
    assert scene.rows("SELECT reason FROM conflicts") == [("unknown_payer",)]
    assert scene.town.count("witness_endings") == 0


@pytest.mark.parametrize(("kind", "charge"), [("void", 0), ("settle", 107)])
async def test_an_outbox_that_is_behind_knows_better(scene: Scene, kind: str, charge: int):
    """An owner's word that nothing is to be charged, or less than bytes let one think, would come too late: it does not undo what is booked."""
    hold = await scene.lost()
    before = await scene.balance()
    scene.write(hold)
    scene.unconfirmed_ms = unix_ms() - 60_000
    await scene.read()
    await scene.book()
    assert scene.events(hold) == [], "what was written a minute ago is not in the ledger yet"
    await scene.town.ledger.post([scene.ending(hold, kind, charge)])
    scene.unconfirmed_ms = unix_ms()
    await scene.book()
    assert scene.events(hold) == [(kind, charge)]
    assert await scene.balance() == before - charge
    assert scene.town.count("conflicts") == scene.town.count("witness_endings") == 0


async def test_an_outbox_that_cannot_be_read_is_not_waited_for(scene: Scene):
    """It is an alarm of its own, and may stay so for longer than a line is kept."""

    def fail() -> int:
        raise StoreRefused("an outbox of another format")

    hold = await scene.lost()
    scene.write(hold)
    await scene.read()
    scene.endings._unconfirmed_ms = fail
    await scene.book()
    assert scene.events(hold) == [("expire", 109)]


async def test_refund_and_correction_between_the_line_and_its_owner(scene: Scene):
    """An operator has given it all back and taken the rest of the account; then the outbox comes, from another disk, and again."""
    town, hold = scene.town, await scene.lost()
    scene.write(hold)
    await scene.read()
    await scene.book()
    await town.deposits.refund(await town.ledger.charge(hold), 109, reason="complaint", actor="test")
    await town.deposits.correct(scene.payer, -await scene.balance(), reason="fraud", actor="test")
    for _ in range(2):
        await town.ledger.post([scene.ending(hold, "settle", 125)])
    assert scene.events(hold) == [("usage_refund", 0), ("expire", 109), ("adjust", 16)]
    assert scene.rows("SELECT cost, refunded_nanos, loss_nanos FROM requests WHERE id = %s", hold) == [(109, 109, 16)]
    assert await scene.balance() == 0
    assert ledger_faults(town.dsn) == []


async def test_the_settler_of_another_host_waits_longer(scene: Scene):
    """It does not see the outboxes of this one. If nobody is left who does, it books all the same, and once."""
    hold = await scene.lost()
    scene.write(hold)
    await scene.read()
    ours, scene.endings = scene.endings, scene.another("elsewhere:log")
    scene.endings._unconfirmed_ms = lambda: None
    scene.unconfirmed_ms = unix_ms() - 60_000
    await scene.book()
    assert scene.events(hold) == []
    await scene.book(after_s=OTHERS_S)
    scene.unconfirmed_ms = None
    await ours.step()
    assert scene.events(hold) == [("expire", 109)]


@pytest.mark.parametrize("request_id", ["\ud800", "a\0b", "x" * 5_000, "é\u2028\x7f", "'; DROP TABLE requests; --", '{"hold_id":"x"}'])
async def test_what_a_client_has_sent_stops_no_log(scene: Scene, request_id: str):
    """Half a surrogate pair is JSON, and no text of PostgreSQL's: the line would be met again and again, and with it all others."""
    hold, other = await scene.lost(), new_id()
    scene.write(hold, request_id=request_id)
    scene.write(other)
    await scene.read()
    await scene.book()
    assert scene.events(hold) == scene.events(other) == [("expire", 109)]


async def test_a_price_that_comes_later_is_waited_for(scene: Scene):
    hold = await scene.lost()
    with psycopg.connect(scene.town.dsn) as connection:
        text = connection.execute("DELETE FROM price_versions RETURNING price_id, price").fetchone()
    scene.write(hold)
    await scene.read()
    await scene.book()
    assert scene.events(hold) == []
    with psycopg.connect(scene.town.dsn) as connection:
        connection.execute("INSERT INTO price_versions (price_id, price) VALUES (%s, %s)", text)
    await scene.endings.step()
    assert scene.events(hold) == [("expire", 109)]


async def test_a_day_is_enough(scene: Scene):
    hold = await scene.lost()
    scene.write(hold, price_id="0" * 64)
    await scene.read()
    await scene.book(after_s=86_401)
    await scene.endings.step()
    assert scene.town.count("witness_endings") == 0


async def test_the_log_waits_while_too_many_are_kept(scene: Scene, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(kept_module, "ENDINGS_MAX", 1)
    monkeypatch.setattr(kept_module, "PAGE_ROWS", 1)
    first, second = new_id(), new_id()
    scene.write(first)
    await scene.read()
    scene.write(second)
    with pytest.raises(StoreRefused, match="wait already"):
        await scene.read()
    await scene.book()
    await scene.witness.file()
    await scene.book()
    assert scene.events(first) == scene.events(second) == [("expire", 109)]
