"""What one connection bears, over a real socket: Envoy's worst second for as long as it likes, and no flood. ``pytest -s`` prints the rate."""

# ruff: noqa: T201
from __future__ import annotations

import asyncio
import contextlib
import socket
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import uvloop

from extproc.edge.health import Health
from extproc.edge.transport.lean.server import LeanTransport
from extproc.edge.transport.port import Call, GoneReason, Listen

sys.path.append(str(Path(__file__).parents[2] / "pure" / "lean"))
from lean_wire import DATA, ERRORS, FLOODS, GOAWAY, HEADERS, HELLO, REQUEST, frame, frames_of, message, reset

ENDS_PER_S, ABORTS_PER_S = 20_000, 2_000
SECONDS = 3
TICK_S = 0.01
ENDS, ABORTS = int(ENDS_PER_S * TICK_S), int(ABORTS_PER_S * TICK_S)


class Echo:
    """As little as a handler can do."""

    def __init__(self, counts: list[int], call: Call) -> None:
        self.counts, self.call = counts, call

    def message(self, data: bytes) -> None:
        self.counts[0] += 1
        self.call.send(data)

    def gone(self, reason: GoneReason) -> None:
        self.counts[1] += reason == "closed"


class Client(asyncio.Protocol):
    """Counts what comes, as cheaply as it can."""

    def __init__(self) -> None:
        self.received = 0
        self.lost = False

    def data_received(self, data: bytes) -> None:
        self.received += len(data)

    def connection_lost(self, exc: Exception | None) -> None:
        self.lost = True


@pytest.fixture
def address() -> Iterator[str]:
    with tempfile.TemporaryDirectory(prefix="xr-", dir="/tmp") as directory:
        yield f"{directory}/run/gate.sock"


def batch(first: int) -> tuple[bytes, bytes]:
    """Requests of one tick, and their ends: END_STREAM with a reset, as Envoy ends each; aborts are resets alone."""
    ids = range(first, first + 2 * (ENDS + ABORTS), 2)
    asked = message(b"x" * 100)
    begins = b"".join(frame(HEADERS, 4, number, REQUEST) + frame(DATA, 0, number, asked) for number in ids)
    ends = b"".join((frame(DATA, 1, number) if place < ENDS else b"") + reset(number) for place, number in enumerate(ids))
    return begins, ends


async def worst_seconds(address: str) -> tuple[int, int, float, float]:
    """Streams that were answered, streams that ended normally for us, wall and CPU seconds of server and client together."""
    counts, health, loop = [0, 0], Health(), asyncio.get_running_loop()
    server = LeanTransport(Listen(address=f"unix:{address}"), lambda call: Echo(counts, call), health)
    await server.start()
    batches = [batch(1 + 2 * (ENDS + ABORTS) * number) for number in range(round(SECONDS / TICK_S))]
    transport, client = await loop.create_unix_connection(Client, address)
    transport.write(HELLO)
    begin_s, begin_cpu_s, earlier = loop.time(), time.process_time(), b""
    for number, (begins, ends) in enumerate(batches):
        await asyncio.sleep(begin_s + number * TICK_S - loop.time())
        transport.write(earlier + begins)
        earlier = ends
    transport.write(earlier)
    async with asyncio.timeout(30):
        while counts[1] < len(batches) * (ENDS + ABORTS) and not client.lost:
            await asyncio.sleep(0.001)
    taken = loop.time() - begin_s, time.process_time() - begin_cpu_s
    assert not client.lost
    transport.close()
    await server.stop()
    return counts[0], counts[1], *taken


def test_20000_ends_and_2000_aborts_a_second_stay_up(address: str) -> None:
    """The CPU says that one core bears the rate; how much of a core this machine has for it just now is not our matter."""
    answered, ended, wall_s, cpu_s = uvloop.run(worst_seconds(address))
    assert answered == ended == SECONDS * (ENDS_PER_S + ABORTS_PER_S)
    assert cpu_s < SECONDS
    print(f"\n{ended:,} streams in {wall_s:.2f} s, {ended / wall_s:,.0f}/s; {cpu_s / ended * 1e6:.1f} µs of CPU each, with the client's")


def heard_while_flooding(address: str, flood: bytes) -> bytes:
    """All that the server says until it closes; who floods may learn of that while writing."""
    received = b""
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(10)
        client.connect(address)
        with contextlib.suppress(BrokenPipeError):
            client.sendall(flood)
        with contextlib.suppress(ConnectionResetError):
            while piece := client.recv(65_536):
                received += piece
    return received


@pytest.mark.parametrize("name", ["pings", "settings", "empty data", "continuations", "resets before a message"])
async def test_no_flood_does(address: str, name: str) -> None:
    """Those that last for seconds at the allowed rate, so that a slow machine does not make them harmless. (All of them: tests/pure/lean.)"""
    health = Health()
    server = LeanTransport(Listen(address=f"unix:{address}"), lambda call: Echo([0, 0], call), health)
    await server.start()
    received = await asyncio.to_thread(heard_while_flooding, address, HELLO + FLOODS[name])
    codes = [payload[4:8] for kind, _, _, payload in frames_of(received) if kind == GOAWAY]
    assert [ERRORS[int.from_bytes(code, "big")] for code in codes] == ["CALM"]
    await server.stop()
