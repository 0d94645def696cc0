"""What a batch does to the ledger, decided in memory."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from extproc.exchange.record import Record
from extproc.ledger.plan import REFUSALS_PER_MINUTE, Ended, Funds, Planner, refusal_key, screen
from extproc.money.hold import uuid7
from extproc.money.posting import Posting
from extproc.money.price import Price, Rates

NOW = 1_760_000_000_000
PAYER, OTHER, KEY = (uuid7(unix_ms=NOW, random_bits=n) for n in (1, 2, 3))
HOLD = uuid7(unix_ms=NOW, random_bits=9)
PRICE = Price(model="m", priority="standard", tier="t", currency="EUR", rates=Rates(input=1, cached_input=1, output=1))


def posting(kind: str = "settle", charge: int = 70, *, seq: int = 1, **fields: object) -> Posting:
    row = Record(id=HOLD, model="m", list_nanos=charge, created_ms=NOW).to_row()
    values: dict[str, object] = {
        "shard": 0,
        "stream_id": f"{seq}-0" if seq else "",
        "kind": kind,
        "hold_id": HOLD,
        "payer_id": PAYER,
        "key_id": KEY,
        "charge_nanos": charge,
        "reserved_nanos": 100,
        "epoch": "0.0",
        "seq": seq,
        "occurred_ms": NOW,
        "row": row,
    }
    return Posting(**(values | fields))  # type: ignore[arg-type]


def plan_of(
    *postings: Posting,
    balance: int = 1_000,
    credit: int = 0,
    named: int = 0,
    ended: Ended | None = None,
    rows: tuple[str, ...] = (),
    refused: int = 0,
):
    good, bad = screen(postings)
    planner = Planner(
        funds={PAYER: Funds(balance_nanos=balance, credit_nanos=credit, named_nanos=named), OTHER: Funds(balance_nanos=0, credit_nanos=0)},
        ended={} if ended is None else {HOLD: ended},
        rows=rows,
        refused={refusal_key(one): refused for one in good if one.posting.kind == "note"},
    )
    for one in good:
        planner.take(one)
    planner.plan.conflicts.extend(bad)
    return planner.plan


def test_a_settle_is_an_event_two_lines_and_a_row():
    plan = plan_of(posting())
    assert [(event["event_type"], event["amount"], event["balance_after"]) for event in plan.events] == [("settle", -70, 930)]
    assert [(line["kind"], line["name"], line["amount"]) for line in plan.entries] == [("customer", "", -70), ("revenue", "m", 70)]
    assert (plan.requests[0]["cost"], plan.requests[0]["hold_nanos"], plan.requests[0]["refund_nanos"]) == (70, 100, 30)
    assert plan.deltas == {PAYER: [-70, 0]}, "Redis has taken it already"


def test_a_void_is_an_event_without_lines():
    plan = plan_of(posting("void", 0))
    assert (len(plan.events), plan.entries, plan.requests[0]["refund_nanos"]) == (1, [], 100)


@pytest.mark.parametrize("kind", ["settle", "expire"])
@pytest.mark.parametrize("times", [1, 2, 5])
def test_the_same_event_again_is_nothing(kind, times):
    plan = plan_of(posting(kind), *[posting(kind, seq=0)] * times)
    assert (plan.booked, plan.repeated, len(plan.events), plan.conflicts) == (1, times, 1, [])


def test_the_first_row_of_a_request_stays():
    """A refusal may have left it, before its hold, of which the worker never heard, was voided."""
    plan = plan_of(posting("void", 0), rows=(HOLD,))
    assert ([event["event_type"] for event in plan.events], plan.requests) == (["void"], [])
    refusal = posting("note", 0, seq=0, row=Record(id=HOLD, user_id=PAYER, error_code="unavailable", created_ms=NOW).to_row(), hold_id="")
    plan = plan_of(refusal, posting("void", 0), refusal)
    assert ([row["ending"] for row in plan.requests], len(plan.events), plan.noted) == (["none"], 1, 2)


def test_a_settle_above_its_expire_is_adjusted_once():
    ended = Ended(kind="expire", payer_id=PAYER, charge_nanos=40)
    plan = plan_of(posting(seq=0), posting(seq=0), posting("expire", 40, seq=0), ended=ended)
    assert [(event["event_type"], event["amount"], event["charge_nanos"], event["of_id"]) for event in plan.events] == [
        ("adjust", -30, 30, HOLD)
    ]
    assert (plan.replaced[0]["cost"], plan.repeated, plan.conflicts) == (70, 2, [])
    assert plan.deltas == {PAYER: [-30, -30]}, "Redis learns of it by credit"


def test_a_late_charge_takes_what_is_there_and_the_rest_is_loss():
    ended = Ended(kind="expire", payer_id=PAYER, charge_nanos=10)
    plan = plan_of(posting(seq=0), balance=25, credit=5, ended=ended)
    assert plan.deltas == {PAYER: [-30, -30]}
    assert [(line["kind"], line["name"], line["amount"]) for line in plan.entries] == [
        ("customer", "", -30),
        ("loss", "late", -30),
        ("revenue", "m", 60),
    ]
    assert (plan.loss_nanos, plan.replaced[0]["cost"], plan.replaced[0]["loss_nanos"]) == (30, 40, 30)


def test_a_late_charge_never_takes_from_a_balance_below_the_line():
    plan = plan_of(posting(seq=0), balance=-5)
    assert plan.deltas == {PAYER: [0, 0]}
    assert plan.loss_nanos == 70


def test_a_held_charge_is_taken_whole():
    """A correction may have emptied the account meanwhile: what Redis had set aside is still the charge."""
    assert plan_of(posting(), balance=5, named=65).deltas == {PAYER: [-70, 0]}


@pytest.mark.parametrize(
    ("balance", "credit", "named", "taken"), [(5, 0, 0, 5), (5, 10, 0, 15), (-20, 0, 30, 10), (-20, 0, 0, 0), (69, 0, 9, 70)]
)
def test_a_held_charge_makes_no_debt_that_nobody_has_named(balance, credit, named, taken):
    """Its money was promised twice: the rest is the operator's, and Redis, which took all of it, gets it back."""
    plan = plan_of(posting(), balance=balance, credit=credit, named=named)
    assert plan.deltas == {PAYER: [-taken, 70 - taken]}
    assert (plan.requests[0]["cost"], plan.requests[0]["loss_nanos"], plan.loss_nanos) == (taken, 70 - taken, 70 - taken)


