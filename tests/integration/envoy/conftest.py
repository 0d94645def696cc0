"""Each test gets an Envoy of its own (0.1 s), over every transport."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
from envoy_stage import Stage, set_up

from extproc.edge.transport.grpcio import GrpcioTransport
from extproc.edge.transport.lean.server import LeanTransport

TRANSPORTS = {"grpcio": GrpcioTransport, "lean": LeanTransport}


@pytest.fixture(params=sorted(TRANSPORTS))
def transport_class(request: pytest.FixtureRequest) -> Any:
    return TRANSPORTS[request.param]


@pytest.fixture
def short_directory() -> Iterator[Path]:
    path = Path(tempfile.mkdtemp(prefix="xe-", dir="/tmp"))
    yield path
    shutil.rmtree(path)


@pytest.fixture
async def stage(transport_class: Any, short_directory: Path) -> AsyncIterator[Stage]:
    """One gate, two models with one backend each."""
    async with set_up(transport_class, short_directory) as stage:
        yield stage


@pytest.fixture
async def two_gates(transport_class: Any, short_directory: Path) -> AsyncIterator[Stage]:
    async with set_up(transport_class, short_directory, gates=2) as stage:
        yield stage
