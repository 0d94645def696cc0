"""Mutated connections by seed: whatever comes, no exception gets out, nothing grows beyond its limit, and nothing hangs.

``EXTPROC_FUZZ_EXAMPLES=1000000`` for the long run; ``EXTPROC_FUZZ_SEED`` begins elsewhere. A failure names its seed.
"""

from __future__ import annotations

import os
import random
import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parents[2] / "pure" / "lean"))
from lean_wire import HELLO, PREFACE, RECORDED, Caller, block, frame, message, opened, shown

from extproc.edge.transport.lean import limits
from extproc.edge.transport.lean.connection import Connection
from extproc.edge.transport.lean.stream import Stream
from extproc.edge.transport.port import MESSAGE_BYTES_MAX

EXAMPLES = int(os.environ.get("EXTPROC_FUZZ_EXAMPLES", "3000"))
SEED = int(os.environ.get("EXTPROC_FUZZ_SEED", "20261121"))
FRAME_HEAD = 9


def frames(data: bytes) -> list[bytes]:
    found, position = [data[: len(PREFACE)]], len(PREFACE)
    while position < len(data):
        length = FRAME_HEAD + int.from_bytes(data[position : position + 3], "big")
        found.append(data[position : position + length])
        position += length
    return found


def written(chance: random.Random) -> list[bytes]:
    """A connection that Envoy never makes, but might: long messages, several at once, ends of every kind, odd frames."""
    parts = [PREFACE, frame(4, 0, 0, chance.choice([b"", b"\0\4\0\0\0\x64", b"\0\4\x7f\xff\xff\xff", b"\0\5\0\1\0\0"])), frame(4, 1, 0)]
    for stream_id in range(1, 2 * chance.randint(1, 8), 2):
        parts.append(frame(1, 4, stream_id, block({"x-unique": str(stream_id)} if chance.random() < 0.5 else {})))
        for _ in range(chance.randint(0, 4)):
            whole = message(bytes(chance.choice([0, 1, 20, 300, 16_379, 40_000])))
            while whole:
                size = chance.choice([1, 5, 100, 16_384])
                parts.append(frame(0, 0, stream_id, whole[:size]))
                whole = whole[size:]
                if len(parts) > 60:
                    break
        parts.append(chance.choice([frame(0, 1, stream_id), frame(3, 0, stream_id, b"\0\0\0\2"), frame(1, 5, stream_id, b"\0\1a\1b"), b""]))
        parts.append(chance.choice([frame(6, 0, 0, bytes(8)), frame(8, 0, 0, b"\0\0\1\0"), frame(8, 0, stream_id, b"\0\0\1\0"), b""]))
    return parts


def mutated(chance: random.Random) -> bytes:
    parts = frames(RECORDED) if chance.random() < 0.4 else written(chance)
    for _ in range(chance.randint(0, 4)):
        place, other = chance.randrange(len(parts)), chance.randrange(len(parts))
        match chance.randrange(9):
            case 0:
                parts[place], parts[other] = parts[other], parts[place]
            case 1:
                parts.insert(place, parts[other])
            case 2:
                del parts[place : place + chance.randint(1, 3)]
                parts = parts or [PREFACE]
            case 3:
                parts[place] = parts[place][: chance.randint(0, len(parts[place]))]
            case 4:  # a hostile length
                parts[place] = chance.choice([b"\xff\xff\xff", b"\0\x40\x01", b"\0\0\0"]) + parts[place][3:]
            case 5:  # another kind, flags or stream
                head = bytearray(parts[place].ljust(FRAME_HEAD, b"\0"))
                head[chance.randint(3, 8)] = chance.randrange(256)
                parts[place] = bytes(head)
            case 6:  # a hostile message
                claim = chance.choice([MESSAGE_BYTES_MAX, MESSAGE_BYTES_MAX + 1, 2**32 - 1, 0]).to_bytes(4, "big")
                parts.insert(place, frame(0, chance.choice([0, 1]), chance.choice([1, 3, 5]), chance.choice([b"\0", b"\1", b"\2"]) + claim))
            case 7:
                parts.insert(
                    place, frame(chance.randrange(12), chance.randrange(256), chance.randrange(12), chance.randbytes(chance.randrange(40)))
                )
            case 8:
                parts[place] *= chance.choice([2, 20])
    data = bytearray(b"".join(parts))
    for _ in range(chance.choice([0, 0, 1, 1, 4, 40])):
        if data:
            data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
    return bytes(data)