@pytest.mark.parametrize(
    ("ended", "second"),
    [
        (Ended(kind="settle", payer_id=PAYER, charge_nanos=50), posting()),
        (Ended(kind="expire", payer_id=PAYER, charge_nanos=90), posting()),
        (Ended(kind="expire", payer_id=PAYER, charge_nanos=10, adjusted_to=60), posting()),
        (Ended(kind="void", payer_id=PAYER, charge_nanos=0), posting()),
        (Ended(kind="settle", payer_id=PAYER, charge_nanos=50), posting("expire", 60)),
        (Ended(kind="settle", payer_id=PAYER, charge_nanos=50), posting("void", 0)),
        (Ended(kind="void", payer_id=PAYER, charge_nanos=0), posting("expire", 20)),
    ],
)
def test_any_other_second_ending_is_a_conflict(ended, second):
    plan = plan_of(second, ended=ended)
    assert ([one["reason"] for one in plan.conflicts], plan.events) == (["other_amount"], [])


def test_another_payers_hold_is_a_conflict():
    plan = plan_of(posting(), ended=Ended(kind="settle", payer_id=OTHER, charge_nanos=70))
    assert [one["reason"] for one in plan.conflicts] == ["other_payer"]
    assert plan.deltas == {PAYER: [0, 70]}, "Redis has taken what nobody booked: it gets it back"


def test_overage_is_booked_beside_the_charge():
    row = Record(id=HOLD, model="m", list_nanos=100, overage_nanos=30).to_row()
    plan = plan_of(posting(row=row))
    assert [(event["event_type"], event["amount"]) for event in plan.events] == [("settle", -70), ("overage", 0)]
    assert (plan.deltas, plan.overage_nanos, plan.requests[0]["overage_nanos"]) == ({PAYER: [-70, 0]}, 30, 30)


@pytest.mark.parametrize("flag", ["sandbox", "shadow"])
def test_what_is_not_charged_at_all_has_no_overage(flag):
    row = Record(id=HOLD, model="m", list_nanos=100, overage_nanos=100, **{flag: True}).to_row()
    plan = plan_of(posting(charge=0, row=row))
    assert ([event["event_type"] for event in plan.events], plan.overage_nanos) == (["settle"], 0)


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"kind": "explode"}, "bad_event"),
        ({"hold_id": "x"}, "bad_event"),
        ({"payer_id": "\x00"}, "bad_event"),
        ({"key_id": "sk-nothing"}, "bad_event"),
        ({"charge_nanos": -1}, "bad_event"),
        ({"charge_nanos": 2**63}, "bad_event"),
        ({"charge_nanos": "7"}, "bad_event"),
        ({"kind": "void"}, "bad_event"),
        ({"occurred_ms": 0}, "bad_event"),
        ({"payer_id": uuid7(unix_ms=NOW, random_bits=77)}, "unknown_payer"),
    ],
)
def test_poison_is_a_conflict_with_its_payload(fields, reason):
    plan = plan_of(posting(**fields))
    assert [(one["reason"], bool(one["payload"]["row"])) for one in plan.conflicts] == [(reason, True)]
    assert (plan.events, plan.requests) == ([], [])


