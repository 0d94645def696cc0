"""The power of the whole machine fails, in full traffic: what was not synced is gone, of every store, in the same moment.

Valkey comes back from a file cut back by more than a second. PostgreSQL comes back from an old copy of its cluster and as much of its log as
it says that it has synced. The outboxes come back as they stand, Envoy's access log as it stood before. Everybody dies. What clients have read
until then, and what the simulators say they made, is the truth.

**A gap that is known**: by default a reply waits for Valkey *or* the disk, and Valkey is first. So an answer whose last chunk left within the moment
that a group of the outbox takes (20 ms, and its commit) before the power failed is in no file at all. Those are counted and shown; all others are
charged. Where replies wait for the disk (``outbox.reply_waits_for: disk``) there is no such answer, but for those of which the worker has said that it
could not wait any longer: a disk that hangs, until somebody resets the machine.

What the outboxes have is looked up when everybody is dead, hold by hold: the client's clock does not tell when an answer was sent.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import os
import random
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from breakable import BEAT_S, GRACE_S, LEASE_S, BreakableHouse
from house import Guest, until
from storm import EVENT_MS, shown
from test_disk_hangs import hanging
from test_settler_and_ledger import all_confirmed, answers, put
from test_workers import begin, reached
from traffic import Traffic
from wire import Told, figure

from extproc.settlement.outbox_file import OutboxFile, outboxes

pytestmark = pytest.mark.long

A_SECOND = 40
STREAMS = 8
TOKENS = 2_000  # of streams that run when the power fails
GROUP_S = 3.0  # an ending is on the disk by then: 20 ms of gathering and a commit, on a machine that others use as well
AFTER_S_MAX = 0.3  # from the last look at Valkey's file to the failure: somewhere between two groups
HANGS_S = 1.5  # longer than the rest of the way to the failure: together more than an end waits
CUT_S = 1.3  # of Valkey's file: it is synced once a second
REST_S = LEASE_S + GRACE_S + 45.0
# A stream that was cut loses what came after its last checkpoint that Valkey has kept: a beat, and what was not synced.
SHORT_TOKENS_MAX = (BEAT_S + CUT_S + 1.0) * 1_000 / EVENT_MS


@dataclass(slots=True)
class Outcome:
    """Of what was delivered whole, and of streams that were cut.

    ``unsynced``: not charged, and nobody has said why; ``let_go``: not charged, and their worker has said that it did not wait any longer.
    ``oldest_ms``: how long before the failure the oldest of both was read.
    """

    whole: int = 0
    unsynced: int = 0
    oldest_ms: int = 0
    let_go: int = 0
    cut: int = 0
    unbilled: int = 0
    shortest: int = 0


class Machine:
    """Its house, and an old copy of PostgreSQL's cluster. From then on it keeps its log."""

    def __init__(self, house: BreakableHouse) -> None:
        self._house = house
        self._data = house.directory / "postgres/data"
        self._copy = house.directory / "postgres/synced"
        self._log_bytes = self._access_log.stat().st_size
        self._aof_sizes: dict[Path, int] = {}

    @property
    def _access_log(self) -> Path:
        return self._house.directory / "envoy/access.jsonl"

    def prepare(self) -> None:
        """The copy is of a crash: whatever its pages hold, its log brings it to where that ends."""
        with self._house.database() as connection:
            connection.execute("ALTER SYSTEM SET wal_keep_size = '1GB'")
            connection.execute("SELECT pg_reload_conf()")
            connection.execute("CHECKPOINT")
        self._house.postgres.kill()
        put(self._data, self._copy)
        (self._copy / "postmaster.pid").unlink(missing_ok=True)
        self._house.postgres.start_again()

    def remember(self) -> None:
        """What Valkey has synced, at the latest when a little more than a second has passed."""
        self._aof_sizes = {path: path.stat().st_size for path in self._house.valkey.directory.glob("appendonlydir/*.incr.aof")}

    def fail(self) -> None:
        """Everybody stops, from the client's side on, and never goes on."""
        house = self._house
        pids = house.pids()
        for pid in (house.envoy.pid, pids["gate-0"], pids["gate-1"], pids["settler"], house.sidecar.pid, house.valkey.pid):
            house.kill(pid, signal.SIGSTOP)
        with house.database() as connection:
            synced = connection.execute("SELECT f.file_name, f.file_offset FROM pg_walfile_name_offset(pg_current_wal_flush_lsn()) AS f")
            row = synced.fetchone()
            assert row is not None
        house.postgres.kill()
        for engine in (house.envoy, house.sidecar, house.valkey):
            engine.kill()
        for name in ("gate-0", "gate-1", "settler"):
            if Path(f"/proc/{pids[name]}").exists():
                house.kill(pids[name])
        until(lambda: not any(_lives(pid) for pid in pids.values()), "everybody is dead")
        self._cut_files()
        self._put_back(row["file_name"], row["file_offset"])

    def start(self) -> None:
        house = self._house
        house.valkey.start_again()
        house.postgres.start_again()
        house.sidecar = house.start_sidecar()
        house.envoy.start_again()

    def clear(self) -> None:
        shutil.rmtree(self._copy, ignore_errors=True)

    def _cut_files(self) -> None:
        for path, size in self._aof_sizes.items():
            assert path.stat().st_size > size
            os.truncate(path, size)
        os.truncate(self._access_log, self._log_bytes)

    def _put_back(self, last_segment: str, offset: int) -> None:
        """The old copy, with the log as far as it was synced: behind it there is nothing."""
        log = self._house.directory / "postgres/log-kept"
        put(self._data / "pg_wal", log)
        for segment in log.iterdir():
            if segment.is_file() and segment.name > last_segment:
                segment.unlink()
        with (log / last_segment).open("r+b") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(offset)
            file.write(bytes(size - offset))
        shutil.rmtree(self._data)
        put(self._copy, self._data)
        shutil.rmtree(self._data / "pg_wal")
        subprocess.run(["mv", str(log), str(self._data / "pg_wal")], check=True)


