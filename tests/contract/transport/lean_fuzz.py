"""Mutated connections by seed, through the whole lean transport except its sockets: a peer that does anything, handlers that do anything.

    make fuzz                        a million of them
    make fuzz EXAMPLES=1 SEED=77     the one that failed, again

Whatever comes: no exception gets out, nothing grows beyond its limit, nothing hangs, what we send is whole frames, and each handler hears what the
port promises (no message after ``gone``, ``gone`` exactly once). A failure names its seed.
"""

# ruff: noqa: T201 - it is there to print
from __future__ import annotations

import asyncio
import logging
import random
import resource
import signal
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

sys.path.append(str(Path(__file__).parents[2] / "pure" / "lean"))
from lean_wire import CONTINUATION, DATA, GOAWAY, HEADERS, PING, PREFACE, RECORDED, RST, SETTINGS, WINDOW, block, frame, message

from extproc.edge.health import METHOD as HEALTH
from extproc.edge.health import Health
from extproc.edge.transport.lean import limits
from extproc.edge.transport.lean.protocol import LeanProtocol
from extproc.edge.transport.lean.server import LeanTransport
from extproc.edge.transport.port import MESSAGE_BYTES_MAX, Call, GoneReason, Listen, StatusCode

HEAD_BYTES = 9
STEP = 1_000
HANG_S = 60
"""For a step, which takes half a second."""

GROWTH_MB_MAX = 128
"""Above the peak of the first step: what one connection may hold at most."""

# ---- what the peer sends


def cut_up(data: bytes) -> list[bytes]:
    """The preface, then one frame each."""
    found, position = [data[: len(PREFACE)]], len(PREFACE)
    while position < len(data):
        size = HEAD_BYTES + int.from_bytes(data[position : position + 3], "big")
        found.append(data[position : position + size])
        position += size
    return found


ENVOYS = cut_up(RECORDED)
FIRST_SETTINGS = [frame(SETTINGS, 0, 0, values) for values in (b"", b"\0\4\0\0\0\x64", b"\0\4\x7f\xff\xff\xff", b"\0\5\0\1\0\0")]
BLOCKS = [block(), block(), block({"x-long": "x" * 120}), block(path=HEALTH), block(path="/odd"), block(method="GET")]
ASKED = [message(bytes(size)) for size in (0, 1, 20, 300, 16_379, 40_000)]
REPLIES = [bytes(size) for size in (0, 25, 25, 25, 400, 16_379, 100_000)]


def written(chance: random.Random) -> list[bytes]:
    """A connection that Envoy never makes, but might: long messages, several at once, ends of every kind, odd frames."""
    parts = [PREFACE, chance.choice(FIRST_SETTINGS), frame(SETTINGS, 1, 0)]
    for stream_id in range(1, 2 * chance.randint(1, 8), 2):
        parts += request(chance, stream_id)
        for _ in range(chance.randint(0, 4)):
            whole, size = chance.choice(ASKED), chance.choice((5, 100, 16_384, 16_384))
            parts += [frame(DATA, 0, stream_id, whole[start : start + size]) for start in range(0, min(len(whole), 20 * size), size)]
        ends = (frame(DATA, 1, stream_id), frame(RST, 0, stream_id, b"\0\0\0\2"), frame(HEADERS, 5, stream_id, b"\0\1a\1b"), b"")
        asides = (frame(PING, 0, 0, bytes(8)), frame(WINDOW, 0, 0, b"\0\0\1\0"), frame(WINDOW, 0, stream_id, b"\0\0\1\0"), b"")
        parts += [chance.choice(ends), chance.choice(asides)]
    return parts


def request(chance: random.Random, stream_id: int) -> list[bytes]:
    whole = chance.choice(BLOCKS)
    if chance.random() < 0.8:
        return [frame(HEADERS, 4, stream_id, whole)]
    at = chance.randrange(len(whole))
    return [frame(HEADERS, 0, stream_id, whole[:at]), frame(CONTINUATION, 4, stream_id, whole[at:])]


def mutate(chance: random.Random, parts: list[bytes]) -> None:
    """One frame or two: out of order, twice, lost, cut, hostile."""
    place, other = chance.randrange(len(parts)), chance.randrange(len(parts))
    match chance.randrange(9):
        case 0:
            parts[place], parts[other] = parts[other], parts[place]
        case 1:
            parts.insert(place, parts[other])
        case 2:
            parts[place : place + chance.randint(1, 3)] = [b""]
        case 3:
            parts[place] = parts[place][: chance.randint(0, len(parts[place]))]
        case 4:  # a hostile length
            parts[place] = chance.choice((b"\xff\xff\xff", b"\0\x40\x01", b"\0\0\0")) + parts[place][3:]
        case 5:  # another kind, flags or stream
            head = bytearray(parts[place].ljust(HEAD_BYTES, b"\0"))
            head[chance.randint(3, 8)] = chance.randrange(256)
            parts[place] = bytes(head)
        case 6:  # a hostile message
            claim = chance.choice((MESSAGE_BYTES_MAX, MESSAGE_BYTES_MAX + 1, 2**32 - 1, 0)).to_bytes(4, "big")
            parts.insert(place, frame(DATA, chance.choice((0, 1)), chance.choice((1, 3, 5)), chance.choice((b"\0", b"\1", b"\2")) + claim))
        case 7:  # a frame of anything
            noise = chance.randbytes(chance.randrange(40))
            parts.insert(place, frame(chance.randrange(12), chance.randrange(256), chance.randrange(12), noise))
        case 8:
            parts[place] *= chance.choice((2, 20))


