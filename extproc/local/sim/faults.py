"""What a test may order by ``x-sim-fault``: ``name`` or ``name=value``, joined by commas."""

from __future__ import annotations

from dataclasses import dataclass, fields

from extproc.local.sim.usage import WRONG

LONG_EVENT_BYTES = 262_144
"""Of ``long_event`` without a value: four times what an SSE reader should expect of a line."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Faults:
    """Nothing is wrong unless said. Counts are of events with output, tokens of JSON answers are never cut by them."""

    status: int | None = None
    """Answer with this status and an error object."""
    reset: bool = False
    """TCP reset before the first byte of the response."""
    hang_headers: bool = False
    """Read the request, answer nothing."""
    reset_after: int | None = None
    stall_after: int | None = None
    """Go silent, the connection open."""
    engine_death_after: int | None = None
    """HTTP 200, then an SSE error event and [DONE]; no finish_reason, no usage. JSON: 500."""
    abort_after: int | None = None
    """finish_reason ``abort``, usage if asked for, [DONE]: what SIGTERM does."""
    no_usage: bool = False
    """None at all, whatever was asked for."""
    no_final_usage: bool = False
    """Continuous usage only."""
    wrong_usage: str | None = None
    """A key of ``usage.WRONG``, or ``cached``."""
    split_utf8: bool = False
    """Every event in two writes, torn within a character if it has one of several bytes."""
    byte_by_byte: bool = False
    join: int | None = None
    """So many events a write, each write on its own."""
    crlf: bool = False
    comments: bool = False
    """A comment line before every event."""
    long_event: int | None = None
    """The first event with output carries a member of so many bytes."""
    no_done: bool = False
    """The body ends without [DONE]."""
    incomplete_event: bool = False
    """A cut response ends with ``response.incomplete``, as OpenAI's does; vLLM's is ``response.completed`` with another status."""
    late_eos_ms: int | None = None
    """The body ends so long after [DONE]."""

    @property
    def reshapes(self) -> bool:
        """Whether events are written otherwise than each in a chunk of its own."""
        return self.split_utf8 or self.byte_by_byte or self.join is not None or self.crlf or self.comments or self.long_event is not None


NO_FAULTS = Faults()

_FLAGS = frozenset(field.name for field in fields(Faults) if field.type == "bool")
_NUMBERS = frozenset(field.name for field in fields(Faults) if field.type == "int | None")
_NUMBER_DEFAULTS = {"status": 500, "long_event": LONG_EVENT_BYTES, "late_eos_ms": 5, "join": 2}


def parse_faults(text: str) -> Faults:
    """Raises :class:`ValueError` that names what is not known: a misspelt fault must not look like a passed test."""
    given: dict[str, bool | int | str] = {}
    for word in filter(None, (part.strip() for part in text.split(","))):
        name, _, value = word.partition("=")
        if name == "none":
            continue
        given[name] = _value(name, value)
    return Faults(**given)  # type: ignore[arg-type]


def _value(name: str, value: str) -> bool | int | str:
    if name in _FLAGS and not value:
        return True
    if name in _NUMBERS and (value.isdigit() or (not value and name in _NUMBER_DEFAULTS)):
        return int(value) if value else _NUMBER_DEFAULTS[name]
    if name == "wrong_usage" and (value in WRONG or value == "cached"):
        return value
    raise ValueError(
        f"unknown fault {name}={value}: flags are {sorted(_FLAGS)}, numbers are {sorted(_NUMBERS)}, "
        f"wrong_usage is one of {sorted(WRONG)} or cached"
    )
