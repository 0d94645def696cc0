"""Tier and price factor of an account over time."""

from __future__ import annotations

import pytest

from extproc.accounts.model import Account, Change, Key, as_of
from extproc.accounts.terms import changes_of, plain, with_change

NOW = 1_000
PLAIN = Account(id="a", name="n", email="", tier="t")


def after(*changes: Change, now_ms: int = NOW) -> Account:
    """One told after the other."""
    account = PLAIN
    for change in changes:
        account = with_change(account, change, now_ms=now_ms)
    return account


def terms(account: Account | Key, at_ms: int) -> tuple[str, int]:
    found = as_of(account, at_ms)
    return found.tier, found.price_factor


def test_what_is_not_told_beforehand_is_in_force_at_once():
    account = after(Change(at_ms=0, tier="pro"), Change(at_ms=NOW, price_factor=0))
    assert (account.tier, account.price_factor, account.changes) == ("pro", 0, ())


def test_each_change_begins_at_its_moment_and_stays():
    account = after(Change(at_ms=3_000, price_factor=500_000), Change(at_ms=2_000, tier="pro"), Change(at_ms=4_000, tier="max"))
    assert [terms(account, at_ms) for at_ms in (1_999, 2_000, 2_999, 3_000, 4_000, 9_999)] == [
        ("t", 1_000_000), ("pro", 1_000_000), ("pro", 1_000_000), ("pro", 500_000), ("max", 500_000), ("max", 500_000),
    ]  # fmt: skip
    key = Key(id="k", payer_id="a", name="", tier=account.tier, price_factor=account.price_factor, changes=account.changes)
    assert terms(key, 3_000) == ("pro", 500_000)
    assert changes_of(plain(account.changes)) == account.changes


def test_what_is_over_becomes_the_accounts_own():
    account = after(Change(at_ms=2_000, tier="pro"), Change(at_ms=3_000, price_factor=7))
    account = with_change(account, Change(at_ms=5_000, price_factor=9), now_ms=2_500)
    assert (account.tier, account.price_factor) == ("pro", 1_000_000)
    assert [change.at_ms for change in account.changes] == [3_000, 5_000]


@pytest.mark.parametrize(
    ("last", "left"),
    [
        (Change(at_ms=0, tier="x"), [(3_000, None, 7)]),
        (Change(at_ms=2_000, tier="x"), [(2_000, "x", None), (3_000, None, 7)]),
        (Change(at_ms=2_500, tier="x"), [(2_000, "pro", None), (2_500, "x", None), (3_000, None, 7)]),
        (Change(at_ms=0, price_factor=8), [(2_000, "pro", None), (4_000, "max", None)]),
    ],
)
def test_the_last_word_counts(last, left):
    """What was to change the same at its moment or later is dropped; what is before it, and what is of another kind, stays."""
    account = after(Change(at_ms=2_000, tier="pro"), Change(at_ms=3_000, price_factor=7), Change(at_ms=4_000, tier="max"), last)
    assert [(change.at_ms, change.tier, change.price_factor) for change in account.changes] == left
