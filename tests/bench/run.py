"""The rounds: every workload on every target, the order of targets turning from round to round, so that a noisy neighbour hits all alike."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine, Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

import uvloop

from extproc.local import valkey as valkey_engine
from extproc.stores import migrations

from .client import Answer, closed_loop, open_loop
from .cpu import cpu_ns, tree_ns
from .edge import Target
from .inside import alone
from .plan import FIRST_TOKENS, JSON_TOKENS, STREAM_TOKENS, Plan, Workload
from .stage import Stage
from .stores import Rate, pg_rows, redis_pairs

Result = TypeVar("Result")


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """One workload on one target in one round. ``cpu_ms`` is CPU per request by group of processes. Latencies are sorted."""

    round: int
    target: Target
    count: int
    per_s: float
    cpu_ms: dict[str, float]
    messages: float
    ttft_ms: list[float]
    latency_ms: list[float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """Everything that was measured, by round."""

    plan: Plan
    loads: dict[Workload, list[Sample]]
    first: list[Sample]
    inside: dict[Workload, list[float]]
    redis: list[Rate]
    redis_short: list[Rate]
    postgres: list[Rate]
    took_s: float


def measure(stage: Stage, plan: Plan, say: Callable[[str], None]) -> Measured:
    """The whole plan. Raises when an answer was not as it must be, or was not billed."""
    start_s = time.monotonic()
    loads: dict[Workload, list[Sample]] = {workload: [] for workload in plan.counts}
    first: list[Sample] = []
    for target in Target:
        for workload in plan.counts:
            closed(stage, plan, target, workload, count=plan.clients, place=-1)
    for place in range(plan.rounds):
        say(f"round {place + 1} of {plan.rounds}")
        for workload in plan.counts:
            loads[workload] += [closed(stage, plan, target, workload, place=place) for target in _turned(place)]
        first += [paced(stage, plan, target, place=place) for target in _turned(place)]
    stage.check_billed()
    say("our code alone, and the stores")
    inside_us = {workload: [alone(workload, count) for _ in range(plan.rounds)] for workload, count in plan.inside.items()}
    redis, short, postgres = _stores(stage, plan)
    return Measured(
        plan=plan,
        loads=loads,
        first=first,
        inside=inside_us,
        redis=redis,
        redis_short=short,
        postgres=postgres,
        took_s=time.monotonic() - start_s,
    )


def closed(stage: Stage, plan: Plan, target: Target, workload: Workload, *, place: int, count: int = 0) -> Sample:
    """So many clients, each asking again as soon as it was answered."""
    requests = stage.requests(workload, count or plan.counts[workload])
    tokens = JSON_TOKENS if workload is Workload.JSON else STREAM_TOKENS
    load = closed_loop(stage.edge.ports[target], requests, clients=plan.clients)
    sample, answers = _sample(stage, target, load, place=place, tokens=tokens)
    for answer in answers:
        told = answer.body.count(b'data: {"') if workload is not Workload.JSON else tokens
        assert told >= tokens, f"{target}, {workload}: an answer with {told} events: {answer.body[-300:]!r}"
    return sample


def paced(stage: Stage, plan: Plan, target: Target, *, place: int) -> Sample:
    """Short streams at a fixed rate, for the time to the first token."""
    load = open_loop(stage.edge.ports[target], stage.requests(None, plan.first_count), rate=plan.first_rate)
    return _sample(stage, target, load, place=place, tokens=FIRST_TOKENS)[0]


def _sample(
    stage: Stage, target: Target, load: Coroutine[Any, Any, list[Answer]], *, place: int, tokens: int
) -> tuple[Sample, list[Answer]]:
    messages = stage.edge.messages(target)
    before = stage.accounts.read()
    start_s = time.perf_counter()
    answers = run(load)
    wall_s = time.perf_counter() - start_s
    if target is Target.OURS:
        stage.sent += len(answers)
        stage.tokens += tokens * len(answers)
        stage.wait_settled()
    after = stage.accounts.read()
    count = len(answers)
    sample = Sample(
        round=place,
        target=target,
        count=count,
        per_s=count / wall_s,
        cpu_ms={name: (after[name] - before[name]) / count / 1e6 for name in after},
        messages=(stage.edge.messages(target) - messages) / count,
        ttft_ms=sorted(answer.ttft_ms for answer in answers),
        latency_ms=sorted(answer.latency_ms for answer in answers),
    )
    return sample, answers


def run(work: Coroutine[Any, Any, Result]) -> Result:
    """On uvloop, as the gate workers do."""
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(work)


def _turned(place: int) -> Iterator[Target]:
    targets = list(Target)
    yield from targets[place % len(targets) :] + targets[: place % len(targets)]


def _stores(stage: Stage, plan: Plan) -> tuple[list[Rate], list[Rate], list[Rate]]:
    """A Valkey and a database of their own: the house's settler reads the house's."""
    house = stage.house
    server = valkey_engine.start(house.directory / "bench-valkey", durable=True)
    redis: list[Rate] = []
    short: list[Rate] = []
    postgres: list[Rate] = []
    try:
        for place in range(plan.rounds):
            redis.append(run(redis_pairs(server.url, plan.redis_pairs, lambda: cpu_ns(server.pid))))
            short.append(run(redis_pairs(server.url, plan.redis_pairs, lambda: cpu_ns(server.pid), scripts=2)))
            dsn = house.postgres.create_database(name=f"bench_{place}")
            migrations.migrate(dsn)
            rows = pg_rows(dsn, batches=plan.pg_batches, batch_rows=plan.pg_batch_rows, server_ns=lambda: tree_ns(house.postgres.pid))
            postgres.append(run(rows))
    finally:
        server.stop()
    return redis, short, postgres
