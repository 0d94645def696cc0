"""Pure tests are for every save of a file: all of them together stay below a bound of CPU time, and a test fails above it."""

from __future__ import annotations

import gc
import os
import time
from collections.abc import Iterator

import pytest

_spent_s = 0.0


@pytest.hookimpl(wrapper=True, trylast=True)
def pytest_pyfunc_call() -> Iterator[None]:
    """What the tests themselves take: pytest's own bookkeeping (a millisecond a test) is not theirs."""
    global _spent_s  # noqa: PLW0603 - one sum for the session
    begin_s = time.thread_time()
    result = yield
    _spent_s += time.thread_time() - begin_s
    return result


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The bound is looked at last."""
    items.sort(key=lambda item: item.name == "test_pure_tests_stay_quick")


@pytest.fixture(scope="session", autouse=True)
def a_small_heap() -> None:
    """What other suites have left is not looked at again after each of these tests (pytest collects garbage: 40 ms a test)."""
    gc.collect()
    gc.freeze()


@pytest.fixture
def spent_s() -> float:
    if os.environ.get("HYPOTHESIS_PROFILE", "quick") != "quick" or "EXTPROC_FUZZ_EXAMPLES" in os.environ:
        pytest.skip("this profile is not the quick one")
    return _spent_s
