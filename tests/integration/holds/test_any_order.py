"""Random histories of one payer against a model of two pages: amounts at the edges, doubled, late, unknown and foreign calls, and rebuilds at
any moment, of a shard that has kept or lost what it had, with workers that are heard, or come late, or call in an epoch that is over. Some
holds take free tokens. The key has a budget, which counts what is charged whoever takes it.

``ANY_ORDER_EXAMPLES=2000`` looks longer.
"""

from __future__ import annotations

import asyncio
import os
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test
from integration.holds.bank import Bank
from integration.holds.builder import Builder, posting, reassertion
from integration.holds.invariants import problems
from integration.holds.shard_clock import ShardClock

from extproc.errors import StoreFenced, StoreRefused
from extproc.holds.fresh import open_fresh
from extproc.holds.port import Reassertion, Tokens
from extproc.holds.redis import RedisHolds
from extproc.money.amount import BALANCE_NANOS_MAX
from extproc.money.hold import Denied, DenyReason, EndResult, Granted
from extproc.money.posting import Posting
from extproc.money.usage import NO_QUOTA, Quota
from extproc.stores.pipeline import Pipeline

BIG = 2**53
AMOUNTS = st.sampled_from([0, 1, 2, 7, BIG - 1, BIG, BIG + 1, 2 * BIG + 1, BALANCE_NANOS_MAX])
BUDGET = 3 * BIG
INT64_MAX = 2**63 - 1
LEASE_MS = 4_000
NONE = (0, 0)
PAIRS = st.sampled_from([NONE, NONE, (3, 0), (0, 5), (4, 6), (1, BIG)])

Pair = tuple[int, int]


def plus(one: Pair, other: Pair, sign: int = 1) -> Pair:
    return one[0] + sign * other[0], one[1] + sign * other[1]


def within(one: Pair, other: Pair) -> bool:
    return one[0] <= other[0] and one[1] <= other[1]


def quota(pair: Pair) -> Quota:
    return Quota(input_tokens=pair[0], output_tokens=pair[1]) if any(pair) else NO_QUOTA


@dataclass
class Hold:
    owner: str
    request: str
    entry: int
    state: str = "entry"
    reserved: int = 0
    cap: int = 0
    checkpoint: int = 0
    kind: str = ""
    amount: int = 0  # of its ending
    quota: Pair = NONE
    used: Pair = NONE  # of its checkpoint, or its ending
    spent: int = 0  # what the budget has counted of its ending

    @property
    def is_open(self) -> bool:
        return self.state != "ended"


