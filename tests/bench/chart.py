"""CPU of a request as bars, lowest to highest as a line over each: an SVG by hand, so that nothing has to be installed for it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from xml.sax.saxutils import escape

from .bounds import number

WIDTH, LABEL, PLOT = 860, 250, 470  # px: all, left of the bars, the longest bar
ROW, BAR, HEAD, FOOT = 26, 16, 44, 34
OURS, OTHERS, ENVOY, INK = "#0b6e4f", "#9aa5b1", "#5b7db1", "#333333"
STYLE = (
    f"text {{ font: 13px system-ui, sans-serif; fill: {INK} }} .title {{ font-weight: 600; font-size: 15px }} .small {{ font-size: 11px }}"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Bar:
    words: str
    figure: str
    colour: str


def bars(workload: str) -> tuple[Bar, ...]:
    return (
        Bar(words="extproc: gate worker, all of it", figure=f"worker_cpu_ms_{workload}", colour=OURS),
        Bar(words="empty grpc.aio server", figure=f"empty_grpcio_cpu_ms_{workload}", colour=OTHERS),
        Bar(words="empty server on our transport", figure=f"empty_lean_cpu_ms_{workload}", colour=OTHERS),
        Bar(words="Envoy beside extproc", figure=f"envoy_cpu_ms_{workload}", colour=ENVOY),
        Bar(words="Envoy beside empty grpc.aio", figure=f"envoy_cpu_ms_{workload}_empty_grpcio", colour=ENVOY),
        Bar(words="Envoy alone", figure=f"envoy_cpu_ms_{workload}_direct", colour=ENVOY),
    )


PANELS = {"CPU of a JSON request, ms": bars("json"), "CPU of a stream of 100 events, ms": bars("stream100")}


def chart(told: Mapping[str, Any]) -> str:
    """One panel below the other, each with a scale of its own."""
    parts: list[str] = []
    top = 0
    for title, rows in PANELS.items():
        parts += _panel(title, rows, told, top)
        top += HEAD + ROW * len(rows)
    about = told["about"]
    foot = f"median, lowest and highest of {about['rounds']} rounds · {about['date']} · {about['cores']} cores, {about['processor']}"
    parts.append(_text(8, top + FOOT - 10, foot, "small"))
    size = f'width="{WIDTH}" height="{top + FOOT}" viewBox="0 0 {WIDTH} {top + FOOT}"'
    head = f'<svg xmlns="http://www.w3.org/2000/svg" {size} role="img"><title>CPU of a request</title><style>{STYLE}</style>'
    return "\n".join([head, '<rect width="100%" height="100%" fill="white"/>', *parts, "</svg>"]) + "\n"


def _panel(title: str, rows: Sequence[Bar], told: Mapping[str, Any], top: int) -> list[str]:
    longest = max(told["spread"][bar.figure][1] for bar in rows)
    parts = [_text(8, top + 28, title, "title")]
    for place, bar in enumerate(rows):
        y = top + HEAD + place * ROW
        low, high = (LABEL + PLOT * value / longest for value in told["spread"][bar.figure])
        middle, length = y + BAR / 2, PLOT * told[bar.figure] / longest
        parts.append(_text(8, y + 13, bar.words))
        parts.append(f'<rect x="{LABEL}" y="{y}" width="{length:.1f}" height="{BAR}" fill="{bar.colour}"/>')
        parts.append(f'<path d="M{low:.1f} {middle}H{high:.1f}" stroke="{INK}" stroke-width="1.5"/>')
        parts.append(_text(round(max(high, LABEL + length)) + 8, y + 13, number(told[bar.figure])))
    return parts


def _text(x: float, y: float, words: str, kind: str = "") -> str:
    return f'<text x="{x}" y="{y}"{f" class={chr(34)}{kind}{chr(34)}" if kind else ""}>{escape(words)}</text>'
