"""A request's row on its last way: JSON bytes that others carried → columns that PostgreSQL surely takes. Pure.

What is too long is cut, because a long error message must not cost a charge its row; what has the wrong type or sign is a ``ValueError``.
The columns are those of ``extproc.exchange.record.Record``; a field of a newer program is ignored, so rollouts may overlap.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any, TypeGuard

TEXT_MAX = 200  # names, codes, ids of others
MESSAGE_MAX = 1_000  # an error message: enough to understand, too little to hold a prompt
PRICE_MAX = 65_536  # a price with many factors is 1 KB
FLAGS_MAX = 32
INT4_MAX = 2**31 - 1
INT8_MAX = 2**63 - 1
UNIX_MS_MAX = 2**48 - 1  # what a UUIDv7 can say

_TEXTS = {
    "request_id": TEXT_MAX,
    "model": TEXT_MAX,
    "endpoint": TEXT_MAX,
    "priority": TEXT_MAX,
    "tier": TEXT_MAX,
    "usage_source": TEXT_MAX,
    "end_reason": TEXT_MAX,
    "price_id": TEXT_MAX,
    "error_code": TEXT_MAX,
    "error_msg": MESSAGE_MAX,
    "upstream": TEXT_MAX,
    "price": PRICE_MAX,
}
_INTS = {
    "input_tokens": INT4_MAX,
    "cached_tokens": INT4_MAX,
    "output_tokens": INT4_MAX,
    "reasoning_tokens": INT4_MAX,
    "events": INT4_MAX,
    "status": INT4_MAX,
    "attempts": INT4_MAX,
    "duration_ms": INT4_MAX,
    "ttft_ms": INT4_MAX,
    "list_nanos": INT8_MAX,
    "overage_nanos": INT8_MAX,
    "created_ms": UNIX_MS_MAX,
}
_UUID = re.compile(r"[0-9a-f]{8}-(?:[0-9a-f]{4}-){3}[0-9a-f]{12}", re.ASCII)
_BOOLS = ("stream", "sandbox", "shadow")
_DEFAULTS: dict[str, Any] = {
    **dict.fromkeys(_TEXTS, ""),
    **dict.fromkeys(_INTS, 0),
    **dict.fromkeys(_BOOLS, False),
    "usage_source": "none",
    "usage_flags": [],
    "id": "",
    "user_id": "",
    "creds_id": "",
}

Row = dict[str, Any]


def empty_row() -> Row:
    """The row of a request of which nothing is known but its money."""
    row = _DEFAULTS.copy()
    row["usage_flags"] = []
    return row


def parse_row(data: bytes) -> Row:
    """Every known field, checked, defaults filled in. ``ValueError`` says which field is wrong."""
    try:
        fields = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"the row is not JSON: {str(error)[:TEXT_MAX]}") from error
    if not isinstance(fields, dict):
        raise ValueError("the row is not a JSON object")  # noqa: TRY004 - one kind of error for all that callers tell apart
    row = empty_row()
    for name, value in fields.items():
        check = _CHECKS.get(name)
        if check is not None:
            row[name] = check(name, value)
    if row["cached_tokens"] > row["input_tokens"] or row["reasoning_tokens"] > row["output_tokens"]:
        raise ValueError("cached or reasoning tokens are more than their whole")
    return row


def _integer(name: str, value: object) -> int:
    if type(value) is not int or not 0 <= value <= _INTS[name]:
        raise ValueError(f"{name} is not an integer from 0 to {_INTS[name]}")
    return value


def _boolean(name: str, value: object) -> bool:
    if type(value) is not bool:
        raise ValueError(f"{name} is not a boolean")
    return value


def _id(name: str, value: object) -> str:
    if value == "" or is_uuid(value):
        return value
    raise ValueError(f"{name} is not a UUID")


def _flags(name: str, value: object) -> list[str]:
    if not isinstance(value, list) or len(value) > FLAGS_MAX:
        raise ValueError(f"{name} is not a short list")
    return [_text(name, flag) for flag in value]


def _text(name: str, value: object) -> str:
    if not isinstance(value, str):
        raise ValueError(f"{name} is not a text")  # noqa: TRY004 - one kind of error for all that callers tell apart
    limit = _TEXTS.get(name, TEXT_MAX)
    if value.isascii() and len(value) <= limit and "\x00" not in value:
        return value
    # PostgreSQL has no NUL in text, UTF-8 no lone surrogates; neither is worth losing the row for.
    return value.replace("\x00", "�").encode("utf-8", "replace").decode("utf-8")[:limit]


def is_uuid(value: object) -> TypeGuard[str]:
    """A UUID in its canonical text form, as this program writes them."""
    return isinstance(value, str) and _UUID.fullmatch(value) is not None


# A row has twenty fields and thousands of rows come a second: one look-up a field.
_CHECKS: dict[str, Callable[[str, object], object]] = {
    **dict.fromkeys(_TEXTS, _text),
    **dict.fromkeys(_INTS, _integer),
    **dict.fromkeys(_BOOLS, _boolean),
    **dict.fromkeys(("id", "user_id", "creds_id"), _id),
    "usage_flags": _flags,
}
