"""Draws ``docs/reference/exchange.md`` from the table of the machine: ``python tests/pure/exchange/diagram.py --write``.

Where a step can lead is read from its source: the states that it, or a step that it calls, returns.
"""

from __future__ import annotations

import ast
import inspect
import sys
import textwrap
from collections import defaultdict
from functools import cache
from pathlib import Path

from extproc.exchange import endings, request, response
from extproc.exchange.machine import TRANSITIONS
from extproc.exchange.state import State, Step

STOPPABLE = (State.FORWARDED, State.STREAMING)
PAGE = Path(__file__).parents[3] / "docs/reference/exchange.md"
HEAD = """\
# The exchange, drawn from its table

One HTTP request as a state machine. The prose is in `extproc/exchange/machine.py`; this page is generated from its table
(`python tests/pure/exchange/diagram.py --write`) and held to it by a test. Not drawn: `Tick` (renews the lease in OPEN, COUNTING, FORWARDED
and STREAMING, is nothing elsewhere), `Stopped` outside FORWARDED and STREAMING, trailers, and events that change nothing.

"""


def _called(function: ast.AST, module: str) -> set[str]:
    """Steps that a step calls: of its own module, or of another one by name."""
    found = set()
    for call in ast.walk(function):
        match call:
            case ast.Call(func=ast.Name(id=name)):
                found.add(f"{module}.{name}")
            case ast.Call(func=ast.Attribute(value=ast.Name(id=other), attr=name)):
                found.add(f"extproc.exchange.{other}.{name}")
    return found


@cache
def _functions() -> dict[str, ast.FunctionDef]:
    trees = {module.__name__: ast.parse(inspect.getsource(module)) for module in (request, response, endings)}
    return {f"{name}.{node.name}": node for name, tree in trees.items() for node in tree.body if isinstance(node, ast.FunctionDef)}


def targets(step: Step) -> set[State]:
    """The states to which a step can lead."""
    closure = inspect.getclosurevars(step).nonlocals
    if "outcome" in closure:
        return {closure["outcome"][0]}
    if "state" in closure:
        return {closure["state"]}
    functions = _functions()
    found: set[State] = set()
    waiting, seen = [f"{step.__module__}.{step.__name__}"], set()
    while waiting:
        name = waiting.pop()
        if name in seen or name not in functions:
            continue
        seen.add(name)
        for node in ast.walk(functions[name]):
            if isinstance(node, ast.Return) and node.value is not None:
                waiting += _called(node.value, name.rpartition(".")[0])
                source = ast.unparse(node.value)
                found |= {one for one in State if source.startswith(f"(State.{one.name},")}
    return found


def edges() -> dict[tuple[State, State], list[str]]:
    found: dict[tuple[State, State], list[str]] = defaultdict(list)
    for (state, event), step in TRANSITIONS.items():
        if event.__name__ in ("Tick", "Trailers") or (event.__name__ == "Stopped" and state not in STOPPABLE):
            continue
        for target in sorted(targets(step)):
            if target is not state or event.__name__ == "Chunk":
                found[state, target].append(event.__name__)
    return found


def page() -> str:
    lines = [HEAD + "```mermaid", "stateDiagram-v2", "    [*] --> fresh"]
    lines += [f"    {source} --> {target}: {', '.join(sorted(set(events)))}" for (source, target), events in edges().items()]
    lines += ["    closed --> [*]", "```", "", "| state | event | may lead to |", "|---|---|---|"]
    for (state, event), step in TRANSITIONS.items():
        if (event.__name__ == "Stopped" and state not in STOPPABLE) or (
            event.__name__ == "Tick" and not step.__qualname__.startswith("beat_in")
        ):
            continue
        lines.append(f"| {state} | {event.__name__} | {', '.join(sorted(targets(step)))} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    if "--write" in sys.argv:
        PAGE.write_text(page())
    else:
        sys.stdout.write(textwrap.dedent(page()))
