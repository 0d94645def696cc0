from __future__ import annotations

import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path += [str(Path(__file__).parents[1] / folder) for folder in ("e2e", "integration/holds")]

from breakable import BreakableHouse
from house import Guest
from pair import Pair


class Site:
    """One house for all tests that break something and mend it; another one after a test that could not."""

    def __init__(self) -> None:
        self._house: BreakableHouse | None = None
        self._directories: list[Path] = []

    def house(self) -> BreakableHouse:
        if self._house is None:
            directory = Path(tempfile.mkdtemp(prefix="xc-", dir="/tmp"))
            directory.chmod(0o711)
            self._directories.append(directory)
            self._house = BreakableHouse(directory)
        return self._house

    def demolish(self) -> None:
        if self._house is not None:
            house, self._house = self._house, None
            house.stop()

    def clear(self) -> None:
        self.demolish()
        for directory in self._directories:
            shutil.rmtree(directory, ignore_errors=True)


@pytest.fixture(scope="session")
def site() -> Iterator[Site]:
    built = Site()
    yield built
    built.clear()


@pytest.fixture
def house(site: Site) -> Iterator[BreakableHouse]:
    house = site.house()
    yield house
    house.valkey_proxy.losses.clear()
    if not house.is_whole():
        site.demolish()


@pytest.fixture
def guest(house: BreakableHouse) -> Guest:
    """A fresh account with money and a key without limits."""
    return house.guest()


@pytest.fixture(scope="session")
def pair() -> Iterator[Pair]:
    """Two sidecars behind one Envoy."""
    directory = Path(tempfile.mkdtemp(prefix="xp-", dir="/tmp"))
    directory.chmod(0o711)
    built = Pair(directory)
    yield built
    built.stop()
    shutil.rmtree(directory, ignore_errors=True)
