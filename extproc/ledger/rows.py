"""A request's row on its last way: JSON bytes that others carried → columns that PostgreSQL surely takes. Pure.

What is too long is cut, because a long error message must not cost a charge its row; what has the wrong type or sign is a ``ValueError``.
The fields are those of ``extproc.exchange.record.Record``; a field of a newer program is ignored, so rollouts may overlap.

An ordinary row is recognised as a whole, by a few looks at all its values together; only any other is looked at field by field. Nor does it
have the columns of :data:`RARE`: a row has all of them if it says one.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from typing import Any, Final, TypeGuard

import msgspec

from extproc.money import usage

TEXT_MAX = 200  # names, codes, ids of others
MESSAGE_MAX = 1_000  # an error message: enough to understand, too little to hold a prompt
PRICE_MAX = 65_536  # a price with many factors is 1 KB
FLAGS_MAX = 32
INT4_MAX = 2**31 - 1
INT8_MAX = 2**63 - 1
UNIX_MS_MAX = 253_402_300_799_999  # the last one of the year 9999: as far as Python's calendar goes

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
    "would_deny": TEXT_MAX,
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
}
_LONG_INTS = {
    "hold_nanos": INT8_MAX,
    "cost_nanos": INT8_MAX,
    "list_nanos": INT8_MAX,
    "overage_nanos": INT8_MAX,
    "created_ms": UNIX_MS_MAX,
}
RARE: Final = (*usage.RARE, *usage.FREE_UNITS, "choices")
NOTHING_RARE: Final = dict.fromkeys(RARE, 0)
_BOOLS = ("stream", "sandbox", "shadow")
_IDS = ("id", "user_id", "creds_id")
_LISTS = ("usage_flags", "policies")
_DEFAULTS: Final[dict[str, Any]] = {
    **dict.fromkeys(_IDS, ""),
    **dict.fromkeys(_TEXTS, ""),
    **dict.fromkeys(_INTS, 0),
    **dict.fromkeys(_LONG_INTS, 0),
    **dict.fromkeys(_BOOLS, False),
    **{name: [] for name in _LISTS},
    "usage_source": "none",
}
_TYPES: Final = tuple(map(type, _DEFAULTS.values()))
_TEXTS_AT: Final = slice(len(_IDS), len(_IDS) + len(_TEXTS))
_INTS_AT: Final = slice(_TEXTS_AT.stop, _TEXTS_AT.stop + len(_INTS))
_LONG_INTS_AT: Final = slice(_INTS_AT.stop, _INTS_AT.stop + len(_LONG_INTS))
_DECODER: Final = msgspec.json.Decoder(dict[str, Any])
_ID = r"[0-9a-f]{8}-(?:[0-9a-f]{4}-){3}[0-9a-f]{12}"
_UUID: Final = re.compile(_ID, re.ASCII)
_UUIDS: Final = re.compile(f"(?:{_ID})?,(?:{_ID})?,(?:{_ID})?", re.ASCII)
_UUID_LIST: Final = re.compile(f"{_ID}(?:,{_ID})*", re.ASCII)
_UUID_CHARS: Final = 36

Row = dict[str, Any]


def empty_row() -> Row:
    """The row of a request of which nothing is known but its money."""
    return _DEFAULTS.copy()


def parse_row(data: bytes) -> Row:
    """Every known field, checked, defaults filled in. ``ValueError`` says which field is wrong."""
    row, rare = {**_DEFAULTS, **_object(data)}, {}
    if len(row) > len(_DEFAULTS):
        rare = {name: _integer(name, row[name]) for name in RARE if name in row}
        row = {name: row[name] for name in _DEFAULTS}
    if not _is_ordinary(row):
        row = {name: _CHECKS[name](name, value) for name, value in row.items()}
    if row["cached_tokens"] > row["input_tokens"] or row["reasoning_tokens"] > row["output_tokens"]:
        raise ValueError("cached or reasoning tokens are more than their whole")
    if not rare:
        return row
    if row["cached_tokens"] + rare.get("cache_creation_tokens", 0) > row["input_tokens"]:
        raise ValueError("tokens read from a cache and written to it are more than the input")
    return row | NOTHING_RARE | rare


def _object(data: bytes) -> Row:
    try:
        return _DECODER.decode(data)
    except (ValueError, RecursionError):
        return _patiently(data)


def _patiently(data: bytes) -> Row:
    """What is not quite JSON, as half a pair of surrogates, if Python reads it: not worth losing the row for."""
    try:
        fields = json.loads(data.decode())
    except (ValueError, RecursionError) as error:
        raise ValueError(f"the row is not JSON: {str(error)[:TEXT_MAX]}") from error
    if not isinstance(fields, dict):
        raise ValueError("the row is not a JSON object")  # noqa: TRY004 - one kind of error for all that callers tell apart
    return fields


def _is_ordinary(row: Row) -> bool:
    """Nothing to refuse, to cut or to clean: a dozen texts cost one look instead of twelve."""
    values = tuple(row.values())
    if tuple(map(type, values)) != _TYPES or row["usage_flags"] or row["policies"]:
        return False
    texts, ints, long_ints = values[_TEXTS_AT], values[_INTS_AT], values[_LONG_INTS_AT]
    said = "".join(texts)
    return (
        said.isascii()
        and said.isprintable()
        and (len(said) <= TEXT_MAX or max(map(len, texts)) <= TEXT_MAX)
        and min(ints) >= 0
        and max(ints) <= INT4_MAX
        and min(long_ints) >= 0
        and max(long_ints) <= INT8_MAX
        and row["created_ms"] <= UNIX_MS_MAX
        and are_uuids_or_empty(*values[: len(_IDS)])
    )


def _integer(name: str, value: object) -> int:
    limit = _INTS.get(name) or _LONG_INTS.get(name, INT4_MAX)
    if type(value) is not int or not 0 <= value <= limit:
        raise ValueError(f"{name} is not an integer from 0 to {limit}")
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
    # PostgreSQL has no NUL in text, UTF-8 no lone surrogates; neither is worth losing the row for.
    return value.replace("\x00", "�").encode("utf-8", "replace").decode("utf-8")[: _TEXTS.get(name, TEXT_MAX)]


def is_uuid(value: object) -> TypeGuard[str]:
    """A UUID in its canonical text form, as this program writes them."""
    return isinstance(value, str) and _UUID.fullmatch(value) is not None


def are_uuids_or_empty(one: str, two: str, three: str) -> bool:
    """Each of them a UUID in its canonical form, or "": the three ids of a row or of an event in one look."""
    return _UUIDS.fullmatch(f"{one},{two},{three}") is not None


def are_uuids(ids: Sequence[str]) -> bool:
    """Each of them a UUID in its canonical form; a look at all of them together."""
    text = ",".join(ids)
    return len(text) == (_UUID_CHARS + 1) * len(ids) - 1 and _UUID_LIST.fullmatch(text) is not None


_CHECKS: Final[dict[str, Callable[[str, object], object]]] = {
    **dict.fromkeys(_IDS, _id),
    **dict.fromkeys(_TEXTS, _text),
    **dict.fromkeys((*_INTS, *_LONG_INTS), _integer),
    **dict.fromkeys(_BOOLS, _boolean),
    **dict.fromkeys(_LISTS, _flags),
}
