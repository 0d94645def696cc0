from __future__ import annotations

import asyncio
from collections.abc import Callable

from hypothesis import given
from hypothesis import strategies as st

from extproc.edge import lending
from extproc.edge.lending import SETTLED_S, Lending
from extproc.money.hold import NO_LIMITS, Amendment, Checkpoint, Ending, EndKind, Loan

CREDIT = 1_000


class Clock:
    now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


class Disk:
    """What an outbox would have: each loan as it was put last. It is slow: what was put is there when it is said to be."""

    def __init__(self) -> None:
        self.is_full = False
        self.behind_s = 0.0
        self.loans: dict[str, Loan] = {}
        self.writing: list[Callable[[], object]] = []

    def lend(self, loan: Loan, stored: Callable[[], object]) -> bool:
        if self.is_full:
            return False
        self.loans[loan.hold_id] = loan
        self.writing.append(stored)
        return True

    def forget(self, hold_id: str) -> None:
        del self.loans[hold_id]

    def write(self) -> None:
        while self.writing:
            self.writing.pop()()


class Pool:
    """A worker's lending."""

    def __init__(self, *, workers: int = 1) -> None:
        self.clock, self.disk = Clock(), Disk()
        self.lending = Lending(self.disk, workers=workers, monotonic_s=self.clock)
        self.saw = self.lending.saw
        self.granted: asyncio.Future[object] | None = None
        self._number = 0

    def lend(self, payer: str, nanos: int) -> Loan | None:
        self._number += 1
        asked = Amendment(
            hold_id=f"h{self._number}", owner="o", payer_id=payer, key_id="k", reserved_nanos=0, cap_nanos=nanos, tokens=1,
            account_limits=NO_LIMITS, key_limits=NO_LIMITS, row=b"begun",
        )  # fmt: skip
        lent = self.lending.lend(asked, credit_nanos=CREDIT)
        if lent is None:
            return None
        loan, self.granted = lent
        return loan

    def end(self, loan: Loan, charge: int, *, is_forwarded: bool = True) -> None:
        kind = EndKind.SETTLE if charge else EndKind.VOID
        self.lending.end(
            loan,
            Ending(hold_id=loan.hold_id, owner="o", payer_id=loan.payer_id, key_id="k", kind=kind, charge_nanos=charge, tokens=0, row=b"",
                   is_forwarded=is_forwarded),
        )  # fmt: skip


def checkpoint(nanos: int) -> Checkpoint:
    return Checkpoint(hold_id="h1", owner="o", payer_id="anna", charge_nanos=nanos, row=b"at %d" % nanos)


async def test_who_was_never_seen_with_money_gets_none():
    pool = Pool()
    assert not pool.lend("anna", 1)
    pool.saw("anna", 0)
    assert not pool.lend("anna", 1)
    assert not pool.lend("anna", 0)
    pool.saw("anna", -5)
    assert not pool.lend("anna", 0)
    assert not pool.disk.loans


async def test_a_share_of_the_credit_and_no_more_than_he_had():
    pool = Pool(workers=2)
    pool.saw("anna", 10**9)
    assert pool.lend("anna", 500)
    assert not pool.lend("anna", 1)
    pool.saw("bob", 30)
    assert not pool.lend("bob", 31)
    assert pool.lend("bob", 30)


async def test_what_was_not_used_can_be_lent_again_and_what_was_charged_only_when_it_is_settled():
    pool = Pool()
    pool.saw("anna", 10**9)
    pool.end(pool.lend("anna", 1_000), 400)
    assert not pool.lend("anna", 601)
    pool.clock.now_s += SETTLED_S
    pool.saw("anna", 10**9)
    assert not pool.lend("anna", 601), "the charge may still be on its way"
    pool.clock.now_s += 1
    assert not pool.lend("anna", 601), "Redis is still away"
    pool.saw("anna", 10**9)
    assert pool.lend("anna", 1_000)


