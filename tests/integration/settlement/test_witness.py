"""The second witness between a log, Redis and PostgreSQL, all real: what it raises, what it leaves alone, and what it fills in."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import psycopg
import pytest
from town import CAP, PRICE, Tally, Town, unix_ms

from extproc.errors import StoreFenced, StoreRefused
from extproc.exchange.record import Record
from extproc.holds.port import Sight, Sighted
from extproc.holds.redis import RedisHolds
from extproc.ledger.witness import PostgresWitness
from extproc.money.hold import Checkpoint, Ending, EndKind, EndResult
from extproc.settlement import witness as module
from extproc.settlement import witness_log
from extproc.settlement.meter import Series
from extproc.settlement.witness import Witness
from extproc.settlement.witness_log import Log, Place
from extproc.stores.shards import tag_of

GONE = "downstream_remote_disconnect"
GRACE_S = 5
NAME = "host:log"


class Away:
    """The register of a PostgreSQL that comes and goes."""

    def __init__(self, register: PostgresWitness) -> None:
        self._register = register
        self.is_away = False
        self.files = 0

    async def place(self, log: str) -> tuple[int, int, str] | None:
        if self.is_away:
            raise StoreRefused("away")
        return await self._register.place(log)

    async def prices(self, price_ids: Collection[str]) -> Mapping[str, str]:
        if self.is_away:
            raise StoreRefused("away")
        return await self._register.prices(price_ids)

    async def file(
        self, log: str, place: tuple[int, int, str], reasons: Mapping[str, str], endings: Sequence[Mapping[str, Any]]
    ) -> tuple[int, int]:
        if self.is_away:
            raise StoreRefused("away")
        self.files += 1
        return await self._register.file(log, place, reasons, endings)


class Scene:
    def __init__(self, town: Town, log: Path, payer: str, key: str) -> None:
        self.town, self.log, self.payer, self.key = town, log, payer, key
        self.register = Away(PostgresWitness(town.database))
        self.witness = self.another()

    def another(self, name: str = NAME) -> Witness:
        """As after a restart: it knows what the stores know."""
        self.meter = Tally()
        return Witness(
            source=Log(self.log),
            name=name,
            holds=self.town.holds,
            register=self.register,
            meter=self.meter,
            pace=self.town.pace,
            grace_s=GRACE_S,
        )

    def write(self, hold: str, *, details: str = GONE, charge: int | None = None, sent_bytes: int = 0, **more: str) -> None:
        billing: dict[str, Any] = {"hold_id": hold, "payer_id": self.payer, "cap_nanos": str(CAP), "price_id": "p", **more}
        if charge is not None:
            output = str((charge - 5) // 2)
            billing |= {"charge_nanos": str(charge), "input_tokens": "5", "output_tokens": output, "usage_source": "counted"}
        with self.log.open("a") as file:
            file.write(json.dumps({"bytes_sent": sent_bytes, "details": details, "billing": billing}, separators=(",", ":")) + "\n")

    def row(self, hold: str, charge: int, reason: str, **more: str) -> Record:
        made = {"id": hold, "user_id": self.payer, "creds_id": self.key, "model": "m", "created_ms": unix_ms(), **more}
        return Record(**made, cost_nanos=charge, end_reason=reason)

    async def beat(self, hold: str, charge: int, **more: str) -> None:
        row = self.row(hold, charge, "sidecar_lost", **more).to_row()
        await self.town.holds.beat([Checkpoint(hold_id=hold, owner=hold, payer_id=self.payer, charge_nanos=charge, row=row)])

    async def end(self, hold: str, charge: int, reason: str = "cut", **more: str) -> EndResult:
        row = self.row(hold, charge, reason, **more)
        return await self.town.holds.end(
            Ending(
                hold_id=hold,
                owner=hold,
                payer_id=self.payer,
                key_id=self.key,
                kind=EndKind.SETTLE,
                charge_nanos=charge,
                tokens=1,
                row=row.to_row(),
            )
        )

    async def open(self) -> dict[str, tuple[int, int]]:
        """Hold → checkpoint, and for how many seconds its lease stands."""
        now_ms = unix_ms()
        return {
            one.hold_id: (one.checkpoint_nanos, (one.lease_ms - now_ms) // 1_000) for one in await self.town.holds.open_holds(self.payer)
        }

    def reason(self, hold: str) -> str | None:
        with psycopg.connect(self.town.dsn) as connection:
            row = connection.execute("SELECT end_reason FROM requests WHERE id = %s", [hold]).fetchone()
            return row[0] if row else None

    def waiting(self) -> int:
        with psycopg.connect(self.town.dsn) as connection:
            (count,) = connection.execute("SELECT count(*) FROM witness_reasons").fetchone() or (-1,)
            return count


@pytest.fixture
async def scene(town: Town, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Scene:
    monkeypatch.setattr(module, "MOMENT_S", 0.01)
    return Scene(town, tmp_path / "access.jsonl", *await town.customer())


async def test_a_hold_whose_worker_is_gone(scene: Scene):
    hold = await scene.town.hold(scene.payer, scene.key)
    await scene.beat(hold, 25)
    scene.write(hold, charge=105)
    await scene.witness.look()
    checkpoint, lease_s = (await scene.open())[hold]
    assert checkpoint == 105
    assert lease_s <= GRACE_S
    row = json.loads(await scene.town.pipeline.execute("HGET", f"{tag_of(scene.payer)}:hold:{hold}", "row"))
    assert (row["output_tokens"], row["cost_nanos"], row["usage_flags"], row["end_reason"]) == (50, 105, ["witnessed"], "sidecar_lost")
    assert scene.meter.counts[Series.WITNESSED_HOLDS] == 1


async def test_the_higher_one_stands_and_the_cap_bounds_both(scene: Scene):
    higher, beyond, silent = [await scene.town.hold(scene.payer, scene.key) for _ in range(3)]
    await scene.beat(higher, 205)
    scene.write(higher, charge=105)
    scene.write(beyond, charge=5 * CAP)
    scene.write(silent)
    await scene.witness.look()
    found = await scene.open()
    assert [found[hold][0] for hold in (higher, beyond, silent)] == [205, CAP, 0]
    assert max(lease_s for _, lease_s in found.values()) <= GRACE_S


async def test_the_owner_wins(scene: Scene):
    hold = await scene.town.hold(scene.payer, scene.key)
    scene.write(hold, charge=105)
    await scene.witness.look()
    assert await scene.end(hold, 95) is EndResult.ENDED
    await scene.town.poster().step()
    assert scene.reason(hold) == "cut"
    await scene.witness.file()
    assert scene.reason(hold) == "client_gone"


async def test_ended_and_unknown_holds_are_left_alone(scene: Scene):
    hold = await scene.town.hold(scene.payer, scene.key)
    await scene.end(hold, 95)
    scene.write(hold, charge=105)
    scene.write("018bcfe5-6800-7000-8000-000000000001", charge=105)
    told = await scene.town.hold(scene.payer, scene.key)
    scene.write(told, charge=105, end_reason="stop")
    await scene.witness.look()
    found = await scene.open()
    assert list(found) == [told]
    assert found[told][0] == 0
    assert scene.meter.counts[Series.WITNESSED_HOLDS] == 0


async def test_the_line_comes_before_the_row(scene: Scene):
    hold = await scene.town.hold(scene.payer, scene.key)
    scene.write(hold, details="upstream_reset_after_response_started{protocol_error}")
    await scene.witness.look()
    await scene.witness.file()
    assert scene.waiting() == 1
    scene.witness = scene.another()  # killed meanwhile
    await scene.end(hold, 95)
    await scene.town.poster().step()
    assert scene.reason(hold) == "cut"
    await scene.witness.look()
    await scene.witness.file()
    assert scene.reason(hold) == "upstream_reset"
    assert scene.waiting() == 0
    assert scene.meter.counts[Series.TOLD_REASONS] == 1


@pytest.mark.parametrize(
    ("row", "then"), [("cut", "client_gone"), ("sidecar_lost", "client_gone"), ("stop", "stop"), ("edge_lost", "edge_lost")]
)
async def test_only_rows_that_do_not_know_are_told(scene: Scene, row: str, then: str):
    hold = await scene.town.hold(scene.payer, scene.key)
    await scene.end(hold, 95, row)
    await scene.town.poster().step()
    scene.write(hold)
    await scene.witness.look()
    await scene.witness.file()
    assert scene.reason(hold) == then
    assert scene.waiting() == 0


async def test_killed_before_it_had_filed_anything(scene: Scene):
    """The place is filed with the reasons: what was read and not filed is read again."""
    hold = await scene.town.hold(scene.payer, scene.key)
    await scene.end(hold, 95)
    await scene.town.poster().step()
    scene.write(hold)
    await scene.witness.look()
    scene.witness = scene.another()
    await scene.witness.look()
    await scene.witness.file()
    assert scene.reason(hold) == "client_gone"
    scene.witness = scene.another()
    await scene.witness.look()
    assert scene.meter.counts[Series.WITNESS_LINES] == 0
    await scene.witness.file()
    files = scene.register.files
    await scene.witness.file()
    assert scene.register.files == files, "PostgreSQL is asked though there is nothing"


async def test_while_postgres_is_away_holds_are_witnessed_and_reasons_kept_or_read_again(scene: Scene, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(module, "UNFILED_MAX", 2)
    monkeypatch.setattr(witness_log, "READ_BYTES", 600)  # a line
    await scene.witness.look()
    await scene.witness.file()
    scene.register.is_away = True
    holds = [await scene.town.hold(scene.payer, scene.key) for _ in range(5)]
    for hold in holds:
        scene.write(hold, charge=105)
        await scene.witness.look()
        with pytest.raises(StoreRefused):
            await scene.witness.file()
    assert {checkpoint for checkpoint, _ in (await scene.open()).values()} == {105}
    for hold in holds:
        await scene.end(hold, 105)
    await scene.town.poster().step()
    scene.register.is_away = False
    for _ in range(6):
        await scene.witness.file()
        await scene.witness.look()
    await scene.witness.file()
    assert {scene.reason(hold) for hold in holds} == {"client_gone"}


async def test_a_log_that_goes_away_and_comes_back(scene: Scene):
    hold = await scene.town.hold(scene.payer, scene.key)
    assert await scene.witness.look() > 0
    scene.log.mkdir()
    with pytest.raises(StoreRefused, match="access log"):
        await scene.witness.look()
    scene.log.rmdir()
    scene.log.write_bytes(b"\x00garbage\n")
    scene.write(hold, charge=105)
    await scene.witness.look()
    assert (await scene.open())[hold][0] == 105
    assert scene.meter.counts[Series.UNREADABLE_LINES] == 1
    assert scene.meter.gauges[Series.WITNESS_LAG_BYTES] == 0


async def test_each_log_has_its_own_place(scene: Scene):
    scene.write("018bcfe5-6800-7000-8000-000000000001")
    await scene.witness.look()
    await scene.witness.file()
    assert Place(*(await scene.register.place(NAME) or ())).offset == scene.log.stat().st_size
    assert await scene.register.place("elsewhere:log") is None


async def test_bytes_tell_the_rest_at_the_price_of_the_row(scene: Scene):
    """Whether the row has the price in full, the ledger knows it, or nobody: then the figure stands."""
    carried, known, unknown = [await scene.town.hold(scene.payer, scene.key) for _ in range(3)]
    await scene.beat(known, 15, price_id=PRICE.price_id)
    scene.write(known, charge=105, sent_bytes=3_000, delivered="1000/200/1")
    await scene.witness.look()
    assert (await scene.open())[known][0] == 105, "nobody knows the price"
    await scene.beat(carried, 15, price_id=PRICE.price_id, price=PRICE.text)
    await scene.beat(unknown, 15, price_id="0" * 64)
    for hold in (carried, known, unknown):
        scene.write(hold, charge=105, sent_bytes=3_000, delivered="1000/200/1")
    await scene.witness.look()
    found = await scene.open()
    assert [found[hold][0] for hold in (carried, known, unknown)] == [125, 125, 105]
    await scene.end(carried, 125, price_id=PRICE.price_id, price=PRICE.text)
    await scene.town.poster().step()
    later = await scene.town.hold(scene.payer, scene.key)
    await scene.beat(later, 15, price_id=PRICE.price_id)
    scene.write(later, charge=105, sent_bytes=2_000, delivered="1000/200/1")
    scene.witness = scene.another()
    await scene.witness.look()
    assert (await scene.open())[later][0] == 115
    row = json.loads(await scene.town.pipeline.execute("HGET", f"{tag_of(scene.payer)}:hold:{later}", "row"))
    assert (row["output_tokens"], row["cost_nanos"], row["usage_flags"]) == (55, 115, ["witnessed", "output_estimated"])


async def test_a_settler_that_starts_while_postgres_is_away(scene: Scene):
    """Holds do not wait for it; reasons are read again from the place that it knows."""
    early, hold = [await scene.town.hold(scene.payer, scene.key) for _ in range(2)]
    scene.write(early)
    scene.register.is_away = True
    scene.write(hold, charge=105)
    await scene.witness.look()
    assert (await scene.open())[hold][0] == 105
    for one in (early, hold):
        await scene.end(one, 105)
    await scene.town.poster().step()
    with pytest.raises(StoreRefused):
        await scene.witness.file()
    scene.register.is_away = False
    for _ in range(2):
        await scene.witness.file()
        await scene.witness.look()
    await scene.witness.file()
    assert [scene.reason(one) for one in (early, hold)] == ["client_gone", "client_gone"]


class Closed:
    """Holds of which some are in shards that are closed."""

    def __init__(self, holds: RedisHolds) -> None:
        self._holds = holds
        self.ids: set[str] = set()

    async def sight(self, holds: Mapping[str, str]) -> Sight:
        sight = await self._holds.sight({hold: payer for hold, payer in holds.items() if hold not in self.ids})
        return Sight(open=sight.open, closed=[hold for hold in holds if hold in self.ids])

    async def witness(self, sighted: Sequence[Sighted], *, grace_ms: int) -> int:
        return await self._holds.witness(sighted, grace_ms=grace_ms)


async def test_a_closed_shard_does_not_hold_the_others_up(scene: Scene, monkeypatch: pytest.MonkeyPatch):
    closed, hold, late = [await scene.town.hold(scene.payer, scene.key) for _ in range(3)]
    holds = Closed(scene.town.holds)
    holds.ids = {closed}
    scene.witness = Witness(
        source=Log(scene.log), name=NAME, holds=holds, register=scene.register, meter=scene.meter, pace=scene.town.pace, grace_s=GRACE_S
    )
    scene.write(closed, charge=105)
    scene.write(hold, charge=105)
    await scene.witness.look()
    await scene.witness.file()
    assert [(await scene.open())[one][0] for one in (closed, hold)] == [0, 105]
    assert await scene.register.place(NAME) is None, "who comes after this one reads those lines again"
    monkeypatch.setattr(module, "ASIDE_MAX", 1)
    holds.ids = {closed, late}
    scene.write(late, charge=105)
    with pytest.raises(StoreFenced):
        await scene.witness.look()
    holds.ids = set()
    await scene.witness.look()
    assert {checkpoint for checkpoint, _ in (await scene.open()).values()} == {105}
    await scene.witness.file()
    assert await scene.register.place(NAME) is not None


async def test_holds_in_shards_that_are_closed_are_named(scene: Scene):
    """By the store itself, without a call."""
    hold = await scene.town.hold(scene.payer, scene.key)
    stranger = RedisHolds(scene.town.pipeline)  # it has not looked at the shards yet
    assert await stranger.sight({hold: scene.payer}) == Sight(open=[], closed=[hold])


async def test_caught_up(scene: Scene, monkeypatch: pytest.MonkeyPatch):
    """Not before a look that began later has come to the end; not for ever if none does."""
    monkeypatch.setattr(witness_log, "READ_BYTES", 600)
    for _ in range(3):
        scene.write("018bcfe5-6800-7000-8000-000000000001")
    waiting = asyncio.create_task(scene.witness.caught_up())
    await asyncio.sleep(0)
    while await scene.witness.look() == 0:
        await asyncio.sleep(0)
        assert not waiting.done()
    await waiting
    monkeypatch.setattr(module, "PATIENCE_S", 0.01)
    await scene.witness.caught_up()
