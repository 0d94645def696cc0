"""Kills at random moments under mixed load, judged by outside truth: what clients read, and what the simulators say they made.

    make chaos                       1,000 kills in rounds of 50
    make chaos ROUNDS=1 SEED=77      a short one, again

Each round has an account of its own. While at least 20 requests are on the victim's way it is killed (SIGKILL): a gate worker, the settler, Valkey,
PostgreSQL or Envoy; then it comes back, and the next one is drawn. After the round everything comes to rest, and is counted. The last line is JSON;
exit code 1 if any of lost, double, negative, orphans and drift_nanos is not 0.

Kills by chance come close to each other. Of a stream whose worker *and* Envoy died within a second nobody is left who knows how much it delivered:
such a one may fall short by a beat (MONEY.md, "Outside truth"). It is counted as ``beats``; whatever is missing beyond that is lost.
"""

# ruff: noqa: T201 - it is there to print
from __future__ import annotations

import asyncio
import json
import random
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Self

sys.path += [str(Path(__file__).parents[1] / folder) for folder in ("e2e", "integration/holds", "chaos")]

from breakable import BEAT_S, GRACE_S, LEASE_S, BreakableHouse
from house import SMALL, Guest, until
from wire import BROKEN, Told, call, chat, steering

from extproc.errors import StoreError

KILLS_A_ROUND = 50
ROUNDS = 20
CLIENTS = 56
ON_ITS_WAY = 20  # requests that a kill must meet
EVENT_MS = 20
VICTIMS = ("gate-0", "gate-1", "settler", "valkey", "postgres", "envoy")
WEIGHTS = (1, 1, 2, 2, 2, 2)  # as many workers as of each other kind
RECOVERY_S = 60.0
REST_S = LEASE_S + GRACE_S + 45.0
BOTH_S = 1.2  # Envoy writes its log once a second: what it had not written when it was killed, it has not seen
BEAT_TOKENS = (BEAT_S + 0.5) * 1_000 / EVENT_MS  # a beat of a busy machine
DELAY_S_MAX = 0.6  # from a whole house to the next kill
FAULTS = ("status=500", "reset", "reset_after=5", "engine_death_after=4", "abort_after=6", "no_usage", "no_final_usage", "no_done")


@dataclass(slots=True)
class Outcome:
    """The closing line. The last five must be 0."""

    seed: int
    kills: int = 0
    beats: int = 0
    served: int = 0
    charged: int = 0
    expired: int = 0
    adjusted: int = 0
    voided: int = 0
    lost: int = 0
    double: int = 0
    negative: int = 0
    orphans: int = 0
    drift_nanos: int = 0

    @property
    def is_good(self) -> bool:
        return not (self.lost or self.double or self.negative or self.orphans or self.drift_nanos)


class Load:
    """``CLIENTS`` clients, each with one request after the other: streams, JSON answers, aborts, and backends that fail."""

    def __init__(self, house: BreakableHouse, guest: Guest, chance: random.Random) -> None:
        self._house, self._guest, self._chance = house, guest, chance
        self._over = asyncio.Event()
        self.tolds: list[Told] = []
        self.waiting: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Self:
        self._clients = [asyncio.create_task(self._client()) for _ in range(CLIENTS)]
        return self

    async def __aexit__(self, *_: object) -> None:
        self._over.set()
        await asyncio.gather(*self._clients)

    @property
    def served(self) -> int:
        return sum(told.status == 200 for told in self.tolds)

    async def _client(self) -> None:
        while not self._over.is_set():
            told = Told()
            self.tolds.append(told)
            told.began_s = time.monotonic()
            try:
                await self._ask(told)
            except (*BROKEN, TimeoutError, ValueError):
                pass  # ValueError: a head that was cut off
            told.took_s = time.monotonic() - told.began_s
            if told.status != 200:
                await asyncio.sleep(0.05)  # a refused client does not come back at once

    async def _ask(self, told: Told) -> None:
        kind = self._chance.choices(("stream", "json", "abort", "fault"), (9, 3, 4, 4))[0]
        orders: dict[str, str | int] = {"tokens": self._chance.randint(10, 80), "delay_ms": EVENT_MS}
        stream, leave_after = kind != "json", None
        if kind == "abort":
            leave_after = self._chance.randint(0, 30)
        elif kind == "fault":
            orders["fault"] = self._chance.choice(FAULTS)
            stream = self._chance.random() < 0.8
        body = chat(SMALL, stream=stream, max_tokens=100)
        await call(self._house, {**self._guest.headers, **steering(**orders)}, body, leave_after=leave_after, told=told)
        if told.status == 200 and told.whole and not stream:
            usage = json.loads(told.body).get("usage")  # None: a fault; how much it was says the simulator alone
            told.tokens = usage["completion_tokens"] if usage else 0


