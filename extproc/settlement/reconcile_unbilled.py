"""Traffic that nobody is billed for: the token counters of the backends themselves (vLLM's ``/metrics``) against our rows, per model.

Whoever reaches a backend past Envoy, or through a route without the filter, shows up here and nowhere else. Over ten minutes their
tokens may exceed ours by one in a hundred, and by what is in flight: that they have counted, and we have not yet.
"""

from __future__ import annotations

import asyncio
import re
from collections import defaultdict, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Protocol

from extproc.settlement.meter import Meter, Series
from extproc.settlement.pace import Pace, keep_doing

LOOK_S: Final = 60.0
WINDOW_LOOKS: Final = 10  # minutes
TOLERANCE: Final = 0.01
TOKENS_MIN: Final = 1_000  # of a window: an operator's one request by hand is no alarm
TOKENS_A_REQUEST: Final = 8_192  # believed of one in flight while we have billed none
TAIL: Final = 4  # the long ones among those in flight are longer than the mean of those that ended
LINES_MAX: Final = 20_000  # of one page; vLLM's has some hundred

_LINE: Final = re.compile(r"vllm:(?P<name>\w+)\{(?P<labels>.*)\} (?P<value>[0-9.eE+]+)\s*$", re.ASCII)
_MODEL: Final = re.compile(r'(?:^|,)model_name="((?:[^"\\]|\\.)*)"')
_TOKENS: Final = frozenset({"prompt_tokens_total", "generation_tokens_total"})
_IN_FLIGHT: Final = frozenset({"num_requests_running", "num_requests_waiting"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Billed:
    """Of one model since the last look."""

    tokens: int
    requests: int


class Backends(Protocol):
    """Where their figures come from."""

    async def page(self, url: str) -> str | None:
        """``/metrics`` of a backend; ``None``: it does not answer."""


class Bills(Protocol):
    """Where ours come from."""

    async def billed(self) -> dict[str, Billed]:
        """By model: what was booked since the last call; the first call only sets the mark. :class:`~extproc.errors.StoreError`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Look:
    """Growth since the look before; ``in_flight`` now."""

    theirs: int
    ours: Billed
    in_flight: int


class Counters:
    """Of one backend. A counter that fell has begun anew: what it says is what has grown."""

    def __init__(self, served_name: str) -> None:
        self._served_name = served_name
        self._before: dict[str, int] | None = None

    def growth(self, page: str) -> tuple[int, int]:
        """Tokens since the last page (none with the first), requests in flight."""
        tokens: dict[str, int] = {}
        in_flight = 0
        for name, labels, value in self._own(page):
            if name in _TOKENS:
                tokens[name + labels] = value
            else:
                in_flight += value
        before, self._before = self._before, tokens
        if before is None:
            return 0, in_flight
        return sum(value - before.get(key, 0) if value >= before.get(key, 0) else value for key, value in tokens.items()), in_flight

    def _own(self, page: str) -> list[tuple[str, str, int]]:
        """Of our model; of all, where none is called as the catalog says (a backend may have several names for one model)."""
        found = list(_samples(page))
        own = [(name, labels, value) for name, labels, model, value in found if model == self._served_name]
        return own or [(name, labels, value) for name, labels, _, value in found]


def _samples(page: str) -> Iterator[tuple[str, str, str, int]]:
    for line in page.split("\n", LINES_MAX)[:LINES_MAX]:
        match = _LINE.match(line)
        if match and match["name"] in _TOKENS | _IN_FLIGHT:
            model = _MODEL.search(match["labels"])
            yield match["name"], match["labels"], model[1] if model else "", int(float(match["value"]))


def unbilled_ratio(looks: Sequence[Look]) -> float:
    """Of their tokens the part that is neither billed nor in flight.

    Ours have one look more: what ended by their last one is booked by now.
    """
    theirs = sum(look.theirs for look in looks[:-1])
    if len(looks) < 2 or theirs < TOKENS_MIN:
        return 0.0
    ours = sum(look.ours.tokens for look in looks)
    requests = sum(look.ours.requests for look in looks)
    a_request = TAIL * ours // requests if requests else TOKENS_A_REQUEST
    return max(0, theirs - ours - looks[-2].in_flight * a_request) / theirs


class Unbilled:
    """``models``: name → its name at the backends and their ``/metrics``. ``tell`` is told the ratio of every model at every look."""

    def __init__(
        self,
        *,
        models: Mapping[str, tuple[str, Sequence[str]]],
        backends: Backends,
        bills: Bills,
        leads: Callable[[], bool],
        tell: Callable[[str, float], None],
        meter: Meter,
        pace: Pace,
    ) -> None:
        self._models = models
        self._backends = backends
        self._bills = bills
        self._leads = leads
        self._tell = tell
        self._meter = meter
        self._pace = pace
        self._forget()

    def _forget(self) -> None:
        self._counters = {(model, url): Counters(served) for model, (served, urls) in self._models.items() for url in urls}
        self._looks: dict[str, deque[Look]] = {model: deque(maxlen=WINDOW_LOOKS + 1) for model in self._models}
        self._ours: dict[str, list[Billed]] = defaultdict(list)

    async def run(self) -> None:
        """Until the pace is over."""
        if self._models:
            await keep_doing(self.step, pace=self._pace, meter=self._meter, failures=Series.RECONCILE_FAILURES)

    async def step(self) -> float:
        """One look at all backends. A model of which one does not answer is looked at the next time, for both intervals."""
        if not self._leads():
            self._forget()
            return LOOK_S
        for model, billed in (await self._bills.billed()).items():
            if model in self._models:
                self._ours[model].append(billed)
        await asyncio.gather(*(self._look(model, urls) for model, (_, urls) in self._models.items()))
        return LOOK_S

    async def _look(self, model: str, urls: Sequence[str]) -> None:
        pages = await asyncio.gather(*(self._backends.page(url) for url in urls))
        if None in pages:
            self._meter.add(Series.BACKENDS_AWAY)
            return
        grown = [self._counters[model, url].growth(page) for url, page in zip(urls, pages, strict=True) if page is not None]
        ours = self._ours.pop(model, [])
        billed = Billed(tokens=sum(one.tokens for one in ours), requests=sum(one.requests for one in ours))
        looks = self._looks[model]
        looks.append(Look(theirs=sum(tokens for tokens, _ in grown), ours=billed, in_flight=sum(count for _, count in grown)))
        self._tell(model, unbilled_ratio(tuple(looks)) if len(looks) > WINDOW_LOOKS else 0.0)
