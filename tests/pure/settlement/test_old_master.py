"""Who still reaches an old master closes it; nobody else is disturbed."""

from __future__ import annotations

from dataclasses import replace

import pytest
from ruins import Archive, Clock, Ruins
from test_rebuild_steps import PAYERS, SHARDS, Tally

from extproc.errors import StoreFenced, StoreRefused
from extproc.ledger.port import ShardEpoch
from extproc.settlement.meter import Series
from extproc.settlement.old_master import OldMaster

SUCCESSOR = "b" * 40


class Side:
    """A settler that leads ``led``, between a server that is open under number 3 and a ledger."""

    def __init__(self, led: frozenset[int] = frozenset()) -> None:
        self.redis = Ruins(SHARDS)
        self.ledger = Archive(self.redis, PAYERS)
        self.tally = Tally()
        for shard, found in enumerate(self.redis.shards):
            found.epoch = f"{self.redis.run_id}.3"
            self.says(shard, found.epoch)
        self.settler = OldMaster(holds=self.redis, epochs=self.ledger, led=lambda: led, meter=self.tally, pace=Clock())

    def says(self, shard: int, epoch: str, *, is_open: bool = True) -> None:
        number = int(epoch.rpartition(".")[2])
        self.ledger.known[shard] = ShardEpoch(shard=shard, number=number, epoch=epoch, is_open=is_open, is_wanted=False)

    async def looks(self, times: int) -> set[int]:
        """The shards that are closed then."""
        for _ in range(times):
            await self.settler.step()
        return {shard for shard, found in enumerate(self.redis.shards) if not found.epoch}


async def test_what_was_opened_elsewhere_is_closed_here():
    side = Side()
    side.says(1, f"{SUCCESSOR}.4")
    assert await side.looks(1) == set(), "a rebuild may have come between the looks at both stores"
    assert await side.looks(1) == {1}
    assert side.redis.shards[1].rebuilding == f"{SUCCESSOR}.4"
    assert side.tally.counts[Series.OLD_MASTERS] == 1
    assert await side.looks(3) == {1}
    assert side.tally.counts[Series.OLD_MASTERS] == 1, "an alarm for each loss, not for each look"


@pytest.mark.parametrize(
    ("epoch", "is_open"),
    [
        (f"{SUCCESSOR}.4", False),  # it may never be opened
        (f"{SUCCESSOR}.3", True),
        (f"{SUCCESSOR}.2", True),  # a ledger that fell back to an older copy
    ],
)
async def test_what_serves_rightly_is_left_alone(epoch: str, is_open: bool):
    side = Side()
    side.says(1, epoch, is_open=is_open)
    assert await side.looks(3) == set()


async def test_what_is_led_is_rebuilt_instead():
    side = Side(led=frozenset({1}))
    side.says(1, f"{SUCCESSOR}.4")
    side.says(2, f"{SUCCESSOR}.4")
    assert await side.looks(3) == {2}


async def test_another_number_is_looked_at_twice_again():
    side = Side()
    side.says(1, f"{SUCCESSOR}.4")
    await side.looks(1)
    side.says(1, f"{SUCCESSOR}.5")
    assert await side.looks(1) == set()
    assert await side.looks(1) == {1}


@pytest.mark.parametrize("error", [StoreFenced("higher"), StoreRefused("away")])
async def test_it_is_tried_again(error: Exception):
    side = Side()
    side.says(1, f"{SUCCESSOR}.4")
    await side.looks(1)

    def fail(verb: str) -> None:
        if verb == "begin":
            raise error

    side.redis.fail = fail
    with pytest.raises(type(error)):
        await side.looks(1)
    assert side.tally.counts[Series.OLD_MASTERS] == 0
    side.redis.fail = lambda _: None
    assert await side.looks(1) == {1}


async def test_a_shard_that_the_ledger_does_not_know_is_none_of_ours():
    side = Side()
    del side.ledger.known[1]
    side.ledger.known[2] = replace(side.ledger.known[2], is_wanted=True)
    assert await side.looks(3) == set()
