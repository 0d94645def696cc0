from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from extproc.edge import lending
from extproc.edge.lending import SETTLED_S, Lending

CREDIT = 1_000


class Clock:
    now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


def test_who_was_never_seen_with_money_gets_none():
    pool = Lending(workers=1, monotonic_s=Clock())
    assert not pool.lend("anna", 1, credit_nanos=CREDIT)
    pool.saw("anna", 0)
    assert not pool.lend("anna", 1, credit_nanos=CREDIT)
    assert not pool.lend("anna", 0, credit_nanos=CREDIT)
    pool.saw("anna", -5)
    assert not pool.lend("anna", 0, credit_nanos=CREDIT)


def test_a_share_of_the_credit_and_no_more_than_he_had():
    pool = Lending(workers=2, monotonic_s=Clock())
    pool.saw("anna", 10**9)
    assert pool.lend("anna", 500, credit_nanos=CREDIT)
    assert not pool.lend("anna", 1, credit_nanos=CREDIT)
    pool.saw("bob", 30)
    assert not pool.lend("bob", 31, credit_nanos=CREDIT)
    assert pool.lend("bob", 30, credit_nanos=CREDIT)


def test_what_was_not_used_can_be_lent_again_and_what_was_charged_only_when_it_is_settled():
    clock = Clock()
    pool = Lending(workers=1, monotonic_s=clock)
    pool.saw("anna", 10**9)
    assert pool.lend("anna", 1_000, credit_nanos=CREDIT)
    pool.end("anna", 1_000, charge_nanos=400)
    assert not pool.lend("anna", 601, credit_nanos=CREDIT)
    clock.now_s += SETTLED_S
    pool.saw("anna", 10**9)
    assert not pool.lend("anna", 601, credit_nanos=CREDIT), "the charge may still be on its way"
    clock.now_s += 1
    assert not pool.lend("anna", 601, credit_nanos=CREDIT), "Redis is still away"
    pool.saw("anna", 10**9)
    assert pool.lend("anna", 1_000, credit_nanos=CREDIT)


def test_payers_are_bounded(monkeypatch):
    monkeypatch.setattr(lending, "PAYERS_MAX", 2)
    pool = Lending(workers=1, monotonic_s=Clock())
    for name in ("a", "b", "c"):
        pool.saw(name, 10)
    assert [pool.lend(name, 1, credit_nanos=CREDIT) for name in ("a", "b", "c")] == [False, True, True]


@given(st.lists(st.tuples(st.integers(0, 700), st.floats(0, 1), st.booleans()), max_size=40))
def test_never_more_than_the_share_is_out(requests):
    pool = Lending(workers=3, monotonic_s=Clock())
    pool.saw("anna", 10**9)
    charged, running = 0, []
    for nanos, used, ends in requests:
        if pool.lend("anna", nanos, credit_nanos=CREDIT):
            running.append((nanos, int(nanos * used)))
        if ends and running:
            held, charge = running.pop()
            pool.end("anna", held, charge_nanos=charge)
            charged += charge
        assert charged + sum(held for held, _ in running) <= CREDIT // 3
