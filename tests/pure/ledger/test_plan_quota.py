"""Free tokens in any order: whatever is true of the nanos of an ending is true of its tokens, beside them or alone."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product

import pytest
from test_plan_orders import CHARGING, EXPIRE_BY_REDIS, HOLD, NOW, PAYER, RESERVED, SETTLE_PAST_REDIS, SETTLED, WAYS, Way, is_two_truths

from extproc.exchange.record import Record
from extproc.ledger.plan import Ended, Funds, Plan, Planner, Screened, screen
from extproc.money.posting import Posting, with_quota

QUOTA = (200, 1_000)
Pair = tuple[int, int]


def screened(way: Way, checkpoint: int, *, nanos: bool = True) -> Screened:
    """Half as many tokens of input as nanos, three times as many of output."""
    amount = {"settle": SETTLED, "void": 0, "expire": checkpoint}[way.kind]
    row = Record(id=HOLD, model="m", created_ms=NOW, free_input=amount // 2, free_output=3 * amount).to_row()
    stream, seq = "1-0" if way.in_stream else "", 7 if way.by_redis else 0
    posting = Posting(0, stream, way.kind, HOLD, PAYER, "", amount if nanos else 0, RESERVED, "r.1", seq, NOW, row, amount // 2, 3 * amount)
    (good,), bad = screen([posting])
    assert not bad
    return good


class World:
    """A payer's tokens in the ledger and in Redis, from batch to batch."""

    def __init__(self, quota: Pair = QUOTA) -> None:
        self.posted = self.available = quota
        self.plans: list[Plan] = []

    def post(self, one: Screened) -> Plan:
        funds = Funds(balance_nanos=1_000, credit_nanos=0, free=self.posted)
        planner = Planner(funds={PAYER: funds}, ended=self._ended(), rows=(), refused={})
        planner.take(one)
        plan = planner.plan
        given, made, told_given, told_made = plan.quotas.get(PAYER, [0, 0, 0, 0])
        taken = (one.posting.free_input, one.posting.free_output) if one.posting.seq else (0, 0)
        self.posted = (self.posted[0] + given, self.posted[1] + made)
        self.available = (self.available[0] - taken[0] + told_given, self.available[1] - taken[1] + told_made)
        assert not any(sum(line["amount"] for line in plan.entries if line["unit"] == unit) for unit in ("free_input", "free_output"))
        assert min(self.posted) >= 0
        self.plans.append(plan)
        return plan

    def _ended(self) -> dict[str, Ended]:
        events = [event for plan in self.plans for event in plan.events]
        if not events:
            return {}
        first, *adjusts = events
        to = first["charge_nanos"] + adjusts[0]["charge_nanos"] if adjusts else None
        return {HOLD: Ended(first["event_type"], PAYER, first["charge_nanos"], to, False, 0, *self.used)}

    @property
    def used(self) -> Pair:
        events = [event for plan in self.plans for event in plan.events]
        return sum(event.get("free_input") or 0 for event in events), sum(event.get("free_output") or 0 for event in events)


def hold_true(world: World, ways: Sequence[Way], checkpoint: int) -> None:
    kinds = {way.kind for way in ways}
    assert world.available == world.posted, "Redis says what the ledger says"
    assert world.posted == (QUOTA[0] - world.used[0], QUOTA[1] - world.used[1])
    if is_two_truths(ways, checkpoint):
        return
    amount = SETTLED if "settle" in kinds else checkpoint if "expire" in kinds else 0
    assert world.used == (amount // 2, 3 * amount)
    assert not any(plan.conflicts for plan in world.plans)


@pytest.mark.parametrize("nanos", [True, False], ids=["beside nanos", "alone"])
@pytest.mark.parametrize(("checkpoint", "length", "those"), [(40, 3, CHARGING), (40, 2, WAYS), (0, 2, WAYS), (90, 2, WAYS)])
def test_every_order_of_every_way(checkpoint, length, those, nanos):
    letters = {way: screened(way, checkpoint, nanos=nanos) for way in those}
    for ways in (ways for many in range(1, length + 1) for ways in product(those, repeat=many)):
        world = World()
        for way in ways:
            world.post(letters[way])
        hold_true(world, ways, checkpoint)


def test_what_comes_late_takes_what_is_there():
    """Of 35 + 210 tokens 20 + 120 were known when it expired; of the rest 5 + 0 are left."""
    world = World((25, 120))
    world.post(screened(EXPIRE_BY_REDIS, 40))
    plan = world.post(screened(SETTLE_PAST_REDIS, 40))
    assert (world.posted, world.used) == ((0, 0), (35, 210))
    lines = [(line["kind"], line["unit"], line["amount"]) for line in plan.entries if line["unit"] != "nanos"]
    assert lines == [
        ("customer", "free_input", -5),
        ("loss", "free_input", -10),
        ("revenue", "free_input", 15),
        ("loss", "free_output", -90),
        ("revenue", "free_output", 90),
    ]
    (row,) = plan.replaced
    assert (row["free_input"], row["free_output"]) == (35, 210), "what was used, whoever bears it: the charge follows from it"


def test_less_money_and_more_tokens_contradict_each_other():
    world = World()
    world.post(screened(EXPIRE_BY_REDIS, 40))
    contradiction = screened(SETTLE_PAST_REDIS, 40, nanos=False)
    assert [conflict["reason"] for conflict in world.post(contradiction).conflicts] == ["other_amount"]


def test_tokens_of_an_unreadable_row_are_booked_and_a_row_made():
    posting = screened(EXPIRE_BY_REDIS, 40).posting._replace(row=b"?")
    (one,), _ = screen([posting])
    plan = World().post(one)
    assert (plan.requests[0]["free_input"], plan.requests[0]["images"]) == (20, 0)


@pytest.mark.parametrize(
    ("row", "tokens"),
    [
        (b'{"id":"x"}', (0, 0)),
        (b'{"free_input":5}', (5, 0)),
        (b'{"free_input":5,"free_output":7}', (5, 7)),
        (b'{"free_input":-5}', (0, 0)),
        (b'{"free_input":true}', (0, 0)),
        (b'{"free_input":', (0, 0)),
        (b'["free_input"]', (0, 0)),
    ],
)
def test_a_kept_row_says_its_tokens(row, tokens):
    """An outbox has no column for them."""
    said = with_quota(screened(SETTLE_PAST_REDIS, 40).posting._replace(row=row, free_input=0, free_output=0))
    assert (said.free_input, said.free_output) == tokens
