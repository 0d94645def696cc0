"""An outbox to be watched, and a process that writes one until it is killed."""

# ruff: noqa: T201 - it is there to say what it was told
from __future__ import annotations

import asyncio
import contextlib
import sys
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from pathlib import Path
from uuid import uuid4

from extproc.money.hold import Ending, EndKind, Loan
from extproc.money.posting import Posting
from extproc.settlement.outbox import Keeper, Outbox
from extproc.settlement.outbox_file import OutboxFile, outboxes

BYTES_MAX = 64 * 1_048_576
DEADLINE_S = 10.0
SHARDS = 4


def ending(number: int, *, row: bytes = b'{"model":"m"}') -> Ending:
    return Ending(
        hold_id=f"h{number}",
        owner="o",
        payer_id=f"p{number}",
        key_id="k",
        kind=EndKind.SETTLE,
        charge_nanos=number,
        tokens=1,
        row=row,
        reserved_nanos=number + 1,
        is_forwarded=True,
    )


def loan(number: int, *, charge: int = 0) -> Loan:
    return Loan(
        hold_id=f"h{number}", payer_id=f"p{number}", key_id="k", cap_nanos=1_000, charge_nanos=charge, row=b'{"cost_nanos":%d}' % charge
    )


def shard_of(payer_id: str) -> int:
    return int(payer_id[1:]) % SHARDS


@dataclass
class Clock:
    """Unix time that a test moves."""

    skipped_ms: int = 0

    def __call__(self) -> int:
        return time.time_ns() // 1_000_000 + self.skipped_ms


@dataclass
class Watched:
    """An outbox, and the holds that it has told to be on the disk."""

    outbox: Outbox
    keeper: Keeper
    clock: Clock
    stored: list[str] = field(default_factory=list)

    def put(self, *numbers: int, row: bytes = b'{"model":"m"}') -> None:
        for number in numbers:
            one = ending(number, row=row)
            assert self.outbox.put(one, lambda hold_id=one.hold_id: self.stored.append(hold_id))

    def lend(self, *numbers: int, charge: int = 0) -> None:
        """Told as ``loan <number> <charge>``."""
        for number in numbers:
            assert self.outbox.lend(loan(number, charge=charge), lambda number=number: self.stored.append(f"loan {number} {charge}"))

    async def until_lent(self, *numbers: int, charge: int = 0) -> None:
        await until(lambda: {f"loan {number} {charge}" for number in numbers} <= set(self.stored))

    async def until_stored(self, *numbers: int) -> None:
        await until(lambda: {f"h{number}" for number in numbers} <= set(self.stored))

    @property
    def path(self) -> Path:
        assert self.keeper.path is not None
        return self.keeper.path


async def until(condition: Callable[[], object]) -> None:
    end = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < end, "not in time"
        await asyncio.sleep(0.005)


@contextlib.asynccontextmanager
async def opened(directory: Path, *, slot: int = 0, bytes_max: int = BYTES_MAX) -> AsyncIterator[Watched]:
    clock = Clock()
    keeper = Keeper(
        directory,
        slot,
        bytes_max=bytes_max,
        shard_of=shard_of,
        new_id=lambda: str(uuid4()),
        unix_ms=clock,
        monotonic_s=time.monotonic,
    )
    outbox = Outbox(keeper, unix_ms=clock)
    await outbox.start()
    try:
        yield Watched(outbox, keeper, clock)
    finally:
        await outbox.close(1.0)


def holds_in(*paths: Path) -> list[str]:
    """In the order of the ids."""
    found = []
    for path in paths:
        with contextlib.closing(OutboxFile.read_only(path)) as file:
            found += [row.posting.hold_id for row in file.read(0, 1_000_000)]
    return found


def holds_below(directory: Path) -> list[str]:
    return holds_in(*outboxes(directory))


def loans_in(path: Path) -> dict[str, int]:
    """Hold → checkpoint."""
    with contextlib.closing(OutboxFile.read_only(path)) as file:
        return {one.hold_id: one.charge_nanos for one in file.loans()}


def postings_in(path: Path) -> list[Posting]:
    with contextlib.closing(OutboxFile.read_only(path)) as file:
        return [row.posting for row in file.read(0, 1_000_000)]


async def lend_for_ever(directory: Path) -> None:
    """Loans, checkpoints and endings; says of each what is on the disk."""
    async with opened(directory) as box:
        print(box.path, flush=True)
        number = 0
        while True:
            number += 1
            for what in (loan(number), loan(number, charge=number % 900 + 1), *([ending(number)] if number % 3 == 0 else [])):
                said = f"{what.hold_id} {'settle' if isinstance(what, Ending) else 'expire'} {what.charge_nanos}"
                put = box.outbox.put if isinstance(what, Ending) else box.outbox.lend
                assert put(what, lambda said=said: print(said, flush=True))  # type: ignore[operator]
                if number % 5 == 0:
                    await asyncio.sleep(0.002)


async def write_for_ever(directory: Path) -> None:
    """Says which holds are on the disk, a line each, as soon as it is told."""
    async with opened(directory) as box:
        print(box.path, flush=True)
        number = 0
        while True:
            for _ in range(20):
                number += 1
                one = ending(number)
                box.outbox.put(one, lambda hold_id=one.hold_id: print(hold_id, flush=True))
            await asyncio.sleep(0.002)


if __name__ == "__main__":
    asyncio.run((lend_for_ever if "lend" in sys.argv[2:] else write_for_ever)(Path(sys.argv[1])))
