"""What costs us something and tells us nothing is limited; what Envoy does in its worst second is not."""

from __future__ import annotations

import pytest
from lean_wire import DATA, FLOODS, HEADERS, HELLO, PING, WINDOW, Caller, block, echo, frame, greeted, many, message, opened, reset

from extproc.edge.transport.lean import limits
from extproc.edge.transport.lean.floods import Allowance
from extproc.edge.transport.lean.frames import ConnectionFault


@pytest.mark.parametrize("name", FLOODS)
def test_floods_end_the_connection(name: str) -> None:
    caller, sent = greeted(echo), FLOODS[name]
    for start in range(0, len(sent), 65_536):
        caller.feed(sent[start : start + 65_536])
    assert caller.goaway() == "CALM"


def test_normal_ends_are_no_flood() -> None:
    """Each is a reset, after a message; these all come in one instant. (20,000 a second for seconds: test_lean_rates.)"""
    caller = greeted(echo)
    for first in range(1, 10_001, 200):
        caller.feed(b"".join(opened(number, b"x") + reset(number) for number in range(first, first + 200, 2)))
    assert len(caller.seen) == 3 * 5_000
    assert not caller.connection.failed
    assert caller.connection.idle


def test_aborts_are_no_flood() -> None:
    """Of 2,000 in the same instant nobody minds even those before the first message, be there an END_STREAM or not. After it, nobody counts."""
    caller = greeted(echo)
    for first in range(1, 4_001, 4):
        caller.feed(opened(first) + frame(DATA, 1, first) + reset(first) + opened(first + 2) + reset(first + 2))
    for number in range(4_001, 8_001, 2):
        caller.feed(opened(number, b"x") + reset(number))
    assert not caller.connection.failed
    assert caller.feed(opened(8_001) + reset(8_001)).goaway() == "CALM"


def test_allowances_are_refilled_by_the_second() -> None:
    caller = greeted()
    for _ in range(20):
        caller.feed(frame(PING, 0, 0, bytes(8)) * 100)
        caller.clock.now_s += 1
    assert not caller.connection.failed
    allowance = Allowance((2, 10), caller.clock, "things")

    def taken(count: int) -> int:
        for number in range(count):
            try:
                allowance.take()
            except ConnectionFault:
                return number
        return count

    assert taken(3) == 2
    caller.clock.now_s += 0.1
    assert taken(2) == 1
    caller.clock.now_s += 1_000
    assert taken(3) == 2


def test_a_peer_that_asks_and_never_reads_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "CONTROL_UNSENT_MAX", 1_000)
    caller = greeted(echo)
    caller.connection.sending.held = True
    for first in range(1, 4_001, 200):
        caller.feed(b"".join(frame(HEADERS, 5, number, block()) for number in range(first, first + 200, 2)))
    assert caller.connection.failed


def test_control_is_counted_only_while_nobody_reads() -> None:
    caller = greeted()
    caller.connection.sending.held = True
    for _ in range(limits.CONTROL_UNSENT_MAX):
        caller.connection.sending.control(b"x")
    caller.flush()
    assert not caller.connection.failed
    caller.connection.sending.control(b"x")
    with pytest.raises(ConnectionFault):
        caller.connection.sending.take()
    caller.connection.sending.held = False
    assert len(caller.connection.take()) == limits.CONTROL_UNSENT_MAX + 1


def test_memory_of_long_messages_is_bounded_and_each_gets_its_turn() -> None:
    """24 streams begin messages of 4 MB, all at once: 16 of them get a window, the others wait, and all of them arrive."""
    size, count = 4_194_304, 24
    caller = greeted(lambda caller, stream, data: sizes.append(len(data)))
    sizes: list[int] = []
    whole = message(bytes(size))
    credit = dict.fromkeys(many(count), 65_535)
    at = dict.fromkeys(credit, 0)
    for number in credit:
        caller.feed(opened(number))
    while at:
        moved = False
        for number in tuple(at):
            while at[number] < len(whole) and (most := min(16_384, credit[number], len(whole) - at[number])):
                caller.feed(frame(DATA, 0, number, whole[at[number] : at[number] + most]))
                at[number] += most
                credit[number] -= most
                moved = True
                if len(sizes) > 4:
                    break  # interleave a little
            if at[number] == len(whole):
                del at[number]
            assert caller.connection.reserved_bytes <= limits.RESERVED_BYTES_MAX
        for kind, _, stream_id, payload in caller.drained():
            if kind == WINDOW and stream_id:
                credit[stream_id] += int.from_bytes(payload, "big")
        assert moved, "nobody may send: a deadlock"
    assert sizes == [size] * count
    assert caller.connection.reserved_bytes == 0


def test_who_leaves_the_queue_of_long_messages_frees_its_place() -> None:
    size = 33_554_432
    caller = greeted()
    for number in many(4):
        caller.feed(opened(number) + frame(DATA, 0, number, b"\0" + size.to_bytes(4, "big")))
    granted = [stream_id for kind, _, stream_id, _ in caller.drained() if kind == WINDOW]
    assert granted == [1, 3], "two of the largest"
    assert caller.feed(reset(5)).drained() == []
    ((_, _, next_in_turn, _),) = caller.feed(reset(1)).drained()
    assert next_in_turn == 7
    caller.feed(reset(3) + reset(7))
    assert caller.connection.reserved_bytes == 0


def test_hello_is_heard_in_any_piece() -> None:
    caller = Caller()
    for byte in HELLO:
        caller.feed(bytes([byte]))
    assert caller.connection.greeted
    assert not caller.connection.failed
