"""From samples to figures: medians over the rounds under fixed names, lowest and highest beside them, a table, a file.

``result.json``: every figure is a number at the top level; ``spread`` has [lowest, highest] under the same name, ``about`` the circumstances.
"""

from __future__ import annotations

import json
import math
import os
import platform
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .edge import Target
from .plan import Workload
from .run import Measured, Sample
from .stage import GATE, LOAD

RESULT = Path(__file__).parent / "result.json"

BOUNDS = {
    "worker_cpu_ms_json": "≤ 0.22",
    "worker_cpu_ms_stream100": "≤ 1.5",
    "ttft_added_ms_p50": "≤ 1",
    "ttft_added_ms_p99": "≤ 4",
    "redis_pairs_per_s": "≥ 8,000",
    "pg_rows_per_s": "≥ 20,000",
}
"""Of the design, due with the lean transport."""

FIXED = (
    *BOUNDS,
    "empty_grpcio_cpu_ms_json",
    "empty_grpcio_cpu_ms_stream100",
    "rps_json",
    "rps_json_empty_grpcio",
)
"""Names that somebody relies on: a result without one of them is none."""

SUFFIX = {Target.OURS: "", Target.EMPTY: "_empty_grpcio", Target.DIRECT: "_direct"}
GROUPS = {GATE: "gate workers", "empty": "empty grpc.aio server", "settler": "settler", "supervisor": "supervisor", "envoy": "Envoy",
          "valkey": "Valkey", "postgres": "PostgreSQL", "simulator": "simulators", LOAD: "load generator"}  # fmt: skip
INVOLVED = {
    Target.OURS: (GATE, "settler", "envoy", "valkey", "postgres", "simulator", LOAD),
    Target.EMPTY: ("empty", "envoy", "simulator", LOAD),
    Target.DIRECT: ("envoy", "simulator", LOAD),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """One figure of every round."""

    values: tuple[float, ...]

    @property
    def median(self) -> float:
        return statistics.median(self.values)

    def __str__(self) -> str:
        low, high = min(self.values), max(self.values)
        return f"{_text(self.median)} ({_text(low)} – {_text(high)})" if len(self.values) > 1 else _text(self.median)


def percentile(ordered: Sequence[float], share: float) -> float:
    """The smallest value that at least ``share`` of all do not exceed."""
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)]


def figures(measured: Measured) -> dict[str, Figure]:
    """All of them, by name."""
    found: dict[str, list[float]] = {}
    for workload, samples in measured.loads.items():
        for sample in samples:
            for name, value in _of_load(workload, sample):
                found.setdefault(name, []).append(value)
    for place in range(measured.plan.rounds):
        for name, value in _of_first({one.target: one for one in measured.first if one.round == place}):
            found.setdefault(name, []).append(value)
    for prefix, unit, rates in (
        ("redis", "pair", measured.redis),
        ("redis_void", "pair", measured.redis_short),
        ("pg", "row", measured.postgres),
    ):
        found[f"{prefix}_{unit}s_per_s"] = [rate.per_s for rate in rates]
        found[f"{prefix}_client_us_per_{unit}"] = [rate.client_us for rate in rates]
        found[f"{prefix}_server_us_per_{unit}"] = [rate.server_us for rate in rates]
    for workload, values in measured.inside.items():
        found[f"inside_cpu_ms_{workload}"] = [value / 1e3 for value in values]
    made = {name: Figure(values=tuple(values)) for name, values in found.items()}
    missing = [name for name in FIXED if name not in made]
    assert not missing, f"not measured: {missing}"
    return made


def cpu_name(target: Target, group: str, workload: Workload) -> str:
    """``worker_cpu_ms_json``, ``empty_grpcio_cpu_ms_stream100``, ``envoy_cpu_ms_json_direct`` …"""
    if group == GATE:
        return f"worker_cpu_ms_{workload}"
    if group == "empty":
        return f"empty_grpcio_cpu_ms_{workload}"
    return f"{group}_cpu_ms_{workload}{SUFFIX[target]}"


def _of_load(workload: Workload, sample: Sample) -> Iterable[tuple[str, float]]:
    suffix = SUFFIX[sample.target]
    for group in INVOLVED[sample.target]:
        yield cpu_name(sample.target, group, workload), sample.cpu_ms[group]
    yield f"rps_{workload}{suffix}", sample.per_s
    yield f"latency_ms_p50_{workload}{suffix}", percentile(sample.latency_ms, 0.5)
    yield f"latency_ms_p99_{workload}{suffix}", percentile(sample.latency_ms, 0.99)
    if sample.target is not Target.DIRECT:
        yield f"messages_{workload}{suffix}", sample.messages


