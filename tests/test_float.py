"""Money never meets a float: no literal, no conversion, no true division, no rounding function of floats in money and ledger."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("money", "ledger")
SQL_TYPES = ("double precision", "float", "real", "money")


def faults_of(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        line = getattr(node, "lineno", 0)
        if isinstance(node, ast.Constant) and isinstance(node.value, float | complex):
            yield f"{line}: the literal {node.value!r}"
        elif isinstance(node, ast.Name) and node.id in ("float", "round"):
            yield f"{line}: the name {node.id}"
        elif isinstance(node, ast.BinOp | ast.AugAssign) and isinstance(node.op, ast.Div):
            yield f"{line}: true division"
        elif (isinstance(node, ast.Import) and any(alias.name == "math" for alias in node.names)) or (
            isinstance(node, ast.ImportFrom) and node.module == "math"
        ):
            yield f"{line}: math"


@pytest.mark.parametrize("package", PACKAGES)
def test_no_float(package):
    paths = sorted((ROOT / "extproc" / package).rglob("*.py"))
    assert paths
    faults = [f"{path.relative_to(ROOT)}:{fault}" for path in paths for fault in faults_of(ast.parse(path.read_text()))]
    assert not faults, "\n".join(faults)


@pytest.mark.parametrize("package", ["ledger", "accounts", "stores"])
def test_no_float_in_sql(package):
    """Columns of money are bigint or numeric."""
    for path in sorted((ROOT / "extproc" / package).rglob("*.sql")):
        code = "\n".join(line.partition("--")[0] for line in path.read_text().lower().splitlines())
        words = code.replace("(", " ").replace(")", " ").replace(",", " ").replace("::", " ").split()
        assert not [kind for kind in SQL_TYPES if kind in words or f"::{kind}" in code], path


@pytest.mark.parametrize(
    "source", ["x = 1.5", "x = float(y)", "x = a / b", "x /= 2", "import math", "from math import ceil", "x = round(y)", "x: float"]
)
def test_the_test_finds_what_it_looks_for(source):
    assert list(faults_of(ast.parse(source)))
