"""What a killed worker had lent is booked once, at its last checkpoint, whatever else becomes known of its hold."""

from __future__ import annotations

import contextlib
import sqlite3

import pytest
from replaying import Outbox
from test_release import releases
from town import new_id

from extproc.money.hold import Ending
from extproc.settlement.meter import Series
from extproc.settlement.outbox_file import FORMAT, KEEP_MS, Lent, OutboxFile, outboxes
from extproc.settlement.replay import RETIRE_EVERY_S
from extproc.stores.shards import shard_of

pytestmark = pytest.mark.usefixtures("town")
CAP, LATER = 1_000, 15  # of a checkpoint of five output tokens


def lent(ending: Ending, *, charge: int | None = None) -> Lent:
    """The loan whose last checkpoint says what this ending says."""
    one, nanos = ending, ending.charge_nanos if charge is None else charge
    return Lent(one.hold_id, shard_of(one.payer_id), one.payer_id, one.key_id, CAP, nanos, one.row)


async def one_hold(town, output: int = 10) -> Ending:
    """Of a payer with a million."""
    payer, key = await town.customer()
    return town.settle(new_id(), payer, key, output)


async def patiently(settler, replay) -> None:
    """A minute goes by: the settler meets the file, makes endings of the loans, and books them."""
    for _ in range(4):
        await replay.step()
        settler.ahead_s += 20.0


def events(town) -> list[tuple[str, int]]:
    import psycopg  # noqa: PLC0415

    with psycopg.connect(town.dsn) as connection:
        rows = connection.execute("SELECT event_type, charge_nanos FROM billing_events WHERE event_type IN ('expire', 'settle', 'adjust')")
        return sorted(rows.fetchall())


async def test_a_loan_of_a_living_worker_keeps_nobody_waiting(town, settler, outbox):
    settled, open_one = await one_hold(town), await one_hold(town)
    outbox.file.append([], lent=[lent(open_one)])
    outbox.promise(settled)
    await settler.replay().step()
    assert (outbox.below, events(town)) == (2, [("settle", settled.charge_nanos)])
    assert outbox.file.has_loans


async def test_the_settler_ends_what_is_in_a_file_without_an_owner(town, settler):
    dead = Outbox(settler.directory, 7)
    delivered, silent = await one_hold(town), await one_hold(town)
    dead.file.append([], lent=[lent(delivered), lent(silent, charge=0)._replace(row=b"{}")])
    dead.leave()
    replay = settler.replay()
    await patiently(settler, replay)
    assert (dead.below, events(town)) == (3, [("expire", 0), ("expire", delivered.charge_nanos)])
    await town.sweep().step()
    assert await town.at_rest(delivered.payer_id) == (1_000_000 - delivered.charge_nanos, 1_000_000 - delivered.charge_nanos, 0)
    assert await town.at_rest(silent.payer_id) == (1_000_000, 1_000_000, 0)
    assert town.count("conflicts") == 0


async def test_a_file_without_an_owner_stays_while_something_is_lent(town, settler, outbox):
    """It had an owner when it was looked at, who died before it was cleared away."""
    old = await one_hold(town)
    outbox.promise(old, at_ms=1)
    outbox.file.append([], lent=[lent(await one_hold(town))])
    settler.ahead_ms, settler.ahead_s = KEEP_MS + 60_000, RETIRE_EVERY_S + 1
    replay = settler.replay()
    settler.ahead_s *= 2
    positions = replay._ledger.positions

    async def die_then() -> object:
        found = await positions()
        outbox.leave()
        return found

    replay._ledger.positions = die_then
    await replay.step()
    assert outboxes(settler.directory) == [outbox.path]


@pytest.mark.parametrize("first", ["redis", "loan"])
async def test_redis_has_an_older_checkpoint_of_the_same_hold(town, settler, first):
    """The request was admitted by Redis before it was served on credit; its lease runs out there, with nothing delivered."""
    payer, key = await town.customer()
    hold = await town.hold(payer, key)
    known = town.settle(hold, payer, key, 10)
    dead = Outbox(settler.directory, 7)
    dead.file.append([], lent=[lent(known)])
    dead.leave()
    replay = settler.replay()

    async def by_redis() -> None:
        await releases(town).release(hold, actor="ada", reason="as its lease would")
        await town.poster().step()

    async def by_the_loan() -> None:
        await patiently(settler, replay)

    for step in (by_redis, by_the_loan) if first == "redis" else (by_the_loan, by_redis):
        await step()
    await replay.step()
    await town.sweep().step()
    left = 1_000_000 - known.charge_nanos
    assert dead.below == 2
    assert await town.at_rest(payer) == (left, left, 0)
    assert (town.count("conflicts"), town.count("requests")) == (0, 1)


async def test_a_loan_beside_its_settle_is_nothing_new(town, settler):
    """Redis has the settle; the worker was killed before its outbox had it."""
    payer, key = await town.customer()
    hold = await town.hold(payer, key)
    dead = Outbox(settler.directory, 7)
    dead.file.append([], lent=[lent(town.settle(hold, payer, key, 5))])
    dead.leave()
    settle = town.settle(hold, payer, key, 10)
    await town.holds.end(settle)
    await town.poster().step()
    replay = settler.replay()
    await patiently(settler, replay)
    assert (dead.below, events(town)) == (2, [("settle", settle.charge_nanos)])
    left = 1_000_000 - settle.charge_nanos
    assert await town.at_rest(payer) == (left, left, 0)
    assert (town.count("conflicts"), settler.count(Series.CONFLICTS)) == (0, 0)


async def test_another_format_is_told_once_and_keeps_nobody(town, settler, outbox, caplog):
    strange = Outbox(settler.directory, 7)
    strange.leave()
    with contextlib.closing(sqlite3.connect(strange.path)) as other:
        other.execute(f"PRAGMA user_version = {FORMAT + 1}")
    outbox.promise(await one_hold(town))
    replay = settler.replay()
    await replay.step()
    await replay.step()
    assert (outbox.below, settler.count(Series.UNREADABLE_OUTBOXES)) == (2, 1)
    assert [record.message for record in caplog.records if f"format {FORMAT + 1}" in record.message]
    assert strange.path.exists()


def test_a_file_that_is_read_says_what_is_lent(settler, outbox):
    with contextlib.closing(OutboxFile.read_only(outbox.path)) as file:
        assert not file.has_loans
        outbox.file.append([], lent=[Lent("h", 0, "p", "k", CAP, LATER, b"")])
        assert file.has_loans
