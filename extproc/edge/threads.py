"""Where long prompts are counted, so that the loop never waits for a tokenizer."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable
from concurrent.futures import Executor
from functools import partial

COUNTS_MAX = 64  # prompts being counted in threads; beyond it they are held for by their bound
COUNTS_EACH_MAX = 4  # of one account, so that nobody takes the threads from everybody


class Threads:
    """A bounded number of jobs, of which each account has a share only."""

    def __init__(self, executor: Executor, *, jobs_max: int = COUNTS_MAX, jobs_each_max: int = COUNTS_EACH_MAX) -> None:
        self._executor = executor
        self._free = jobs_max
        self._jobs_each_max = jobs_each_max
        self._jobs: Counter[str] = Counter()

    def run(self, payer_id: str, job: Callable[[], int]) -> asyncio.Future[int] | None:
        """``None``: too many are waiting already, or too many of this account's."""
        if not self._free or self._jobs[payer_id] >= self._jobs_each_max:
            return None
        self._free -= 1
        self._jobs[payer_id] += 1
        answer = asyncio.get_running_loop().run_in_executor(self._executor, job)
        answer.add_done_callback(partial(self._done, payer_id))
        return answer

    def _done(self, payer_id: str, _answer: asyncio.Future[int]) -> None:
        self._free += 1
        self._jobs[payer_id] -= 1
        if not self._jobs[payer_id]:
            del self._jobs[payer_id]
