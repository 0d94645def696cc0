"""What a worker tells to who rebuilds: which holds surely stand, when it tells them, and what if that changes meanwhile."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "exchange"))

from stage import HOLD, PAYER, chat, chunk, delta, granted, headers, key, model, pinned, to_open, to_streaming

from extproc.edge.standing import Standing, reassertion_of
from extproc.errors import StoreFenced, StoreRefused
from extproc.exchange import events as ev
from extproc.exchange.machine import Exchange
from extproc.holds.port import Reassertion, ShardState
from extproc.metrics import Metrics, registry
from extproc.money.posting import Posting

SHARD = 3


@pytest.fixture
def exchange() -> Exchange:
    return Exchange(pinned())


# which holds


def test_nothing_is_told_before_anything_is_held(exchange: Exchange):
    assert reassertion_of(exchange) is None
    exchange.receive(headers())
    assert reassertion_of(exchange) is None
    exchange.receive(ev.KeyRead(key=key()))
    assert reassertion_of(exchange) is None, "nobody has answered"


def test_an_entry_hold(exchange: Exchange):
    to_open(exchange)
    told = reassertion_of(exchange)
    assert told is not None
    assert (told.hold_id, told.owner, told.payer_id, told.key_id) == (HOLD, HOLD, PAYER, "k1")
    assert (told.is_exact, told.entry_nanos, told.reserved_nanos, told.cap_nanos) == (False, exchange.tab.pinned.bounds.entry_nanos, 0, 0)
    assert PAYER.encode() in told.row


def test_one_that_was_taken_over_keeps_its_first_id(exchange: Exchange):
    exchange.receive(headers())
    exchange.receive(ev.KeyRead(key=key()))
    exchange.receive(ev.Admitted(granted=granted("018bcfe5-6800-7000-8000-000000000002")))
    told = reassertion_of(exchange)
    assert told is not None
    assert (told.hold_id, told.owner) == ("018bcfe5-6800-7000-8000-000000000002", HOLD)


def test_one_whose_amend_nobody_has_answered_is_voided_instead(exchange: Exchange):
    to_open(exchange)
    exchange.receive(chat(stream=True))
    assert exchange.state == "amending"
    assert reassertion_of(exchange) is None


def test_an_exact_hold_with_its_last_checkpoint(exchange: Exchange):
    to_streaming(exchange)
    told = reassertion_of(exchange)
    assert told is not None
    quote = exchange.tab.quote
    assert quote is not None
    assert (told.is_exact, told.entry_nanos, told.reserved_nanos, told.cap_nanos) == (True, 0, quote.reserved_nanos, quote.cap_nanos)
    assert (told.charge_nanos, told.tokens > 0, told.created_ms) == (0, True, 1_700_000_000_000)
    exchange.receive(chunk(delta("abc")))
    checkpoint = exchange.tab.checkpoint
    told = reassertion_of(exchange)
    assert told is not None
    assert checkpoint is not None
    assert (told.charge_nanos, told.row) == (checkpoint.charge_nanos, checkpoint.row)
    assert told.charge_nanos > 0


def test_what_has_ended_is_no_hold(exchange: Exchange):
    to_streaming(exchange)
    exchange.receive(chunk(b"data: [DONE]\n\n"))
    assert reassertion_of(exchange) is None


# when


class Store:
    """What it is told; ``refuses`` for so many times."""

    def __init__(self) -> None:
        self.told: list[tuple[int, str, list[str], list[str]]] = []
        self.refuses = 0
        self.payers: set[str] = set()

    async def states(self) -> list[ShardState]:
        raise AssertionError("the watch tells")

    async def reassert(
        self, worker_id: str, shard: int, *, epoch: str, holds: Sequence[Reassertion], endings: Sequence[Posting], is_all: bool
    ) -> None:
        assert (worker_id, is_all) == ("w", True)
        if self.refuses:
            self.refuses -= 1
            raise StoreFenced("counted already")
        self.told.append((shard, epoch, [hold.hold_id for hold in holds], [ending.hold_id for ending in endings]))

    async def view(self, payer_id: str) -> Any:
        return payer_id if payer_id in self.payers else None


class Register:
    def __init__(self) -> None:
        self.missed: list[str] = []
        self.seen = 0
        self.is_away = False

    async def see(self, worker_id: str, name: str) -> None:
        self.seen += 1
        if self.is_away:
            raise StoreRefused("PostgreSQL is away")

    async def dismiss(self, worker_id: str) -> None:
        await self.see(worker_id, "")

    async def miss(self, payer_id: str) -> None:
        self.missed.append(payer_id)


class Scene:
    def __init__(self) -> None:
        self.store, self.register = Store(), Register()
        self.exchanges: list[Exchange] = []
        self.endings: list[Posting] = []
        self.standing = Standing(
            "w",
            "name",
            holds=self.store,
            register=self.register,
            exchanges=lambda: self.exchanges,
            unconfirmed=self._unconfirmed,
            shard_of=lambda _: SHARD,
            metrics=Metrics(registry()),
        )

    async def _unconfirmed(self, shards: Sequence[int]) -> list[Posting]:
        return [ending for ending in self.endings if ending.shard in shards]

    async def look(self, epoch: str = "", rebuilding: str = "", *, shard: int = SHARD) -> None:
        self.standing.look([ShardState(shard=shard, run_id="r", epoch=epoch, rebuilding=rebuilding)])
        for _ in range(10):
            await asyncio.sleep(0)


@pytest.fixture
def scene() -> Scene:
    scene = Scene()
    scene.exchanges.append(Exchange(pinned(model())))
    to_streaming(scene.exchanges[0])
    return scene


async def test_it_is_told_to_a_rebuild_and_once_more_when_the_shard_is_open(scene: Scene):
    await scene.look("r.1")
    scene.store.told.clear()
    for _ in range(3):
        await scene.look("r.1")
    await scene.look()  # closed, and nobody builds it yet
    assert scene.store.told == []
    for _ in range(3):
        await scene.look(rebuilding="r.2")
    assert scene.store.told == [(SHARD, "r.2", [HOLD], [])]
    for _ in range(3):
        await scene.look("r.2")
    assert scene.store.told == [(SHARD, "r.2", [HOLD], []), (SHARD, "r.2", [HOLD], [])]


async def test_having_nothing_is_an_answer_too_but_none_that_an_open_shard_needs(scene: Scene):
    scene.exchanges.clear()
    await scene.look("r.1")
    assert scene.store.told == []
    await scene.look(rebuilding="r.2")
    assert scene.store.told == [(SHARD, "r.2", [], [])]


async def test_who_is_refused_comes_again(scene: Scene):
    """The rebuild has counted already: it is told when the shard is open."""
    scene.store.refuses = 1
    await scene.look(rebuilding="r.2")
    assert scene.store.told == []
    await scene.look("r.2")
    assert scene.store.told == [(SHARD, "r.2", [HOLD], [])]


async def test_a_hold_that_ends_between_the_two_looks_is_told_as_both(scene: Scene):
    async def slow(shards: Sequence[int]) -> list[Posting]:
        scene.exchanges[0].receive(chunk(b"data: [DONE]\n\n"))
        return [Posting(SHARD, "", "settle", HOLD, PAYER, "k1", 5, 10, "", 0, 1, b"{}")]

    scene.standing._unconfirmed = slow
    await scene.look(rebuilding="r.2")
    assert scene.store.told == [(SHARD, "r.2", [HOLD], [HOLD])]


async def test_only_of_the_shards_concerned(scene: Scene):
    scene.endings.append(Posting(SHARD, "", "settle", "h", PAYER, "k1", 5, 10, "", 0, 1, b"{}"))
    await scene.look(rebuilding="r.2", shard=SHARD + 1)
    assert scene.store.told == [(SHARD + 1, "r.2", [], [])]


async def test_an_outbox_that_cannot_be_read_is_asked_again(scene: Scene):
    async def broken(shards: Sequence[int]) -> list[Posting]:
        raise OSError("disk")

    good, scene.standing._unconfirmed = scene.standing._unconfirmed, broken
    await scene.look(rebuilding="r.2")
    assert scene.store.told == [], "what is not known to be all is not said to be all"
    scene.standing._unconfirmed = good
    await scene.look(rebuilding="r.2")
    assert len(scene.store.told) == 1


async def test_a_payer_that_is_really_missing(scene: Scene):
    scene.store.payers.add("there")
    for payer in ("there", "lost", "lost"):
        scene.standing.miss(payer)
    for _ in range(5):
        await asyncio.sleep(0)
    assert scene.register.missed == ["lost"]


async def test_a_worker_whose_postgres_is_away_goes_on(scene: Scene, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("extproc.edge.standing.SEE_AGAIN_S", 0)
    scene.register.is_away = True
    task = asyncio.create_task(scene.standing.register())
    for _ in range(10):
        await asyncio.sleep(0)
    assert scene.register.seen > 2
    assert not task.done()
    task.cancel()
    await scene.standing.leave()
