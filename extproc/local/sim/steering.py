"""How the simulated model shall behave: defaults of the process, overridden by ``x-sim-…`` headers of a request."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from extproc.local.sim.faults import NO_FAULTS, Faults, parse_faults

TOKENS_DEFAULT = 16
"""Output tokens where neither the request nor a header says how many."""

TOKENS_MAX = 1_000_000
DELAY_MS_MAX = 600_000.0
"""Of what may be ordered: no more than a test could wait for."""

REMEMBERED_MAX = 512
"""Different combinations of steering headers; a test run uses a few dozen."""

IMAGE_SIDE_MAX = 65_535
AUDIO_S_MAX = 1_000_000.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Steering:
    """What one answer shall be like."""

    tokens: int | None = None
    """Output tokens per choice; capped by the request's maximum."""
    delay_ms: float = 0.0
    """Between two tokens."""
    first_ms: float = 0.0
    """From the request to the first token."""
    language: str = "mixed"
    cached_tokens: int | None = None
    """Reported in ``prompt_tokens_details`` of the last usage."""
    reasoning: int = 0
    """The first so many tokens are reasoning."""
    reasoning_told: bool = False
    """In ``completion_tokens_details``, as by a vLLM with a reasoning parser that is new enough."""
    tool_calls: int = 0
    """Functions that each choice calls, where the request has tools."""
    cache_creation_tokens: int | None = None
    """Reported by ``/v1/messages``."""
    image_size: tuple[int, int] = (512, 512)
    """(width, height) of images that stand somewhere else."""
    audio_seconds: float | None = None
    """Of sound whose length its file does not say."""
    faults: Faults = NO_FAULTS

    def with_values(self, values: Mapping[str, str]) -> Steering:
        """A copy with what the ``x-sim-…`` headers say. Raises :class:`ValueError`."""
        steering = self
        for name, value in values.items():
            if name not in _FIELDS:
                raise ValueError(f"unknown {name}: there is {', '.join(HEADERS)}")
            steering = replace(steering, **{_FIELDS[name]: _READERS[name](value)})
        return steering


class Steerings:
    """The process's defaults, and a memory of what was parsed."""

    def __init__(self, languages: tuple[str, ...], defaults: Steering) -> None:
        self._languages = languages
        self._defaults = defaults
        self._known: OrderedDict[tuple[str | None, ...], Steering] = OrderedDict()

    @property
    def defaults(self) -> Steering:
        return self._defaults

    def set_defaults(self, values: Mapping[str, str]) -> None:
        """Values as the headers would carry them, by header name without ``x-sim-``; what is not named stays."""
        self._defaults = self._checked(
            self._defaults.with_values({f"x-sim-{name.replace('_', '-')}": value for name, value in values.items()})
        )
        self._known.clear()

    def of(self, headers: Mapping[str, str]) -> Steering:
        """Raises :class:`ValueError` for what is not understood."""
        key = tuple(headers.get(name) for name in HEADERS)
        known = self._known.get(key)
        if known is None:
            given = {name: value for name, value in zip(HEADERS, key, strict=True) if value is not None}
            known = self._known[key] = self._checked(self._defaults.with_values(given))
            if len(self._known) > REMEMBERED_MAX:
                self._known.popitem(last=False)
        return known

    def _checked(self, steering: Steering) -> Steering:
        if steering.language not in self._languages:
            raise ValueError(f"no text in {steering.language}: there is {', '.join(self._languages)}")
        return steering


def _count(value: str) -> int:
    number = int(value)
    if not 0 <= number <= TOKENS_MAX:
        raise ValueError(f"{value} is not between 0 and {TOKENS_MAX}")
    return number


def _milliseconds(value: str) -> float:
    number = float(value)
    if not 0 <= number <= DELAY_MS_MAX:
        raise ValueError(f"{value} is not between 0 and {DELAY_MS_MAX:g} ms")
    return number


def _flag(value: str) -> bool:
    if value not in ("0", "1"):
        raise ValueError(f"{value} is neither 0 nor 1")
    return value == "1"


def _size(value: str) -> tuple[int, int]:
    width, height = (int(side) for side in value.split("x"))
    if not (0 < width <= IMAGE_SIDE_MAX and 0 < height <= IMAGE_SIDE_MAX):
        raise ValueError(f"{value} is no WIDTHxHEIGHT in pixels")
    return width, height


def _seconds(value: str) -> float:
    number = float(value)
    if not 0 <= number <= AUDIO_S_MAX:
        raise ValueError(f"{value} is not between 0 and {AUDIO_S_MAX:g} s")
    return number


_FIELDS = {
    "x-sim-tokens": "tokens",
    "x-sim-delay-ms": "delay_ms",
    "x-sim-first-ms": "first_ms",
    "x-sim-fault": "faults",
    "x-sim-language": "language",
    "x-sim-cached-tokens": "cached_tokens",
    "x-sim-reasoning": "reasoning",
    "x-sim-reasoning-told": "reasoning_told",
    "x-sim-tool-calls": "tool_calls",
    "x-sim-cache-creation-tokens": "cache_creation_tokens",
    "x-sim-image-size": "image_size",
    "x-sim-audio-seconds": "audio_seconds",
}
_READERS: dict[str, Callable[[str], Any]] = {
    "x-sim-tokens": _count,
    "x-sim-delay-ms": _milliseconds,
    "x-sim-first-ms": _milliseconds,
    "x-sim-fault": parse_faults,
    "x-sim-language": str,
    "x-sim-cached-tokens": _count,
    "x-sim-reasoning": _count,
    "x-sim-reasoning-told": _flag,
    "x-sim-tool-calls": _count,
    "x-sim-cache-creation-tokens": _count,
    "x-sim-image-size": _size,
    "x-sim-audio-seconds": _seconds,
}
HEADERS = tuple(_FIELDS)
