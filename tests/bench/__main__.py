"""``python -m tests.bench [--readme]``: measures, prints, writes ``result.json``; ``QUICK=1`` takes less than three minutes.

``--readme``: the table in README.md and the plot are made anew, from what was measured. Exit code 1: a figure is missing, or streams
of the crowd broke.
"""

# ruff: noqa: T201 - it is there to print
from __future__ import annotations

import asyncio
import dataclasses
import os
import sys

from .bounds import absent
from .figures import RESULT, result, write
from .open_streams import FULL_CROWD, QUICK_CROWD, open_streams
from .plan import FULL, QUICK
from .readme import publish
from .run import measure
from .stage import stage
from .tables import whole

SHORT_S = 10.0  # eleven events of each stream: one that falls out of the window does not make it a slow one
SHORT = dataclasses.replace(FULL_CROWD, hold_s=SHORT_S)
CROWDS = {
    FULL.name: (FULL_CROWD, SHORT, SHORT),
    QUICK.name: (QUICK_CROWD,),
}


def main() -> None:
    plan = QUICK if os.environ.get("QUICK", "0") not in ("", "0") else FULL
    with stage(plan) as running:
        measured = measure(running, plan, say)
    broken = []
    for crowd in CROWDS[plan.name]:
        say(f"{crowd.count} open streams")
        try:
            with stage(plan) as running, measured.part("open streams"):  # a worker whose memory has held nothing yet
                measured.crowds.append(asyncio.run(open_streams(running, crowd)))
        except AssertionError as fault:  # what was measured before is not lost with it
            broken.append(f"{crowd.count} open streams, {crowd.hold_s:.0f} s: {fault}")
    told = result(measured)
    write(told)
    if missing := absent(told):
        sys.exit(f"not measured: {', '.join(missing)}; {'; '.join(broken)}")
    print(whole(told))
    if broken:
        sys.exit("; ".join(broken))
    print(f"\n{plan.name}, {plan.rounds} rounds, {told['about']['took_s']} s; all of it in {RESULT.relative_to(RESULT.parents[2])}")
    if "--readme" in sys.argv[1:]:
        publish(told)


def say(words: str) -> None:
    print(words, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
