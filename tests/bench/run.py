"""The rounds: every workload on every target, the order of targets turning from round to round, so that a noisy neighbour hits all alike."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import time
from bisect import bisect_left
from collections.abc import Callable, Coroutine, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import uvloop

from extproc.local import valkey as valkey_engine
from extproc.stores import migrations

from .client import Answer, closed_loop, open_loop
from .cpu import cpu_ns, tree_ns
from .edge import Target
from .inside import alone
from .plan import JSON, STREAM100_JOINED, Paced, Plan, Workload
from .stage import Stage
from .stamping import stamps
from .stores import Rate, pg_rows, redis_pairs

Result = TypeVar("Result")


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """One workload on one target in one round. ``cpu_ms`` is CPU per request by group of processes; ``busy``: cores that a group kept busy.

    Latencies are sorted; of requests whose client left they mean nothing. ``billed_off``: of those, events billed less events read, the worst.
    """

    round: int
    target: Target
    workload: Workload
    per_s: float
    cpu_ms: dict[str, float]
    busy: dict[str, float]
    messages: float
    latency_ms: list[float]
    billed_off: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Timed:
    """Sorted times of one target in one round: to the first token, or of events on their way."""

    round: int
    target: Target
    times_ms: list[float]


@dataclass(slots=True, kw_only=True)
class Measured:
    """Everything that was measured, by round. ``took_s``: what each part of the plan took, in all rounds. ``crowds``: figures by name."""

    plan: Plan
    transport: str
    samples: list[Sample] = field(default_factory=list)
    first: list[Timed] = field(default_factory=list)
    stamped: list[Timed] = field(default_factory=list)
    inside: dict[Workload, list[float]] = field(default_factory=dict)
    redis: list[Rate] = field(default_factory=list)
    redis_short: list[Rate] = field(default_factory=list)
    postgres: list[Rate] = field(default_factory=list)
    crowds: list[dict[str, float]] = field(default_factory=list)
    took_s: dict[str, float] = field(default_factory=dict)

    @contextlib.contextmanager
    def part(self, name: str) -> Iterator[None]:
        start_s = time.monotonic()
        yield
        self.took_s[name] = self.took_s.get(name, 0.0) + time.monotonic() - start_s


def measure(stage: Stage, plan: Plan, say: Callable[[str], None]) -> Measured:
    """The whole plan. Raises when an answer was not as it must be, or was not billed."""
    made = Measured(plan=plan, transport=stage.transport)
    gc.freeze()
    for target in Target:
        for workload in (JSON, STREAM100_JOINED):
            closed(stage, target, workload, count=workload.clients, place=-1)
    for place in range(plan.rounds):
        say(f"round {place + 1} of {plan.rounds}")
        for load in plan.loads:
            if place < load.rounds:
                with made.part(load.workload.name):
                    made.samples += [
                        closed(stage, one, load.workload, place=place, count=load.count) for one in turned(tuple(Target), place)
                    ]
        with made.part("first tokens"):
            made.first += paced(stage, plan.first, tuple(Target), _first_ms, place=place)
        with made.part("delays of events"):
            made.stamped += paced(stage, plan.stamped, (Target.OURS, Target.DIRECT), _delays_ms, place=place)
    stage.check_billed()
    say("our code alone, and the stores")
    with made.part("our code alone"):
        made.inside = {workload: [alone(workload, count) for _ in range(plan.rounds)] for workload, count in plan.inside.items()}
    with made.part("stores"):
        _stores(stage, plan, made)
    return made


def closed(stage: Stage, target: Target, workload: Workload, *, place: int, count: int) -> Sample:
    """So many clients, each asking again as soon as it was answered."""
    requests = stage.requests(workload, count)
    load = closed_loop(stage.edge.ports[target], requests, clients=min(count, workload.clients), leave_after=workload.leave_after)
    gc.collect()
    messages, before = stage.edge.messages(target), stage.cpu_ns()
    answers, wall_s = _drive(stage, target, load)
    after = stage.cpu_ns()
    _check(stage, target, workload, answers)
    off = None
    if workload.leave_after and target is Target.OURS:
        off = max(map(abs, (billed - answer.tokens for billed, answer in zip(stage.billed_tokens(answers), answers, strict=True))))
    return Sample(
        round=place,
        target=target,
        workload=workload,
        per_s=count / wall_s,
        cpu_ms={name: (after[name] - before[name]) / count / 1e6 for name in after},
        busy={name: (after[name] - before[name]) / wall_s / 1e9 for name in after},
        messages=(stage.edge.messages(target) - messages) / count,
        latency_ms=sorted(answer.latency_ms for answer in answers),
        billed_off=off,
    )


def paced(stage: Stage, load: Paced, targets: Sequence[Target], times_ms: Callable[[Answer], list[float]], *, place: int) -> list[Timed]:
    """A fixed rate. Targets take turns several times a round: what disturbs for a second disturbs each of them."""
    found: dict[Target, list[float]] = {target: [] for target in targets}
    for turn in range(load.slices):
        for target in turned(targets, place + turn):
            requests = stage.requests(load.workload, load.count)
            gc.collect()
            answers, _ = _drive(stage, target, open_loop(stage.edge.ports[target], requests, rate=load.rate))
            _check(stage, target, load.workload, answers)
            found[target] += [ms for answer in answers for ms in times_ms(answer)]
    return [Timed(round=place, target=target, times_ms=sorted(times)) for target, times in found.items()]


def _first_ms(answer: Answer) -> list[float]:
    return [answer.ttft_ms]


def _delays_ms(answer: Answer) -> list[float]:
    """Of every event: from the write of the upstream to the read of the client."""
    lengths = [length for _, length in answer.reads]
    return [(answer.reads[bisect_left(lengths, end)][0] - sent_s) * 1e3 for sent_s, end in stamps(answer.raw)]


def _drive(stage: Stage, target: Target, load: Coroutine[Any, Any, list[Answer]]) -> tuple[list[Answer], float]:
    """Answers and the seconds that they took. What went through ``ours`` is posted when this returns."""
    gc.disable()  # a pause of the load generator would look like one of what is measured
    start_s = time.perf_counter()
    try:
        answers = run(load)
    finally:
        gc.enable()
    wall_s = time.perf_counter() - start_s
    if target is Target.OURS:
        stage.wait_settled()
    return answers, wall_s


def _check(stage: Stage, target: Target, workload: Workload, answers: list[Answer]) -> None:
    """Each is as it must be. No client asks for usage, so none sees it, though all are billed by it (``check_billed``): injected, read, hidden."""
    for answer in answers if workload.stream else ():
        enough = answer.tokens >= workload.leave_after if workload.leave_after else answer.tokens == workload.tokens
        assert enough, f"{target}, {workload.name}: an answer with {answer.tokens} events: {answer.raw[-300:]!r}"
        assert b'"usage":{' not in answer.raw, f"{target}, {workload.name}: usage that nobody asked for: {answer.raw[-300:]!r}"
    if target is Target.OURS:
        stage.served(workload, answers)


def run(work: Coroutine[Any, Any, Result]) -> Result:
    """On uvloop, as the gate workers do."""
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(work)


def turned(targets: Sequence[Target], place: int) -> Iterator[Target]:
    first = place % len(targets)
    yield from [*targets[first:], *targets[:first]]


def _stores(stage: Stage, plan: Plan, made: Measured) -> None:
    """A Valkey and a database of their own: the house's settler reads the house's."""
    house = stage.house
    server = valkey_engine.start(house.directory / "bench-valkey", durable=True)
    try:
        for place in range(plan.rounds):
            made.redis.append(run(redis_pairs(server.url, plan.redis_pairs, lambda: cpu_ns(server.pid))))
            made.redis_short.append(run(redis_pairs(server.url, plan.redis_pairs, lambda: cpu_ns(server.pid), scripts=2)))
            dsn = house.postgres.create_database(name=f"bench_{place}")
            migrations.migrate(dsn)
            rows = pg_rows(dsn, batches=plan.pg_batches, batch_rows=plan.pg_batch_rows, server_ns=lambda: tree_ns(house.postgres.pid))
            made.postgres.append(run(rows))
    finally:
        server.stop()
