"""Puts the cost of a request into the usage of its answer, and leaves every other byte as it was."""

from __future__ import annotations

from typing import Any

import msgspec

from extproc.money.amount import format_amount

_USAGE = b'"usage":'  # quotes of a string's inside are escaped: wherever this stands, it is a member of that name
USAGE_BYTES_MAX = 4_096  # backends' have a few hundred
TRIES_MAX = 4  # members of that name, and closing braces in one of them: details have no details


def with_cost(data: bytes, usage: Any, cost_nanos: int) -> bytes:
    """``data``, an event or an answer, with ``cost`` (units of the currency, exactly) behind the last member of this usage object.

    Unchanged if the usage has a cost already, or is not found in it as it was read.
    """
    if not isinstance(usage, dict) or "cost" in usage:
        return data
    at = len(data)
    for _ in range(TRIES_MAX):
        at = data.rfind(_USAGE, 0, at)
        if at < 0:
            return data
        start = data.find(b"{", at + len(_USAGE))
        end = end_of_object(data, start) if start >= 0 else -1
        if end > 0 and _says(data[at + len(_USAGE) : end], usage):
            comma = b"," if usage else b""
            return b'%b%b"cost":%b%b' % (data[: end - 1], comma, format_amount(cost_nanos).encode(), data[end - 1 :])
    return data


def end_of_object(data: bytes, start: int) -> int:
    """Where as many braces are closed as were opened; -1: not near enough."""
    end = start
    for _ in range(TRIES_MAX):
        end = data.find(b"}", end, start + USAGE_BYTES_MAX) + 1
        if not end:
            return -1
        if data.count(b"{", start, end) == data.count(b"}", start, end):
            return end
    return -1


def _says(raw: bytes, usage: dict[str, Any]) -> bool:
    try:
        return bool(msgspec.json.decode(raw) == usage)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return False
