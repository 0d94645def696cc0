"""Who is trusted does not wait for his hold, if nothing but the balance can stand in its way: all else would be noticed too late, each time."""

from __future__ import annotations

import pytest
from stage import HOLD, chat, headers, key, pinned

from extproc.accounts.model import Key
from extproc.exchange import events as ev
from extproc.exchange.actions import Amend
from extproc.exchange.machine import Exchange
from extproc.exchange.policy import Policy
from extproc.money.hold import NO_LIMITS, Granted, Limits

A_MINUTE = Limits(tokens_per_minute=10**9)


def amend(asking: Key, *, spendable: int = 10**12, tier: Limits = NO_LIMITS) -> Amend:
    exchange = Exchange(pinned(policy=Policy(trust_factor=100), limits=tier))
    exchange.receive(headers())
    exchange.receive(ev.KeyRead(key=asking))
    exchange.receive(ev.Admitted(granted=Granted(hold_id=HOLD, spendable_nanos=spendable)))
    (asked,) = exchange.receive(chat(max_tokens=20))
    assert isinstance(asked, Amend)
    return asked


def test_a_rich_account_does_not_wait():
    asked = amend(key(limits=Limits(requests_per_minute=10**9)))
    assert (asked.waits, asked.amendment.goes_on) == (False, True)
    least = 100 * asked.amendment.reserved_nanos
    assert [amend(key(), spendable=nanos).waits for nanos in (least, least - 1)] == [False, True]


@pytest.mark.parametrize(
    ("asking", "tier"),
    [(key(budget_nanos=10**18), NO_LIMITS), (key(budget_nanos=0), NO_LIMITS), (key(limits=A_MINUTE), NO_LIMITS), (key(), A_MINUTE)],
    ids=["budget", "no budget left", "tokens of the key", "tokens of the account"],
)
def test_what_a_balance_says_nothing_of_is_waited_for(asking: Key, tier: Limits):
    asked = amend(asking, tier=tier)
    assert (asked.waits, asked.amendment.goes_on) == (True, False)