def connection(chance: random.Random) -> bytes:
    """All bytes of one peer."""
    parts = ENVOYS.copy() if chance.random() < 0.4 else written(chance)
    for _ in range(chance.randint(0, 4)):
        mutate(chance, parts)
    data = bytearray().join(parts)
    if chance.random() < 0.1:  # joined with another one, both cut anywhere
        following = b"".join(written(chance))
        data[chance.randint(0, len(data)) :] = following[chance.randint(0, len(following)) :]
    for _ in range(chance.choice((0, 0, 1, 1, 4, 40)) if data else 0):
        data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
    return bytes(data)


def reads(chance: random.Random, data: bytes) -> Iterator[bytes]:
    """As one, cut at a few places, or byte by byte for a while."""
    cuts = [chance.randint(0, len(data)) for _ in range(chance.choice((0, 0, 1, 4, 20)))]
    if chance.random() < 0.05:
        begin = chance.randint(0, len(data))
        cuts += range(begin, min(begin + 100, len(data)))
    position = 0
    for cut in sorted(cuts):
        yield data[position:cut]
        position = cut
    yield data[position:]


# ---- our side


@dataclass(eq=False, slots=True)
class Moody:
    """A handler that answers as it likes, now or later, closes or raises. What it raises the transport takes, so it notes what is broken."""

    life: Life
    call: Call
    closed: bool = False
    gones: int = 0

    def message(self, data: bytes) -> None:
        self.life.broken += ["a message after the end"] * bool(self.gones or self.closed)
        chance = self.life.chance
        mood = chance.random()
        if mood < 0.9:
            self.call.send(chance.choice(REPLIES))
        elif mood < 0.94:
            self.life.later.append(lambda: self.call.send(chance.choice(REPLIES)))
        elif mood < 0.96:
            self.life.later.append(self.close)
        elif mood < 0.98:
            self.close()
        elif mood < 0.99:
            self.closed = True
            raise ValueError("a handler's own fault")

    def close(self) -> None:
        self.closed = not self.gones
        self.call.close(StatusCode.UNAVAILABLE, "a whim")

    def gone(self, reason: GoneReason) -> None:
        self.life.broken += [f"{reason}, but it was us"] * (self.closed and reason != "sidecar_error")
        self.gones += 1
        self.call.send(b"too late")  # must be ignored


class Life:
    """One connection from beginning to end: its loop, its socket and its handlers in one place. A clock that stands still is the strictest."""

    def __init__(self, chance: random.Random) -> None:
        self.chance = chance
        self.later: list[Callable[[], object]] = []
        self.handlers: list[Moody] = []
        self.broken: list[str] = []  # promises
        self.sent: list[bytes] = []
        self.closing = False
        health = Health()
        health.serve()
        self.host = LeanTransport(Listen(address="unix:/nowhere"), self.handler, health)
        self.protocol = LeanProtocol(self.host, cast("asyncio.AbstractEventLoop", self))

    def handler(self, call: Call) -> Moody:
        if self.chance.random() < 0.01:
            raise ValueError("no handler")
        self.handlers.append(Moody(self, call))
        return self.handlers[-1]

    # what the protocol asks of its loop

    def time(self) -> float:
        return 0.0

    def call_soon(self, callback: Callable[..., object], *args: Any) -> None:
        self.later.append(lambda: callback(*args))

    def call_later(self, delay_s: float, callback: Callable[..., object], *args: Any) -> None:
        """Only the second GOAWAY is of interest. How long somebody is waited for is no question of bytes."""
        if callback == self.protocol.refuse_more:
            self.call_soon(callback, *args)

    # what it asks of its socket

    def set_write_buffer_limits(self, high: int) -> None: ...

    def write(self, data: bytes) -> None:
        assert not self.closing, "written after the end"
        self.sent.append(data)

    def close(self) -> None:
        self.closing = True

    abort = close

    # the way of the bytes

    def live(self, data: bytes) -> None:
        self.protocol.connection_made(cast("asyncio.Transport", self))
        for piece in reads(self.chance, data):
            if self.closing:
                break
            self.protocol.data_received(piece)
            self.turn()
            check_limits(self.protocol)
        self.protocol.resume_writing()
        self.closing = True
        self.protocol.connection_lost(None)
        while self.later:
            self.turn()

    def turn(self) -> None:
        """Of the loop: what was put off in the one before; at times the peer's socket is full, or the worker is to end."""
        put_off, self.later = self.later, []
        for callback in put_off:
            callback()
        mood = self.chance.random()
        if mood < 0.1:
            self.protocol.pause_writing()
        elif mood < 0.3:
            self.protocol.resume_writing()
        elif mood < 0.31:
            self.chance.choice((self.protocol.drain, self.protocol.refuse_more, self.protocol.stop))()


