"""Whoever is killed, overtaken or left without an answer while he replays: the next one goes on, and nothing is booked twice."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from ledger_invariants import ledger_faults
from replaying import endings_of, patiently
from town import until

from extproc.errors import StoreUnknown
from extproc.ledger.outboxes import PostgresOutboxes
from extproc.settlement.meter import Series
from extproc.settlement.replay import RIPE_S


class Killed(BaseException):
    """The end of a process, as far as its code can tell."""


class Dying:
    """A port that ends the process at its n-th call, before or after it was carried out."""

    def __init__(self, port: Any, verb: str, number: int, *, after: bool) -> None:
        self._port, self._verb, self._left, self._after = port, verb, number, after

    def __getattr__(self, verb: str) -> Any:
        real = getattr(self._port, verb)
        if verb != self._verb:
            return real

        async def call(*args: Any, **fields: Any) -> Any:
            self._left -= 1
            if self._left == 0 and not self._after:
                raise Killed
            answer = await real(*args, **fields)
            if self._left == 0:
                raise Killed
            return answer

        return call


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("call", ["positions 1", "read_back 1", "read_back 2", "post 1", "cursors 1"])
async def test_killed_at_any_point_the_next_one_goes_on(town, settler, outbox, call, after):
    verb, _, number = call.partition(" ")
    payer, endings = await endings_of(town, 6, redis=True)
    lost, more = await endings_of(town, 6, redis=False)
    outbox.promise(*[ending for pair in zip(endings, more, strict=True) for ending in pair])
    await town.poster().step()
    ledger, postings = (Dying(real, verb, int(number), after=after) for real in (PostgresOutboxes(town.database), town.ledger))
    with pytest.raises(Killed):
        await settler.replay(ledger=ledger, postings=postings).step()
    await settler.replay().step()
    assert (outbox.below, town.count("requests"), settler.renewed, settler.count(Series.OUTBOX_RESTARTS)) == (13, 12, 0, 0)
    assert (await town.at_rest(payer))[0] == (await town.at_rest(lost))[0] == 999_850
    assert ledger_faults(town.dsn) == []


async def test_killed_before_the_mark_is_written(town, settler, outbox, monkeypatch):
    _, endings = await endings_of(town, 3, redis=False)
    outbox.promise(*endings)

    def die(*_: object) -> None:
        raise Killed

    with monkeypatch.context() as patched:
        patched.setattr("extproc.settlement.replay.confirm", die)
        with pytest.raises(Killed):
            await settler.replay().step()
    assert outbox.below == 0
    await settler.replay().step()
    assert (outbox.below, town.count("requests"), settler.renewed) == (4, 3, 0)


@pytest.mark.parametrize("after", [False, True])
async def test_an_unknown_commit_is_asked_after(town, settler, outbox, after):
    payer, endings = await endings_of(town, 3, redis=False)
    outbox.promise(*endings)

    class Unsure:
        failed = False

        def __getattr__(self, verb):
            return getattr(town.ledger, verb)

        async def post(self, postings):
            if self.failed:
                return await town.ledger.post(postings)
            self.failed = True
            if after:
                await town.ledger.post(postings)
            raise StoreUnknown("the answer was lost")

    replay = settler.replay(postings=Unsure())
    with pytest.raises(StoreUnknown):
        await replay.step()
    await replay.step()
    assert (outbox.below, town.count("requests"), (await town.at_rest(payer))[0]) == (4, 3, 999_925)


async def test_many_settlers_read_one_directory(town, settler, outbox):
    payer, endings = await endings_of(town, 40, redis=False)
    replays = [settler.replay() for _ in range(3)]
    for start in range(0, 40, 10):
        outbox.promise(*endings[start : start + 10])
        await asyncio.gather(*(patiently(replay) for replay in replays))
        settler.ahead_s += RIPE_S
        await asyncio.gather(*(patiently(replay) for replay in replays))
    assert (outbox.below, town.count("requests"), (await town.at_rest(payer))[0]) == (41, 40, 999_000)
    assert (settler.count(Series.OUTBOX_RESTARTS), settler.renewed, town.count("conflicts")) == (0, 0, 0)


async def test_postgres_restarts_while_it_runs(town, settler, outbox, postgres):
    payer, endings = await endings_of(town, 30, redis=False)
    running = asyncio.create_task(settler.replay().run())
    outbox.promise(*endings[:10])

    async def confirmed(below: int) -> bool:
        return outbox.below == below

    await until(lambda: confirmed(11))
    postgres.stop()
    outbox.promise(*endings[10:])

    async def failing() -> bool:
        return settler.count(Series.REPLAY_FAILURES) > 0

    await until(failing)
    postgres.start_again()
    await until(lambda: confirmed(31))
    town.stop.set()
    await running
    assert ((await town.at_rest(payer))[0], town.count("requests"), settler.renewed) == (999_250, 30, 0)
