from __future__ import annotations

import shutil
from collections.abc import Iterator

import pytest
from house import Guest, House, short_directory
from upstack import Up, up_and_running


@pytest.fixture(scope="session")
def house() -> Iterator[House]:
    """One for all tests that break nothing."""
    directory = short_directory()
    built = House(directory)
    yield built
    built.stop()
    shutil.rmtree(directory, ignore_errors=True)


@pytest.fixture
def guest(house: House) -> Iterator[Guest]:
    """A fresh account with money and a key without limits."""
    yield house.guest()
    house.close_clients()


@pytest.fixture(scope="session")
def up() -> Iterator[Up]:
    """What `extproc up` runs."""
    yield from up_and_running()