def _lives(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.fixture
def machine(house: BreakableHouse) -> Iterator[Machine]:
    machine = Machine(house)
    machine.prepare()
    until(lambda: answers(house), "PostgreSQL answers the judge")
    yield machine
    machine.clear()


@pytest.mark.parametrize("number", range(int(os.environ.get("EXTPROC_POWER_ROUNDS", "1"))))
@pytest.mark.parametrize("waits_for", ["either", "disk", "disk that hangs"])
async def test_power_fails(house: BreakableHouse, machine: Machine, waits_for: str, number: int):
    seed = int(os.environ.get("EXTPROC_POWER_SEED", time.time_ns() % 2**31)) + number
    hangs = waits_for == "disk that hangs"
    house.set("outbox", reply_waits_for=waits_for.partition(" ")[0])
    await house.aside(house.restart_sidecar)
    await asyncio.to_thread(house.wait_serving)
    guest = await asyncio.to_thread(house.guest)
    tolds, streams = begin(house, guest, streams=STREAMS, tokens=TOKENS)
    async with Traffic(house, guest, a_second=A_SECOND) as traffic:
        await asyncio.to_thread(until, lambda: traffic.answered > 60, "load", 30)
        await reached(tolds, 5)
        with hanging(house) if hangs else contextlib.nullcontext():
            machine.remember()
            if hangs:  # it is PostgreSQL's and Valkey's as well: nothing is posted either
                house.kill((await asyncio.to_thread(house.pids))["settler"], signal.SIGSTOP)
                await asyncio.sleep(HANGS_S)
            await asyncio.sleep(CUT_S + AFTER_S_MAX * random.Random(seed).random())  # more traffic, acknowledged and posted
            failed_s = time.monotonic()
            machine.fail()  # in this thread: what is read from now on was sent before
    house.set("outbox", reply_waits_for="either")  # for whoever comes after the failure
    await asyncio.gather(*streams)
    kept, let_go = on_disk(house), let_go_by(house)
    dark_s = time.monotonic() - failed_s
    await house.aside(machine.start)
    await asyncio.to_thread(house.wait_serving)
    async with Traffic(house, guest, a_second=20) as after:
        await asyncio.to_thread(until, lambda: len(after.with_status(200)) > 20, "served again", 60)
    await all_confirmed(house)
    before = Before(failed_s=failed_s, kept=kept, let_go=let_go, tolds=[*tolds, *traffic.told])
    outcome = await asyncio.to_thread(judged, house, guest, before, after.told)
    figure(f"waits for {waits_for}, seed {seed}: dark for {dark_s:.1f} s; {outcome}")
    assert waits_for == "either" or not outcome.unsynced
    assert outcome.let_go or not hangs
    assert outcome.whole > 60
    assert outcome.cut >= STREAMS
    assert outcome.shortest <= SHORT_TOKENS_MAX + hangs * HANGS_S * 1_000 / EVENT_MS


@dataclass(frozen=True, slots=True, kw_only=True)
class Before:
    """The failure, and what was asked before it. ``kept``: holds whose ending was on the disk; ``let_go``: requests that did not wait for it."""

    failed_s: float
    kept: frozenset[str]
    let_go: frozenset[str]
    tolds: list[Told]


def on_disk(house: BreakableHouse) -> frozenset[str]:
    """As everybody who is dead has left it."""
    found: set[str] = set()
    for path in outboxes(house.directory / "data/outbox"):
        with contextlib.closing(OutboxFile.read_only(path)) as file:
            after = 0
            while rows := file.read(after, 1_000):
                found |= {row.posting.hold_id for row in rows}
                after = rows[-1].id
    return frozenset(found)


def let_go_by(house: BreakableHouse) -> frozenset[str]:
    lines = [line for line in house.log_file.read_text().splitlines() if "before its charge is safe" in line]
    return frozenset(str(json.loads(line)["request_id"]) for line in lines)


def judged(house: BreakableHouse, guest: Guest, before: Before, after: list[Told]) -> Outcome:
    until(lambda: _rests(guest), f"rest: {guest.view()}, posted {guest.posted()}", REST_S)
    seen = {one["hold_id"]: one for one in house.seen_of(guest)}
    rows = [row for row in guest.rows() if row["ending"] != "none"]
    for row in rows:
        made = seen[str(row["id"])]["generated_tokens"] if str(row["id"]) in seen else 0
        assert row["output_tokens"] <= made + 1, f"charged more than was made: {shown(row)}"
    by_request = {request: list(some) for request, some in itertools.groupby(sorted(rows, key=_request_of), key=_request_of)}
    kept = {one["request_id"] for hold_id, one in seen.items() if hold_id in before.kept}
    outcome = Outcome()
    for told in [*before.tolds, *after]:
        charged = [row for row in by_request.get(told.request_id, []) if row["cost"]]
        assert len(charged) <= 1, f"charged twice: {[*map(shown, charged)]}"
        if told.status != 200 or not told.tokens:
            continue
        made = next((one["generated_tokens"] for one in seen.values() if one["request_id"] == told.request_id), told.tokens)
        short = min(told.tokens, made) - (charged[0]["output_tokens"] if charged else 0)
        if not (told.done or told.whole):
            outcome.cut += 1
            outcome.unbilled += not charged
            outcome.shortest = max(outcome.shortest, short)
            continue
        outcome.whole += 1
        if short > 1:
            words = f"delivered whole, and {short} tokens short: {told}, {[*map(shown, by_request.get(told.request_id, []))]}"
            ago_s = before.failed_s - told.began_s - told.took_s
            assert told.request_id not in kept, f"on the disk, {words}"
            assert told.began_s < before.failed_s, words
            assert ago_s < GROUP_S, f"{ago_s:.1f} s before, {words}"
            figure(f"unsynced, read {1_000 * ago_s:.0f} ms before{', let go' if told.request_id in before.let_go else ''}: {words}")
            outcome.let_go += told.request_id in before.let_go
            outcome.unsynced += told.request_id not in before.let_go
            outcome.oldest_ms = max(outcome.oldest_ms, int(1_000 * ago_s))
    assert guest.posted() == guest.deposited - sum(row["cost"] for row in rows)
    assert guest.posted() >= 0
    for alarm in ("conflicts", "fence_violations"):
        found = house.rows(f"SELECT * FROM {alarm}")
        assert not found, found
    assert house.findings(guest.id) == []
    return outcome


def _request_of(row: dict[str, Any]) -> str:
    return str(row["request_id"])


def _rests(guest: Guest) -> bool:
    view = guest.view()
    return view is not None and view.open_holds == 0 and view.available_nanos == guest.posted()
