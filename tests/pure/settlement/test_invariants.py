"""The checks of the reconciler: a sound world passes every one of them, and each planted fault is found by its own and by no other."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime
from typing import Any

import pytest

from extproc.holds.facts import BudgetFacts, HoldFacts, PayerFacts, ShardFacts, Waiting
from extproc.ledger.facts import AccountMoney, AccountSum, BookedEvent, Orphan, ShardMoney
from extproc.ledger.port import Cursor
from extproc.money.price import Price, Rates
from extproc.settlement.invariants import (
    INVARIANTS,
    Finding,
    Moment,
    balance_is_its_entries,
    conflicts_are_resolved,
    drift_nanos,
    nothing_is_orphaned,
    of_event,
    of_moment,
    violations_are_known,
)
from extproc.settlement.reconciler import last_due_ms

PRICE = Price(model="m", priority="p", tier="t", currency="EUR", rates=Rates(input=1_000_000, cached_input=0, output=2_000_000))
PAYER, OTHER, KEY, HOLD = "payer-1", "payer-2", "key-1", "hold-1"
NOW_MS, GRACE_MS = 1_000_000, 8_000


def event(event_type: str = "settle", **columns: Any) -> dict[str, Any]:
    return {"id": HOLD, "user_id": PAYER, "event_type": event_type, "amount": -25, "charge_nanos": 25, "of_id": None, "seq": 1, **columns}


def line(kind: str, amount: int, **columns: Any) -> dict[str, Any]:
    return {"kind": kind, "amount": amount, "unit": "nanos", "user_id": PAYER if kind == "customer" else None, **columns}


def row(**columns: Any) -> dict[str, Any]:
    """5 tokens in at 1 nano, 10 out at 2; 100 held."""
    row = {"input_tokens": 5, "cached_tokens": 0, "output_tokens": 10, "reasoning_tokens": 0, "ending": "settle", "hold_nanos": 100}
    row |= {"cost": 25, "refund_nanos": 75, "list_nanos": 25, "overage_nanos": 0, "loss_nanos": 0, "price_id": PRICE.price_id}
    return row | {"price": PRICE.text, "sandbox": False, "shadow": False, "policies": []} | columns


RATES = Rates(input=1_000_000, cache_creation=3_000_000, output=2_000_000, images=4_000_000, output_words=1_000_000)
OF_UNITS = Price(model="m", priority="p", tier="t", currency="EUR", rates=RATES)
UNITS = {"cache_creation_tokens": 1, "images": 2, "output_words": 4, "free_input": 4, "free_output": 10}
"""Of 5 tokens in, the 4 fresh ones and of 10 out all are free: 3 for what was cached, 8 for images, 4 for words."""


SETTLE = BookedEvent(event=event(), entries=[line("customer", -25), line("revenue", 25)], request=row(), followers=[], base=None)
VOIDED = row(ending="void", cost=0, list_nanos=0, refund_nanos=100, price=None, price_id="")
VOID = BookedEvent(event=event("void", amount=0, charge_nanos=0), entries=[], request=VOIDED, followers=[], base=None)
ADJUST = {"id": "adjust-1", "event_type": "adjust", "amount": -5, "charge_nanos": 15, "of_id": HOLD}
"""Of 15, 10 were not covered."""


def adjusted() -> BookedEvent:
    lines = [line("customer", -10), line("revenue", 10)]
    request = row(ending="expire", cost=15, loss_nanos=10)
    return BookedEvent(event=event("expire", amount=-10, charge_nanos=10), entries=lines, request=request, followers=[ADJUST], base=None)


def changed(one: BookedEvent = SETTLE, *, request: dict[str, Any] | None = None, **columns: Any) -> BookedEvent:
    row_now = {**one.request, **request} if request is not None and one.request is not None else one.request
    return replace(one, request=row_now, event={**one.event, **columns})


TOKENS = [
    line("customer", -4, unit="free_input"),
    line("revenue", 4, unit="free_input"),
    line("customer", -9, unit="free_output"),
    line("loss", -1, unit="free_output"),
    line("revenue", 10, unit="free_output"),
]
"""Of 10 free tokens one came too late."""


def units(**columns: Any) -> BookedEvent:
    charge = {"cost": 15, "list_nanos": 15, "refund_nanos": 85, "price_id": OF_UNITS.price_id, "price": OF_UNITS.text}
    one = changed(request=charge | UNITS | columns, amount=-15, charge_nanos=15, free_input=4, free_output=10)
    return replace(one, entries=[line("customer", -15), line("revenue", 15), *TOKENS])


@pytest.mark.parametrize(
    "sound",
    [
        SETTLE,
        VOID,
        adjusted(),
        changed(request={"sandbox": True, "cost": 0, "hold_nanos": 0, "refund_nanos": 0}, amount=0, charge_nanos=0),
        changed(request={"hold_nanos": 0, "refund_nanos": 0}, seq=None),
        changed(request={"hold_nanos": 20, "refund_nanos": 0, "policies": ["stores_away=credit"]}, seq=None),
        changed(adjusted(), request={"hold_nanos": 0, "refund_nanos": 0}),
        changed(adjusted(), request={"hold_nanos": 10, "refund_nanos": 0, "policies": ["stores_away=credit"]}),
        units(),
        changed(request={"hold_nanos": 20, "cost": 20, "overage_nanos": 5, "refund_nanos": 0}, amount=-20, charge_nanos=20),
    ],
    ids=[
        "settle",
        "void",
        "expire and adjust",
        "sandbox",
        "lent",
        "lent and held",
        "lent, expired",
        "lent and held, expired",
        "units",
        "overage",
    ],
)
def test_a_sound_event_passes(sound):
    if sound.event["amount"] != SETTLE.event["amount"]:
        amount = sound.event["amount"]
        tokens = [one for one in sound.entries if one["unit"] != "nanos"]
        sound = replace(sound, entries=[line("customer", amount), line("revenue", -amount), *tokens] if amount else [])
    assert of_event(sound) == []


@pytest.mark.parametrize(
    ("faulty", "invariants"),
    [
        (replace(SETTLE, entries=[line("customer", -25), line("revenue", 24)]), [1]),
        (replace(SETTLE, entries=[line("customer", -25), line("revenue", 25), line("promo", 1, unit="free_input")]), [1]),
        (replace(SETTLE, entries=[line("customer", -24), line("revenue", 24)]), [2]),
        (replace(SETTLE, entries=[line("customer", -25, user_id=OTHER), line("revenue", 25)]), [2]),
        (replace(SETTLE, request=None), [6]),
        (changed(request={"ending": "expire"}), [6]),
        (replace(adjusted(), followers=[ADJUST, {**ADJUST, "charge_nanos": 0, "amount": 0}]), [6]),
        (replace(SETTLE, event=event("adjust", of_id="x"), request=None, base={"event_type": "settle"}), [6]),
        (replace(SETTLE, event=event("adjust", of_id="x"), request=None), [6]),
        (changed(request={"hold_nanos": 20, "refund_nanos": 0}), [8]),
        (changed(request={"hold_nanos": 0, "refund_nanos": 0}), [8]),
        (changed(request={"hold_nanos": 20, "refund_nanos": 0, "policies": ["stores_away=credit"]}), [8]),
        (changed(adjusted(), request={"hold_nanos": 14, "refund_nanos": 0, "policies": ["clamp"]}), [8]),
        (changed(charge_nanos=26), [8]),
        (changed(request={"cost": 24, "loss_nanos": 1}), [8]),
        (changed(request={"refund_nanos": 74}), [9]),
        (changed(request={"output_tokens": 11}), [10, 10]),
        (units(images=3), [10, 10]),
        (units(free_output=9), [8, 10, 10]),
        (changed(units(), free_output=9), [2, 8]),
        (replace(units(), entries=[line("customer", -15), line("revenue", 15), *TOKENS[:2]]), [2]),
        (changed(request={"list_nanos": 26}), [10]),
        (changed(request={"overage_nanos": 1}), [10]),
        (changed(request={"price": None}), [10]),
        (changed(request={"price": "{}"}), [10]),
        (changed(request={"price_id": "another"}), [10]),
        (changed(request={"shadow": True}), [10]),
        (changed(VOID, request={"overage_nanos": 1}), [10]),
    ],
)
def test_a_fault_of_an_event_is_found(faulty, invariants):
    assert [finding.invariant for finding in of_event(faulty)] == invariants


def test_sums_orphans_and_notes():
    assert list(balance_is_its_entries(AccountSum(payer_id=PAYER, balance_nanos=5, entries_nanos=5))) == []
    (drift,) = balance_is_its_entries(AccountSum(payer_id=PAYER, balance_nanos=5, entries_nanos=7))
    assert (drift.invariant, drift.expected, drift.found, drift.drift_nanos, drift.account) == (2, "7", "5", -2, PAYER)
    orphans = [Orphan(what=what, id=HOLD, account=PAYER, amount_nanos=-3) for what in ("entry", "row")]
    assert [finding.invariant for one in orphans for finding in nothing_is_orphaned(one)] == [2, 6]
    gap = {"shard": 1, "kind": "gap", "expected_seq": 3, "seq": 5, "stream_id": "1-1"}
    assert [finding.invariant for finding in violations_are_known(gap)] == [12]
    conflict = {"id": 1, "kind": "settle", "charge_nanos": 5, "reason": "other_amount", "detail": "d", "hold_id": HOLD, "payer_id": None}
    assert [finding.invariant for finding in conflicts_are_resolved(conflict)] == [6]


HELD = HoldFacts(
    hold_id=HOLD, lease_ms=NOW_MS + 60_000, state="exact", payer_id=PAYER, key_id=KEY, entry_nanos=0, reserved_nanos=100, cap_nanos=100,
    checkpoint_nanos=10, budget="payer-1:key-1:all", created_ms=NOW_MS,
)  # fmt: skip
ENTRY = replace(HELD, hold_id="hold-2", state="entry", entry_nanos=7, reserved_nanos=0, cap_nanos=0, checkpoint_nanos=0, budget="")
FACTS = PayerFacts(version=2, total_nanos=1_000, spendable_nanos=880, credit_nanos=50, held_nanos=100, entry_held_nanos=7, open_holds=2)
"""Of 1,000, 40 were posted, 30 wait to be posted, 100 are held; 50 may be owed."""
MONEY = AccountMoney(payer_id=PAYER, balance_nanos=960, credit_nanos=50, version=2, credited_total=1_000, redis_version=2)


def waiting(seq: int, charge: int, **fields: Any) -> Waiting:
    values = {"stream_id": f"9-{seq}", "kind": "settle", "hold_id": "h", "payer_id": PAYER, "epoch": "run.1", **fields}
    return Waiting(charge_nanos=charge, seq=seq, **values)


REDIS = ShardFacts(
    shard=3, epoch="run.1", rebuilding="", seq=6, quiet_ms=0, now_ms=NOW_MS, is_whole=True, leases=2, holds=[HELD, ENTRY],
    budgets={"payer-1:key-1:all": BudgetFacts(used_nanos=170, held_nanos=100)},
    waiting=[waiting(5, 10), waiting(0, 99), waiting(6, 20)], payers={PAYER: FACTS}, keys={f"{PAYER}:{KEY}": 2},
)  # fmt: skip
LEDGER = ShardMoney(cursor=Cursor(3, "9-4", "run.1", 4), accounts={PAYER: MONEY}, keys=[f"{PAYER}:{KEY}"])
SOUND = Moment(ledger=LEDGER, redis=REDIS, grace_ms=GRACE_MS)


def in_redis(**fields: Any) -> Moment:
    return replace(SOUND, redis=replace(REDIS, **fields))


def of_payer(**fields: Any) -> Moment:
    return in_redis(payers={PAYER: replace(FACTS, **fields)})


def of_account(**fields: Any) -> Moment:
    return replace(SOUND, ledger=replace(LEDGER, accounts={PAYER: replace(MONEY, **fields)}))


@pytest.mark.parametrize(
    "sound",
    [
        SOUND,
        of_account(balance_nanos=1_460, credited_total=1_500, version=3),
        of_account(balance_nanos=950, credited_total=990, version=1),
        replace(SOUND, ledger=replace(LEDGER, cursor=Cursor(3, "9-4", "run.0", 77)), redis=replace(REDIS, seq=2)),
        in_redis(rebuilding="run.2", seq=99),
        in_redis(epoch="", seq=0, payers={PAYER: None}, holds=[]),
        in_redis(is_whole=False, leases=0, holds=[]),
        replace(
            SOUND, ledger=replace(LEDGER, accounts={PAYER: replace(MONEY, redis_version=None)}), redis=replace(REDIS, payers={PAYER: None})
        ),
        in_redis(holds=[replace(HELD, lease_ms=NOW_MS - GRACE_MS), ENTRY]),
        in_redis(holds=[replace(HELD, lease_ms=0), ENTRY], quiet_ms=NOW_MS + 1),
    ],
    ids=[
        "itself",
        "credit on its way",
        "credit there first",
        "new epoch",
        "rebuilding",
        "emptied",
        "too much",
        "never installed",
        "in grace",
        "quiet",
    ],
)
def test_a_sound_shard_passes(sound):
    assert of_moment(sound) == []


@pytest.mark.parametrize(
    ("faulty", "invariants"),
    [
        (of_payer(spendable_nanos=881), [3]),
        (of_payer(total_nanos=999), [3]),
        (of_account(balance_nanos=961), [3]),
        (of_account(credit_nanos=51), [3]),
        (of_payer(spendable_nanos=881, credit_nanos=51), [3]),
        (in_redis(waiting=[waiting(5, 10), waiting(6, 21)]), [3]),
        (in_redis(payers={PAYER: None}, keys={}), [3]),
        (of_payer(held_nanos=101, spendable_nanos=879), [4]),
        (of_payer(entry_held_nanos=8), [4]),
        (of_payer(open_holds=3), [4]),
        (in_redis(keys={f"{PAYER}:{KEY}": 1}), [4]),
        (in_redis(holds=[HELD]), [4, 4, 4]),
        (in_redis(budgets={"payer-1:key-1:all": BudgetFacts(used_nanos=170, held_nanos=99)}), [4]),
        (in_redis(budgets={"payer-1:key-1:all": BudgetFacts(used_nanos=99, held_nanos=100)}), [4]),
        (in_redis(holds=[replace(HELD, lease_ms=NOW_MS - GRACE_MS - 1), ENTRY]), [11]),
        (in_redis(holds=[HELD, ENTRY, replace(HELD, hold_id="gone", state="ended")]), [11]),
        (in_redis(holds=[HELD, ENTRY, replace(HELD, hold_id="gone", state="")]), [11]),
        (in_redis(seq=7), [12]),
        (in_redis(waiting=[waiting(6, 20)]), [12]),
        (in_redis(waiting=[waiting(5, 10), waiting(7, 20)]), [12]),
        (in_redis(holds=[replace(HELD, checkpoint_nanos=101), ENTRY]), [18]),
        (in_redis(holds=[replace(HELD, checkpoint_nanos=-1), ENTRY]), [18]),
    ],
)
def test_a_fault_of_a_shard_is_found(faulty, invariants):
    assert [finding.invariant for finding in of_moment(faulty)] == invariants


def test_below_the_line_without_a_cause():
    below = replace(FACTS, spendable_nanos=-20, held_nanos=100)
    moment = replace(of_account(balance_nanos=60, credited_total=1_000), redis=replace(REDIS, payers={PAYER: below}))
    assert [(one.invariant, one.drift_nanos) for one in of_moment(moment)] == [(5, -20)]
    assert of_moment(replace(moment, excused=frozenset({PAYER}))) == []


def test_what_is_told():
    (finding,) = of_moment(of_payer(spendable_nanos=881))
    assert (finding.account, finding.expected, finding.found, finding.drift_nanos) == (PAYER, "930", "931", 1)
    assert "extproc rebuild" in finding.advice
    assert drift_nanos([finding, replace(finding, drift_nanos=-5)]) == 6
    later = replace(finding, expected="830", found="831")
    assert later.is_like(finding)
    assert not replace(later, drift_nanos=2).is_like(finding)
    assert not replace(later, subject=OTHER).is_like(finding)
    missing: list[Finding] = of_moment(in_redis(seq=7))
    assert not of_moment(in_redis(seq=8))[0].is_like(missing[0])


def test_every_invariant_has_its_advice():
    assert all(number == one.number and one.sentence.endswith(".") and one.advice for number, one in INVARIANTS.items())


@pytest.mark.parametrize(
    ("now", "zone", "due"),
    [
        ("2026-03-10T03:30:00+00:00", "Etc/UTC", "2026-03-10T03:30:00+00:00"),
        ("2026-03-10T03:29:59+00:00", "Etc/UTC", "2026-03-09T03:30:00+00:00"),
        ("2026-07-10T01:30:00+00:00", "Europe/Berlin", "2026-07-10T01:30:00+00:00"),
        ("2026-01-10T01:30:00+00:00", "Europe/Berlin", "2026-01-09T02:30:00+00:00"),
        ("2026-03-29T02:00:00+00:00", "Europe/Berlin", "2026-03-29T01:30:00+00:00"),
    ],
)
def test_the_time_of_the_night(now, zone, due):
    now_ms, due_ms = (int(datetime.fromisoformat(text).timestamp() * 1_000) for text in (now, due))
    assert last_due_ms(now_ms, "03:30", zone) == due_ms
