"""``extproc up`` and ``extproc down``: a stack on a directory, in the foreground or in a session of its own.

Whoever runs the stack holds the lock of its directory, so that there is never a second one, and ``down`` knows whom to ask to leave.
``python -m extproc.local.up`` is the background half of ``up --detach``: it tells its progress on stdout, one JSON object a line.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from types import FrameType
from typing import Any, Final

from extproc.errors import ExtprocError, UsageError
from extproc.local.engine import POLL_S
from extproc.local.places import SETTINGS, claim, claimant, lives, prepare, write_private
from extproc.local.stack import Plan, Say, Stack, drain_s

LOOK_S: Final = 1.0
"""Between two looks at who is alive: pids of replaced workers are in up.json so soon."""

DOWN_S: Final = 120.0
"""For ``down``, beyond drain.grace_s for live streams: charges that are made safe and posted, and a checkpoint of PostgreSQL."""


class Asked(BaseException):
    """SIGTERM or Ctrl-C: raised in the main thread, wherever it is."""


@contextmanager
def running(data: Path, plan: Plan, *, say: Say) -> Iterator[Stack]:
    """A started stack for the length of a block, which SIGTERM and Ctrl-C end early; it is stopped in order whatever happens."""
    places = prepare(data)
    with claim(places.data), _signals():
        stack = Stack(places, plan, say)
        try:
            stack.start()
            yield stack
        finally:
            _deaf()
            stack.stop()


def run(data: Path, plan: Plan, *, say: Say, ready: Callable[[dict[str, Any]], None]) -> None:
    """Until SIGTERM or Ctrl-C. ``ready(facts)`` is called once it serves."""
    try:
        with running(data, plan, say=say) as stack:
            facts = stack.facts()
            write_private(stack.places.facts, _text(facts))
            ready(facts)
            _watch(stack, facts, say)
    except Asked:
        say("stopped")


def detach(data: Path, plan: Plan, *, say: Say) -> dict[str, Any]:
    """Start it in a session of its own; what ``up.json`` says, once it serves."""
    places = prepare(data)
    pid = claimant(places.data)
    if pid is not None:
        raise UsageError(f"a stack is running on {places.data} already (process {pid}): `extproc down --data {places.data}` ends it")
    with (places.logs / "up.log").open("wb") as log:
        child = subprocess.Popen(  # noqa: S603 - our own argv, no shell
            [sys.executable, "-m", "extproc.local.up", json.dumps({"data": str(places.data), **asdict(plan)}, default=str)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=log,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)},
            start_new_session=True,
        )
    try:
        told = _follow(child, say)
    except BaseException:
        child.terminate()  # nobody waits for it any more: it stops what it has started
        raise
    if "facts" in told:
        facts: dict[str, Any] = told["facts"]
        return facts
    raise UsageError(
        told.get("error")
        or f"the stack ended at its start; {places.logs / 'up.log'} says:\n{(places.logs / 'up.log').read_text()[-2_000:]}"
    )


def _follow(child: subprocess.Popen[bytes], say: Say) -> dict[str, Any]:
    """Pass progress on; what it came to, or nothing if it died without a word."""
    assert child.stdout is not None
    for line in child.stdout:
        told: dict[str, Any] = json.loads(line)
        if "say" not in told:
            return told
        say(told["say"])
    return {}


def down(data: Path, *, say: Say) -> int:
    """End the stack of a directory and wait until it has ended; the pid that it had."""
    pid = claimant(data)
    if pid is None:
        raise UsageError(f"no stack is running on {data}")
    say(f"stopping the stack on {data} (process {pid})")
    os.kill(pid, signal.SIGTERM)
    patience_s = DOWN_S + drain_s(data / SETTINGS)
    end = time.monotonic() + patience_s
    while claimant(data) is not None or lives(pid):
        if time.monotonic() > end:
            raise UsageError(f"process {pid} has not ended within {patience_s:g} s; {data / 'logs'} may say why")
        time.sleep(POLL_S)
    return pid


def _watch(stack: Stack, facts: dict[str, Any], say: Say) -> None:
    """Keep ``up.json`` true, and tell once what died."""
    told: set[str] = set()
    while True:
        time.sleep(LOOK_S)
        for name in stack.ended():
            if name not in told:
                say(f"{name} has ended, though nobody asked it to; see {stack.places.data}")
            told.add(name)
        pids = stack.pids()
        if pids != facts["pids"]:
            facts = {**facts, "pids": pids}
            write_private(stack.places.facts, _text(facts))


@contextmanager
def _signals() -> Iterator[None]:
    def ask(_number: int, _frame: FrameType | None) -> None:
        _deaf()
        raise Asked

    before = {number: signal.signal(number, ask) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _deaf() -> None:
    """From here on we are leaving, and are not to be disturbed: half a stop would cut live streams."""
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)


def _text(facts: dict[str, Any]) -> str:
    return json.dumps(facts, indent=2) + "\n"


def _main(words: dict[str, Any]) -> int:
    """The background half. stdout is a pipe to somebody who leaves as soon as we are ready."""
    listeners = [sys.stdout]

    def tell(**told: Any) -> None:
        try:
            for stream in listeners:
                print(json.dumps(told), file=stream, flush=True)
        except BrokenPipeError:
            listeners.clear()  # whoever started us has left

    def say(text: str) -> None:
        tell(say=text)
        print(f"{time.strftime('%H:%M:%S')} {text}", file=sys.stderr, flush=True)  # noqa: T201 - up.log

    def ready(facts: dict[str, Any]) -> None:
        tell(facts=facts)
        listeners.clear()
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())

    data, catalog = Path(words.pop("data")), words.pop("catalog")
    try:
        run(data, Plan(catalog=Path(catalog) if catalog else None, **words), say=say, ready=ready)
    except (ExtprocError, OSError) as error:
        tell(error=str(error))
        print(error, file=sys.stderr)  # noqa: T201 - up.log
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(_main(json.loads(sys.argv[1])))
