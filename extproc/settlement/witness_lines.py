"""What a line of Envoy's access log says of a request whose end the gate has not told."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from extproc.money.hold import EndReason
from extproc.money.usage import NO_QUOTA, RARE, TOKENS_MAX, Quota, UsageSource

_UUID = re.compile(r"[0-9a-f]{8}-(?:[0-9a-f]{4}-){3}[0-9a-f]{12}", re.ASCII).fullmatch
_PRICE_ID = re.compile(r"[0-9a-f]{64}", re.ASCII).fullmatch
REQUEST_ID_MAX = 200  # as the ledger keeps it

# By the beginning of RESPONSE_CODE_DETAILS, as seen on Envoy 1.40 (docs/decisions/witness.md). What is not here does not tell: a lost
# sidecar (ext_proc_error_…) has its reason in the row already, an answer that came whole (via_upstream) in itself.
REASONS = {
    "downstream_remote_": EndReason.CLIENT_GONE,
    "http2.remote_": EndReason.CLIENT_GONE,
    "downstream_local_": EndReason.EDGE_LOST,
    "upstream_reset_": EndReason.UPSTREAM_RESET,
    "upstream_": EndReason.UPSTREAM_ERROR,
    "response_timeout": EndReason.UPSTREAM_ERROR,
    "stream_idle_timeout": EndReason.UPSTREAM_ERROR,
}


class Figures(NamedTuple):
    """What the gate had counted when it said something for the last time, and what of it came later.

    ``later_bytes`` went to the client after that; an event has ``event_bytes`` and ``event_tokens``. 0 bytes an event: nobody can tell.
    ``rare``: quantities of ``money.usage.RARE`` that are not nothing, by name. ``free``: tokens of input and output that the hold has
    taken of its payer's quota.
    """

    charge_nanos: int
    list_nanos: int
    input_tokens: int
    cached_tokens: int
    output_tokens: int
    reasoning_tokens: int
    usage_source: str
    later_bytes: int = 0
    event_bytes: int = 0
    event_tokens: int = 1
    rare: Sequence[tuple[str, int]] = ()
    free: Sequence[int] = (0, 0)

    @property
    def quota(self) -> Quota:
        """The same."""
        return Quota(input_tokens=self.free[0], output_tokens=self.free[1]) if any(self.free) else NO_QUOTA

    @property
    def later_tokens(self) -> int:
        """Worked out of bytes: whole events, the nearest number of them."""
        if not self.event_bytes:
            return 0
        return min((2 * self.later_bytes + self.event_bytes) // (2 * self.event_bytes) * self.event_tokens, TOKENS_MAX - self.output_tokens)


class Terms(NamedTuple):
    """What the hold was made for: enough to charge it without its row."""

    key_id: str
    request_id: str
    status: int
    cap_nanos: int
    price_id: str


class Statement(NamedTuple):
    """``figures`` ``None``: nothing was delivered. ``reason`` "": the line does not tell.

    ``terms`` ``None``: of an older gate, or a stranger.
    """

    hold_id: str
    payer_id: str
    figures: Figures | None
    reason: str
    terms: Terms | None = None


def read_lines(lines: Iterable[bytes]) -> tuple[list[Statement], int]:
    """What the lines say, and how many of them nobody understands.

    JSON has quotes in texts escaped, so that these marks are members and nothing else.
    """
    statements, unreadable = [], 0
    for line in lines:
        if b'"hold_id":"' in line and b'"end_reason":"' not in line:
            try:
                statements.append(_statement(json.loads(line)))
            except (ValueError, TypeError, KeyError, AttributeError, RecursionError, OverflowError):
                unreadable += 1
        elif not (line.startswith(b"{") and line.endswith(b"}")):
            unreadable += 1
    return statements, unreadable


def _statement(line: Any) -> Statement:
    billing = line["billing"]
    payer_id = billing["payer_id"]  # "": a stranger in shadow mode, who holds nothing
    return Statement(
        hold_id=_id(billing["hold_id"]),
        payer_id=_id(payer_id) if payer_id else "",
        figures=_figures(billing, line.get("bytes_sent", 0)),
        reason=reason_of(line["details"] or ""),
        terms=_terms(line, billing) if billing.get("key_id") else None,
    )


def _terms(line: Mapping[str, Any], billing: Mapping[str, str]) -> Terms:
    price_id = billing["price_id"]
    if not isinstance(price_id, str) or not _PRICE_ID(price_id):
        raise ValueError("no price id")
    return Terms(
        key_id=_id(billing["key_id"]),
        request_id=_text(line.get("request_id")),
        status=_tokens(line.get("status") or 0),
        cap_nanos=_amount(billing["cap_nanos"]),
        price_id=price_id,
    )


def _text(value: object) -> str:
    """Whatever a client has sent, as PostgreSQL takes it: half a surrogate pair would stop the whole log."""
    return str(value or "").replace("\0", "")[:REQUEST_ID_MAX].encode("utf-8", "replace").decode()


def _id(text: str) -> str:
    """As the ledger will take it."""
    if not _UUID(text):
        raise ValueError("no id")
    return text


def _figures(billing: Mapping[str, str], sent_bytes: int) -> Figures | None:
    if "charge_nanos" not in billing:
        return None
    charge, sent = _amount(billing["charge_nanos"]), _amount(sent_bytes)
    body_bytes, event_bytes, event_tokens = map(_amount, billing.get("delivered", f"{sent}/0/1").split("/"))
    return Figures(
        charge_nanos=charge,
        list_nanos=_amount(billing.get("list_nanos", charge)),
        input_tokens=_tokens(billing["input_tokens"]),
        cached_tokens=_tokens(billing.get("cached_tokens", 0)),
        output_tokens=_tokens(billing["output_tokens"]),
        reasoning_tokens=_tokens(billing.get("reasoning_tokens", 0)),
        usage_source=UsageSource(billing["usage_source"]).value,
        later_bytes=max(0, sent - body_bytes),
        event_bytes=event_bytes,
        event_tokens=event_tokens,
        rare=tuple([(name, _tokens(billing[name])) for name in RARE if name in billing]),
        free=(_tokens(billing.get("free_input", 0)), _tokens(billing.get("free_output", 0))),
    )


def _amount(text: str | int) -> int:
    amount = int(text)
    if not 0 <= amount < 2**62:
        raise ValueError(f"no amount: {amount}")
    return amount


def _tokens(text: str | int) -> int:
    tokens = _amount(text)
    if tokens > TOKENS_MAX:
        raise ValueError(f"no number of tokens: {tokens}")
    return tokens


def reason_of(details: str) -> str:
    """Of RESPONSE_CODE_DETAILS; "" if they do not tell."""
    return next((reason.value for beginning, reason in REASONS.items() if details.startswith(beginning)), "")
