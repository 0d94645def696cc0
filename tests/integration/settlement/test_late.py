"""A late charge meets money that another request holds: who prepaid 1,000 pays 1,000, and the rest is the operator's loss, never a debt."""

from __future__ import annotations

from typing import Any

import pytest
from ledger_invariants import ledger_faults
from town import CAP, new_id

from extproc.ledger.audit import PostgresAudit
from extproc.money.posting import Posting
from extproc.settlement.release import Release
from extproc.stores.shards import shard_of

OUTPUT = 450
CHARGE = 905  # of 450 output tokens


async def expired_and_held_again(town: Any) -> tuple[str, str, str, str]:
    """A request whose hold is gone runs on, and what it gave back is held by another one."""
    payer, key = await town.customer(CAP)
    late = await town.hold(payer, key)
    await Release(town.holds, PostgresAudit(town.database), new_id=new_id).release(late, actor="ada", reason="it hangs")
    return payer, key, late, await town.hold(payer, key)


@pytest.mark.parametrize("order", [("late", "held"), ("held", "late")], ids=" then ".join)
@pytest.mark.parametrize("way", ["by Redis", "past it"])
@pytest.mark.parametrize("is_posted_between", [True, False])
async def test_both_are_settled(town: Any, order: tuple[str, ...], way: str, is_posted_between: bool):
    payer, key, late, held = await expired_and_held_again(town)
    poster = town.poster()
    for name in order:
        ending = town.settle(late if name == "late" else held, payer, key, OUTPUT)
        if name == "late" and way == "past it":
            await poster.step()
            await town.ledger.post(
                [Posting(shard_of(payer), "", "settle", late, payer, key, CHARGE, CAP, "", 0, 1_760_000_000_000, ending.row)]
            )
        else:
            await town.holds.end(ending)
        if is_posted_between:
            await poster.step()
            await town.sweep().step()
    await poster.step()
    await town.sweep().step()
    balance, available, held_nanos = await town.at_rest(payer)
    assert (available, held_nanos) == (balance, 0)
    assert balance >= 0, "a debt that no named event has made"
    assert balance == 0
    assert town.count("entries", "kind = 'loss' AND name = 'late' AND amount = -810") == 1
    assert town.count("entries", f"kind = 'revenue' AND amount = {CHARGE}") == 2
    assert ledger_faults(town.dsn) == []
