"""What dominates a gate worker's CPU: ``python -m tests.bench.profiling json|stream100|… [--native]`` (needs py-spy: ``pip install py-spy``).

Samples the worker while the bench's load runs, and prints shares of its CPU by thread (exact), then shares of the time in which a thread held
the interpreter's lock (sampled): by function alone, and by function with all that it calls. A leaf ``Runner.run`` is the loop itself and
compiled code called from it (uvloop, grpc's Cython). Shares, not times: a sampler costs something itself.
"""

# ruff: noqa: T201 - it is there to print
from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path

from .client import closed_loop
from .cpu import cpu_ns, thread_names_ns
from .edge import EMPTY, Target
from .plan import NAMED, QUICK, Workload
from .run import closed, run
from .stage import GATE, Stage, stage

RATE_HZ = 499  # not in step with any timer
LINES = 45
COUNTS = {"json": 9_000, "stream100": 400, "stream100_20ms": 160, "stream100_0ms": 1_500}


def main() -> None:
    words = argparse.ArgumentParser(prog="python -m tests.bench.profiling")
    words.add_argument("workload", choices=list(COUNTS))
    words.add_argument("--target", type=Target, default=Target.OURS, choices=[Target.OURS, *EMPTY])
    words.add_argument("--native", action="store_true", help="C functions as well")
    words.add_argument("--lines", type=int, default=LINES)
    asked = words.parse_args()
    with stage(QUICK) as running:
        workload, count = NAMED[asked.workload], COUNTS[asked.workload]
        closed(running, asked.target, workload, place=-1, count=64)
        samples, threads, total_ns = record(running, asked.target, workload, count, native=asked.native)
    print(f"{asked.workload}: {total_ns / count / 1e6:.3f} ms a request, the sampler's share included")
    print_shares("by thread", Counter(threads), sum(threads.values()), asked.lines)
    alone, below = shares(samples)
    total = sum(samples.values())
    print_shares("function alone", alone, total, asked.lines)
    print_shares("function with what it calls", below, total, asked.lines)


def record(running: Stage, target: Target, workload: Workload, count: int, *, native: bool) -> tuple[Counter[str], dict[str, int], int]:
    """Folded stacks with their counts, CPU by thread name, CPU in all."""
    pid = running.accounts.pids(GATE if target is Target.OURS else target)[0]
    requests = running.requests(workload, count)
    with tempfile.NamedTemporaryFile(suffix=".folded") as file:
        argv = [str(Path(sys.executable).parent / "py-spy"), "record", "--pid", str(pid), "--rate", str(RATE_HZ), "--duration", "600"]
        argv += ["--format", "raw", "--output", file.name, "--function", "--gil", *(["--native"] if native else [])]
        sampler = subprocess.Popen(argv, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        before, total_ns = thread_names_ns(pid), cpu_ns(pid)
        run(closed_loop(running.edge.ports[target], requests, clients=workload.clients))
        after, total_ns = thread_names_ns(pid), cpu_ns(pid) - total_ns
        sampler.send_signal(2)  # SIGINT: it writes what it has
        sampler.wait(60)
        lines = Path(file.name).read_text().splitlines()
    folded = Counter({stack: int(count) for stack, _, count in (line.rpartition(" ") for line in lines)})
    return folded, {name: after[name] - before.get(name, 0) for name in after}, total_ns


def shares(samples: Counter[str]) -> tuple[Counter[str], Counter[str]]:
    """Samples by leaf, and by every function on the stack, once each."""
    alone: Counter[str] = Counter()
    below: Counter[str] = Counter()
    for stack, count in samples.items():
        frames = [frame for frame in stack.split(";") if not frame.startswith(("process ", "thread "))]
        alone[frames[-1]] += count
        for frame in set(frames):
            below[frame] += count
    return alone, below


def print_shares(title: str, counts: Counter[str], total: int, lines: int) -> None:
    print(f"\n{title}")
    for name, count in counts.most_common(lines):
        print(f"{100 * count / total:6.1f} %  {name}")


if __name__ == "__main__":
    main()
