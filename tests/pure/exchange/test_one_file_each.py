"""Everything about an endpoint stands in its one file."""

from __future__ import annotations

import inspect
from pathlib import Path

import pytest

import extproc.exchange
from extproc.exchange.ask import Endpoint
from extproc.exchange.endpoints import BY_PATH, ENDPOINTS

ROOT = Path(extproc.exchange.__file__).parent


@pytest.mark.parametrize("endpoint", ENDPOINTS, ids=lambda endpoint: endpoint.name)
def test_the_paths_of_an_endpoint_stand_in_its_file_only(endpoint: Endpoint):
    own = Path(inspect.getfile(type(endpoint)))
    assert own.parent == ROOT / "endpoints"
    for path in endpoint.paths:
        assert BY_PATH[path] is endpoint
        assert {file for file in ROOT.rglob("*.py") if f'"{path}"' in file.read_text()} == {own}


def test_the_machine_and_the_meters_know_no_endpoint():
    names = {endpoint.name for endpoint in ENDPOINTS}
    for file in ROOT.glob("*.py"):
        text = file.read_text()
        assert not [name for name in names if f'== "{name}"' in text or f'name in ("{name}"' in text], file
        if file.name not in ("doors.py", "tab.py"):
            assert "exchange.endpoints" not in text, file
