"""Amounts: exact in, exact out, one rounding."""

import uuid
from decimal import Decimal
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from extproc.money.amount import BALANCE_NANOS_MAX, DECIMALS, NANOS_PER_UNIT, ceil_nanos, format_amount, parse_amount, parse_scaled
from extproc.money.hold import uuid7

NANOS = st.integers(0, BALANCE_NANOS_MAX)
DIGITS = st.text("0123456789", min_size=1, max_size=12)


@given(NANOS)
def test_what_is_written_is_read_back(nanos):
    assert parse_amount(format_amount(nanos)) == nanos


@given(st.integers(-(10**30), 10**30))
def test_an_amount_is_written_exactly(nanos):
    text = format_amount(nanos)
    assert Fraction(text) == Fraction(nanos, NANOS_PER_UNIT)
    assert len(text.partition(".")[2]) >= 2


@given(whole=DIGITS, decimals=st.text("0123456789", max_size=9))
def test_a_decimal_is_read_exactly(whole, decimals):
    text = f"{whole}.{decimals}"
    assert Fraction(parse_scaled(text, decimals=DECIMALS), 10**DECIMALS) == Fraction(text + "0")


@given(DIGITS, st.text("0123456789", min_size=1, max_size=12), st.integers(0, 9))
def test_a_digit_too_many_is_refused_unless_it_is_zero(whole, decimals, scale):
    text = f"{whole}.{decimals}"
    if decimals[scale:].strip("0"):
        with pytest.raises(ValueError, match=f"more than {scale} decimals"):
            parse_scaled(text, decimals=scale)
    else:
        assert parse_scaled(text, decimals=scale) == Decimal(text).scaleb(scale)


@given(st.text(max_size=50))
def test_any_text_is_an_amount_or_a_value_error(text):
    try:
        nanos = parse_amount(text)
    except ValueError:
        return
    assert 0 <= nanos <= BALANCE_NANOS_MAX
    assert set(text) <= set("0123456789.")


@pytest.mark.parametrize(
    "text",
    ["", ".", "-1", "+1", "1e3", "1E3", " 1", "1 ", "1_000", "nan", "inf", "0x1", "1,5", "1.2.3", "١", "1.50€", "1" * 41],
)
def test_what_is_no_amount(text):
    with pytest.raises(ValueError, match="is not a decimal amount"):
        parse_amount(text)


@pytest.mark.parametrize(
    ("text", "nanos"), [("0", 0), ("1.5", 1_500_000_000), ("0.000000001", 1), (".5", 500_000_000), ("2.", 2 * 10**9), ("007", 7 * 10**9)]
)
def test_what_is_an_amount(text, nanos):
    assert parse_amount(text) == nanos


def test_the_largest_balance():
    assert parse_amount("4000000000") == BALANCE_NANOS_MAX
    assert 2 * BALANCE_NANOS_MAX < 2**63, "Redis adds two balances without overflow"
    with pytest.raises(ValueError, match="above the largest balance"):
        parse_amount("4000000000.000000001")


@pytest.mark.parametrize(
    ("nanos", "text"), [(0, "0.00"), (-1, "-0.000000001"), (1_500_000_000, "1.50"), (-2 * 10**9, "-2.00"), (123, "0.000000123")]
)
def test_how_amounts_look(nanos, text):
    assert format_amount(nanos) == text


@given(st.integers(0, 10**40), st.integers(1, 10**20))
def test_the_one_rounding_goes_up_to_the_next_nano(numerator, denominator):
    nanos = ceil_nanos(numerator, denominator)
    assert 0 <= nanos - Fraction(numerator, denominator) < 1


@given(st.integers(0, 2**48 - 1), st.integers(0, 2**74 - 1))
def test_uuid7_is_one_and_carries_the_clock(unix_ms, random_bits):
    value = uuid.UUID(uuid7(unix_ms=unix_ms, random_bits=random_bits))
    assert (value.version, value.variant) == (7, uuid.RFC_4122)
    assert value.int >> 80 == unix_ms
    assert (((value.int >> 64) & 0xFFF) << 62 | value.int & (2**62 - 1)) == random_bits, "no random bit is lost"
    assert str(value) == uuid7(unix_ms=unix_ms, random_bits=random_bits)


@given(st.integers(0, 2**48 - 2), st.integers(0, 2**74 - 1), st.integers(0, 2**74 - 1))
def test_uuid7_sorts_by_time(unix_ms, one, two):
    assert uuid7(unix_ms=unix_ms, random_bits=one) < uuid7(unix_ms=unix_ms + 1, random_bits=two)
