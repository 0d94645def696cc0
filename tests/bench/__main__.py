"""``python -m tests.bench``: measures, prints the table, writes ``result.json``. ``QUICK=1`` takes less than three minutes."""

# ruff: noqa: T201 - it is there to print
from __future__ import annotations

import os
import sys

from .figures import RESULT, figures, table, write
from .plan import FULL, QUICK
from .run import measure
from .stage import stage


def main() -> None:
    plan = QUICK if os.environ.get("QUICK", "0") not in ("", "0") else FULL
    with stage(plan) as running:
        measured = measure(running, plan, lambda words: print(words, file=sys.stderr, flush=True))
    made = figures(measured)
    write(measured, made)
    print(table(measured, made))
    print(f"\n{plan.name}, {plan.rounds} rounds, {measured.took_s:.0f} s; all of it in {RESULT.relative_to(RESULT.parents[2])}")


if __name__ == "__main__":
    main()
