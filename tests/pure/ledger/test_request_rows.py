"""What others carried becomes columns, or a clear fault; never something that PostgreSQL refuses."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from extproc.exchange.record import Record
from extproc.ledger.rows import MESSAGE_MAX, RARE, TEXT_MAX, UNIX_MS_MAX, empty_row, is_uuid, parse_row

ID = "018f0000-0000-7000-8000-000000000001"
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


def test_every_field_of_a_record_has_a_home():
    record = Record(id=ID)
    assert set(Record.__struct_fields__) == {*empty_row(), *RARE}
    for name, default in ((name, getattr(record, name)) for name in empty_row() if name != "id"):
        column = empty_row()[name]
        assert (list(default) if isinstance(default, tuple) else default) == column, name


def test_a_record_comes_through_whole():
    record = Record(
        id=ID, user_id=ID, model="m", input_tokens=9, cached_tokens=4, output_tokens=3, usage_flags=("clamped",), stream=True, created_ms=5
    )
    row = parse_row(record.to_row())
    for name in empty_row():
        said = getattr(record, name)
        assert row[name] == (list(said) if isinstance(said, tuple) else said)


def test_rare_quantities_are_carried_where_there_is_one_of_them():
    ordinary = parse_row(Record(id=ID, input_tokens=9, cached_tokens=4, output_tokens=3, reasoning_tokens=1).to_row())
    assert not ordinary.keys() & set(RARE)
    row = parse_row(Record(id=ID, input_tokens=9, cached_tokens=4, cache_creation_tokens=5, images=2, free_output=1).to_row())
    given = {"cache_creation_tokens": 5, "images": 2, "free_output": 1}
    assert {name: row[name] for name in RARE} == dict.fromkeys(RARE, 0) | given


FIELDS = st.fixed_dictionaries(
    {},
    optional={
        "model": st.text(max_size=TEXT_MAX + 5) | st.integers(),
        "upstream": st.sampled_from(["", "x" * TEXT_MAX, "x" * (TEXT_MAX + 1), "\t", "\x00", "é"]),
        "input_tokens": st.integers(-1, 2**31) | st.booleans(),
        "list_nanos": st.integers(-1, 2**63),
        "created_ms": st.sampled_from([0, UNIX_MS_MAX, UNIX_MS_MAX + 1]),
        "stream": st.booleans() | st.integers(0, 1),
        "user_id": st.sampled_from(["", ID, "me", f"{ID},"]),
        "images": st.integers(-1, 2**31),
    },
)


@given(FIELDS)
def test_an_ordinary_row_is_what_it_would_be_field_by_field(fields):
    """A flag makes it none that is recognised as a whole: both ways say the same of the rest."""

    def said(row: dict[str, object]) -> dict[str, object] | None:
        try:
            return {**parse_row(json.dumps(row).encode()), "usage_flags": []}
        except ValueError:
            return None

    assert said(fields) == said({**fields, "usage_flags": ["x"]})


@given(st.dictionaries(st.sampled_from(sorted(empty_row())), json_values, max_size=8))
def test_any_json_is_a_row_or_a_value_error(fields):
    try:
        row = parse_row(json.dumps(fields).encode())
    except ValueError:
        return
    for value in row.values():
        assert not isinstance(value, str) or "\x00" not in value
        assert not isinstance(value, int) or -(2**63) <= value < 2**63


@given(st.binary(max_size=200))
def test_any_bytes_are_a_row_or_a_value_error(data):
    try:
        parse_row(data)
    except ValueError:
        return


@pytest.mark.parametrize(
    "row",
    [
        b"",
        b"[]",
        b"nonsense",
        b"[" * 100_000,
        b'{"input_tokens":-1}',
        b'{"input_tokens":1.5}',
        b'{"input_tokens":true}',
        b'{"input_tokens":2147483648}',
        b'{"model":7}',
        b'{"stream":1}',
        b'{"user_id":"me"}',
        b'{"usage_flags":"x"}',
        b'{"usage_flags":[1]}',
        b'{"user_id":",,"}',
        b"{} {}",
        b'{"input_tokens":1,"cached_tokens":2}',
        b'{"input_tokens":2,"cached_tokens":1,"cache_creation_tokens":2}',
        b'{"images":-1}',
        b'{"free_input":true}',
        b'{"output_words":2147483648}',
    ],
)
def test_rows_that_are_none(row):
    with pytest.raises(ValueError):
        parse_row(row)


def test_texts_are_cut_and_cleaned_not_refused():
    row = parse_row(json.dumps({"model": "m" * 999, "error_msg": "e" * 9_999, "upstream": "a\x00b\ud800c"}).encode())
    assert len(row["model"]) == TEXT_MAX
    assert len(row["error_msg"]) == MESSAGE_MAX
    assert row["upstream"] == "a\ufffdb?c"


def test_a_newer_program_may_say_more():
    assert parse_row(b'{"model":"m","invented_later":1}')["model"] == "m"


@pytest.mark.parametrize("text", ["", "x", ID.upper(), ID + "\n", ID[:-1] + "g", ID.replace("-", "")])
def test_only_canonical_uuids(text):
    assert not is_uuid(text)
    assert is_uuid(ID)
