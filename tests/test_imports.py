"""Imports only go down the house: every module of ours against the table of the design, lazy imports and type-checking ones included."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).resolve().parent.parent
GENERATED = ROOT / "extproc" / "edge" / "wire"


class Room(NamedTuple):
    """What a package may import of ours (`errors` always), and of others (the standard library always)."""

    ours: tuple[str, ...]
    others: tuple[str, ...] = ()


# The table of the design, row by row, without those of its edges that nobody uses (yet). A driver comes with its companions: psycopg with psycopg_pool, redis with hiredis.
# `local` needs what the extra `local` brings, to make certificates and to be its own first client.
TABLE = {
    "errors": Room(()),
    "money": Room((), ("decimal", "msgspec")),
    "tokens": Room((), ("tiktoken",)),
    "yamlfile": Room((), ("yaml", "msgspec")),
    "stores": Room((), ("redis", "hiredis", "psycopg", "psycopg_pool")),
    "metrics": Room((), ("prometheus_client",)),
    "catalog": Room(("money", "yamlfile"), ("msgspec",)),
    "accounts": Room(("money", "stores")),
    # accounts.scopes is pure and named by the design's closure of pure modules; who refuses by scope is the exchange
    "exchange": Room(("money", "tokens.counter", "tokens.images", "tokens.units", "catalog.model", "accounts.model", "accounts.scopes"), ("msgspec",)),
    "holds": Room(("money", "stores")),
    "ledger": Room(("money", "stores"), ("msgspec",)),  # not in the design's table: a backlog's rows are read by it
    "settlement": Room(("money", "holds.port", "holds.facts", "ledger.port", "ledger.facts", "ledger.entries", "accounts.model", "metrics")),
    "edge": Room(
        ("exchange", "holds.port", "accounts.model", "accounts.directory", "catalog.model", "tokens.counter", "money", "metrics"),
        ("grpc", "google.protobuf", "hpack"),
    ),
    "settings": Room(("exchange.policy", "money", "yamlfile", "settings_kit")),
    "settings_kit": Room(("money", "yamlfile")),
    "checks": Room(("settings", "catalog", "exchange.endpoints", "money", "yamlfile"), ("envoy_data_plane",)),
    "app": Room(
        ("money", "tokens", "stores", "metrics", "catalog", "accounts", "exchange", "holds", "ledger", "settlement", "edge", "settings"),
        ("uvloop",),
    ),
    "local": Room(("app", "settings"), ("cryptography", "httpx", "openai")),
    "local.sim": Room((), ("tiktoken", "uvloop")),  # a witness of ours that shares nothing but the vocabularies
    "cli": Room(("app", "local", "checks", "settings"), ("click",)),
}  # fmt: skip

PURE_CLOSURE = (
    "errors", "money", "exchange", "catalog.model", "accounts.model", "accounts.scopes", "tokens.counter", "tokens.images", "tokens.units", "holds.port", "holds.facts",
    "ledger.port", "ledger.facts",
    "ledger.entries", "ledger.rows", "ledger.plan", "settlement.invariants", "settlement.witness_lines", "settlement.witnessed",
)  # fmt: skip
NOT_PURE = {
    "os",
    "time",
    "random",
    "secrets",
    "socket",
    "asyncio",
    "threading",
    "logging",
    "subprocess",
    "grpc",
    "redis",
    "psycopg",
    "tiktoken",
}
NOT_PURE |= {"prometheus_client", "multiprocessing", "concurrent"}


class Import(NamedTuple):
    """One imported name; ``module`` in full, ``line`` where it stands."""

    module: str
    line: int


def module_name(path: Path) -> str:
    """``extproc/money/price.py`` → ``money.price``; a package is its own name; ``extproc/__init__.py`` is ``""``."""
    parts = path.relative_to(ROOT / "extproc").with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


@cache
def modules() -> dict[str, Path]:
    paths = (path for path in (ROOT / "extproc").rglob("*.py") if GENERATED not in path.parents)
    return {module_name(path): path for path in paths}


def within(name: str, package: str) -> bool:
    return name == package or name.startswith(package + ".")


def room_of(name: str) -> str | None:
    """The longest row of the table that a module belongs to."""
    return max((row for row in TABLE if within(name, row)), key=len, default=None)


@cache
def imports_of(path: Path) -> tuple[Import, ...]:
    """Everything that a file imports, anywhere in it; ``from a import b`` counts as a.b where that is a module."""
    tree = ast.parse(path.read_text(), str(path))
    package = ["extproc", *path.relative_to(ROOT / "extproc").parts[:-1]]
    return tuple(found for node in ast.walk(tree) for found in _imports_of_node(node, package))


def _imports_of_node(node: ast.AST, package: list[str]) -> Iterator[Import]:
    if isinstance(node, ast.Import):
        for alias in node.names:
            yield Import(alias.name, node.lineno)
    elif isinstance(node, ast.ImportFrom):
        start = ".".join(package[: len(package) - node.level + 1]) if node.level else ""
        base = ".".join(part for part in (start, node.module or "") if part)
        for alias in node.names:
            inner = f"{base}.{alias.name}"
            is_module = base.split(".")[0] == "extproc" and _is_module(inner.removeprefix("extproc").lstrip("."))
            yield Import(inner if is_module or base in ("extproc", "google") else base, node.lineno)
    elif isinstance(node, ast.Call) and ast.unparse(node.func) in ("importlib.import_module", "import_module", "__import__"):
        named = node.args[0] if node.args else None
        yield Import(named.value if isinstance(named, ast.Constant) else f"?{ast.unparse(node)}", node.lineno)


def _is_module(name: str) -> bool:
    path = ROOT / "extproc" / Path(*name.split("."))
    return path.is_dir() or path.with_suffix(".py").exists()


def faults_of(name: str, path: Path, imports: tuple[Import, ...]) -> list[str]:
    """What a module imports against its row of the table."""
    row = room_of(name)
    if row is None:
        return [] if name == "" and not imports else [f"{path.name}: package {name!r} has no row in the table of the design"]
    faults = []
    for module, line in imports:
        if module == "extproc.__version__":
            continue
        top = module.split(".")[0]
        if top == "extproc":
            ours = module.removeprefix("extproc").lstrip(".")
            wire = within(ours, "edge.wire") and within(name, "edge")
            good = wire or room_of(ours) == row or within(ours, "errors") or any(within(ours, allowed) for allowed in TABLE[row].ours)
            good = good and not (within(ours, "local.sim") and not within(name, "local"))
        else:
            good = top in sys.stdlib_module_names or any(within(module, allowed) for allowed in TABLE[row].others)
        if not good:
            faults.append(f"extproc/{name.replace('.', '/')}:{line}: {row} may not import {module}")
    return faults


@pytest.mark.parametrize("row", [*TABLE, ""])
def test_a_package_imports_only_what_the_table_allows(row):
    faults = [
        fault for name, path in modules().items() if (room_of(name) or "") == row for fault in faults_of(name, path, imports_of(path))
    ]
    assert not faults, "\n".join(faults)


@pytest.mark.parametrize("name", [name for name in modules() if any(within(name, pure) for pure in PURE_CLOSURE)])
def test_pure_modules_are_pure(name):
    """They import each other, the standard library without clock, IO and chance, and msgspec. Packages' own ``__init__`` are pure too."""
    faults = []
    for module, line in imports_of(modules()[name]):
        ours = module.removeprefix("extproc").lstrip(".") if module.split(".")[0] == "extproc" else None
        if ours is not None:
            good = any(within(ours, pure) for pure in PURE_CLOSURE)
        else:
            top = module.split(".")[0]
            good = top not in NOT_PURE and (top in sys.stdlib_module_names or top == "msgspec")
        if not good:
            faults.append(f"{name}:{line} imports {module}")
    assert not faults, "\n".join(faults)


