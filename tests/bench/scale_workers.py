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

    ``workers1_rps_…``, ``workers2_rps_…`` and ``workers2_rps_ratio_…``; ``workers1_cpu_ms_…``, ``workers2_cpu_ms_…`` and
    ``workers2_cpu_ratio_…``, per request, all workers; ``workers2_busiest_share_…`` (0.5 = even); ``workers2_capacity_ratio_…``: requests a
    second that fill the busiest worker's core, with two ÷ with one. Two workers get twice the clients: a worker with few requests at a time
    wakes up more often for each.
    """
    assert len(running.accounts.pids(GATE)) == 2
    found: dict[str, float] = {}
    with contextlib.closing(await asyncio.to_thread(_alone, running)) as alone:
        for workload, count in counts.items():
            both: list[Share] = []
            single: list[Share] = []
            for place in range(-1, rounds):
                for workers in (1, 2) if place % 2 else (2, 1):
                    port = alone.port if workers == 1 else running.edge.ports[Target.OURS]
                    share = await _run(
                        running, port, workload, workers * (WARM if place < 0 else count), clients=workers * workload.clients
                    )
                    if place >= 0:
                        (single if workers == 1 else both).append(share)
            found |= {f"{name}_{workload.name}": value for name, value in _compared(single, both).items()}
    await asyncio.to_thread(running.check_billed)
    return found


class _Alone:
    """An Envoy that knows the first worker only."""

    def __init__(self, edge: Edge) -> None:
        self.port = edge.ports[Target.OURS]
        self.close = edge.stop


def _alone(running: Stage) -> _Alone:
    directory, house = running.house.directory, running.house
    return _Alone(
        Edge(
            directory / "edge-alone",
            gates=[directory / "run/gate-0.sock"],
            empty=running.empty,
            backends={name: one.url.removeprefix("http://") for name, one in house.simulators.items()},
            certificate=(house.certificates.cert_file, house.certificates.key_file),
        )
    )


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


def _compared(single: Sequence[Share], both: Sequence[Share]) -> dict[str, float]:
    def median(shares: Sequence[Share], name: str) -> float:
        return float(statistics.median(getattr(share, name) for share in shares))

    one_rps, two_rps = median(single, "per_s"), median(both, "per_s")
    one_ms, two_ms, busiest_ms = median(single, "cpu_ms"), median(both, "cpu_ms"), median(both, "busiest_ms")
    return {
        "workers1_rps": one_rps,
        "workers2_rps": two_rps,
        "workers2_rps_ratio": two_rps / one_rps,
        "workers1_cpu_ms": one_ms,
        "workers2_cpu_ms": two_ms,
        "workers2_cpu_ratio": two_ms / one_ms,
        "workers2_busiest_share": busiest_ms / two_ms,
        "workers2_capacity_ratio": one_ms / busiest_ms,
    }


def main() -> None:
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 5
    with stage(dataclasses.replace(QUICK, workers=2)) as running:
        found = asyncio.run(scale_workers(running, rounds))
    for name, value in found.items():
        print(f"{name:36} {value:10.3f}")


if __name__ == "__main__":
    main()
