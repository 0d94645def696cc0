"""README's table and plot, made from ``result.json`` and never by hand: ``python -m tests.bench.readme`` makes them of the last run."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .bounds import verdicts
from .chart import chart
from .figures import RESULT
from .tables import table

ROOT = Path(__file__).parents[2]
README, PLOT = ROOT / "README.md", ROOT / "docs/bench.svg"
BEGIN, END = "<!-- bench: written by python -m tests.bench --readme -->", "<!-- bench: end -->"


def section(told: Mapping[str, Any]) -> str:
    """What stands between the marks."""
    about = told["about"]
    rows = [row[:-1] for row in verdicts(told)]
    how = (
        f"Measured on {about['date']} by `make bench` ({about['plan']} plan, {about['rounds']} rounds): {about['cores']} cores of "
        f"{about['processor']} for everything together, {about['gate_workers']} gate worker, {about['transport']} transport, 16 clients, "
        "real Envoy, Valkey (AOF) and PostgreSQL (fsync), a simulated vLLM. CPU is the operating system's accounting; a figure is the median "
        "of the rounds, in brackets the lowest and the highest. "
        "The empty servers answer Envoy with constants in the same modes and do nothing else. What was served is compared with what was billed. "
        "[How it is measured](docs/decisions/performance.md)."
    )
    parts = [BEGIN, "![CPU of a request](docs/bench.svg)", table(("what", "median (lowest – highest)", "bound", ""), rows), how, END]
    return "\n\n".join(parts)


def with_section(text: str, told: Mapping[str, Any]) -> str:
    before, began, rest = text.partition(BEGIN)
    _, ended, after = rest.partition(END)
    assert began, "README.md has lost the mark where the bench's section begins"
    assert ended, "README.md has lost the mark where the bench's section ends"
    return before + section(told) + after


def publish(told: Mapping[str, Any]) -> None:
    README.write_text(with_section(README.read_text(), told))
    PLOT.write_text(chart(told))


if __name__ == "__main__":
    publish(json.loads(RESULT.read_text()))
