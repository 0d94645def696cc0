"""What travels from a shard's event stream, or past it, into the ledger."""

from __future__ import annotations

import json
from typing import NamedTuple

from extproc.money.usage import TOKENS_MAX


class Posting(NamedTuple):
    """An ending (settle, void, expire), or a ``note``: the row of a request that never had a hold (amounts and ``seq`` are 0).

    ``stream_id`` "" and ``seq`` 0: it never passed through Redis. ``occurred_ms`` is Redis's time, ``row`` the request's row as JSON.
    ``free_input`` and ``free_output``: tokens of its payer's quota that it has used.

    Not validated: what arrives here may be poison, and poison is booked as a conflict, not raised. A tuple, because a backlog is made of
    these, tens of thousands a second; a frozen dataclass takes six times as long.
    """

    shard: int
    stream_id: str
    kind: str
    hold_id: str
    payer_id: str
    key_id: str
    charge_nanos: int
    reserved_nanos: int
    epoch: str
    seq: int
    occurred_ms: int
    row: bytes
    free_input: int = 0
    free_output: int = 0

    @property
    def used(self) -> tuple[int, int, int]:
        """Charge, and tokens of the quota: two postings of one hold say the same, one of them says more, or they contradict each other."""
        return self.charge_nanos, self.free_input, self.free_output


def with_quota(posting: Posting) -> Posting:
    """An ending as its row says it, for whoever keeps rows and nothing of free tokens beside them. Of an unreadable row: none were used."""
    if b'"free_' not in posting.row:
        return posting
    try:
        fields = json.loads(posting.row)
        return posting._replace(free_input=_tokens(fields.get("free_input", 0)), free_output=_tokens(fields.get("free_output", 0)))
    except (ValueError, AttributeError, RecursionError):
        return posting


def _tokens(value: object) -> int:
    if type(value) is not int or not 0 <= value <= TOKENS_MAX:
        raise ValueError(f"no number of tokens: {value!r}"[:100])
    return value