class Storm:
    """Rounds of kills in one house."""

    def __init__(self, house: BreakableHouse, seed: int) -> None:
        self._house = house
        self._chance = random.Random(seed)
        self.outcome = Outcome(seed)
        self.kills: Counter[str] = Counter()
        self.away_s: dict[str, list[float]] = {}
        self.findings: list[str] = []
        self._began_s = time.monotonic()
        self._struck_s: dict[str, list[float]] = {"envoy": [], "gate": []}

    async def round(self, kills: int, victims: tuple[str, ...] = ()) -> None:
        """``victims``: whom to kill, instead of drawing."""
        guest = await asyncio.to_thread(self._house.guest, deposit="1000")
        names = victims or tuple(self._chance.choices(VICTIMS, WEIGHTS, k=kills))
        async with Load(self._house, guest, self._chance) as load:
            for name in names:
                await self._kill(name, load)
        await asyncio.to_thread(self._judge, guest, load.tolds)

    async def _kill(self, name: str, load: Load) -> None:
        await self._met(name)
        await asyncio.sleep(self._chance.random() * DELAY_S_MAX)  # a moment by chance, not a wait for something
        await self._met(name)
        served = load.served
        began = time.monotonic()
        struck_s = await self._house.aside(self._strike(name))
        self._struck_s.setdefault(name.partition("-")[0], []).append(struck_s)
        print(f"  {struck_s - self._began_s:.2f} s: {name} killed", flush=True)
        self.kills[name] += 1
        self.outcome.kills += 1
        await asyncio.to_thread(self._house.wait_serving)
        await asyncio.to_thread(until, lambda: load.served > served + 5, f"{name} was killed, and somebody is served again", RECOVERY_S)
        self.away_s.setdefault(name, []).append(time.monotonic() - began)

    async def _met(self, name: str) -> None:
        """Until enough requests are on its way."""

        def enough() -> bool:
            open_streams = self._house.streams_of_workers()
            slot = int(name.removeprefix("gate-")) if name.startswith("gate-") else None
            return (open_streams[slot] if slot is not None else sum(open_streams.values())) >= ON_ITS_WAY

        await asyncio.to_thread(until, enough, f"{ON_ITS_WAY} requests on the way of {name}", RECOVERY_S)

    def _strike(self, name: str) -> Callable[[], float]:
        """Kills, brings back, and says when it killed."""
        house = self._house

        def process() -> float:
            pid = house.pids()[name]
            struck_s = time.monotonic()
            house.kill(pid)
            until(lambda: house.pids().get(name, pid) != pid, f"another {name}", RECOVERY_S)
            return struck_s

        def engine() -> float:
            started = getattr(house, name)
            struck_s = time.monotonic()
            started.kill()
            started.start_again()
            return struck_s

        return engine if name in ("valkey", "postgres", "envoy") else process

    def _judge(self, guest: Guest, tolds: list[Told]) -> None:
        house, out = self._house, self.outcome
        house.wait_serving()
        try:
            until(lambda: self._rests(guest), "rest", REST_S)
        except AssertionError:
            self._found("orphans", f"not at rest: {guest.view()}, posted {guest.posted()}")
        seen = {one["hold_id"]: one for one in house.seen_of(guest)}
        rows = {str(row["id"]): row for row in guest.rows() if row["ending"] != "none"}
        by_request: dict[str, list[dict[str, Any]]] = {}
        for row in rows.values():
            by_request.setdefault(row["request_id"], []).append(row)
        endings = Counter(row["ending"] for row in rows.values())
        out.served += sum(told.status == 200 for told in tolds)
        out.charged += sum(row["cost"] > 0 for row in rows.values())
        out.expired += endings["expire"]
        out.voided += endings["void"]
        out.adjusted += house.rows("SELECT count(*) AS n FROM billing_events WHERE user_id = %s AND event_type = 'adjust'", guest.id)[0][
            "n"
        ]
        for hold_id, one in seen.items():
            row = rows.get(hold_id)
            if row is None:
                self._found("orphans", f"forwarded, and has no ending: {one}")
            elif row["output_tokens"] > one["generated_tokens"] + 1:
                self._found("double", f"charged {row['output_tokens']} of {one['generated_tokens']} tokens: {shown(row)}")
        for told in tolds:
            self._judge_one(told, by_request.get(told.request_id, []), seen)
        self._judge_balance(guest, list(rows.values()))

    def _judge_one(self, told: Told, rows: list[dict[str, Any]], seen: dict[str, dict[str, Any]]) -> None:
        charged = [row for row in rows if row["cost"]]
        if len(charged) > 1:
            self._found("double", f"two charges for one request: {[*map(shown, charged)]}")
        if told.status != 200 or not told.tokens:
            return
        made = max((seen[str(row["id"])]["generated_tokens"] for row in rows if str(row["id"]) in seen), default=told.tokens)
        short = min(told.tokens, made) - (charged[0]["output_tokens"] if charged else 0)
        if charged and short <= 1:
            return
        words = f"{short} tokens short: {told.tokens} read, {made} made, {self._moment(told)}; {[*map(shown, rows)]}"
        if short <= BEAT_TOKENS and self._nobody_was_left(told):
            self.outcome.beats += 1
            print(f"  its worker and Envoy: {words}", flush=True)
        else:
            self._found("lost", words)

    def _nobody_was_left(self, told: Told) -> bool:
        """Its worker may have been killed, and Envoy as well, before either could say what was delivered."""
        broken_s = told.began_s + told.took_s
        near = {name: [at_s for at_s in times if abs(at_s - broken_s) < BOTH_S] for name, times in self._struck_s.items()}
        return not told.done and any(abs(one - other) < BOTH_S for one in near["gate"] for other in near["envoy"])

    def _moment(self, told: Told) -> str:
        """Between which kills it ran."""
        return f"begun {told.began_s - self._began_s:.2f} s, {'whole' if told.whole else 'broken'} {told.began_s + told.took_s - self._began_s:.2f} s"

    def _judge_balance(self, guest: Guest, rows: list[dict[str, Any]]) -> None:
        view, posted = guest.view(), guest.posted()
        if min(view.available_nanos, posted) < 0:
            self._found("negative", f"{view}, posted {posted}")
        entries = self._house.rows("SELECT coalesce(sum(amount), 0) AS nanos FROM entries WHERE user_id = %s AND unit = 'nanos'", guest.id)
        drifts = {
            "available + held - balance": view.available_nanos + view.held_nanos - posted,
            "balance - entries": posted - int(entries[0]["nanos"]),
            "balance - (deposit - charges)": posted - (guest.deposited - sum(row["cost"] for row in rows)),
        }
        for what, nanos in drifts.items():
            if nanos:
                self._found("drift_nanos", f"{what} = {nanos}", abs(nanos))
        for alarm in ("conflicts", "fence_violations"):
            for row in self._house.rows(f"SELECT * FROM {alarm}"):
                self.findings.append(f"{alarm}: {row}")

    def _rests(self, guest: Guest) -> bool:
        try:
            view = guest.view()
        except StoreError:  # our own connection: the last Valkey that was killed is still reading its file
            return False
        return view is not None and view.open_holds == 0 and view.available_nanos == guest.posted()

    def _found(self, name: str, what: str, amount: int = 1) -> None:
        setattr(self.outcome, name, getattr(self.outcome, name) + amount)
        self.findings.append(f"{name}: {what}")


