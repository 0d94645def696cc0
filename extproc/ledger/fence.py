"""Order on a shard's stream: what lies beyond the cursor, and whether a sequence number is missing or came twice. Pure.

Violations are told, never acted upon: the poster goes on, the operator is alarmed (MONEY.md, "Where truth is").
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from extproc.ledger.port import Cursor, Posting


@dataclass(frozen=True, slots=True, kw_only=True)
class Violation:
    """``gap``: numbers from ``expected_seq`` to ``seq`` − 1 never came. ``duplicate``: ``seq`` was there before."""

    shard: int
    kind: str
    epoch: str
    expected_seq: int
    seq: int
    stream_id: str


def position(stream_id: str) -> tuple[int, int]:
    """``"1700000000000-3"`` as a pair that sorts. ``ValueError`` if it is none."""
    milliseconds, _, number = stream_id.partition("-")
    return int(milliseconds), int(number or 0)


def advance(postings: Iterable[Posting], cursors: Mapping[int, Cursor]) -> tuple[list[Posting], dict[int, Cursor], list[Violation]]:
    """Postings beyond their cursor, the cursors after them, and what was wrong with the numbers on the way.

    A posting without a stream id came past Redis: it is always let through, and moves no cursor.
    """
    ahead: list[Posting] = []
    moved = dict(cursors)
    violations: list[Violation] = []
    for posting in postings:
        if not posting.stream_id:
            ahead.append(posting)
            continue
        cursor = moved[posting.shard]
        if position(posting.stream_id) <= position(cursor.stream_id):
            continue
        ahead.append(posting)
        moved[posting.shard], violation = _step(cursor, posting)
        if violation is not None:
            violations.append(violation)
    return ahead, moved, violations


def _step(cursor: Cursor, posting: Posting) -> tuple[Cursor, Violation | None]:
    if posting.seq <= 0:  # a note has no number
        return replace(cursor, stream_id=posting.stream_id), None
    expected = 1 if not cursor.epoch else cursor.seq + 1
    if cursor.epoch not in ("", posting.epoch):
        expected = posting.seq  # after a restart or a promotion nobody can say where the numbers went on
    moved = Cursor(shard=cursor.shard, stream_id=posting.stream_id, epoch=posting.epoch, seq=max(posting.seq, expected - 1))
    if posting.seq == expected:
        return moved, None
    violation = Violation(
        shard=posting.shard,
        kind="gap" if posting.seq > expected else "duplicate",
        epoch=posting.epoch,
        expected_seq=expected,
        seq=posting.seq,
        stream_id=posting.stream_id,
    )
    return moved, violation
