"""Beyond the cursor, in order, and nothing missing."""

from __future__ import annotations

import pytest

from extproc.ledger.fence import advance, position
from extproc.ledger.port import Cursor
from extproc.money.posting import Posting


def event(stream_id: str, seq: int, epoch: str = "a.1", shard: int = 3) -> Posting:
    return Posting(
        shard=shard,
        stream_id=stream_id,
        kind="settle",
        hold_id="",
        payer_id="",
        key_id="",
        charge_nanos=0,
        reserved_nanos=0,
        epoch=epoch,
        seq=seq,
        occurred_ms=1,
        row=b"",
    )


def run(*events: Posting, cursor: Cursor | None = None):
    return advance(events, {3: cursor or Cursor(shard=3)})


def test_in_order_is_no_violation():
    ahead, moved, violations = run(event("1-0", 1), event("1-1", 2), event("2-0", 0), event("3-0", 3))
    assert len(ahead) == 4
    assert moved[3] == Cursor(shard=3, stream_id="3-0", epoch="a.1", seq=3)
    assert violations == []


def test_what_lies_behind_the_cursor_is_left_out():
    behind, same = event("9-0", 1), event("10-0", 2)
    ahead, moved, violations = run(behind, same, event("10-1", 3), cursor=Cursor(shard=3, stream_id="10-0", epoch="a.1", seq=2))
    assert [posting.stream_id for posting in ahead] == ["10-1"], "ids are compared as numbers, not as text"
    assert (moved[3].seq, violations) == (3, [])


def test_a_gap_is_told_once():
    _, moved, violations = run(event("1-0", 1), event("2-0", 4), event("3-0", 5))
    assert [(one.kind, one.expected_seq, one.seq) for one in violations] == [("gap", 2, 4)]
    assert moved[3].seq == 5


def test_a_number_twice_is_told_and_let_through():
    ahead, moved, violations = run(event("1-0", 1), event("2-0", 1), event("3-0", 2))
    assert len(ahead) == 3
    assert [(one.kind, one.seq) for one in violations] == [("duplicate", 1)]
    assert moved[3].seq == 2


def test_an_epoch_may_begin_anywhere_except_the_first():
    assert run(event("1-0", 7))[2][0].kind == "gap"
    assert run(event("1-0", 7, epoch="b.2"), cursor=Cursor(shard=3, stream_id="0-5", epoch="a.1", seq=9))[2] == []


@pytest.mark.parametrize(("seq", "epoch"), [(2**63 - 1, "a.1"), (2**70, "a.1"), (-5, "a.1"), (2, "a.\x00")])
def test_what_no_cursor_can_keep_is_no_number(seq: int, epoch: str):
    ahead, moved, violations = run(event("1-0", 1), event("2-0", seq, epoch=epoch), event("3-0", 2))
    assert (len(ahead), violations) == (3, [])
    assert moved[3] == Cursor(shard=3, stream_id="3-0", epoch="a.1", seq=2)


def test_what_came_past_redis_moves_no_cursor():
    ahead, moved, violations = advance([event("", 0, shard=5)], {})
    assert (len(ahead), moved, violations) == (1, {}, [])


@pytest.mark.parametrize(("text", "pair"), [("5-3", (5, 3)), ("5", (5, 0))])
def test_positions(text, pair):
    assert position(text) == pair
