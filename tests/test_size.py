"""Sizes of functions, modules and nesting (STYLE): what does not fit a screen is not read."""

from __future__ import annotations

import ast
import statistics
from collections import Counter
from collections.abc import Iterator
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
GENERATED = ROOT / "extproc" / "edge" / "wire"

FUNCTION_LINES_MAX = 70
FUNCTION_LINES_AIM = 40
FUNCTION_AIM_PERCENT = 95
MODULE_LINES_MAX = 600
MODULE_LINES_MEDIAN_MAX = 150
NESTING_MAX = 3

BLOCKS = (ast.If, ast.For, ast.AsyncFor, ast.While, ast.With, ast.AsyncWith, ast.Try, ast.TryStar, ast.Match)
FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)


@cache
def sources() -> dict[Path, ast.Module]:
    paths = sorted(path for path in (ROOT / "extproc").rglob("*.py") if GENERATED not in path.parents)
    return {path: ast.parse(path.read_text(), str(path)) for path in paths}


def functions() -> Iterator[tuple[str, ast.FunctionDef | ast.AsyncFunctionDef]]:
    for path, tree in sources().items():
        for node in ast.walk(tree):
            if isinstance(node, FUNCTIONS):
                yield f"{path.relative_to(ROOT)}:{node.lineno} {node.name}", node


def lines_of(node: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    assert node.end_lineno is not None
    return node.end_lineno - node.lineno + 1


def depth_of(node: ast.AST) -> int:
    """Blocks within blocks below ``node``. ``elif`` is not deeper than ``if``; an inner function begins anew."""
    deepest = 0
    for field, value in ast.iter_fields(node):
        children = [child for child in (value if isinstance(value, list) else [value]) if isinstance(child, ast.AST)]
        is_elif = isinstance(node, ast.If) and field == "orelse" and len(children) == 1 and isinstance(children[0], ast.If)
        for child in children:
            if not isinstance(child, FUNCTIONS):
                deepest = max(deepest, depth_of(child) + (isinstance(child, BLOCKS) and not is_elif))
    return deepest


def test_no_function_is_long():
    long = [f"{name}: {lines_of(node)} lines" for name, node in functions() if lines_of(node) > FUNCTION_LINES_MAX]
    assert not long, "\n".join(long)


def test_nearly_all_functions_are_short():
    sizes = {name: lines_of(node) for name, node in functions()}
    long = {name: size for name, size in sizes.items() if size > FUNCTION_LINES_AIM}
    assert 100 * len(long) <= (100 - FUNCTION_AIM_PERCENT) * len(sizes), "\n".join(f"{name}: {size} lines" for name, size in long.items())


def test_no_module_is_long():
    sizes = {path: len(path.read_text().splitlines()) for path in sources()}
    long = [f"{path.relative_to(ROOT)}: {size} lines" for path, size in sizes.items() if size > MODULE_LINES_MAX]
    assert not long, "\n".join(long)


def test_modules_are_short_by_half():
    """Empty ``__init__`` files do not count: they would make the median look good."""
    sizes = [len(path.read_text().splitlines()) for path in sources() if path.name != "__init__.py"]
    assert statistics.median(sizes) <= MODULE_LINES_MEDIAN_MAX


def test_nesting_is_shallow():
    deep = [f"{name}: {depth_of(node)} deep" for name, node in functions() if depth_of(node) > NESTING_MAX]
    assert not deep, "\n".join(deep)


def test_depth_is_counted_as_it_is_read():
    tree = ast.parse("def f():\n  if a:\n    for b in c:\n      with d:\n        e\n  elif g:\n    while h:\n      i\n  else:\n    pass\n")
    assert depth_of(tree.body[0]) == 3
    assert depth_of(ast.parse("def f():\n  if a:\n    if b:\n      if c:\n        if d:\n          e\n").body[0]) == 4
    assert depth_of(ast.parse("def f():\n  if a: b\n  elif c: d\n  elif e: f\n  elif g: h\n").body[0]) == 1


def test_no_two_test_modules_share_a_name():
    """pytest imports them by their names: of two, it collects the first and stops."""
    names = Counter(path.name for path in (ROOT / "tests").rglob("test_*.py"))
    assert [name for name, count in names.items() if count > 1] == []
