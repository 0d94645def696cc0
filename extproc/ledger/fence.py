"""Order on a shard's stream: what lies beyond the cursor, and whether a sequence number is missing or came twice. Pure.

Violations are told, never acted upon: the poster goes on, the operator is alarmed (MONEY.md, "Where truth is").
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final

from extproc.ledger.port import Cursor
from extproc.ledger.rows import INT8_MAX
from extproc.money.posting import Posting

SEQ_MAX: Final = INT8_MAX - 1  # the one that is expected behind it must be a number of PostgreSQL too


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
    reached = {shard: position(cursor.stream_id) for shard, cursor in cursors.items()}
    violations: list[Violation] = []
    for posting in postings:
        if not posting.stream_id:
            ahead.append(posting)
            continue
        place = position(posting.stream_id)
        if place <= reached[posting.shard]:
            continue
        reached[posting.shard] = place
        ahead.append(posting)
        moved[posting.shard], violation = _step(moved[posting.shard], posting)
        if violation is not None:
            violations.append(violation)
    return ahead, moved, violations


def _step(cursor: Cursor, posting: Posting) -> tuple[Cursor, Violation | None]:
    seq = posting.seq
    # A note has no number. One that no cursor can keep is poison, and would stop its shard even on its way to quarantine.
    if not 0 < seq <= SEQ_MAX or "\x00" in posting.epoch:
        return Cursor(cursor.shard, posting.stream_id, cursor.epoch, cursor.seq), None
    expected = 1 if not cursor.epoch else cursor.seq + 1
    if cursor.epoch not in ("", posting.epoch):
        expected = seq  # after a restart or a promotion nobody can say where the numbers went on
    moved = Cursor(cursor.shard, posting.stream_id, posting.epoch, max(seq, expected - 1))
    if seq == expected:
        return moved, None
    violation = Violation(
        shard=posting.shard,
        kind="gap" if seq > expected else "duplicate",
        epoch=posting.epoch,
        expected_seq=expected,
        seq=seq,
        stream_id=posting.stream_id,
    )
    return moved, violation
