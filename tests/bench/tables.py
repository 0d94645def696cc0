"""The result as tables, in Markdown: medians, lowest and highest of the rounds in brackets."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from .bounds import verdicts, with_spread, yardsticks
from .edge import EMPTY, Target
from .figures import INVOLVED, SUFFIX, cpu_name
from .stage import GATE, LOAD, THREADS

GROUPS = {GATE: "gate worker", THREADS: "… of it outside its loop", **{target.value: "the empty server" for target in EMPTY}, "settler": "settler", "envoy": "Envoy",
          "valkey": "Valkey", "postgres": "PostgreSQL", "simulator": "simulator", LOAD: "load generator"}  # fmt: skip
HEADS = {Target.OURS: "extproc", Target.EMPTY_LEAN: "empty lean server", Target.EMPTY_GRPCIO: "empty grpc.aio server",
         Target.DIRECT: "Envoy alone"}  # fmt: skip
MORE = {
    "messages": "messages to the server",
    "rps": "requests/s",
    "latency_ms_p50": "latency p50, ms",
    "latency_ms_p99": "latency p99, ms",
    f"{LOAD}_cores": "load generator, cores busy",
    "simulator_cores": "simulator, cores busy",
}
IN_FULL = ("json", "stream100")
SPEEDS = {
    "inside_cpu_ms_json": "our code alone, without transport and Redis, JSON, ms of CPU",
    "inside_cpu_ms_stream100": "… stream of 100 events",
    "ttft_added_ms_p50_empty_lean": "added time to first token of the empty lean server, p50, ms",
    "ttft_added_ms_p99_empty_lean": "… p99",
    "ttft_added_ms_p50_empty_grpcio": "… of the empty grpc.aio server, p50",
    "ttft_added_ms_p99_empty_grpcio": "… p99",
    "ttft_ms_p50_direct": "time to first token of Envoy alone, p50, ms",
    "ttft_ms_p99_direct": "… p99",
    "event_ms_p50": "an event from the backend's write to the client's read, p50, ms",
    "event_ms_p99": "… p99",
    "event_ms_p50_direct": "… through Envoy alone, p50",
    "event_ms_p99_direct": "… p99",
    "redis_client_us_per_pair": "hold + settle on Redis: CPU of the worker, µs",
    "redis_server_us_per_pair": "… of Valkey",
    "redis_void_pairs_per_s": "admit + void on Redis, a second",
    "pg_client_us_per_row": "a settlement into PostgreSQL: CPU of the settler, µs",
    "pg_server_us_per_row": "… of PostgreSQL",
    "open_streams": "streams open at once",
    "open_streams_events_per_s": "… their events/s together",
    "open_streams_gate_cores": "… cores of the gate worker",
}


def whole(told: Mapping[str, Any]) -> str:
    """Everything that ``make bench`` prints."""
    parts = [
        table(("what is promised", "median (lowest – highest)", "bound", "", "name"), verdicts(told)),
        table(("empty server", "ms of CPU, 16 clients", "32 clients", "first measured", "within a quarter"), yardsticks(told)),
        *(_cpu_table(name, told) for name in IN_FULL),
        table(("CPU ms a request", "worker", "empty lean", "empty grpc.aio", "Envoy: us", "lean", "grpc.aio", "alone",
               "requests/s: us", "alone", "p50 ms: us", "alone"), _matrix(told)),
        table(("speed", "median (lowest – highest)"), [(words, cell(told, name)) for name, words in SPEEDS.items() if name in told]),
    ]  # fmt: skip
    return "\n\n".join(parts)


def _cpu_table(workload: str, told: Mapping[str, Any]) -> str:
    """All processes that have to do with one workload."""
    empty = {target: target.value for target in EMPTY}
    rows: list[tuple[str, ...]] = []
    for group, words in GROUPS.items():
        if group == Target.EMPTY_GRPCIO:
            continue  # on the row of the other one
        own = {target: empty.get(target, group) if group == Target.EMPTY_LEAN else group for target in Target}
        rows.append((words, *(cell(told, cpu_name(one, own[one], workload)) if own[one] in INVOLVED[one] else "–" for one in Target)))
    rows += [(words, *(cell(told, f"{name}_{workload}{SUFFIX[target]}") for target in Target)) for name, words in MORE.items()]
    return table((f"`{workload}`: CPU ms a request", *HEADS.values()), rows)


def _matrix(told: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """A row for each workload: medians only."""
    rows: list[tuple[str, ...]] = []
    for name in told["about"]["rounds_of"]:
        names = [cpu_name(Target.OURS, GATE, name), *(cpu_name(target, target.value, name) for target in EMPTY)]
        names += [f"envoy_cpu_ms_{name}{SUFFIX[target]}" for target in Target]
        names += [f"{what}_{name}{SUFFIX[target]}" for what in ("rps", "latency_ms_p50") for target in (Target.OURS, Target.DIRECT)]
        rows.append((f"`{name}`", *(with_spread(told[one], None) if one in told else "–" for one in names)))
    return rows


def cell(told: Mapping[str, Any], name: str) -> str:
    return with_spread(told[name], told["spread"][name]) if name in told else "–"


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    widths = [max(len(row[column]) for row in (head, *rows)) for column in range(len(head))]
    lines = ["| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |" for row in (head, *rows)]
    return "\n".join([lines[0], "|" + "|".join("-" * (width + 2) for width in widths) + "|", *lines[1:]])
