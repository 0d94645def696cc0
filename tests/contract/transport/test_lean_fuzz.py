"""Mutated connections (the long run: ``make fuzz``), and cuts anywhere: how the bytes come makes no difference."""

from __future__ import annotations

import random

import pytest
from lean_fuzz import RECORDED, Tally, connection, fuzz
from lean_wire import HELLO, frame, opened, shown

from extproc.edge.transport.lean.connection import Connection

SEED = 20_261_121
EXAMPLES = 3_000


def test_mutated_connections() -> None:
    tally = Tally()
    fuzz(SEED, EXAMPLES, tally)
    assert tally.connections == EXAMPLES
    assert tally.streams > EXAMPLES
    assert 0.2 < tally.ended_by_goaway / EXAMPLES < 0.8, "mutations that nobody minds, or that nobody survives, prove little"


def test_a_seed_is_one_connection() -> None:
    assert connection(random.Random(SEED)) == connection(random.Random(SEED)) != connection(random.Random(SEED + 1))


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
