"""Two gate workers ÷ one: the same sidecar with two workers behind two Envoys, of which one knows both workers and the other only the first.

    python -m tests.bench.scale_workers [ROUNDS]

On two cores throughput cannot double: load generator, Envoy, Valkey, PostgreSQL and simulator want theirs. What can be seen is whether a request
costs a worker more when there are two (they share no lock, no cache and no file that is written), whether both get their half, and from both
the requests a second at which the busier worker would have filled a core of its own. Rounds alternate.
"""

# ruff: noqa: T201 - it is there to print
from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import statistics
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from time import perf_counter

from .client import closed_loop
from .cpu import cpu_ns
from .edge import Edge, Target
from .plan import JSON, QUICK, STREAM100, Workload
from .stage import GATE, Stage, stage

COUNTS = {JSON: 1_500, STREAM100: 64}  # for each worker
WARM = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class Share:
    """One run: requests a second, CPU ms a request of all workers together, and of the busiest."""

    per_s: float
    cpu_ms: float
    busiest_ms: float


async def scale_workers(running: Stage, rounds: int = 5, counts: Mapping[Workload, int] = COUNTS) -> dict[str, float]:
    """Medians. For ``json`` and ``stream100``, over a stage with two gate workers:

    ``workers1_rps_json``, ``workers2_rps_json`` and ``workers2_rps_ratio_json``; ``workers1_cpu_ms_…``, ``workers2_cpu_ms_…`` and
    ``workers2_cpu_ratio_…``, per request, all workers; ``workers2_busiest_share_…`` (0.5 = even); ``workers2_capacity_ratio_…``: requests a
    second that fill the busiest worker's core, with two ÷ with one. Two workers get twice the clients: a worker with few requests at a time
    wakes up more often for each.
    """
    assert len(running.accounts.pids(GATE)) == 2
    alone = await asyncio.to_thread(_first_worker_only, running)
    ports = {1: alone.ports[Target.OURS], 2: running.edge.ports[Target.OURS]}
    found: dict[str, float] = {}
    with contextlib.ExitStack() as stack:
        stack.callback(alone.stop)
        for workload, count in counts.items():
            shares = await _rounds(running, ports, workload, count, rounds)
            compared = _cpu(*shares) | ({} if _paced(workload) else _rps(*shares))
            found |= {f"{name}_{workload.name}": value for name, value in compared.items()}
    await asyncio.to_thread(running.check_billed)
    return found


def _first_worker_only(running: Stage) -> Edge:
    """An Envoy that knows no other."""
    directory, house = running.house.directory, running.house
    return Edge(
        directory / "edge-alone",
        gates=[directory / "run/gate-0.sock"],
        empty=running.empty,
        backends={name: one.url.removeprefix("http://") for name, one in house.simulators.items()},
        certificate=(house.certificates.cert_file, house.certificates.key_file),
    )


async def _rounds(running: Stage, ports: Mapping[int, int], workload: Workload, count: int, rounds: int) -> tuple[list[Share], list[Share]]:
    """With one worker and with two, in turning order; ``ports`` by their number. ``count`` and the workload's clients are for each worker."""
    shares: dict[int, list[Share]] = {1: [], 2: []}
    for workers in (1, 2):
        await _run(running, ports[workers], workload, WARM, clients=workload.clients)
    for place in range(rounds):
        for workers in (1, 2) if place % 2 else (2, 1):
            share = await _run(running, ports[workers], workload, workers * count, clients=workers * workload.clients)
            shares[workers].append(share)
    return shares[1], shares[2]


async def _run(running: Stage, port: int, workload: Workload, count: int, *, clients: int) -> Share:
    pids = running.accounts.pids(GATE)
    requests = running.requests(workload, count)
    before, start_s = [cpu_ns(pid) for pid in pids], perf_counter()
    answers = await closed_loop(port, requests, clients=clients)
    wall_s = perf_counter() - start_s
    await asyncio.to_thread(running.wait_settled)
    used = [(cpu_ns(pid) - was) / count / 1e6 for pid, was in zip(pids, before, strict=True)]
    running.served(workload, answers)
    return Share(per_s=count / wall_s, cpu_ms=sum(used), busiest_ms=max(used))


def _paced(workload: Workload) -> bool:
    """The simulator's pauses decide how many a second there are, not we."""
    return workload.stream and workload.delay_ms > 0


def _rps(single: Sequence[Share], both: Sequence[Share]) -> dict[str, float]:
    one, two = _median(single, "per_s"), _median(both, "per_s")
    return {"workers1_rps": one, "workers2_rps": two, "workers2_rps_ratio": two / one}


def _cpu(single: Sequence[Share], both: Sequence[Share]) -> dict[str, float]:
    one_ms, two_ms, busiest_ms = _median(single, "cpu_ms"), _median(both, "cpu_ms"), _median(both, "busiest_ms")
    return {
        "workers1_cpu_ms": one_ms,
        "workers2_cpu_ms": two_ms,
        "workers2_cpu_ratio": two_ms / one_ms,
        "workers2_busiest_share": busiest_ms / two_ms,
        "workers2_capacity_ratio": one_ms / busiest_ms,
    }


def _median(shares: Sequence[Share], name: str) -> float:
    return float(statistics.median(getattr(share, name) for share in shares))


def main() -> None:
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 5
    with stage(dataclasses.replace(QUICK, workers=2)) as running:
        found = asyncio.run(scale_workers(running, rounds))
    for name, value in found.items():
        print(f"{name:36} {value:10.3f}")


if __name__ == "__main__":
    main()
