"""What takes longer than a lease, with the real ones: ``make test-long``. Three minutes, so it is no part of ``make test``."""

from __future__ import annotations

import asyncio
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parents[1] / "e2e"))
from house import SMALL, Guest, House
from wire import Line, Told, chat, figure, steering

LONG_S = float(os.environ.get("EXTPROC_LONG_S", "150"))
LEASE_S = 60  # the default, which is what is tested
PIECES = 100
TOKENS = 5

pytestmark = pytest.mark.timeout(4 * LONG_S + 120)


@pytest.fixture(scope="module")
def long_house() -> Iterator[House]:
    directory = Path(tempfile.mkdtemp(prefix="xl-", dir="/tmp"))
    directory.chmod(0o711)
    house = House(directory, durable=True)
    house.envoy.stop()
    house.envoy.start_again(
        {"request_timeout: 60s": f"request_timeout: {LONG_S + 60:.0f}s"}
    )  # of an upload: shorter than a lease, as shipped
    house.envoy.wait_healthy({"extproc": 2, SMALL: 1})
    yield house
    house.stop()
    shutil.rmtree(directory, ignore_errors=True)


async def answer(line: Line) -> Told:
    told = await line.head()
    async for _ in line.events(told):
        pass
    await line.leave()
    return told


async def slow_first_token(house: House, guest: Guest) -> Told:
    line = await Line.open(house)
    await line.send({**guest.headers, **steering(tokens=TOKENS, first_ms=int(LONG_S * 1_000))}, chat(SMALL))
    return await answer(line)


async def slow_upload(house: House, guest: Guest) -> Told:
    line = await Line.open(house)
    body = chat(SMALL, text="hello " * 10 * PIECES)
    size = len(body) // PIECES
    await line.send({**guest.headers, **steering(tokens=TOKENS)}, b"", length=len(body))
    for start in range(0, len(body), size):
        await line.more(body[start : start + size])
        await asyncio.sleep(LONG_S / PIECES)
    return await answer(line)


async def test_nothing_expires_while_somebody_is_slow(long_house: House):
    """The first token, and an upload, of 150 s each; leases of 60 s are renewed meanwhile."""
    guests = [await asyncio.to_thread(long_house.guest) for _ in range(2)]
    told = await asyncio.gather(slow_first_token(long_house, guests[0]), slow_upload(long_house, guests[1]))
    for guest, one in zip(guests, told, strict=True):
        assert (one.status, one.tokens, one.done, one.whole) == (200, TOKENS, True, True)
        row = await asyncio.to_thread(guest.row, one.request_id)
        figure(
            f"{row['duration_ms'] / 1_000:.0f} s, first token after {row['ttft_ms'] / 1_000:.0f} s: {row['ending']}, {row['output_tokens']} tokens"
        )
        assert row["duration_ms"] > LONG_S * 900 > LEASE_S * 1_000
        assert (row["ending"], row["output_tokens"], row["end_reason"]) == ("settle", TOKENS, "stop")
        await asyncio.to_thread(guest.check)
    assert long_house.rows("SELECT count(*) AS n FROM billing_events WHERE event_type IN ('expire', 'adjust')")[0]["n"] == 0
