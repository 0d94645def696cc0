"""What changes at a moment: one value, or a list of them, the first since ever, each later one from its ``effective_at`` on."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from typing import Protocol, TypeVar

from extproc.yamlfile import Cursor

EFFECTIVE_AT = "effective_at"
DATES_MAX = 64  # of one price, or one tier
MOMENT = r"[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}(:[0-9]{2})?(Z|[+-][0-9]{2}:[0-9]{2})"


class Dated(Protocol):
    """From when on it holds, unix milliseconds; 0: since ever."""

    @property
    def effective_ms(self) -> int: ...


One = TypeVar("One", bound=Dated)


def over_time(at: Cursor, read: Callable[[Cursor, tuple[str, ...]], One], what: str) -> tuple[One, ...]:
    """``read``: one of them, and the keys beside its own that it must have: none, or its moment. Empty: a fault."""
    if not isinstance(at.node.value, list):
        return (read(at, ()),)
    elements = at.elements()
    if not 0 < len(elements) <= DATES_MAX:
        at.fault(f"1 to {DATES_MAX} {what}s are needed, here are {len(elements)}")
        return ()
    found = [read(element, (EFFECTIVE_AT,) if index else ()) for index, element in enumerate(elements)]
    for element, (before, after) in zip(elements[1:], pairwise(found), strict=True):
        if 0 < after.effective_ms <= before.effective_ms:
            element.fault(f"effective_at is not after that of the {what} before it")
    return tuple(found)


def effective_ms(at: Cursor) -> int:
    """The moment that stands there; 0: none does, or it is faulty."""
    node = at.node.get(EFFECTIVE_AT)
    if node is None:
        return 0
    moment = at.child(EFFECTIVE_AT, node)
    text = moment.text("", pattern=MOMENT, what="a moment with its offset, such as 2026-12-01T00:00:00+08:00")
    try:
        return (datetime.fromisoformat(text) - datetime.fromtimestamp(0, UTC)) // timedelta(milliseconds=1) if text else 0
    except ValueError:
        moment.fault(f"{text!r} is no moment: there is no such day or hour")
        return 0