@pytest.mark.parametrize("package", sorted({pure.split(".")[0] for pure in PURE_CLOSURE} - {"errors"}))
def test_the_packages_of_pure_modules_load_nothing(package):
    """Importing ``catalog.model`` runs ``catalog/__init__.py``: that must not pull the rest in."""
    assert imports_of(modules()[package]) == () or package == "exchange"


@pytest.mark.parametrize("row", TABLE)
def test_what_the_table_allows_is_used(row):
    """An edge that nobody uses would let somebody in who was never thought of."""
    used = {module for name, path in modules().items() if room_of(name) == row for module, _ in imports_of(path)}
    ours = {module.removeprefix("extproc.") for module in used if within(module, "extproc")}
    idle = [allowed for allowed in TABLE[row].ours if not any(within(module, allowed) for module in ours)]
    assert not idle, f"{row} uses nothing of {idle}"


def test_the_table_has_no_circle():
    below: dict[str, set[str]] = {row: {room_of(name) or name for name in room.ours} - {row} for row, room in TABLE.items()}
    while below:
        bottom = [row for row, needs in below.items() if not needs]
        assert bottom, f"a circle among {sorted(below)}"
        below = {row: needs - set(bottom) for row, needs in below.items() if row not in bottom}


@pytest.mark.parametrize(
    ("name", "source", "fault"),
    [
        ("money.x", "import extproc.catalog.model", "money may not import extproc.catalog.model"),
        ("exchange.x", "def f():\n    from extproc.tokens import bpe", "exchange may not import extproc.tokens"),
        ("exchange.x", "from extproc import settings", "exchange may not import extproc.settings"),
        ("holds.x", "import psycopg", "holds may not import psycopg"),
        ("edge.x", "import importlib\nimportlib.import_module('redis')", "edge may not import redis"),
        ("edge.x", "import importlib\nimportlib.import_module(name)", "edge may not import ?importlib"),
        ("local.sim.x", "from ..sim.text import a\nfrom ...money import amount", "local.sim may not import extproc.money.amount"),
        ("local.sim.x", "from extproc.local import valkey", "local.sim may not import extproc.local.valkey"),
        ("cli.x", "from extproc.local.sim import server", "cli may not import extproc.local.sim"),
        ("stuff.x", "", "package 'stuff.x' has no row"),
    ],
)
def test_the_test_finds_what_it_looks_for(name, source, fault):
    path = ROOT / "extproc" / f"{name.replace('.', '/')}.py"
    package = ["extproc", *name.split(".")[:-1]]
    imports = tuple(found for node in ast.walk(ast.parse(source)) for found in _imports_of_node(node, package))
    assert [found for found in faults_of(name, path, imports) if fault in found], faults_of(name, path, imports)
