"""Where long prompts are counted, so that the loop never waits for a tokenizer."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable
from concurrent.futures import Executor
from functools import partial

COUNTS_MAX = 64  # prompts being counted in threads; beyond it they are held for by their bound
COUNTS_EACH_MAX = 4  # of one account, so that nobody takes the threads from everybody


class Share:
    """A bounded number of places, of which each account may have a few only."""

    __slots__ = ("_free", "_places_each", "_taken")

    def __init__(self, *, places: int, places_each: int) -> None:
        self._free = places
        self._places_each = places_each
        self._taken: Counter[str] = Counter()

    def take(self, payer_id: str) -> bool:
        """``False``: all are taken, or all of this account's. Who takes one gives it back."""
        if not self._free or self._taken[payer_id] >= self._places_each:
            return False
        self._free -= 1
        self._taken[payer_id] += 1
        return True

    def give_back(self, payer_id: str) -> None:
        self._free += 1
        self._taken[payer_id] -= 1
        if not self._taken[payer_id]:
            del self._taken[payer_id]


class Threads:
    """A bounded number of jobs, of which each account has a share only."""

    def __init__(self, executor: Executor, *, jobs_max: int = COUNTS_MAX, jobs_each_max: int = COUNTS_EACH_MAX) -> None:
        self._executor = executor
        self._share = Share(places=jobs_max, places_each=jobs_each_max)

    def run(self, payer_id: str, job: Callable[[], int]) -> asyncio.Future[int] | None:
        """``None``: too many are waiting already, or too many of this account's."""
        if not self._share.take(payer_id):
            return None
        answer = asyncio.get_running_loop().run_in_executor(self._executor, job)
        answer.add_done_callback(partial(self._done, payer_id))
        return answer

    def _done(self, payer_id: str, _answer: asyncio.Future[int]) -> None:
        self._share.give_back(payer_id)
