"""From samples to figures: medians over the rounds under fixed names, lowest and highest beside them, in a file.

``result.json``: every figure is a number at the top level; ``spread`` has [lowest, highest] under the same name, ``about`` the circumstances.
"""

from __future__ import annotations

import datetime as dt
import json
import math
import os
import platform
import re
import statistics
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from .edge import EMPTY, Target
from .run import Measured, Sample, Timed
from .stage import GATE, LOAD, THREADS
from .stores import Rate

RESULT = Path(__file__).parent / "result.json"

SUFFIX = {target: "" if target is Target.OURS else f"_{target}" for target in Target}
SERVED = ("envoy", "simulator", LOAD)
INVOLVED: dict[Target, tuple[str, ...]] = {
    Target.OURS: (GATE, THREADS, "settler", "valkey", "postgres", *SERVED),
    **{target: (target.value, *SERVED) for target in EMPTY},
    Target.DIRECT: SERVED,
}
"""Groups of processes that work for a target."""


def percentile(ordered: Sequence[float], share: float) -> float:
    """The smallest value that at least ``share`` of all do not exceed."""
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)]


def cpu_name(target: Target, group: str, workload: str) -> str:
    """``worker_cpu_ms_json``, ``empty_lean_cpu_ms_stream100``, ``envoy_cpu_ms_json_direct`` …"""
    if group == GATE:
        return f"worker_cpu_ms_{workload}"
    return f"{group}_cpu_ms_{workload}" + ("" if group == target else SUFFIX[target])


def figures(measured: Measured) -> dict[str, list[float]]:
    """All of them, by name, a value a round."""
    found: dict[str, list[float]] = {}
    for name, value in _named(measured):
        found.setdefault(name, []).append(value)
    return found


def _named(measured: Measured) -> Iterator[tuple[str, float]]:
    for sample in measured.samples:
        yield from _of_load(sample)
    for place in range(measured.plan.rounds):
        yield from _of_times("ttft", "ttft_added", [timed for timed in measured.first if timed.round == place])
        yield from _of_times("event", "event_delay", [timed for timed in measured.stamped if timed.round == place])
    for workload, values in measured.inside.items():
        yield from ((f"inside_cpu_ms_{workload.name}", value / 1e3) for value in values)
    yield from _of_rates("redis", "pair", measured.redis)
    yield from _of_rates("redis_void", "pair", measured.redis_short)
    yield from _of_rates("pg", "row", measured.postgres)
    for crowd in measured.crowds:
        yield from crowd.items()


def _of_load(sample: Sample) -> Iterator[tuple[str, float]]:
    workload, suffix = sample.workload.name, SUFFIX[sample.target]
    for group in INVOLVED[sample.target]:
        yield cpu_name(sample.target, group, workload), sample.cpu_ms[group]
    for group in ("simulator", LOAD):
        yield f"{group}_cores_{workload}{suffix}", sample.busy[group]
    yield f"rps_{workload}{suffix}", sample.per_s
    if not sample.workload.leave_after:
        yield f"latency_ms_p50_{workload}{suffix}", percentile(sample.latency_ms, 0.5)
        yield f"latency_ms_p99_{workload}{suffix}", percentile(sample.latency_ms, 0.99)
    if sample.target is not Target.DIRECT:
        yield f"messages_{workload}{suffix}", sample.messages
    if sample.billed_off is not None:
        yield "billed_off_events", float(sample.billed_off)


def _of_times(name: str, added: str, times: Iterable[Timed]) -> Iterator[tuple[str, float]]:
    """``ttft_ms_p50``, ``ttft_ms_p50_direct``, ``ttft_added_ms_p50`` …: added is the difference to Envoy alone in the same round."""
    by_target = {timed.target: timed.times_ms for timed in times}
    for percent in (50, 99):
        of = {target: percentile(ordered, percent / 100) for target, ordered in by_target.items()}
        for target, value in of.items():
            yield f"{name}_ms_p{percent}{SUFFIX[target]}", value
            if target is not Target.DIRECT:
                yield f"{added}_ms_p{percent}{SUFFIX[target]}", value - of[Target.DIRECT]


def _of_rates(prefix: str, unit: str, rates: Iterable[Rate]) -> Iterator[tuple[str, float]]:
    for rate in rates:
        yield f"{prefix}_{unit}s_per_s", rate.per_s
        yield f"{prefix}_client_us_per_{unit}", rate.client_us
        yield f"{prefix}_server_us_per_{unit}", rate.server_us


def result(measured: Measured) -> dict[str, Any]:
    """What ``result.json`` holds."""
    plan, made = measured.plan, figures(measured)
    about = {
        "plan": plan.name, "rounds": plan.rounds, "gate_workers": plan.workers, "transport": measured.transport,
        "date": dt.datetime.now(tz=dt.UTC).date().isoformat(), "took_s": round(sum(measured.took_s.values())),
        "cores": os.cpu_count(), "processor": _processor(), "python": platform.python_version(),
        "load_average_after": round(os.getloadavg()[0], 2),
        "parts_took_s": {name: round(value, 1) for name, value in measured.took_s.items()},
        "rounds_of": {load.workload.name: load.rounds for load in plan.loads},
    }  # fmt: skip
    return {
        "about": about,
        **{name: round(statistics.median(values), 4) for name, values in made.items()},
        "spread": {name: [round(min(values), 4), round(max(values), 4)] for name, values in made.items()},
    }


def write(told: Mapping[str, Any], path: Path = RESULT) -> None:
    """A line for each figure, and for each spread."""
    parts = [f"{json.dumps(name)}: {_lines(value) if isinstance(value, dict) else json.dumps(value)}" for name, value in told.items()]
    path.write_text("{\n " + ",\n ".join(parts) + "\n}\n")


def _lines(value: Mapping[str, Any]) -> str:
    return "{\n  " + ",\n  ".join(f"{json.dumps(name)}: {json.dumps(inner)}" for name, inner in value.items()) + "\n }"


def _processor() -> str:
    found = re.search(r"^model name\s*: (.*)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    return found[1] if found else platform.machine()