def _of_first(samples: Mapping[Target, Sample]) -> Iterable[tuple[str, float]]:
    for percent in (50, 99):
        of = {target: percentile(sample.ttft_ms, percent / 100) for target, sample in samples.items()}
        for target, value in of.items():
            yield f"ttft_ms_p{percent}{SUFFIX[target]}", value
        yield f"ttft_added_ms_p{percent}", of[Target.OURS] - of[Target.DIRECT]
        yield f"ttft_added_ms_p{percent}_empty_grpcio", of[Target.EMPTY] - of[Target.DIRECT]


def result(measured: Measured, made: Mapping[str, Figure]) -> dict[str, Any]:
    """What ``result.json`` holds."""
    plan = measured.plan
    about = {
        "plan": plan.name, "rounds": plan.rounds, "clients": plan.clients, "gate_workers": plan.workers, "transport": "grpcio",
        "took_s": round(measured.took_s, 1), "cores": os.cpu_count(), "load_average": os.getloadavg()[0],
        "machine": platform.machine(), "python": platform.python_version(),
    }  # fmt: skip
    return {
        "about": about,
        **{name: round(figure.median, 4) for name, figure in made.items()},
        "spread": {name: [round(min(figure.values), 4), round(max(figure.values), 4)] for name, figure in made.items()},
    }


def write(measured: Measured, made: Mapping[str, Figure]) -> None:
    RESULT.write_text(json.dumps(result(measured, made), indent=1) + "\n")


def table(measured: Measured, made: Mapping[str, Figure]) -> str:
    """Markdown: medians, lowest and highest of the rounds in brackets."""
    parts = [_cpu_table(workload, made) for workload in measured.loads]
    parts += [_table(("speed", "median (lowest – highest)", "bound"), _speeds(measured, made))]
    return "\n\n".join(parts)


def _cpu_table(workload: Workload, made: Mapping[str, Figure]) -> str:
    rows = []
    for group, words in GROUPS.items():
        cells = [made.get(cpu_name(target, group, workload)) if group in INVOLVED[target] else None for target in Target]
        if any(cells):
            rows.append((words, *(str(cell) if cell else "–" for cell in cells)))
    for words, name in (
        ("messages to the server", "messages"),
        ("requests/s", "rps"),
        ("latency p50, ms", "latency_ms_p50"),
        ("latency p99, ms", "latency_ms_p99"),
    ):
        cells = [made.get(f"{name}_{workload}{SUFFIX[target]}") for target in Target]
        rows.append((words, *(str(cell) if cell else "–" for cell in cells)))
    return _table((f"`{workload}`: CPU ms a request", "extproc", "empty grpc.aio server", "Envoy alone"), rows)


def _speeds(measured: Measured, made: Mapping[str, Figure]) -> list[tuple[str, ...]]:
    rate = measured.plan.first_rate
    words = {
        "worker_cpu_ms_json": "gate-worker CPU, JSON request, ms",
        "inside_cpu_ms_json": "… our code alone, without transport and Redis",
        "worker_cpu_ms_stream100": "gate-worker CPU, stream of 100 events, ms",
        "inside_cpu_ms_stream100": "… our code alone, without transport and Redis",
        "rps_json": f"JSON requests/s, {measured.plan.clients} clients",
        "rps_json_empty_grpcio": "… through the empty grpc.aio server",
        "ttft_added_ms_p50": f"added time to first token at {rate}/s, p50, ms",
        "ttft_added_ms_p99": "… p99, ms",
        "ttft_added_ms_p50_empty_grpcio": "… of the empty grpc.aio server, p50, ms",
        "ttft_added_ms_p99_empty_grpcio": "… of the empty grpc.aio server, p99, ms",
        "redis_pairs_per_s": "admit + amend + settle on Redis from one process, a second",
        "redis_client_us_per_pair": "… CPU of the process, µs",
        "redis_server_us_per_pair": "… CPU of Valkey, µs",
        "redis_void_pairs_per_s": "admit + void on Redis, a second",
        "pg_rows_per_s": f"settlements posted to PostgreSQL in batches of {measured.plan.pg_batch_rows:,}, a second",
        "pg_client_us_per_row": "… CPU of the process, µs",
        "pg_server_us_per_row": "… CPU of PostgreSQL, µs",
    }
    return [(text, str(made[name]), BOUNDS.get(name, "")) for name, text in words.items() if name in made]


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    widths = [max(len(row[column]) for row in (head, *rows)) for column in range(len(head))]
    lines = ["| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |" for row in (head, *rows)]
    return "\n".join([lines[0], "|" + "|".join("-" * (width + 2) for width in widths) + "|", *lines[1:]])


def _text(value: float) -> str:
    if abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}" if abs(value) >= 0.1 else f"{value:.3f}"
