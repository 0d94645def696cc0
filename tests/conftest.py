"""Engines for everybody: real ones, once a session, on Unix sockets with short paths."""

from __future__ import annotations

import os
import shutil
import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import hypothesis
import pytest

from extproc.local import postgres as postgres_engine
from extproc.local import simulator as simulator_engine
from extproc.local import valkey as valkey_engine

TEMPLATE = "extproc_template"

# `quick` keeps the pure tests within their seconds; HYPOTHESIS_PROFILE=thorough looks longer (make fuzz).
# Timings are not asserted: a busy machine is no fault of an example.
BUSY = [hypothesis.HealthCheck.too_slow]
hypothesis.settings.register_profile("quick", max_examples=8, deadline=None, database=None, suppress_health_check=BUSY)
hypothesis.settings.register_profile("thorough", max_examples=2_000, deadline=None, database=None, suppress_health_check=BUSY)
hypothesis.settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "quick"))

TESTS = Path(__file__).parent
PURE = TESTS / "pure"
HOUSES_LAST = ["chaos", "e2e"]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """A house costs a twentieth of a core for as long as it stands, and stands until the session is over: whoever needs none goes first."""

    def place(item: pytest.Item) -> int:
        folder = item.path.relative_to(TESTS).parts[0]
        return 1 + HOUSES_LAST.index(folder) if folder in HOUSES_LAST else 0

    items.sort(key=place)


@pytest.fixture(autouse=True)
def _pure_tests_touch_no_network(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if PURE not in request.path.parents:
        return

    def refuse(*_: object) -> None:
        raise AssertionError("a pure test opened a connection")

    for method in ("connect", "connect_ex", "bind"):
        monkeypatch.setattr(socket.socket, method, refuse)


@pytest.fixture(scope="session")
def engine_directory() -> Iterator[Path]:
    """Short (a socket's path has 107 bytes) and open to enter: as root, PostgreSQL runs as somebody else."""
    directory = Path(tempfile.mkdtemp(prefix="xp-", dir="/tmp"))
    directory.chmod(0o711)
    yield directory
    shutil.rmtree(directory, ignore_errors=True)


@pytest.fixture(scope="session")
def valkey(engine_directory: Path) -> Iterator[valkey_engine.Valkey]:
    server = valkey_engine.start(engine_directory / "valkey")
    yield server
    server.stop()


@pytest.fixture(scope="session")
def postgres(engine_directory: Path) -> Iterator[postgres_engine.Postgres]:
    server = postgres_engine.start(engine_directory / "postgres")
    yield server
    server.stop()


@pytest.fixture
def redis_url(valkey: valkey_engine.Valkey) -> str:
    """The shared Valkey, emptied (scripts too): of use to one test at a time."""
    import redis  # noqa: PLC0415 - pure tests must not load it

    with redis.Redis.from_url(valkey.url) as client:
        client.flushall()
        client.script_flush()
    return valkey.url


@pytest.fixture(scope="session")
def database_template(postgres: postgres_engine.Postgres) -> str:
    """Name of a database with the schema."""
    from extproc.stores import migrations  # noqa: PLC0415 - pure tests must not load it

    migrations.migrate(postgres.create_database(name=TEMPLATE))
    return TEMPLATE


@pytest.fixture
def database(postgres: postgres_engine.Postgres, database_template: str) -> Iterator[str]:
    """DSN of a fresh database with the schema."""
    dsn = postgres.create_database(database_template)
    yield dsn
    postgres.drop_database(urlsplit(dsn).path.removeprefix("/"))


@pytest.fixture(scope="session")
def simulator(engine_directory: Path) -> Iterator[simulator_engine.Simulator]:
    """A simulated vLLM that serves ``sim-model`` and ``other-model``, with built-in words for a vocabulary. Leave its defaults alone."""
    server = simulator_engine.start(engine_directory / "simulator", models=["sim-model", "other-model"])
    yield server
    server.stop()
