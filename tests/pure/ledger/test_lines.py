"""Rows as COPY reads them: whatever a text says, it stays in its column."""

from __future__ import annotations

import re
from datetime import date
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from extproc.ledger.lines import entry_lines, event_lines, rare_request_lines, request_lines
from extproc.ledger.rows import RARE, UNIX_MS_MAX, empty_row

ID = "018f0000-0000-7000-8000-000000000001"
ENTRY = {"event_id": ID, "line": 0, "kind": "revenue", "name": "m", "user_id": None, "unit": "nanos", "amount": 7}
EVENT: dict[str, Any] = {
    "id": ID,
    "user_id": ID,
    "event_type": "settle",
    "amount": -7,
    "balance_after": 3,
    "charge_nanos": 7,
    "of_id": None,
    "shard": 0,
    "epoch": "e.1",
    "seq": 9,
    "metadata": {},
    "occurred_ms": 1_760_000_000_123,
}
MONEY = {"ending": "settle", "hold_nanos": 10, "cost": 7, "refund_nanos": 3, "loss_nanos": 0, "times": 1, "occurred_ms": 1}
REQUEST = {**empty_row(), **MONEY, "id": ID}
REQUEST_COLUMNS = 39

texts = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\x00"))


def columns(lines: bytes) -> list[list[str | None]]:
    """As PostgreSQL reads them ("Text Format" of COPY)."""
    return [[_column(column) for column in line.split("\t")] for line in lines.decode().removesuffix("\n").split("\n")]


def _column(written: str) -> str | None:
    said = {"t": "\t", "n": "\n", "r": "\r", "\\": "\\"}
    return None if written == r"\N" else re.sub(r"\\(.)", lambda found: said[found[1]], written)


def test_an_event():
    assert columns(event_lines([EVENT])) == [
        [ID, ID, "settle", "-7", "3", "7", None, "0", "e.1", "9", "{}", "2025-10-09T08:53:20.123000+00:00", None, None, None]
    ]
    rare = {"late_period": date(2025, 11, 1), "free_input": 5, "free_output": 0}
    assert columns(event_lines([{**EVENT, **rare}]))[0][-3:] == ["2025-11-01", "5", None]
    late = {**EVENT, "of_id": ID, "seq": None, "shard": None, "metadata": {"why": "a\tb"}}
    assert columns(event_lines([late]))[0][6:11] == [ID, None, "e.1", None, '{"why": "a\\tb"}']


def test_entries_are_a_line_each():
    customer = {**ENTRY, "line": 1, "kind": "customer", "user_id": ID}
    assert [line[4] for line in columns(entry_lines([ENTRY, customer]))] == [None, ID]


@given(name=texts, message=texts, flags=st.lists(texts, max_size=3))
def test_no_text_leaves_its_column(name, message, flags):
    request = {**REQUEST, "model": name, "error_msg": message, "usage_flags": flags}
    first, second = columns(request_lines([request, REQUEST]))
    assert (len(first), first[4], first[27]) == (REQUEST_COLUMNS, name, message)
    assert len(second) == REQUEST_COLUMNS
    ((*_, written, _, _, _),) = columns(entry_lines([{**ENTRY, "name": name}]))
    assert written == name


def test_rare_columns_come_first():
    quantities = {name: number for number, name in enumerate(RARE, 1)}
    (rare,), (ordinary,) = columns(rare_request_lines([{**REQUEST, **quantities}])), columns(request_lines([REQUEST]))
    assert rare == [*map(str, quantities.values()), *ordinary]


@pytest.mark.parametrize("text", [r"\N", r"\.", "None", "", "\r\n"])
def test_what_means_something_to_copy_is_a_text_like_any_other(text):
    assert columns(request_lines([{**REQUEST, "upstream": text}]))[0][28] == text


@pytest.mark.parametrize(
    ("unix_ms", "moment"), [(1, "1970-01-01T00:00:00.001000+00:00"), (UNIX_MS_MAX, "9999-12-31T23:59:59.999000+00:00")]
)
def test_moments(unix_ms, moment):
    assert columns(request_lines([{**REQUEST, "created_ms": unix_ms}]))[0][-2] == moment
