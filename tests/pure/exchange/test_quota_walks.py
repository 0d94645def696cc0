"""Free tokens in an exchange: asked for where they save money, used before it, and told with everything that is told of its charge."""

from __future__ import annotations

import json
from typing import Any

import pytest
from stage import DONE, chat, chunk, delta, ends, headers, key, model, pinned, play, usage_event
from stage import granted as plain_grant

from extproc.catalog.model import Tariff
from extproc.exchange import actions as act
from extproc.exchange import events as ev
from extproc.exchange.machine import Exchange
from extproc.exchange.policy import Policy
from extproc.money.hold import Amendment, Denied, DenyReason, EndKind, Granted
from extproc.money.price import Rates
from extproc.money.usage import NO_QUOTA, Quota

PROMPT, BOUND = 11, 33  # of stage.chat(): counted, and held for; 1,000 nanos each, output 2,000
THERE = Quota(input_tokens=5, output_tokens=100)


def granted(quota: Quota) -> Granted:
    return Granted(hold_id=plain_grant().hold_id, spendable_nanos=10**9, quota=quota)


def amendment(exchange: Exchange, there: Quota = THERE, **fields: Any) -> Amendment:
    exchange.receive(headers())
    exchange.receive(ev.KeyRead(key=key()))
    exchange.receive(ev.Admitted(granted=granted(there)))
    (amend,) = exchange.receive(chat(stream=True, **fields))
    assert isinstance(amend, act.Amend)
    assert amend.waits
    return amend.amendment


def streaming(taken: Quota = THERE) -> tuple[Exchange, dict[str, str]]:
    exchange = Exchange(pinned())
    amendment(exchange, max_tokens=200)
    (passed,) = exchange.receive(ev.Amended(granted=granted(taken)))
    assert isinstance(passed, act.PassBody)
    exchange.receive(ev.ResponseHeaders(status=200, headers={"content-type": "text/event-stream"}))
    return exchange, dict(passed.metadata)


def test_what_is_asked_for():
    """All of it if the demand is larger, what is demanded if it is not; money for everything is asked for beside it."""
    asked = amendment(Exchange(pinned()), max_tokens=200)
    assert (asked.quota, asked.reserved_nanos, asked.reserved_beside_nanos) == (THERE, 433_000, 228_000)
    asked = amendment(Exchange(pinned()), Quota(input_tokens=99, output_tokens=99), max_tokens=50)
    assert (asked.quota, asked.reserved_beside_nanos) == (Quota(input_tokens=BOUND, output_tokens=50), 0)
    assert amendment(Exchange(pinned()), NO_QUOTA).quota is NO_QUOTA


@pytest.mark.parametrize(
    ("rates", "quota"),
    [
        (Rates(input=0, output=10**9), Quota(output_tokens=100)),
        (Rates(input=10**9, output=0), Quota(input_tokens=5)),
        (Rates(input=0, output=0, calls=10**9), NO_QUOTA),
    ],
)
def test_no_token_is_taken_that_saves_nothing(rates, quota):
    asked = amendment(Exchange(pinned(model(tariffs=(Tariff(rates=rates),)))), max_tokens=200)
    assert asked.quota == quota


def test_a_quota_needs_no_entry_hold_when_it_is_told_again():
    exchange = Exchange(pinned())
    amendment(exchange)
    assert exchange.tab.admission().entry_nanos == 0


def test_the_charge_and_all_that_tells_of_it():
    exchange, metadata = streaming()
    assert (metadata["free_input"], metadata["free_output"], metadata["cap_nanos"]) == ("5", "100", "228000")
    play(exchange, chunk(delta("x" * 7)))
    (beat,) = exchange.receive(ev.Tick())
    assert isinstance(beat, act.Beat)
    assert (beat.checkpoint.charge_nanos, beat.checkpoint.quota) == (6_000, Quota(input_tokens=5, output_tokens=7))
    (end,) = ends(play(exchange, chunk(delta("", "stop") + usage_event(PROMPT, 130) + DONE)))
    ending = end.ending
    assert (ending.charge_nanos, ending.reserved_nanos, ending.quota) == (6_000 + 60_000, 228_000, THERE)
    row = json.loads(ending.row)
    assert (row["free_input"], row["free_output"], row["cost_nanos"], row["list_nanos"], row["hold_nanos"]) == (
        5,
        100,
        66_000,
        66_000,
        228_000,
    )


def test_what_is_not_used_is_not_in_the_ending():
    exchange, _ = streaming()
    (end,) = ends(play(exchange, chunk(delta("x", "stop") + usage_event(3, 1) + DONE)))
    assert (end.ending.charge_nanos, end.ending.quota) == (0, Quota(input_tokens=3, output_tokens=1))


def test_a_checkpoint_never_falls_though_it_costs_nothing():
    exchange, _ = streaming(Quota(input_tokens=PROMPT, output_tokens=100))
    play(exchange, chunk(delta("x" * 9)))
    (first,) = exchange.receive(ev.Tick())
    exchange.tab.quota = Quota(input_tokens=PROMPT, output_tokens=5)  # as if there had been fewer
    (second,) = exchange.receive(ev.Tick())
    assert isinstance(first, act.Beat)
    assert (first.checkpoint.charge_nanos, first.checkpoint.quota.output_tokens) == (0, 9)
    assert second == first
    (end, _) = exchange.tab.abandon(0)
    assert isinstance(end, act.End)
    assert (end.ending.kind, end.ending.quota) == (EndKind.SETTLE, first.checkpoint.quota)


def test_if_they_are_gone_money_pays_for_everything():
    exchange, metadata = streaming(NO_QUOTA)
    assert "free_input" not in metadata
    assert metadata["cap_nanos"] == "433000"
    (end,) = ends(play(exchange, chunk(delta("x", "stop") + usage_event(PROMPT, 1) + DONE)))
    assert (end.ending.charge_nanos, end.ending.quota) == (13_000, NO_QUOTA)
    assert "free_input" not in json.loads(end.ending.row)


def test_a_void_uses_none():
    exchange, _ = streaming()
    (end,) = ends(play(exchange, ev.Gone(reason="sidecar_error")))
    assert (end.ending.kind, end.ending.quota) == (EndKind.VOID, NO_QUOTA)


def test_who_is_trusted_waits_for_them():
    """Whether they were there has to be known before anything is charged."""
    exchange = Exchange(pinned(policy=Policy(trust_factor=100)))
    assert not amendment(exchange, max_tokens=20).goes_on


def test_an_answer_is_lowered_to_what_money_and_tokens_afford():
    exchange = Exchange(pinned(model(output_tokens_default=1_000)))
    amendment(exchange, Quota(input_tokens=BOUND, output_tokens=300))
    denied = Denied(
        reason=DenyReason.INSUFFICIENT, spendable_nanos=8_000, required_nanos=10**6, quota=Quota(input_tokens=BOUND, output_tokens=290)
    )
    (again,) = exchange.receive(ev.Refused(denied=denied))
    assert isinstance(again, act.Amend)
    assert (again.amendment.quota.output_tokens, again.amendment.reserved_beside_nanos) == (290, 8_000)
    assert again.amendment.tokens == BOUND + 294


def test_shadow_takes_none_and_says_what_would_be_held():
    asked = amendment_in_shadow()
    assert (asked.quota, asked.would_hold_nanos, asked.reserved_nanos) == (NO_QUOTA, 228_000, 0)


def amendment_in_shadow() -> Amendment:
    exchange = Exchange(pinned(policy=Policy(shadow=True)))
    return amendment(exchange, max_tokens=200)
