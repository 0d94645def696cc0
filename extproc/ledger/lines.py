r"""Rows of the three large tables as COPY reads them: a line a row, a tab between columns, ``\N`` for NULL. Pure.

COPY costs the server half of what an INSERT out of JSON does. The columns have the order of the statements ``copy_…`` in sql/posting.sql.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from typing import Any, Final

from extproc.ledger.rows import RARE

NULL: Final = r"\N"
NO_TOKENS: Final = f"{NULL}\t{NULL}"  # of an event that is not about any
MOMENTS_MAX: Final = 4_096  # remembered as text: milliseconds of a backlog repeat themselves

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_ESCAPES: Final = str.maketrans({"\\": r"\\", "\t": r"\t", "\n": r"\n", "\r": r"\r"})

Record = Mapping[str, Any]


def event_lines(events: Iterable[Record]) -> bytes:
    """Of ``billing_events``."""
    return "".join([_event(event) for event in events]).encode()


def entry_lines(entries: Iterable[Record]) -> bytes:
    """Of ``entries``."""
    return "".join([_entry(entry) for entry in entries]).encode()


def request_lines(requests: Iterable[Record]) -> bytes:
    """Of ``requests``."""
    return "".join([_request(request) for request in requests]).encode()


def rare_request_lines(requests: Iterable[Record]) -> bytes:
    """The same of rows that have columns which most have not: these come first."""
    return "".join(["\t".join([str(request[name]) for name in RARE]) + "\t" + _request(request) for request in requests]).encode()


def _event(e: Record) -> str:
    free = f"{e['free_input'] or NULL}\t{e['free_output'] or NULL}" if "free_input" in e else NO_TOKENS
    epoch, metadata = _escaped(e["epoch"], json.dumps(e["metadata"]) if e["metadata"] else "{}")
    return (
        f"{e['id']}\t{e['user_id']}\t{e['event_type']}\t{e['amount']}\t{e['balance_after']}\t{e['charge_nanos']}\t{e['of_id'] or NULL}\t"
        f"{_or_null(e['shard'])}\t{epoch}\t{_or_null(e['seq'])}\t{metadata}\t{_moment(e['occurred_ms'])}\t{e.get('late_period') or NULL}\t"
        f"{free}\n"
    )


def _entry(e: Record) -> str:
    (name,) = _escaped(e["name"])
    return f"{e['event_id']}\t{e['line']}\t{e['kind']}\t{name}\t{e['user_id'] or NULL}\t{e['unit']}\t{e['amount']}\n"


def _request(r: Record) -> str:
    request_id, model, endpoint, priority, tier, source, reason, price_id, code, message, upstream, would_deny, flags, policies = _escaped(
        r["request_id"], r["model"], r["endpoint"], r["priority"], r["tier"], r["usage_source"], r["end_reason"], r["price_id"],
        r["error_code"], r["error_msg"], r["upstream"], r["would_deny"], _array(r["usage_flags"]), _array(r["policies"]),
    )  # fmt: skip
    return (
        f"{r['id']}\t{request_id}\t{r['user_id'] or NULL}\t{r['creds_id'] or NULL}\t{model}\t{endpoint}\t{priority}\t{tier}\t"
        f"{r['stream']}\t{r['input_tokens']}\t{r['cached_tokens']}\t{r['output_tokens']}\t{r['reasoning_tokens']}\t{source}\t{flags}\t{r['events']}\t"
        f"{r['ending']}\t{reason}\t{r['hold_nanos']}\t{r['cost']}\t{r['refund_nanos']}\t{r['list_nanos']}\t{r['overage_nanos']}\t"
        f"{r['loss_nanos']}\t{price_id}\t{r['status']}\t{code}\t{message}\t{upstream}\t{r['attempts']}\t{r['duration_ms']}\t{r['ttft_ms']}\t"
        f"{r['sandbox']}\t{r['shadow']}\t{would_deny}\t{policies}\t{r['times']}\t{_moment(r['created_ms'])}\t{_moment(r['occurred_ms'])}\n"
    )


def _escaped(*texts: str) -> Sequence[str]:
    """Texts of others, so that none of them can end its column. One look at all of them: hardly any needs it."""
    said = "".join(texts)
    return texts if said.isprintable() and "\\" not in said else [text.translate(_ESCAPES) for text in texts]


def _array(texts: Sequence[str]) -> str:
    return "{" + ",".join(['"' + text.replace("\\", r"\\").replace('"', r"\"") + '"' for text in texts]) + "}" if texts else "{}"


def _or_null(number: int | None) -> int | str:
    return NULL if number is None else number


@lru_cache(MOMENTS_MAX)
def _moment(unix_ms: int) -> str:
    return (_EPOCH + timedelta(milliseconds=unix_ms)).isoformat()
