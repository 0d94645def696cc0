"""The planner is right in any order: every order of every way in which an ending reaches the ledger, each of them perhaps twice.

The world beside it is Redis: what its scripts took with each event, and what it was told. At rest it must say what the ledger says.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise, product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from extproc.exchange.record import Record
from extproc.ledger.plan import Ended, Funds, Planner, Screened, screen
from extproc.money.hold import uuid7
from extproc.money.posting import Posting

NOW = 1_760_000_000_000
PAYER, KEY, HOLD = (uuid7(unix_ms=NOW, random_bits=n) for n in (1, 2, 9))
RESERVED, SETTLED, BALANCE = 100, 70, 1_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Way:
    """An ending and how it comes: ``by_redis`` with a number; ``in_stream`` without one, but from a stream; else from an outbox."""

    kind: str
    by_redis: bool = False
    in_stream: bool = False
    charge: int | None = None  # of a checkpoint that is not the others'


SETTLE_BY_REDIS, VOID_BY_REDIS, EXPIRE_BY_REDIS = (Way(kind=kind, by_redis=True, in_stream=True) for kind in ("settle", "void", "expire"))
LATE_SETTLE = Way(kind="settle", in_stream=True)  # after its expire; a settle that is reasserted while a shard is rebuilt looks the same
REASSERTED_VOID = Way(kind="void", in_stream=True)
SETTLE_PAST_REDIS, VOID_PAST_REDIS = Way(kind="settle"), Way(kind="void")
EXPIRE_PAST_REDIS = Way(kind="expire")  # of a loan whose worker was killed
WAYS = (
    SETTLE_BY_REDIS, VOID_BY_REDIS, EXPIRE_BY_REDIS, LATE_SETTLE, REASSERTED_VOID, SETTLE_PAST_REDIS, VOID_PAST_REDIS, EXPIRE_PAST_REDIS,
)  # fmt: skip


def screened(way: Way, checkpoint: int) -> Screened:
    charge = {"settle": SETTLED, "void": 0, "expire": checkpoint}[way.kind] if way.charge is None else way.charge
    row = Record(id=HOLD, model="m", list_nanos=charge, created_ms=NOW).to_row()
    posting = Posting(
        0, "1-0" if way.in_stream else "", way.kind, HOLD, PAYER, KEY, charge, RESERVED, "r.1", 7 if way.by_redis else 0, NOW, row
    )
    good, bad = screen([posting])
    assert not bad
    return good[0]


class World:
    """The ledger, as its adapter keeps it from batch to batch, and Redis, as its scripts and credits leave it."""

    def __init__(self, balance: int = BALANCE) -> None:
        self.balance = self.available = balance
        self.events: list[tuple[str, int]] = []
        self.entries = 0
        self.conflicts = 0
        self.loss = 0

    def post(self, batch: Sequence[Screened]) -> None:
        planner = Planner(funds={PAYER: Funds(balance_nanos=self.balance, credit_nanos=0)}, ended=self._ended(), rows=(), refused={})
        for one in batch:
            self.available -= one.posting.charge_nanos if one.posting.seq else 0
            planner.take(one)
        plan = planner.plan
        booked, told = plan.deltas.get(PAYER, [0, 0])
        self.balance += booked
        self.available += told
        self.events += [(event["event_type"], event["charge_nanos"]) for event in plan.events]
        self.entries += sum(line["amount"] for line in plan.entries)
        self.conflicts += len(plan.conflicts)
        self.loss += plan.loss_nanos
        assert plan.booked + plan.adjusted + plan.repeated + len(plan.conflicts) == len(batch)
        assert all(event["seq"] is None for event in plan.events if event["event_type"] == "adjust")

    def _ended(self) -> dict[str, Ended]:
        if not self.events:
            return {}
        (kind, charge), *adjusts = self.events
        return {HOLD: Ended(kind, PAYER, charge, charge + adjusts[0][1] if adjusts else None)}

    @property
    def charged(self) -> int:
        return sum(charge for _, charge in self.events)


def is_two_truths(ways: Sequence[Way], checkpoint: int) -> bool:
    """A worker says one thing, and what its hold had come to on the way is never above it."""
    kinds = {way.kind for way in ways}
    return kinds >= {"settle", "void"} or (
        "expire" in kinds and (("void" in kinds and checkpoint > 0) or ("settle" in kinds and checkpoint > SETTLED))
    )


def hold_true(world: World, ways: Sequence[Way], checkpoint: int) -> None:
    kinds = [kind for kind, _ in world.events]
    said = Counter(way.kind for way in ways)
    assert world.entries == 0, "entries sum to zero"
    assert world.available == world.balance, "Redis says what the ledger says"
    assert (world.balance, world.loss) == (BALANCE - world.charged, 0)
    assert len(kinds) == 1 or kinds == ["expire", "adjust"], "one ending, at most one adjust, only after an expire"
    if is_two_truths(ways, checkpoint):
        assert world.charged in {SETTLED, checkpoint, 0}, "one of them, not their sum"
        return
    assert world.conflicts == 0, "a conflict only where two truths differ"
    assert world.charged == (SETTLED if said["settle"] else checkpoint if said["expire"] else 0), "charged once, and right"
    assert ("adjust" in kinds) == (bool(said["settle"]) and ways[0].kind == "expire" and checkpoint < SETTLED)


CHARGING = tuple(way for way in WAYS if way.kind != "void")


@pytest.mark.parametrize(
    ("checkpoint", "length", "those"), [(40, 4, CHARGING), (40, 3, WAYS), (0, 3, WAYS), (SETTLED, 3, WAYS), (90, 3, WAYS)]
)
def test_every_order_of_every_way(checkpoint, length, those):
    """Up to three comings of one hold, four without voids, doubled ones among them, each in a batch of its own."""
    letters = {way: screened(way, checkpoint) for way in those}
    for many in range(1, length + 1):
        for ways in product(those, repeat=many):
            world = World()
            for way in ways:
                world.post([letters[way]])
            hold_true(world, ways, checkpoint)


@pytest.mark.parametrize(
    "ways", [(SETTLE_PAST_REDIS, VOID_BY_REDIS), (VOID_PAST_REDIS, SETTLE_BY_REDIS), (EXPIRE_BY_REDIS, VOID_PAST_REDIS)]
)
def test_two_truths_are_a_conflict(ways):
    for order in (ways, ways[::-1]):
        world = World()
        for way in order:
            world.post([screened(way, 40)])
        assert world.conflicts == 1


@pytest.mark.parametrize("ways", [(EXPIRE_BY_REDIS, SETTLE_PAST_REDIS), (EXPIRE_BY_REDIS, LATE_SETTLE), (EXPIRE_BY_REDIS, SETTLE_BY_REDIS)])
def test_a_checkpoint_above_the_settle_is_a_conflict(ways):
    for order in (ways, ways[::-1]):
        world = World()
        for way in order:
            world.post([screened(way, 90)])
        assert (world.conflicts, world.available) == (1, world.balance)


OF_REDIS = Way(kind="expire", by_redis=True, in_stream=True, charge=0)  # an entry hold, of a request that was served on credit
OF_THE_LOAN = Way(kind="expire", charge=40)


def test_two_checkpoints_of_one_hold_come_to_the_higher():
    for many in range(1, 5):
        for ways in product((OF_REDIS, OF_THE_LOAN), repeat=many):
            world = World()
            for way in ways:
                world.post([screened(way, 0)])
            assert (world.charged, world.conflicts, world.entries) == (40 if OF_THE_LOAN in ways else 0, 0, 0)
            assert world.available == world.balance == BALANCE - world.charged
            assert [kind for kind, _ in world.events] in (["expire"], ["expire", "adjust"])


def test_a_loan_and_the_settle_that_took_it_over():
    """Envoy's retry took over the hold of a request on credit, and Redis ended it; the loan's worker had been killed."""
    for ways in product((SETTLE_BY_REDIS, OF_THE_LOAN), repeat=3):
        world = World()
        for way in ways:
            world.post([screened(way, 0)])
        assert (world.charged, world.conflicts) == (SETTLED if SETTLE_BY_REDIS in ways else 40, 0)
        assert world.available == world.balance == BALANCE - world.charged


@given(
    ways=st.lists(st.sampled_from(WAYS), min_size=1, max_size=12),
    checkpoint=st.integers(0, RESERVED),
    cuts=st.lists(st.integers(1, 11), max_size=4),
    balance=st.integers(0, 2 * RESERVED),
)
def test_however_it_is_cut_into_batches(ways, checkpoint, cuts, balance):
    """An account that may lack the money for what comes late: the rest is loss, and Redis still says what the ledger says."""
    world = World(balance)
    letters = [screened(way, checkpoint) for way in ways]
    edges = [0, *sorted({cut for cut in cuts if cut < len(ways)}), len(ways)]
    for start, end in pairwise(edges):
        world.post(letters[start:end])
    kinds = [kind for kind, _ in world.events]
    assert (world.entries, world.available) == (0, world.balance)
    assert world.balance == balance - world.charged + world.loss
    assert len(kinds) == 1 or kinds == ["expire", "adjust"]
    assert world.charged in {SETTLED, checkpoint, 0}
    assert not world.conflicts or is_two_truths(ways, checkpoint)