async def test_while_postgresql_is_away_what_was_charged_stays_lent():
    """Redis is back and away again, for hours: it knows of nothing that only the outbox has, and each outage would lend anew."""
    pool = Pool()
    pool.saw("anna", 10**9)
    pool.end(pool.lend("anna", 1_000), 1_000)
    for _ in range(20):
        pool.clock.now_s += SETTLED_S
        pool.disk.behind_s = pool.clock.now_s
        pool.saw("anna", 10**9)
        assert not pool.lend("anna", 1)
    pool.disk.behind_s = 7.0  # ordinary traffic
    pool.saw("anna", 10**9)
    assert pool.lend("anna", 1_000)


async def test_it_is_granted_when_it_is_on_the_disk():
    pool = Pool()
    pool.saw("anna", 10**9)
    assert pool.lend("anna", 700)
    assert pool.disk.loans["h1"] == Loan(hold_id="h1", payer_id="anna", key_id="k", cap_nanos=700, charge_nanos=0, row=b"begun")
    assert not pool.granted.done()
    pool.disk.write()
    assert pool.granted.result().hold_id == "h1"


async def test_nobody_waits_any_more_when_it_is_on_the_disk():
    pool = Pool()
    pool.saw("anna", 10**9)
    loan = pool.lend("anna", 700)
    pool.granted.cancel()
    pool.disk.write()
    pool.end(loan, 0, is_forwarded=False)
    assert not pool.disk.loans
    assert pool.lend("anna", 1_000)


async def test_an_outbox_that_takes_nothing_lends_nothing():
    pool = Pool()
    pool.saw("anna", 10**9)
    pool.disk.is_full = True
    assert not pool.lend("anna", 700)
    pool.disk.is_full = False
    assert pool.lend("anna", 1_000), "what was refused was not lent"


async def test_checkpoints_follow_and_what_was_not_taken_is_said_again():
    pool = Pool()
    pool.saw("anna", 10**9)
    loan = pool.lend("anna", 700)
    loan = pool.lending.beat(loan, checkpoint(0))
    assert pool.disk.loans["h1"].row == b"begun", "nothing has been delivered"
    loan = pool.lending.beat(loan, checkpoint(40))
    pool.disk.is_full = True
    loan = pool.lending.beat(loan, checkpoint(60))
    assert (pool.disk.loans["h1"].charge_nanos, pool.disk.loans["h1"].row) == (40, b"at 40")
    pool.disk.is_full = False
    loan = pool.lending.beat(loan, checkpoint(60))
    assert pool.disk.loans["h1"] == loan
    assert (loan.charge_nanos, loan.row, loan.cap_nanos) == (60, b"at 60", 700)
    pool.disk.writing.clear()
    assert pool.lending.beat(loan, checkpoint(60)) is loan
    assert not pool.disk.writing, "nothing new"


async def test_an_ending_of_the_outbox_takes_the_loan_away_by_itself():
    pool = Pool()
    pool.saw("anna", 10**9)
    pool.end(pool.lend("anna", 700), 40)
    assert list(pool.disk.loans) == ["h1"]


async def test_payers_are_bounded(monkeypatch):
    monkeypatch.setattr(lending, "PAYERS_MAX", 2)
    pool = Pool()
    for name in ("a", "b", "c"):
        pool.saw(name, 10)
    assert [bool(pool.lend(name, 1)) for name in ("a", "b", "c")] == [False, True, True]


@given(st.lists(st.tuples(st.integers(0, 700), st.floats(0, 1), st.booleans()), max_size=40))
def test_never_more_than_the_share_is_out(requests):
    asyncio.run(all_of(requests))


async def all_of(requests: list[tuple[int, float, bool]]) -> None:
    pool = Pool(workers=3)
    pool.saw("anna", 10**9)
    charged, running = 0, []
    for nanos, used, ends in requests:
        if loan := pool.lend("anna", nanos):
            running.append((loan, int(nanos * used)))
        if ends and running:
            loan, charge = running.pop()
            pool.end(loan, charge)
            charged += charge
        assert charged + sum(loan.cap_nanos for loan, _ in running) <= CREDIT // 3
