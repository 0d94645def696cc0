"""Random walks: whatever happens in whatever order, under whatever policies, three promises hold (machine.py)."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st
from stage import DONE, chat, chunk, delta, granted, headers, key, model, pinned, usage_event

from extproc.errors import IllegalEvent
from extproc.exchange import actions as act
from extproc.exchange import events as ev
from extproc.exchange.machine import Exchange, State
from extproc.exchange.policy import Bounds, Policy
from extproc.money.hold import Denied, DenyReason, EndKind, Granted
from extproc.money.statement import Purse, Spent, Statement

FAILED = ev.StoreFailed(what="redis")
WOULD_DENY = Granted(hold_id=granted().hold_id, spendable_nanos=700_000, would_deny=DenyReason.INSUFFICIENT)
TOLD = Statement(purse=Purse(balance_nanos=9, held_nanos=1, credit_nanos=0, total_nanos=9), spent=Spent(credits_nanos=9, told_nanos=9))
ON_ITS_WAY = [headers(), ev.KeyRead(key=key()), ev.Admitted(granted=granted()), chat(stream=True, max_tokens=5)]
EVENTS = st.sampled_from(
    [
        headers(), headers("/v1/nothing"), headers("/v1/models", method="GET", end=True), ev.KeyRead(key=None), ev.KeyRead(key=key()),
        headers("/v1/credits", method="GET", end=True), headers("/v1/models/none", method="GET", end=True), ev.Answered(statement=TOLD),
        ev.KeyRead(key=key(revoked=True)), ev.KeyRead(key=key(sandbox=True)), headers(authorization="Basic x"), FAILED, FAILED,
        ev.Admitted(granted=granted()), ev.Admitted(granted=WOULD_DENY), ev.Refused(denied=Denied(reason=DenyReason.CONCURRENT)),
        ev.Refused(denied=Denied(reason=DenyReason.INSUFFICIENT, spendable_nanos=700_000)), ev.Amended(granted=WOULD_DENY),
        ev.Refused(denied=Denied(reason=DenyReason.MISSING)), ev.Amended(granted=granted()), ev.Counted(tokens=20), ev.Counted(tokens=20_000),
        chat(), chat(stream=True, max_tokens=5), chat(messages=[{"role": "user", "content": "x" * 20}]), ev.Body(data=b"{"),
        ev.Tick(), ev.Stopped(), ev.Gone(), ev.Gone(reason="sidecar_error"), ev.Trailers(response=True), ev.Trailers(response=False),
        ev.ResponseHeaders(status=200, headers={"content-type": "text/event-stream"}), ev.ResponseHeaders(status=500, headers={}),
        ev.ResponseHeaders(status=200, headers={"content-type": "application/json", "content-length": "9"}),
        ev.ResponseHeaders(status=200, headers={"content-encoding": "gzip"}), ev.ResponseHeaders(status=200, headers={}, end_of_stream=True),
        chunk(delta("ab")), chunk(delta("c")[:9]), chunk(delta("d", "stop") + usage_event()), chunk(DONE), chunk(b"", end=True), chunk(b"{}"),
    ]
)  # fmt: skip
POLICIES = st.sampled_from(
    [
        Policy(),
        Policy(shadow=True),
        Policy(trust_factor=2),
        Policy(stores_away_credit_nanos=10**9),
        Policy(stores_away_credit_nanos=10**9, trust_factor=2, over_balance="clamp", clamp_output_tokens_min=1),
        Policy(over_balance="clamp", ended_early="full", abort_before_response="void", no_usage="hold"),
    ]
)
ASKING = [headers("/v1/credits", method="GET", end=True), ev.KeyRead(key=key())]
BEGINNINGS = st.builds(lambda way, length: way[:length], st.sampled_from([ON_ITS_WAY, ON_ITS_WAY, ASKING]), st.integers(0, len(ON_ITS_WAY)))
WALKS = st.tuples(BEGINNINGS, st.lists(EVENTS, min_size=4, max_size=60))

REPLIES = (act.PassHeaders, act.PassBody, act.PassResponseHeaders, act.PassChunk, act.PassTrailers, act.Answer)
OF_ENVOY = (ev.Headers, ev.Body, ev.ResponseHeaders, ev.Chunk, ev.Trailers)
ANSWERS = {  # a store answers what it was asked
    act.LookUpKey: (ev.KeyRead, ev.StoreFailed),
    act.FindAnswer: (ev.Answered, ev.Refused, ev.StoreFailed),
    act.Admit: (ev.Admitted, ev.Refused, ev.StoreFailed),
    act.Amend: (ev.Amended, ev.Refused, ev.StoreFailed),
    act.Lend: (ev.Amended, ev.StoreFailed),
    act.Count: (ev.Counted, ev.StoreFailed),
    act.CountUpstream: (ev.Counted, ev.StoreFailed),
}
ANY_ANSWER = (ev.KeyRead, ev.Answered, ev.Admitted, ev.Refused, ev.StoreFailed, ev.Amended, ev.Counted)


class Walk:
    """One exchange, watched: what is open, what is asked, what was answered."""

    def __init__(self, policy: Policy) -> None:
        self.exchange = Exchange(pinned(model(output_tokens_default=1_000), policy=policy, bounds=Bounds(offload_bytes=15)))
        self.policy = policy
        self.asked: act.Action | None = None
        self.unanswered = 0
        self.is_held = False
        self.ends: list[act.End] = []

    def go(self, event: ev.Event) -> None:
        if isinstance(event, ANY_ANSWER):
            if self.asked is None or not isinstance(event, ANSWERS[type(self.asked)]):
                return
            # A granted admit holds; so does credit that was lent.
            self.is_held |= isinstance(event, ev.Admitted) or (isinstance(event, ev.Amended) and isinstance(self.asked, act.Lend))
            self.asked = None
        try:
            actions = self.exchange.receive(event)
        except IllegalEvent:
            assert not isinstance(event, ANY_ANSWER), "a store's answer must be legal"
            return
        self.unanswered += isinstance(event, OF_ENVOY)
        for action in actions:
            self.see(action)
        assert 0 <= self.unanswered <= 1

    def see(self, action: act.Action) -> None:
        if type(action) in ANSWERS:
            assert self.asked is None, "two questions at once"
            self.asked = action
        self.unanswered -= isinstance(action, REPLIES)
        if isinstance(action, act.PassBody):
            assert self.exchange.state is State.FORWARDED or self.policy.shadow
            assert self.is_held or self.policy.shadow, "forwarded without a hold"
        if isinstance(action, act.End):
            self.ends.append(action)
            self.is_held = False
            assert not action.ending.charge_nanos or not self.policy.shadow
        if isinstance(action, act.Answer) and action.code and self.policy.shadow:
            assert action.code == "unavailable", "only a drain refuses in shadow mode"


@settings(max_examples=max(100, settings.default.max_examples))
@given(POLICIES, WALKS)
def test_random_walks(policy: Policy, walk: tuple[list[ev.Event], list[ev.Event]]):
    beginning, events = walk
    watched = Walk(policy)
    for event in [*beginning, *events, ev.Gone(), FAILED, ev.Gone()]:
        watched.go(event)
    if watched.asked is None:
        assert watched.exchange.state is State.CLOSED
        assert not watched.is_held
    assert len(watched.ends) <= 1
    assert all(end.ending.kind is EndKind.SETTLE or not end.ending.charge_nanos for end in watched.ends)