# ---- what must be true


def check_limits(protocol: LeanProtocol) -> None:
    """After each read. The counts that limits are made of must be the true ones."""
    connection, sending = protocol.connection, protocol.sending
    assert len(connection._rest) <= HEAD_BYTES + limits.FRAME_BYTES_MAX
    assert len(connection._block.whole()) <= limits.HEADER_BLOCK_BYTES_MAX
    assert len(sending._out) <= limits.CONTROL_UNSENT_MAX
    kept = reserved = unsent = 0
    for stream in connection.streams:
        kept += len(stream.assembly._bytes) if stream.assembly else 0
        reserved += stream.reserved
        unsent += stream.unsent_bytes
    assert len(connection.streams) <= limits.STREAMS_MAX
    assert reserved == connection.reserved_bytes <= limits.RESERVED_BYTES_MAX
    assert unsent == sending.unsent_bytes <= limits.UNSENT_BYTES_MAX
    assert kept <= limits.RESERVED_BYTES_MAX + limits.STREAM_CREDIT * len(connection.streams)


def goaway_of(sent: list[bytes]) -> int | None:
    """The code of the last GOAWAY; all of it must be whole frames."""
    data = b"".join(sent)
    code, position = None, 0
    while position < len(data):
        if data[position + 3] == GOAWAY:
            code = int.from_bytes(data[position + 13 : position + 17], "big")
        position += HEAD_BYTES + int.from_bytes(data[position : position + 3], "big")
    assert position == len(data), "half a frame"
    return code


@dataclass(slots=True)
class Tally:
    connections: int = 0
    bytes: int = 0
    streams: int = 0
    ended_by_goaway: int = 0
    slowest_ms: float = 0.0


def one(seed: int, tally: Tally) -> None:
    chance = random.Random(seed)
    data = connection(chance)
    life = Life(chance)
    life.live(data)
    assert not life.broken, life.broken
    assert [handler.gones for handler in life.handlers] == [1] * len(life.handlers)
    assert life.host.open_streams == 0
    assert life.protocol.connection.idle
    assert life.protocol.sending.unsent_bytes == 0
    tally.connections += 1
    tally.bytes += len(data)
    tally.streams += len(life.handlers)
    tally.ended_by_goaway += bool(goaway_of(life.sent))


def fuzz(seed: int, examples: int, tally: Tally) -> None:
    """Raises whatever went wrong, with the seed of the connection that did it."""
    logging.disable()
    try:
        for number in range(seed, seed + examples):
            begin_s = time.thread_time()
            try:
                one(number, tally)
            except BaseException as error:
                error.add_note(f"make fuzz EXAMPLES=1 SEED={number}")
                raise
            tally.slowest_ms = max(tally.slowest_ms, 1_000 * (time.thread_time() - begin_s))
    finally:
        logging.disable(logging.NOTSET)


# ---- by hand


def peak_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1_024


def hung(*_: object) -> None:
    raise TimeoutError(f"{STEP} connections took more than {HANG_S} s")


def main(examples: int, seed: int) -> None:
    print(f"mutated connections from seed {seed}", flush=True)
    signal.signal(signal.SIGALRM, hung)
    tally, begin_s, first_mb = Tally(), time.perf_counter(), 0.0
    for first in range(seed, seed + examples, STEP):
        signal.alarm(HANG_S)
        fuzz(first, min(STEP, seed + examples - first), tally)
        first_mb = first_mb or peak_mb()
        if tally.connections % (100 * STEP) == 0:
            print(f"  {tally.connections:,} after {time.perf_counter() - begin_s:.0f} s", flush=True)
    grown_mb = peak_mb() - first_mb
    assert grown_mb < GROWTH_MB_MAX, f"{grown_mb:.0f} MB more than after {STEP} connections"
    print(
        f"seed {seed}: {tally.connections:,} connections of {tally.bytes / 1e9:.2f} GB with {tally.streams:,} streams, {tally.ended_by_goaway:,} "
        f"ended by GOAWAY, no exception; slowest {tally.slowest_ms:.0f} ms of CPU, peak memory {first_mb:.0f} MB, later {grown_mb:.0f} MB more; "
        f"{time.perf_counter() - begin_s:.0f} s, {time.process_time():.0f} s of CPU"
    )


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