@dataclass
class Model:
    """``charged`` is what Redis has taken; ``owed`` what the ledger is told and has not brought back yet; ``unseen`` of the former, what the
    stream does not say. ``spent`` is the budget's, ``spent_past`` what only the ledger has counted of it: a rebuild tells.
    """

    total: int = 2 * BIG + 1
    charged: int = 0
    owed: int = 0
    unseen: int = 0
    credit: int = 0
    version: int = 1
    holds: dict[str, Hold] = field(default_factory=dict)
    aliases: dict[str, str] = field(default_factory=dict)
    requests: dict[str, str] = field(default_factory=dict)
    forgotten: dict[str, Hold] = field(default_factory=dict)  # lost with the shard; their workers still have them
    tokens: Pair = NONE  # the same of free tokens: credited, used, owed, unseen
    used: Pair = NONE
    owed_tokens: Pair = NONE
    unseen_tokens: Pair = NONE
    spent: int = 0
    spent_past: int = 0

    @property
    def available(self) -> int:
        return self.total - self.charged - self.held()

    @property
    def spendable(self) -> int:
        return self.available + self.credit

    @property
    def free(self) -> Pair:
        return plus(plus(self.tokens, self.used, -1), self.held_tokens(), -1)

    def held_tokens(self) -> Pair:
        total = NONE
        for hold in self.holds.values():
            if hold.state == "exact":
                total = plus(total, hold.quota)
        return total

    def held(self) -> int:
        return sum(hold.reserved for hold in self.holds.values() if hold.state == "exact")

    def entries(self) -> int:
        return sum(hold.entry for hold in self.holds.values() if hold.state == "entry")

    @property
    def budget_used(self) -> int:
        return self.spent + self.held()

    def spend(self, charge: int, known: int = 0) -> bool:
        """What leaves int64 is not counted."""
        fits = self.budget_used + charge <= INT64_MAX
        self.spent += charge - known if fits else 0
        return fits

    def admit(self, hold_id: str, request: str, entry: int) -> str | DenyReason:
        """The hold's id, or why not."""
        target = self.aliases.get(hold_id, hold_id)
        if target in self.holds:
            hold = self.holds[target]
            if not hold.is_open:
                return DenyReason.ENDED
            return target if hold.owner == hold_id else DenyReason.TAKEN
        first = self.holds.get(self.requests.get(request, ""))
        if first and first.state == "entry":
            first.owner = hold_id
            self.aliases[hold_id] = self.requests[request]
            return self.requests[request]
        if any(self.free):
            entry = 0
        if entry and self.spendable - self.entries() < entry:
            comes_back = any(self.held_tokens()) or self.spendable + self.held() >= entry
            return DenyReason.HELD if comes_back else DenyReason.INSUFFICIENT
        self.holds[hold_id] = Hold(owner=hold_id, request=request, entry=entry)
        self.requests[request] = hold_id
        return hold_id

    def amend(self, hold_id: str, owner: str, reserved: int, cap: int, *, wanted: Pair, beside: int) -> Pair | DenyReason | None:
        """The free tokens that it took. ``None``: refused as a contradiction."""
        hold = self.holds.get(hold_id)
        if hold is None:
            return DenyReason.TAKEN if hold_id in self.aliases else DenyReason.MISSING
        if hold.state == "ended":
            return DenyReason.ENDED
        if hold.owner != owner:
            return DenyReason.TAKEN
        taken = any(wanted) and within(wanted, self.free)
        if hold.state == "exact":
            taken = any(wanted) and any(hold.quota)
            same = hold.reserved == (beside if taken else reserved) and (not taken or hold.quota == wanted)
            return (wanted if taken else NONE) if same else None
        required, cap = (beside, beside) if taken else (reserved, cap)
        is_short, left = 0 < required > self.spendable, BUDGET - self.budget_used
        if left < required and (not is_short or left < self.spendable):
            return DenyReason.KEY_BUDGET
        if is_short:
            comes_back = any(self.held_tokens()) or self.spendable + self.held() >= required
            return DenyReason.HELD if comes_back else DenyReason.INSUFFICIENT
        hold.state, hold.reserved, hold.cap, hold.quota = "exact", required, cap, wanted if taken else NONE
        return hold.quota

    def beat(self, hold_id: str, owner: str, charge: int, used: Pair) -> None:
        hold = self.holds.get(hold_id)
        if not hold or not hold.is_open or hold.owner != owner:
            return
        charge = min(charge, hold.cap)
        if any(hold.quota) and not (within(hold.used, used) and within(used, hold.quota)):
            return
        if any(hold.quota) and charge >= hold.checkpoint:
            hold.used = used
        hold.checkpoint = max(hold.checkpoint, charge)

    def end(self, hold_id: str, owner: str, charge: int, kind: str, used: Pair) -> EndResult | None:
        hold_id = self.aliases.get(hold_id, hold_id)
        hold = self.holds.get(hold_id)
        if hold is None:
            self.holds[hold_id] = Hold(owner=owner, request="", entry=0, state="ended", kind=kind, amount=charge)
            self.spend(charge)
            return EndResult.UNKNOWN
        if not hold.is_open:
            if hold.owner == owner:
                self.late(hold, charge, kind, used)
            return EndResult.ALREADY
        if hold.owner != owner:
            return EndResult.TAKEN
        pays_with_money = any(hold.quota) and not any(used)  # served on credit: the answer of its amend was lost
        if (hold.state == "exact" and charge > hold.cap and not pays_with_money) or not within(used, hold.quota):
            return None
        self.finish(hold, charge, kind, used)
        return EndResult.ENDED

    def finish(self, hold: Hold, charge: int, kind: str, used: Pair) -> None:
        if charge > hold.reserved or not within(used, hold.quota):
            self.owed += charge
            self.owed_tokens = plus(self.owed_tokens, used)
        else:
            self.charged += charge
            self.used = plus(self.used, used)
        hold.state, hold.kind, hold.amount, hold.used, hold.spent = "ended", kind, charge, used, charge
        self.spend(charge)

    def late(self, hold: Hold, charge: int, kind: str, used: Pair) -> None:
        if hold.kind == "expire" and kind == "settle" and charge > hold.spent and self.spend(charge, hold.spent):
            hold.spent = charge
        if charge > hold.reserved:
            return
        says_more = charge >= hold.amount and within(hold.used, used) and within(used, hold.quota)
        if hold.kind == "expire" and kind == "settle" and says_more:
            self.owed += charge - hold.amount
            self.owed_tokens = plus(self.owed_tokens, plus(used, hold.used, -1))
            hold.amount, hold.used = charge, used

    def expire_all(self) -> set[str]:
        due = {hold_id for hold_id, hold in self.holds.items() if hold.is_open}
        for hold_id in due:
            self.finish(self.holds[hold_id], self.holds[hold_id].checkpoint, "expire", self.holds[hold_id].used)
        return due

    def lose(self, heard: bool) -> None:
        """All of the shard; what workers have open comes back if they are heard."""
        opened = {hold_id: hold for hold_id, hold in self.holds.items() if hold.is_open}
        self.holds = opened if heard else {}
        if not heard:
            self.forgotten |= opened
        self.unseen, self.unseen_tokens = self.charged, self.used
        self.aliases.clear()
        self.requests.clear()

    def book(self) -> None:
        """The ledger takes what is owed, as far as there is anything, and a rebuild brings it to Redis."""
        taken = min(self.owed, max(0, self.spendable))
        self.charged += taken
        self.unseen += taken
        self.owed = 0
        self.spend(self.spent_past)
        self.spent_past = 0
        tokens = min(self.owed_tokens[0], self.free[0]), min(self.owed_tokens[1], self.free[1])
        self.used, self.unseen_tokens, self.owed_tokens = plus(self.used, tokens), plus(self.unseen_tokens, tokens), NONE

    def assert_ending(self, hold_id: str, charge: int, kind: str, used: Pair) -> None:
        """From an outbox, into an open shard."""
        hold = self.holds.get(hold_id)
        if hold is None:
            self.aliases.pop(hold_id, None)
            self.holds[hold_id] = Hold(owner=hold_id, request="", entry=0, state="ended", kind=kind, amount=charge)
            self.owed += charge
            self.spent_past += charge
            self.owed_tokens = plus(self.owed_tokens, used)
        elif not hold.is_open:
            self.late(hold, charge, kind, used)
        else:
            self.finish(hold, charge, kind, used)


