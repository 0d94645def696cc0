"""What is promised (DESIGN.md, "Speed that must be shown") beside what was measured, and the yardsticks beside their first measurement."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True, kw_only=True)
class Bound:
    """``figure``, divided by ``over`` where that is named, is at ``most`` or at ``least`` so much. ``whole``: the quick plan does not try."""

    what: str
    figure: str
    over: str = ""
    most: float | None = None
    least: float | None = None
    whole: bool = False

    def value(self, told: Mapping[str, Any]) -> float:
        return float(told[self.figure] / told[self.over] if self.over else told[self.figure])

    def spread(self, told: Mapping[str, Any]) -> tuple[float, float] | None:
        """Lowest and highest of the rounds; none of a ratio of medians."""
        return None if self.over else tuple(told["spread"][self.figure])

    def met(self, told: Mapping[str, Any]) -> bool:
        value = self.value(told)
        return (self.most is None or value <= self.most) and (self.least is None or value >= self.least)

    def tried(self, told: Mapping[str, Any]) -> bool:
        return told["about"]["plan"] == "full" or not self.whole

    @property
    def text(self) -> str:
        limit = self.most if self.most is not None else self.least
        return f"{'≤' if self.most is not None else '≥'} {limit:,g}"

    @property
    def source(self) -> str:
        return f"{self.figure} ÷ {self.over}" if self.over else self.figure


BOUNDS = (
    Bound(what="gate-worker CPU, JSON request, ms", figure="worker_cpu_ms_json", most=0.22),
    Bound(what="gate-worker CPU, stream of 100 events, ms", figure="worker_cpu_ms_stream100", most=1.5),
    Bound(what="… ÷ empty grpc.aio server's, JSON", figure="worker_cpu_ms_json", over="empty_grpcio_cpu_ms_json", most=1.0),
    Bound(what="… ÷ empty grpc.aio server's, stream", figure="worker_cpu_ms_stream100", over="empty_grpcio_cpu_ms_stream100", most=1.0),
    Bound(what="JSON requests/s ÷ empty grpc.aio server's", figure="rps_json", over="rps_json_empty_grpcio", least=1.0),
    Bound(what="JSON requests/s ÷ empty lean server's", figure="rps_json", over="rps_json_empty_lean", least=0.35),
    Bound(what="added time to first token at 200/s, p50, ms", figure="ttft_added_ms_p50", most=1.0),
    Bound(what="… p99, ms", figure="ttft_added_ms_p99", most=4.0),
    Bound(what="added delay of an event, p50, ms", figure="event_delay_ms_p50", most=0.2),
    Bound(what="… p99, ms", figure="event_delay_ms_p99", most=1.0),
    Bound(what="memory of an open stream, KB", figure="kb_per_open_stream", most=15.0),
    Bound(what="streams open at once on one worker, billed = read", figure="open_streams", least=10_000, whole=True),
    Bound(what="… events/s of the slowest", figure="open_streams_events_per_s_min", least=1.0),
    Bound(what="settlements posted to PostgreSQL, a second", figure="pg_rows_per_s", least=20_000),
    Bound(what="hold + settle on Redis from one worker, a second", figure="redis_pairs_per_s", least=8_000),
    Bound(what="client leaves: events billed − events read, worst", figure="billed_off_events", most=1.0),
)

FIXED = tuple(dict.fromkeys(
    (
        *(bound.figure for bound in BOUNDS),
        "empty_grpcio_cpu_ms_json", "empty_grpcio_cpu_ms_stream100", "empty_lean_cpu_ms_json", "empty_lean_cpu_ms_stream100",
        "rps_json_empty_lean", "rps_json_empty_grpcio",
    )
))  # fmt: skip
"""Names that somebody relies on: a result without one of them is none."""

ENVOY_MD = {
    "empty_grpcio_cpu_ms_json": 0.290,
    "empty_lean_cpu_ms_json": 0.029,
    "empty_grpcio_cpu_ms_stream100": 4.25,
    "empty_lean_cpu_ms_stream100": 0.65,
}
"""First measurement of the empty servers, with 32 clients. What is further off than a quarter is explained in docs/decisions/performance.md."""

QUARTER = 0.25


def absent(told: Mapping[str, Any]) -> list[str]:
    """Fixed names without a number or without their spread."""
    return [name for name in FIXED if not _is_number(told.get(name)) or not all(map(_is_number, told["spread"].get(name, [None])))]


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def verdicts(told: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """Rows: what, measured (lowest – highest), bound, verdict, name."""
    rows: list[tuple[str, ...]] = []
    for bound in BOUNDS:
        verdict = "not tried" if not bound.tried(told) else "met" if bound.met(told) else "**not met**"
        rows.append((bound.what, with_spread(bound.value(told), bound.spread(told)), bound.text, verdict, bound.source))
    return rows


def yardsticks(told: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """Rows: name, measured with the bench's clients, with 32, first measurement, whether within a quarter of it."""
    rows: list[tuple[str, ...]] = []
    for name, first in ENVOY_MD.items():
        as_then = told.get(f"{name}_32clients")
        value = told[name] if as_then is None else as_then
        near = abs(value - first) <= QUARTER * first
        spread = tuple(told["spread"][name])
        rows.append(
            (
                name,
                with_spread(told[name], spread),
                "–" if as_then is None else number(as_then),
                number(first),
                "yes" if near else f"no: {value / first - 1:+.0%}",
            )
        )
    return rows


def with_spread(value: float, spread: Sequence[float] | None) -> str:
    if spread is None or spread[0] == spread[1]:
        return number(value)
    return f"{number(value)} ({number(spread[0])} – {number(spread[1])})"


def number(value: float) -> str:
    if abs(value) >= 100 or value == int(value):
        return f"{value:,.0f}"
    return f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}" if abs(value) >= 0.1 else f"{value:.3f}"