def lived(chance: random.Random, data: bytes) -> Caller:
    """The connection's life, with replies, ends and a socket that is full at times."""

    def answer(caller: Caller, stream: Stream, received: bytes) -> None:
        for _ in range(chance.choice([0, 1, 1, 1, 2])):
            caller.send(stream, bytes(chance.choice([0, 25, 25, 25, 400, 16_379, 100_000])))
        if chance.random() < 0.05:
            caller.connection.close(stream, 13, "x")

    caller = Caller(answer)
    sending = caller.connection.sending
    step = chance.choice([1 << 20, 1 << 20, 4_096, 50, 7])
    for start in range(0, len(data), step):
        sending.held = chance.random() < 0.1
        caller.feed(data[start : start + step])
        if chance.random() < 0.02:
            chance.choice([caller.connection.drain, caller.connection.refuse_more])()
    check_limits(caller)
    return caller


def check_limits(caller: Caller) -> None:
    connection = caller.connection
    assert len(connection._rest) <= FRAME_HEAD + limits.FRAME_BYTES_MAX
    assert len(connection._block) <= limits.HEADER_BLOCK_BYTES_MAX
    assert len(connection.streams) <= limits.STREAMS_MAX
    assert 0 <= connection.reserved_bytes <= limits.RESERVED_BYTES_MAX
    assert 0 <= connection.sending.unsent_bytes <= limits.UNSENT_BYTES_MAX
    kept = sum(len(stream.assembly._bytes) for stream in connection.streams if stream.assembly)
    assert kept <= limits.RESERVED_BYTES_MAX + limits.STREAM_CREDIT * len(connection.streams)
    assert sum(stream.reserved for stream in connection.streams) == connection.reserved_bytes
    assert sum(stream.unsent_bytes for stream in connection.streams) == connection.sending.unsent_bytes
    connection.sending.held = False
    caller.flush()
    ends = [event for event in caller.seen if event[0] == "Failed"]
    assert len(ends) <= 1
    assert connection.failed == bool(ends)
    connection.abandon()
    assert connection.idle
    assert connection.sending.unsent_bytes == 0


@pytest.mark.timeout(0 if "EXTPROC_FUZZ_EXAMPLES" in os.environ else 60)
def test_mutated_connections() -> None:
    failed = 0
    for seed in range(SEED, SEED + EXAMPLES):
        chance = random.Random(seed)
        try:
            failed += lived(chance, mutated(chance)).goaway() is not None
        except BaseException as error:
            error.add_note(f"EXTPROC_FUZZ_SEED={seed} EXTPROC_FUZZ_EXAMPLES=1")
            raise
    if EXAMPLES > 100:
        assert EXAMPLES // 10 < failed < EXAMPLES, "mutations that nobody minds, or that nobody survives, prove little"


def test_a_cut_anywhere_changes_no_event() -> None:
    """Every split of what Envoy sent, into two reads."""
    whole = [shown(event) for event in Connection(lambda: 0.0).receive(RECORDED)]
    assert [event[0] for event in whole].count("Opened") == 5
    assert [event[0] for event in whole].count("Over") == 5
    for cut in range(len(RECORDED) + 1):
        connection = Connection(lambda: 0.0)
        first = connection.receive(RECORDED[:cut])
        assert [shown(event) for event in first + connection.receive(RECORDED[cut:])] == whole, cut


@pytest.mark.parametrize("length", [1, 2, 8, 9, 10, 100, 16_384])
def test_a_connection_in_small_pieces(length: int) -> None:
    long = HELLO + opened(1, b"a" * 5_000, b"b") + frame(0, 1, 1) + b"".join(opened(number, b"x" * number) for number in range(3, 40, 2))
    for data in (RECORDED, long):
        whole = [shown(event) for event in Connection(lambda: 0.0).receive(data)]
        connection = Connection(lambda: 0.0)
        pieces = [connection.receive(data[start : start + length]) for start in range(0, len(data), length)]
        assert [shown(event) for events in pieces for event in events] == whole
