"""What an error reply of Redis means for money: certainly not executed, or nobody knows.

``-CODE text`` of a command or script. Scripts that begin with ``#!lua`` are refused as a whole before their first line runs (OOM,
READONLY, MISCONF, …); ours answer ``REFUSED`` when they find fault with their arguments, ``FULL`` when they have no room for
them, and ``FENCED`` when the shard has another epoch than the caller, all before they write. All else may have happened half-way, since
an error does not roll a script back.
"""

from __future__ import annotations

from extproc.errors import StoreError, StoreFenced, StoreRefused, StoreRejected, StoreUnknown

REFUSED = "REFUSED"  # of our own scripts: a repetition is refused as well
FULL = "FULL"  # likewise, for want of room: later there may be some
FENCED = "FENCED"  # likewise: the shard is not in the epoch that the caller knows

NOT_EXECUTED = frozenset(
    {
        "ASK",
        "BUSY",
        "CLUSTERDOWN",
        "CROSSSLOT",
        FULL,
        "LOADING",
        "MASTERDOWN",
        "MISCONF",
        "MOVED",
        "NOAUTH",
        "NOREPLICAS",
        "NOSCRIPT",
        "OOM",
        "READONLY",
        "TRYAGAIN",
        "WRONGPASS",
    }
)


def store_error(text: str) -> StoreError:
    """The exception for an error reply."""
    code = text.split(" ", 1)[0]
    if code == REFUSED:
        return StoreRejected(f"Redis: {text}")
    if code == FENCED:
        return StoreFenced(f"Redis: {text}")
    return StoreRefused(f"Redis: {text}") if code in NOT_EXECUTED else StoreUnknown(f"Redis: {text}")