class Histories(RuleBasedStateMachine):
    url = ""

    def __init__(self) -> None:
        super().__init__()
        self.runner = asyncio.Runner()
        self.model = Model()
        self.ids = [f"hold {number}" for number in range(6)]
        self.do(self._open())

    def do(self, coroutine: Any) -> Any:
        return self.runner.run(coroutine)

    async def _open(self) -> None:
        self.pipeline = Pipeline(self.url, timeout_ms=5_000)
        await self.pipeline.open()
        await self.pipeline.execute("FLUSHDB")
        self.bank = Bank(RedisHolds(self.pipeline, lease_ms=LEASE_MS))
        await open_fresh(self.bank.holds)
        await self.bank.payer(self.model.total, budget_nanos=str(BUDGET))
        self.clock = ShardClock(self.pipeline, self.bank.holds)
        await self.clock.pass_by(LEASE_MS + 2_000)
        self.builder = await Builder.of(self.bank)

    def teardown(self) -> None:
        self.bank.credited["anna"] = self.model.total - self.model.unseen
        tokens = {"anna": plus(self.model.tokens, self.model.unseen_tokens, -1)}
        found = self.do(problems(self.url, balances=self.bank.credited, tokens=tokens))
        self.do(self.pipeline.close())
        self.runner.close()
        assert found == []

    @rule(number=st.integers(0, 5), request=st.sampled_from(["r1", "r2", "r3"]), entry=AMOUNTS)
    def admit(self, number: int, request: str, entry: int) -> None:
        hold_id = self.ids[number]
        expected = self.model.admit(hold_id, request, entry)
        verdict = self.do(self.bank.admit(hold_id, entry=entry, request=request))
        if isinstance(expected, DenyReason):
            assert isinstance(verdict, Denied), verdict
            assert verdict.reason is expected
        else:
            assert verdict == Granted(hold_id=expected, spendable_nanos=self.model.spendable, quota=quota(self.model.free))

    @rule(
        number=st.integers(0, 5),
        owner=st.integers(0, 5),
        own=st.booleans(),
        reserved=AMOUNTS,
        more=st.sampled_from([0, 0, 0, 5, BIG]),
        wanted=PAIRS,
        beside=AMOUNTS,
    )
    def amend(self, *, number: int, owner: int, own: bool, reserved: int, more: int, wanted: Pair, beside: int) -> None:
        """The cap is above what is reserved where the ledger is to take the rest."""
        hold_id, owner_id = self._pair(number, owner, own)
        cap = min(reserved + more, BALANCE_NANOS_MAX)
        free = self.model.free
        expected = self.model.amend(hold_id, owner_id, reserved, cap, wanted=wanted, beside=beside)
        try:
            verdict = self.do(self.bank.amend(hold_id, reserved, owner=owner_id, cap=cap, quota=quota(wanted), beside=beside))
        except StoreRefused:
            assert expected is None
            return
        if isinstance(expected, tuple):
            assert verdict == Granted(hold_id=hold_id, spendable_nanos=self.model.spendable, quota=quota(expected))
        else:
            assert isinstance(verdict, Denied), verdict
            assert verdict.reason is expected
            if any(wanted) and expected in (DenyReason.HELD, DenyReason.INSUFFICIENT):
                assert verdict.quota == quota(free)

    @rule(number=st.integers(0, 5), owner=st.integers(0, 5), own=st.booleans(), charge=AMOUNTS, used=PAIRS)
    def beat(self, number: int, owner: int, own: bool, charge: int, used: Pair) -> None:
        hold_id, owner_id = self._pair(number, owner, own)
        self.model.beat(hold_id, owner_id, charge, used)
        self.do(self.bank.beat(hold_id, charge, owner=owner_id, used=quota(used)))

    @rule(number=st.integers(0, 5), owner=st.integers(0, 5), own=st.booleans(), charge=AMOUNTS, void=st.booleans(), used=PAIRS)
    def end(self, *, number: int, owner: int, own: bool, charge: int, void: bool, used: Pair) -> None:
        hold_id, owner_id = self._pair(number, owner, own)
        used = NONE if void else used
        expected = self.model.end(hold_id, owner_id, 0 if void else charge, "void" if void else "settle", used)
        try:
            settle = self.bank.settle(hold_id, charge, owner=owner_id, used=quota(used)) if not void else None
            assert self.do(settle or self.bank.void(hold_id, owner=owner_id)) is expected
        except StoreRefused:
            assert expected is None

    @rule(more=AMOUNTS, credit=st.sampled_from([0, 0, 5, BIG]), late=st.booleans(), tokens=PAIRS)
    def credit(self, more: int, credit: int, late: bool, tokens: Pair) -> None:
        model = self.model
        given = Tokens(*plus(model.tokens, tokens))
        version, total = (
            (model.version - 1, model.total + more) if late else (model.version + 1, min(model.total + more, BALANCE_NANOS_MAX))
        )
        if not late:
            if model.spendable + total - model.total + credit - model.credit < 0:
                return  # a lowered line may leave a negative balance; that is not what is looked at here
            model.version, model.total, model.credit, model.tokens = version, total, credit, given
        for _ in range(2):
            assert self.do(self.bank.holds.credit("anna", version=version, total_nanos=total, credit_nanos=credit, total=given))
        now = Tokens(*model.tokens)
        for nanos, other in ((model.total + 1, now), (model.total, Tokens(now.input, now.output + 1))):
            same = {"version": model.version, "total_nanos": nanos, "credit_nanos": model.credit, "total": other}
            assert not self.do(self.bank.holds.credit("anna", **same))

    @precondition(lambda self: any(hold.is_open for hold in self.model.holds.values()))
    @rule()
    def expire(self) -> None:
        ended = self.do(self.clock.pass_by(LEASE_MS + 2_000))
        assert set(ended) == self.model.expire_all()

    @rule(is_lost=st.booleans(), is_heard=st.booleans(), times=st.integers(1, 2))
    def rebuild(self, is_lost: bool, is_heard: bool, times: int) -> None:
        """The bank has what was credited; workers know what they hold open, of what has ended they know nothing."""
        model = self.model
        if is_lost:
            self.do(self.builder.lose())
            model.lose(is_heard)
        epoch = self.do(self.builder.begin())
        opened = [self._reassertion(hold_id, hold) for hold_id, hold in model.holds.items() if hold.is_open]
        for _ in range(times if is_heard else 0):
            self.do(self.bank.holds.reassert("w", self.builder.shard, epoch=epoch, holds=opened, endings=[], is_all=True))
        model.book()
        self.bank.credited["anna"], self.bank.tokens["anna"] = model.total, Tokens(*model.tokens)
        used = Tokens(*model.used)
        told = {"charged": model.charged, "version": model.version, "credit": model.credit, "spent": model.spent}
        self.do(self.builder.finish(epoch, **told, fields={"budget_nanos": str(BUDGET)}, free_used=used))

    @precondition(lambda self: self.model.forgotten)
    @rule(times=st.integers(1, 2))
    def come_late(self, times: int) -> None:
        """A worker that no rebuild has heard of."""
        model = self.model
        hold_id, hold = model.forgotten.popitem()
        if hold_id in model.holds or hold_id in model.aliases or model.spendable - model.entries() < max(hold.reserved, hold.entry):
            return  # the money has been spent again meanwhile: what is too much is not looked at here
        if not within(hold.quota, model.free) or model.budget_used + hold.reserved > INT64_MAX:
            return
        for _ in range(times):
            self.do(self._reassert([self._reassertion(hold_id, hold)]))
        model.holds[hold_id] = hold

    @rule(number=st.integers(0, 5), charge=AMOUNTS, void=st.booleans(), times=st.integers(1, 2), used=PAIRS)
    def end_from_an_outbox(self, number: int, charge: int, void: bool, times: int, used: Pair) -> None:
        hold_id, charge, kind, used = self.ids[number], 0 if void else charge, "void" if void else "settle", NONE if void else used
        hold = self.model.holds.get(hold_id)
        for _ in range(times):
            self.model.assert_ending(hold_id, charge, kind, used)
            ending = posting(hold_id, kind, charge, hold.reserved if hold else charge, used=used)
            self.do(self._reassert([], [ending]))

    @rule(number=st.integers(0, 5), charge=AMOUNTS)
    def call_in_another_epoch(self, number: int, charge: int) -> None:
        """Of a life that is over, or has not begun: nothing happens."""
        epochs, shard = self.bank.holds._epochs, self.builder.shard
        for call in (lambda: self.bank.admit(self.ids[number], entry=charge), lambda: self.bank.settle(self.ids[number], charge)):
            epochs._known[shard] = self.builder.opened + "1"
            with pytest.raises(StoreFenced, match="FENCED"):
                self.do(call())
        self.do(self.bank.holds.states())

    @rule()
    def begin_anew(self) -> None:
        """Ids are few, so that they meet; ended ones make room for new ones."""
        numbers = len(self.model.holds) + len(self.model.aliases)
        self.ids = [f"hold {numbers} {number}" if self._ended(hold_id) else hold_id for number, hold_id in enumerate(self.ids)]

    @invariant()
    def the_same_sums(self) -> None:
        model = self.model
        expected = (model.available, model.held(), model.entries(), sum(hold.is_open for hold in model.holds.values()))
        assert self.do(self.bank.balance()) == expected
        assert self.do(self.bank.quota()) == (model.free, model.held_tokens())
        assert self.do(self.bank.budget_used()) == model.budget_used

    def _pair(self, number: int, owner: int, own: bool) -> tuple[str, str]:
        hold_id = self.ids[number]
        hold = self.model.holds.get(hold_id)
        return hold_id, hold.owner if own and hold else self.ids[owner]

    def _ended(self, hold_id: str) -> bool:
        hold = self.model.holds.get(self.model.aliases.get(hold_id, hold_id))
        return hold is not None and not hold.is_open

    def _reassertion(self, hold_id: str, hold: Hold) -> Reassertion:
        entry = hold.entry if hold.state == "entry" else None
        return reassertion(
            hold_id,
            hold.reserved,
            cap=hold.cap,
            entry=entry,
            charge=hold.checkpoint,
            owner=hold.owner,
            quota=quota(hold.quota),
            used=quota(hold.used),
        )

    async def _reassert(self, holds: list[Reassertion], endings: list[Posting] | None = None) -> None:
        shard, epoch = self.builder.shard, self.builder.opened
        await self.bank.holds.reassert("w", shard, epoch=epoch, holds=holds, endings=endings or [], is_all=True)


def test_any_order(redis_url: str) -> None:
    machine = type("HistoriesHere", (Histories,), {"url": redis_url})
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=int(os.environ.get("ANY_ORDER_EXAMPLES", "60")),
            stateful_step_count=30,
            deadline=None,
            database=None,
            print_blob=True,
            suppress_health_check=list(HealthCheck),
        ),
    )
