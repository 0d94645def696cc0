"""Work that goes on in a few lanes at once, and in order within each."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from types import TracebackType
from typing import Any, ParamSpec, Self

Args = ParamSpec("Args")


class Lanes:
    """``begin`` returns when the job has begun. A lane begins nothing behind a job that failed; at the end all of them are waited for."""

    def __init__(self, count: int) -> None:
        self._last: list[asyncio.Task[None] | None] = [None] * count

    async def begin(self, lane: int, job: Callable[Args, Coroutine[Any, Any, None]], *args: Args.args, **fields: Args.kwargs) -> None:
        """As soon as the lane's last job is done; raises what that one raised."""
        last = self._last[lane]
        if last is not None:
            await last
        self._last[lane] = asyncio.create_task(job(*args, **fields))

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """The first failure of a lane is raised, unless the block has failed itself. No lane is left behind that still works."""
        results = await asyncio.gather(*(last for last in self._last if last is not None), return_exceptions=True)
        for result in results:
            if error is None and isinstance(result, BaseException):
                raise result
