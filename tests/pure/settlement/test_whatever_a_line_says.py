"""Whatever stands in a line of the access log: it is understood, or counted as unreadable; and what is booked can be worked out again."""

from __future__ import annotations

import json
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from extproc.ledger.rows import parse_row
from extproc.money.hold import EndKind
from extproc.money.price import Price, Rates
from extproc.money.receipt import cost_nanos
from extproc.money.usage import TOKENS_MAX, Usage
from extproc.settlement.witness_endings import posting_of, to_keep
from extproc.settlement.witness_lines import REQUEST_ID_MAX, read_lines

UUIDS = st.sampled_from(
    ["018bcfe5-6800-7000-8000-000000000001", "018bcfe5-6800-7fff-bfff-ffffffffffff", "00000000-0000-0000-0000-000000000000"]
)
PRICE = Price(model="m", priority="p", tier="t", currency="EUR", rates=Rates(input=1_000_000, cached_input=500_000, output=2_000_000))
NUMBERS = st.one_of(
    st.integers(0, 60),
    st.sampled_from([TOKENS_MAX, TOKENS_MAX + 1, 2**62 - 1, 2**62, -1, 10**30]),
    st.floats(allow_nan=True),
    st.booleans(),
)
WORDS = st.one_of(NUMBERS.map(str), NUMBERS, st.text(max_size=5), st.none(), st.just([]), st.just({}))


@st.composite
def lines(draw: st.DrawFn) -> dict[str, Any]:
    """Nearly true: what the gate says, with some members replaced by anything."""
    tokens = {name: draw(st.integers(0, 50)) for name in ("input_tokens", "output_tokens")}
    cost = tokens["input_tokens"] + 2 * tokens["output_tokens"]
    cap = draw(st.integers(0, 200))
    billing: dict[str, Any] = {"hold_id": draw(UUIDS), "payer_id": draw(UUIDS), "key_id": draw(UUIDS), "price_id": PRICE.price_id}
    billing |= {"cap_nanos": str(cap), "charge_nanos": str(min(cost, cap)), "list_nanos": str(cost), "usage_source": "counted"}
    billing |= {name: str(value) for name, value in tokens.items()}
    billing |= {"delivered": f"{draw(st.integers(0, 500))}/{draw(st.integers(0, 9))}/{draw(st.integers(0, 3))}"}
    line = {"request_id": draw(st.text()), "status": 200, "bytes_sent": draw(st.integers(0, 1_000)), "details": "via_upstream"}
    for name in draw(st.lists(st.sampled_from([*billing, "cached_tokens", "reasoning_tokens"]), max_size=2)):
        if name != "hold_id":
            billing[name] = draw(WORDS)
    for name in draw(st.lists(st.sampled_from([*line]), max_size=1)):
        line[name] = draw(WORDS)
    return {**line, "billing": billing}


@given(lines())
def test_whatever_a_line_says(line: dict[str, Any]):
    statements, unreadable = read_lines([json.dumps(line, separators=(",", ":")).encode()])
    assert len(statements) + unreadable == 1
    rows = [row for row in map(to_keep, statements) if row]
    for kept in rows:
        assert len(kept["request_id"].encode()) <= 4 * REQUEST_ID_MAX
        assert len(json.dumps(kept["figures"])) <= 1_000
        assert max(kept["status"], *kept["figures"][2:6]) <= TOKENS_MAX
        posting = posting_of({**kept, "figures": json.dumps(kept["figures"]), "seen_ms": 1}, PRICE, 3)
        if posting is None:
            continue
        row = parse_row(posting.row)
        usage = Usage(input_tokens=row["input_tokens"], cached_tokens=row["cached_tokens"], output_tokens=row["output_tokens"])
        assert posting.kind == EndKind.EXPIRE
        assert 0 < posting.charge_nanos <= kept["cap_nanos"] == posting.reserved_nanos
        assert posting.charge_nanos == min(cost_nanos(usage, PRICE), kept["cap_nanos"])
        assert row["list_nanos"] - row["overage_nanos"] == posting.charge_nanos
