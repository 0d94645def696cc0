"""The second witness between a log, Redis and PostgreSQL, all real: what it raises, what it leaves alone, and what it fills in."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import psycopg
import pytest
from town import CAP, Tally, Town, unix_ms

from extproc.errors import StoreRefused
from extproc.exchange.record import Record
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

    async def file(self, log: str, place: tuple[int, int, str], reasons: Mapping[str, str]) -> tuple[int, int]:
        if self.is_away:
            raise StoreRefused("away")
        self.files += 1
        return await self._register.file(log, place, reasons)


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

    def write(self, hold: str, *, details: str = GONE, charge: int | None = None, **more: str) -> None:
        billing: dict[str, Any] = {"hold_id": hold, "payer_id": self.payer, "cap_nanos": str(CAP), "price_id": "p", **more}
        if charge is not None:
            output = str((charge - 5) // 2)
            billing |= {"charge_nanos": str(charge), "input_tokens": "5", "output_tokens": output, "usage_source": "counted"}
        with self.log.open("a") as file:
            file.write(json.dumps({"status": 200, "details": details, "billing": billing}, separators=(",", ":")) + "\n")

    async def beat(self, hold: str, charge: int) -> None:
        row = Record(id=hold, user_id=self.payer, creds_id=self.key, model="m", cost_nanos=charge, end_reason="sidecar_lost").to_row()
        await self.town.holds.beat([Checkpoint(hold_id=hold, owner=hold, payer_id=self.payer, charge_nanos=charge, row=row)])

    async def end(self, hold: str, charge: int, reason: str = "cut") -> EndResult:
        row = Record(id=hold, user_id=self.payer, creds_id=self.key, model="m", cost_nanos=charge, end_reason=reason, created_ms=unix_ms())
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
