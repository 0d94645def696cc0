"""What travels from a shard's event stream, or past it, into the ledger."""

from __future__ import annotations

from typing import NamedTuple


class Posting(NamedTuple):
    """An ending (settle, void, expire), or a ``note``: the row of a request that never had a hold (amounts and ``seq`` are 0).

    ``stream_id`` "" and ``seq`` 0: it never passed through Redis. ``occurred_ms`` is Redis's time, ``row`` the request's row as JSON.

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
