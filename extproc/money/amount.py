"""Amounts are ``int`` nanos: 10⁻⁹ of the deployment's one currency. 1.50 a million tokens is exactly 1,500 nanos a token.

Text comes in as decimal strings and goes out as decimal strings; a float never appears. There is one rounding, :func:`ceil_nanos`.
"""

from __future__ import annotations

from decimal import Decimal, InvalidOperation

NANOS_PER_UNIT = 1_000_000_000
DECIMALS = 9
# int64 holds 9.2e18; HINCRBY in Redis fails beyond it. 4e9 units leave room for twice a sum of two balances.
BALANCE_NANOS_MAX = 4_000_000_000 * NANOS_PER_UNIT


def parse_scaled(text: str, *, decimals: int) -> int:
    """``"1.50"`` with ``decimals=9`` → ``1_500_000_000``. Exact: ``ValueError`` for anything that does not fit the scale.

    Only plain decimal notation is an amount: no sign, exponent, blanks, underscores, ``nan`` or ``inf``.
    """
    if not text or len(text) > 40 or text.strip("0123456789.") or not text.isascii():
        raise ValueError(f'{text[:40]!r} is not a decimal amount such as "1.50"')
    try:
        value = Decimal(text)
    except InvalidOperation as error:
        raise ValueError(f'{text!r} is not a decimal amount such as "1.50"') from error
    _, digits, exponent = value.as_tuple()
    assert isinstance(exponent, int)
    shift = decimals + exponent
    number = int("".join(map(str, digits)) or "0")
    if shift >= 0:
        return number * int(10**shift)
    quotient, rest = divmod(number, int(10**-shift))
    if rest:
        raise ValueError(f"{text!r} has more than {decimals} decimals")
    return quotient


def parse_amount(text: str) -> int:
    """``"12.5"`` (units of currency) → nanos. ``ValueError`` if it is not exact in nanos or above the cap of a balance."""
    nanos = parse_scaled(text, decimals=DECIMALS)
    if nanos > BALANCE_NANOS_MAX:
        raise ValueError(f"{text!r} is above the largest balance of {BALANCE_NANOS_MAX // NANOS_PER_UNIT}")
    return nanos


def format_amount(nanos: int) -> str:
    """Nanos → the exact decimal, at least two decimals: ``1_500_000_000`` → ``"1.50"``, ``-1`` → ``"-0.000000001"``."""
    sign = "-" if nanos < 0 else ""
    units, rest = divmod(abs(nanos), NANOS_PER_UNIT)
    decimals = f"{rest:09d}".rstrip("0").ljust(2, "0")
    return f"{sign}{units}.{decimals}"


def format_scaled(number: int, *, decimals: int) -> str:
    """The other way round than :func:`parse_scaled`, as short as can be: ``1_500_000_000`` with ``decimals=9`` → ``"1.5"``."""
    assert number >= 0
    units, rest = divmod(number, 10**decimals)
    return f"{units}.{rest:0{decimals}d}".rstrip("0") if rest else str(units)


def ceil_nanos(numerator: int, denominator: int) -> int:
    """The one rounding of this project: a non-negative ratio, up to the next whole nano."""
    assert numerator >= 0
    assert denominator > 0
    return -(-numerator // denominator)
