"""A request is told of in Redis, by an outbox and by the access log, each of them late, twice or never: in the end it is charged what it cost, once."""

from __future__ import annotations

import contextlib
import os
import random
from pathlib import Path

import pytest
from ledger_invariants import ledger_faults
from test_witness_endings import RIPE_S, Scene
from town import Town

from extproc.errors import StoreError

HOLDS, STEPS = 4, 14
SEEDS = int(os.environ.get("EXTPROC_WALKS", "6"))  # 6 s each


class Request:
    """``made`` tokens, of which the log has seen ``told``; nothing was charged if it was voided."""

    def __init__(self, hold: str, chance: random.Random) -> None:
        self.hold = hold
        self.made = chance.randint(1, 60)
        self.told = chance.randint(0, self.made)

    @property
    def charge(self) -> int:
        return 5 + 2 * self.made


async def steps(scene: Scene, requests: list[Request], chance: random.Random) -> None:
    """One thing happens, to one of them or to all."""
    one = chance.choice(requests)
    what = chance.choice(["line", "line", "settle", "outbox", "post", "read", "book", "book", "lose", "refund", "another settler"])
    town = scene.town
    if what == "line":
        scene.write(one.hold, output=one.told, delivered="1400/0/1")
    elif what == "settle":
        await town.holds.end(town.settle(one.hold, scene.payer, scene.key, one.made))
    elif what == "outbox":
        await town.ledger.post([scene.ending(one.hold, "settle", one.charge)])
    elif what == "post":
        await scene.poster.step()
    elif what == "read":
        await scene.read()
    elif what == "book":
        await scene.book(after_s=RIPE_S + 1)
    elif what == "lose":
        await town.empty_redis()
    elif what == "another settler":
        scene.restart()
    elif scene.events(one.hold):
        charged = await town.ledger.charge(one.hold)
        left = charged.charged_nanos - charged.refunded_nanos
        if left:
            await town.deposits.refund(charged, chance.randint(1, left), reason="walk", actor="test")


@pytest.mark.parametrize("seed", [0, *(pytest.param(seed, marks=pytest.mark.long) for seed in range(1, SEEDS))])
async def test_in_the_end_it_is_charged_what_it_cost(town: Town, tmp_path: Path, seed: int):
    chance = random.Random(seed)
    scene = Scene(town, tmp_path / "access.jsonl", *await town.customer())
    scene.log.touch()
    await town.serve(scene.payer, scene.key)
    await scene.poster.step()
    requests = [Request(await town.hold(scene.payer, scene.key), chance) for _ in range(HOLDS)]
    for _ in range(STEPS * HOLDS):
        with contextlib.suppress(StoreError):  # Redis was emptied, and is not rebuilt here
            await steps(scene, requests, chance)
    for one in requests:
        for _ in range(2):
            await town.ledger.post([scene.ending(one.hold, "settle", one.charge)])
    await scene.poster.step()
    await scene.book()
    for one in requests:
        booked = [event for event in scene.events(one.hold) if event[0] != "usage_refund"]
        assert sum(nanos for _, nanos in booked) == one.charge, (seed, booked, one.charge)
        assert [kind for kind, _ in booked] in (["settle"], ["expire"], ["expire", "adjust"])
    assert town.count("conflicts") == town.count("witness_endings") == 0
    assert ledger_faults(town.dsn) == []