def test_an_unreadable_row_does_not_cost_the_charge():
    plan = plan_of(posting(row=b"\xff{"))
    assert [one["reason"] for one in plan.conflicts] == ["bad_row"]
    assert plan.deltas == {PAYER: [-70, 0]}
    assert (plan.requests[0]["cost"], plan.entries[1]["name"]) == (70, "unknown")


def test_a_price_is_kept_if_it_is_what_its_id_says():
    good = Record(id=HOLD, price_id=PRICE.price_id, price=PRICE.text).to_row()
    bad = Record(id=HOLD, price_id=PRICE.price_id, price=PRICE.text + " ").to_row()
    assert plan_of(posting(row=good)).prices == {PRICE.price_id: PRICE.text}
    assert plan_of(posting(row=bad)).prices == {}


@pytest.mark.parametrize("fields", [{"payer_id": KEY}, {"payer_id": OTHER}, {"charge_nanos": 71}])
def test_a_conflict_brings_its_price_all_the_same(fields):
    """The rows behind it in the stream rely on it."""
    row = Record(id=HOLD, price_id=PRICE.price_id, price=PRICE.text).to_row()
    plan = plan_of(posting(row=row, **fields), ended=Ended("settle", PAYER, 70))
    assert len(plan.conflicts) == 1
    assert plan.prices == {PRICE.price_id: PRICE.text}


def notes(n: int, **fields: object) -> list[Posting]:
    return [
        posting(
            "note",
            0,
            hold_id="",
            key_id="",
            seq=0,
            row=Record(
                id=uuid7(unix_ms=NOW, random_bits=100 + i),
                user_id=PAYER,
                creds_id=KEY,
                error_code="insufficient_quota",
                created_ms=NOW,
                **fields,
            ).to_row(),
        )
        for i in range(n)
    ]


def test_refusals_are_rows_up_to_ten_then_one_row_counts_them():
    plan = plan_of(*notes(REFUSALS_PER_MINUTE + 5), refused=0)
    assert len(plan.requests) == REFUSALS_PER_MINUTE
    assert [row["times"] for row in plan.refusals.values()] == [5]
    assert plan.noted == REFUSALS_PER_MINUTE + 5


def test_refusals_of_earlier_batches_count():
    plan = plan_of(*notes(3), refused=REFUSALS_PER_MINUTE - 1)
    assert (len(plan.requests), [row["times"] for row in plan.refusals.values()]) == (1, [2])


def test_refusals_of_nobody_share_a_row_from_the_first():
    nobody = [one._replace(payer_id="", row=Record(id=HOLD, error_code="invalid_api_key", created_ms=NOW).to_row()) for one in notes(4)]
    plan = plan_of(*nobody)
    assert (plan.requests, [row["times"] for row in plan.refusals.values()]) == ([], [4])


endings = st.lists(
    st.tuples(st.sampled_from(["settle", "expire", "void"]), st.integers(0, 3), st.integers(0, 60), st.booleans()), max_size=25
)


@given(events=endings, balance=st.integers(-50, 200), credit=st.integers(0, 50))
def test_whatever_comes_each_hold_ends_once_and_balances_follow(events, balance, credit):
    """Random endings of four holds: one ending each, at most one adjust and only after an expire, lines and balances agree."""
    postings = [
        posting(kind, 0 if kind == "void" else charge, hold_id=uuid7(unix_ms=NOW, random_bits=hold), seq=n + 1 if through else 0)
        for n, (kind, hold, charge, through) in enumerate(events)
    ]
    plan = plan_of(*postings, balance=balance, credit=credit)
    kinds: dict[str, list[str]] = {}
    for event in plan.events:
        kinds.setdefault(event["of_id"] or event["id"], []).append(event["event_type"])
    assert len({event["id"] for event in plan.events}) == len(plan.events)
    assert all(len(names) == 1 or names == ["expire", "adjust"] for names in kinds.values())
    assert plan.booked + plan.adjusted + plan.repeated + len(plan.conflicts) == len(postings)
    for event in plan.events:
        lines = [line["amount"] for line in plan.entries if line["event_id"] == event["id"]]
        assert sum(lines) == 0
        customer = [line["amount"] for line in plan.entries if line["event_id"] == event["id"] and line["kind"] == "customer"]
        assert sum(customer) == event["amount"]
    change = plan.deltas.get(PAYER, [0, 0])
    assert change[0] == sum(event["amount"] for event in plan.events)
    if plan.events:
        assert plan.events[-1]["balance_after"] == balance + change[0]
