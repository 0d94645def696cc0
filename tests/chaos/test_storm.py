"""A short round of the storm: one of each is killed, at a moment by chance. ``make chaos`` does it a thousand times."""

from __future__ import annotations

import os
import random
import time
from dataclasses import asdict

from breakable import BreakableHouse
from storm import VICTIMS, Storm
from wire import figure


async def test_one_of_each_is_killed(house: BreakableHouse):
    seed = int(os.environ.get("EXTPROC_SEED") or time.time_ns() % 2**31)
    storm = Storm(house, seed)
    await storm.round(0, tuple(random.Random(seed).sample(VICTIMS, len(VICTIMS))))
    figure(f"{asdict(storm.outcome)}")
    assert storm.findings == []
    assert storm.outcome.is_good
    assert storm.outcome.charged > 0