def shown(row: dict[str, Any]) -> str:
    """What tells how a request was charged."""
    names = ("id", "ending", "end_reason", "usage_source", "usage_flags", "output_tokens", "cost", "hold_nanos", "status", "error_code")
    return str(
        {name: row[name] for name in names} | {"occurred": f"{row['occurred_at']:%H:%M:%S.%f}", "posted": f"{row['posted_at']:%H:%M:%S.%f}"}
    )


async def run(house: BreakableHouse, rounds: int, seed: int) -> Storm:
    """``rounds`` of :data:`KILLS_A_ROUND` kills; says after each where it stands."""
    storm = Storm(house, seed)
    for number in range(rounds):
        began = time.monotonic()
        await storm.round(KILLS_A_ROUND)
        print(f"round {number + 1} of {rounds}, {time.monotonic() - began:.0f} s: {dict(storm.kills)} {asdict(storm.outcome)}", flush=True)
        for finding in storm.findings:
            print(f"  {finding}", flush=True)
        storm.findings.clear()
    return storm


def main(words: list[str]) -> int:
    rounds = int(words[0]) if words and words[0] else ROUNDS
    seed = int(words[1]) if words[1:] and words[1] else time.time_ns() % 2**31
    print(f"seed {seed}; leases of {LEASE_S} s, beats of {BEAT_S} s", flush=True)
    directory = Path(tempfile.mkdtemp(prefix="xs-", dir="/tmp"))
    directory.chmod(0o711)
    house = BreakableHouse(directory)
    try:
        storm = asyncio.run(run(house, rounds, seed))
    finally:
        house.stop()
        shutil.rmtree(directory, ignore_errors=True)
    for name, times in sorted(storm.away_s.items()):
        print(f"{name}: {len(times)} kills, served again after {sorted(times)[len(times) // 2]:.1f} s (median), {max(times):.1f} s at most")
    print(json.dumps({field.name: getattr(storm.outcome, field.name) for field in fields(Outcome)}))
    return 0 if storm.outcome.is_good else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
