"""The leader's steps, against stores in memory: killed after any of them, overtaken in any of them, and always the same money."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Coroutine
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import pytest
from ruins import RUN, Archive, Clock, Ruins, open_hold

from extproc.errors import StoreError, StoreRefused
from extproc.holds.port import Reassertion, ShardState
from extproc.ledger.port import ShardEpoch
from extproc.money.posting import Posting
from extproc.settlement.meter import Series
from extproc.settlement.rebuild import SILENT_S, UNREGISTERED_S, Rebuild, is_broken, number_of

SHARDS = 3
PAYERS = {"anna": (0, 1_000), "bert": (0, -40), "cleo": (0, 7), "dora": (2, 500)}


class Killed(BaseException):
    """A process that is killed raises nothing that anybody catches."""


@dataclass
class Tally:
    counts: Counter[Series] = field(default_factory=Counter)
    gauges: dict[Series, int] = field(default_factory=dict)

    def add(self, series: Series, amount: int = 1) -> None:
        self.counts[series] += amount

    def set(self, series: Series, value: int) -> None:
        self.gauges[series] = value


class Scene:
    """Both stores, and settlers that lead."""

    def __init__(self) -> None:
        self.redis = Ruins(SHARDS)
        self.ledger = Archive(self.redis, PAYERS)
        self.clock = Clock()
        self.clock.during = self.ledger.post
        self.tally = Tally()
        self.said: list[str] = []

    def leader(self, led: frozenset[int] = frozenset(range(SHARDS))) -> Rebuild:
        return Rebuild(
            holds=self.redis,
            epochs=self.ledger,
            stream=self.redis,
            led=lambda: led,
            meter=self.tally,
            pace=self.clock,
            say=self.said.append,
        )

    async def settle(self, leader: Rebuild) -> None:
        """Steps until nothing is broken; a store that fails is tried again, as the loop does."""
        for _ in range(20):
            try:
                if await leader.step() and self.is_open():
                    return
            except StoreError:
                continue
        raise AssertionError(f"not open: {self.said}")

    def is_open(self) -> bool:
        return all(shard.epoch and not shard.rebuilding for shard in self.redis.shards)

    def worker(self, name: str, *holds: Reassertion, endings: tuple[Posting, ...] = ()) -> None:
        """Answers in the next rest of the leader, as a real one would a moment later."""
        self.ledger.live.add(name)
        before = self.clock.during

        def answer() -> None:
            before()
            for number, shard in enumerate(self.redis.shards):
                if shard.rebuilding and not shard.counting and name not in shard.asserted:
                    mine = [hold for hold in holds if self.ledger.shard_of[hold.payer_id] == number]
                    ended = [ending for ending in endings if ending.shard == number]
                    said = self.redis.reassert(name, number, epoch=shard.rebuilding, holds=mine, endings=ended, is_all=True)
                    asyncio.get_running_loop().create_task(said)

        self.clock.during = answer

    def check(self, *, reserved: dict[str, int] | None = None) -> None:
        """Invariant 3: what may be spent, and what is held, is what was posted."""
        assert self.is_open()
        for payer, shard in self.ledger.shard_of.items():
            state, held = self.redis.shards[shard].payers[payer], (reserved or {}).get(payer, 0)
            assert state.held_nanos == held
            assert state.spendable_nanos + held == self.ledger.balances[payer] + state.credit_nanos
        assert all(known.is_open and not known.is_wanted for known in self.ledger.known.values())
        assert [known.epoch for _, known in sorted(self.ledger.known.items())] == [shard.epoch for shard in self.redis.shards]


@pytest.fixture
def scene() -> Scene:
    return Scene()


def hold(hold_id: str, payer: str, reserved: int = 0, *, entry: int = 0) -> Reassertion:
    return Reassertion(
        hold_id=hold_id,
        owner=hold_id,
        payer_id=payer,
        key_id=f"key of {payer}",
        is_exact=not entry,
        entry_nanos=entry,
        reserved_nanos=reserved,
        cap_nanos=reserved,
        charge_nanos=0,
        tokens=1,
        row=b"{}",
        created_ms=1,
    )


def ending(hold_id: str, payer: str, charge: int) -> Posting:
    return Posting(PAYERS[payer][0], "", "settle", hold_id, payer, f"key of {payer}", charge, charge, "", 0, 1, b"{}")


async def test_a_fresh_store_is_opened_at_once(scene: Scene):
    """Nobody was ever served from it: nobody is waited for."""
    await scene.settle(scene.leader())
    scene.check()
    assert scene.clock.now_s == 0
    assert {shard.epoch for shard in scene.redis.shards} == {f"{RUN}.1"}
    assert scene.redis.shards[0].payers["bert"].spendable_nanos == -35, "a balance below nothing stays below nothing"
    assert scene.tally.counts == {Series.REBUILDS: SHARDS}


async def test_what_workers_hold_and_what_they_have_ended(scene: Scene):
    await scene.settle(scene.leader())
    scene.redis.lose()
    scene.worker("w1", hold("h1", "anna", 300), hold("h2", "cleo", entry=5))
    scene.worker("w2", hold("h3", "dora", 500), endings=(ending("h4", "anna", 20),))
    await scene.settle(scene.leader())
    scene.check(reserved={"anna": 300, "dora": 500})
    assert scene.ledger.balances["anna"] == 980
    anna, cleo = scene.redis.shards[0].payers["anna"], scene.redis.shards[0].payers["cleo"]
    assert (anna.open_holds, anna.entry_held_nanos, cleo.open_holds, cleo.entry_held_nanos) == (1, 0, 1, 5)
    assert scene.redis.shards[2].keys["key of dora"].open_holds == 1


async def test_a_hold_that_the_ledger_knows_as_ended_is_none(scene: Scene):
    """The server has come back with what it had a second ago; the worker that ended the hold is gone."""
    await scene.settle(scene.leader())
    scene.ledger.booked["h1"] = ending("h1", "anna", 20)
    scene.ledger.balances["anna"] -= 20
    shard = scene.redis.shards[0]
    await scene.redis.begin(0, epoch=f"{RUN}.7", cursor="0-0")
    await scene.redis.reassert("w", 0, epoch=f"{RUN}.7", holds=[hold("h1", "anna", 300), hold("h2", "anna", 100)], endings=[], is_all=True)
    shard.rebuilding, shard.epoch = "", "of another life.7"
    await scene.settle(scene.leader())
    scene.check(reserved={"anna": 100})
    assert scene.ledger.balances["anna"] == 980, "and it is charged once"


async def test_the_next_number_is_above_what_the_server_knows(scene: Scene):
    """PostgreSQL failed over to a standby that has forgotten some."""
    await scene.settle(scene.leader())
    for shard in scene.redis.shards:
        shard.epoch = "of another life.41"
    await scene.settle(scene.leader())
    assert {shard.epoch for shard in scene.redis.shards} == {f"{RUN}.42"}


async def test_only_what_is_led(scene: Scene):
    leader = scene.leader(frozenset({1}))
    assert await leader.step() == 0
    assert [bool(shard.epoch) for shard in scene.redis.shards] == [False, True, False]
    assert await scene.leader(frozenset()).step() > 0


async def test_a_worker_that_is_silent_is_not_waited_for_for_ever(scene: Scene):
    await scene.settle(scene.leader())
    scene.redis.lose()
    scene.ledger.live.add("stopped")
    scene.worker("w1", hold("h1", "anna", 300))
    await scene.settle(scene.leader())
    scene.check(reserved={"anna": 300})
    assert SILENT_S <= scene.clock.now_s < SILENT_S + 1
    assert scene.tally.counts[Series.SILENT_WORKERS] == 1


async def test_workers_that_could_not_register_have_time_to_look(scene: Scene):
    await scene.settle(scene.leader())
    scene.redis.lose()
    await scene.settle(scene.leader())
    assert scene.clock.now_s >= UNREGISTERED_S


async def test_wanted_is_built_once(scene: Scene):
    await scene.settle(scene.leader())
    await scene.ledger.want([2])
    leader = scene.leader()
    await scene.settle(leader)
    scene.check()
    assert [shard.epoch for shard in scene.redis.shards] == [f"{RUN}.1", f"{RUN}.1", f"{RUN}.2"]
    assert await leader.step() > 0


async def test_events_that_nobody_posts_end_the_round(scene: Scene):
    """And it is begun anew until somebody does."""
    scene.redis.shards[0].stream.append(ending("h9", "anna", 1))
    post, scene.clock.during = scene.clock.during, lambda: None
    with pytest.raises(StoreRefused, match="not posted"):
        await scene.leader().step()
    assert not scene.is_open()
    scene.clock.during = post
    await scene.settle(scene.leader())
    scene.check()
    assert scene.ledger.balances["anna"] == 999


CALLS = (
    "epochs", "take", "cursors", "begin", "workers", "asserted", "open_holds", "endings", "reassert by ledger", "waiting", "count", "snapshot", "pages",
    "restore", "open", "opened",
)  # fmt: skip


def prepared(scene: Scene) -> None:
    """Everything that a rebuild can meet: holds, an ending that is not posted, one that the ledger knows better."""
    scene.redis.lose()
    shard = scene.redis.shards[0]
    shard.holds["h7"] = open_hold(hold("h7", "cleo", 7))
    scene.ledger.booked["h7"] = ending("h7", "cleo", 2)
    scene.ledger.balances["cleo"] -= 2
    scene.worker("w1", hold("h1", "anna", 300), endings=(ending("h2", "dora", 20),))


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("how", ["killed", "refused"])
async def test_a_round_that_ends_anywhere_is_taken_up(scene: Scene, call: str, how: str):
    """By the next leader, or by the same one."""
    await scene.settle(scene.leader())
    prepared(scene)
    fallen = []

    def fall(name: str) -> None:
        if name == call and not fallen:
            fallen.append(name)
            raise Killed if how == "killed" else StoreRefused("away")

    scene.redis.fail = scene.ledger.fail = fall
    leader = scene.leader()
    if how == "killed":
        with pytest.raises(Killed):
            await scene.settle(leader)
        leader = scene.leader()
    await scene.settle(leader)
    assert fallen, "every call is made"
    scene.check(reserved={"anna": 300})
    assert (scene.ledger.balances["dora"], scene.ledger.balances["cleo"]) == (480, 5)


@pytest.mark.parametrize("call", CALLS[3:])
async def test_the_higher_number_wins(scene: Scene, call: str):
    """A second leader does all of it while the first one is stopped in the midst; that one finds out, and disturbs nothing."""
    await scene.settle(scene.leader())
    prepared(scene)
    first, second = scene.leader(), scene.leader()
    stopped = []

    def overtaken(name: str) -> None:
        """Synchronous, as the calls of the fakes are: to the second leader no time has passed."""
        if name == call and not stopped:
            stopped.append(name)
            scene.redis.fail = scene.ledger.fail = lambda _: None
            run_now(scene.settle(second))
            scene.check(reserved={"anna": 300})

    scene.redis.fail = scene.ledger.fail = overtaken
    await scene.settle(first)
    assert stopped
    scene.check(reserved={"anna": 300})
    assert {shard.epoch for shard in scene.redis.shards} <= {f"{RUN}.2", f"{RUN}.3"}


def run_now(job: Coroutine[None, None, None]) -> None:
    """To its end, within a call of somebody else: on a loop of its own, in a thread."""
    with ThreadPoolExecutor(1) as thread:
        thread.submit(asyncio.run, job).result()


async def test_the_lower_number_stops_where_it_is(scene: Scene):
    """Both at once: whoever took the lower number is refused, at any call."""
    await scene.settle(scene.leader())
    prepared(scene)
    results = await asyncio.gather(scene.leader().step(), scene.leader().step(), return_exceptions=True)
    assert not [result for result in results if isinstance(result, BaseException)], results
    await scene.settle(scene.leader())
    scene.check(reserved={"anna": 300})
    assert any("somebody else" in said for said in scene.said)


@pytest.mark.parametrize(
    ("epoch", "rebuilding", "known", "broken"),
    [
        ("r.1", "", ("r.1", True, False), False),
        ("", "", ("r.1", True, False), True),
        ("x.1", "", ("x.1", True, False), True),
        ("r.1", "", None, True),
        ("", "r.2", ("r.2", False, False), True),
        ("r.1", "", ("r.2", False, False), True),
        ("r.2", "", ("r.2", False, False), False),
        ("r.1", "", ("r.1", True, True), True),
        ("r.1", "", ("x.2", True, False), True),  # the old master is back
        ("r.2", "", ("x.1", True, False), False),  # the ledger is an older copy
    ],
)
def test_what_is_broken(epoch: str, rebuilding: str, known: tuple[str, bool, bool] | None, broken: bool):
    state = ShardState(shard=0, run_id="r", epoch=epoch, rebuilding=rebuilding)
    told = known and ShardEpoch(shard=0, number=1, epoch=known[0], is_open=known[1], is_wanted=known[2])
    assert is_broken(state, told or None) is broken


def test_numbers():
    assert number_of(ShardState(shard=0, run_id="r", epoch="", rebuilding="")) == 0
    assert number_of(ShardState(shard=0, run_id="r", epoch="r.3", rebuilding="x.12")) == 12
    assert number_of(ShardState(shard=0, run_id="r", epoch="nonsense", rebuilding="r.²")) == 0
