"""Header blocks by their bytes: when they may be remembered, when that is given up, and what is never remembered."""

from __future__ import annotations

from typing import Any

import hpack
import pytest
from lean_wire import DATA, HEADERS, PREFACE, RECORDED, SETTINGS, WINDOW, Caller, block, echo, frame, message

from extproc.edge.transport.lean import limits
from extproc.edge.transport.lean.frames import ConnectionFault
from extproc.edge.transport.lean.headers import RequestBlocks, error_trailers
from extproc.edge.transport.lean.messages import Assembly
from extproc.edge.transport.port import METHOD


class Counted(RequestBlocks):
    """Counts what had to be decoded."""

    __slots__ = ("decoded",)

    def __init__(self) -> None:
        super().__init__()
        self.decoded = 0

    def _decoded(self, data: bytes) -> Any:
        self.decoded += 1
        return super()._decoded(data)


def fields(**more: str) -> list[tuple[str, str]]:
    named = {":method": "POST", ":scheme": "http", ":path": METHOD, "content-type": "application/grpc"} | more
    return list(named.items())


def test_before_the_acknowledgement_the_peers_table_counts() -> None:
    """The same bytes mean something else each time: nothing may be remembered."""
    encoder = hpack.Encoder()
    blocks = Counted()
    first, second, third = (encoder.encode(fields(**{"x-number": str(number)})) for number in (1, 2, 2))
    assert [blocks.request(data).path for data in (first, second, third, third)] == [METHOD.encode()] * 4
    assert blocks.decoded == 4


def test_after_it_the_same_bytes_are_decoded_once() -> None:
    encoder = hpack.Encoder()
    blocks = Counted()
    blocks.request(encoder.encode(fields()))
    blocks.acknowledged()
    encoder.header_table_size = 0
    for number in range(200):
        assert blocks.request(encoder.encode(fields(**{"x-number": str(number % 2)}))).well_formed
    assert blocks.decoded == 1 + 1 + 2


def test_blocks_that_never_repeat_are_not_kept_for_ever() -> None:
    blocks = Counted()
    blocks.acknowledged()
    for number in range(limits.LOOKUPS_JUDGED + 10):
        blocks.request(block({"traceparent": f"00-{number}"}))
        assert len(blocks._remembered or {}) <= limits.REQUEST_BLOCKS_MAX
    assert blocks._remembered is None
    decoded = blocks.decoded
    for _ in range(2):
        assert blocks.request(block()).path == METHOD.encode()
    assert blocks.decoded == decoded + 2


def test_a_mixture_is_judged_by_its_hits() -> None:
    blocks = Counted()
    blocks.acknowledged()
    for number in range(3 * limits.LOOKUPS_JUDGED):
        blocks.request(block({"traceparent": str(number)} if number % 3 == 0 else {}))
    assert blocks._remembered is not None
    assert blocks.decoded < 1.1 * limits.LOOKUPS_JUDGED


def test_large_blocks_are_not_remembered_and_larger_ones_are_refused() -> None:
    blocks = Counted()
    blocks.acknowledged()
    encoder = hpack.Encoder()
    encoder.header_table_size = 0
    large = encoder.encode(fields(**{"x-token": "é" * 4_000}), huffman=False)
    assert blocks.request(large).well_formed
    assert blocks.request(large[1:] if large[:1] == b"\x20" else large).well_formed
    assert not blocks._remembered
    with pytest.raises(ConnectionFault, match="header list"):
        blocks.request(encoder.encode(fields(**{"x-token": "x" * 40_000}), huffman=False))


def test_messages_are_cut_to_what_a_trailer_may_hold() -> None:
    decoded = dict(hpack.Decoder().decode(error_trailers(13, "ü" * 1_000), raw=False))
    assert decoded == {"grpc-status": "13", "grpc-message": "%C3%BC" * 200}


@pytest.mark.parametrize("size", [0, 1, 4, 5, 6, 50])
def test_messages_in_pieces_of_any_size(size: int) -> None:
    messages = [b"", b"x", b"y" * 300, b"", b"z" * 7_000]
    data = b"".join(map(message, messages))
    assembly = Assembly()
    got: list[bytes] = []
    for start in range(0, len(data), size or len(data)):
        got += assembly.feed(data, start, min(len(data), start + (size or len(data))))
        assert (assembly.missing == 0) or not assembly.empty
    assert got == messages
    assert assembly.empty


def test_what_envoy_sent_is_understood() -> None:
    """Its first block uses its table, the second begins with the size update, the others repeat."""
    caller = Caller(echo).feed(RECORDED)
    assert not caller.connection.failed
    assert [event for event in caller.seen if event[0] == "Opened"] == [("Opened", number, METHOD.encode()) for number in (1, 3, 5, 7, 9)]
    assert caller.connection._blocks._stateless
    assert caller.connection.idle


def test_settings_are_announced_first_and_windows_opened() -> None:
    (settings, window) = Caller().drained()
    assert settings[:3] == (SETTINGS, 0, 0)
    assert settings[3][:6] == b"\0\1\0\0\0\0", "a header table of size 0"
    assert b"\0\3\0\0\4\0" in settings[3]
    assert window == (WINDOW, 0, 0, (limits.CONNECTION_CREDIT - 65_535).to_bytes(4, "big"))


def test_a_reply_waits_for_both_windows_and_takes_turns() -> None:
    small = PREFACE + frame(SETTINGS, 0, 0, b"\0\4\0\0\0\x0a") + frame(SETTINGS, 1, 0)
    caller = Caller(echo).feed(small)
    caller.drained()
    for number in (1, 3):
        caller.feed(frame(HEADERS, 4, number, block()) + frame(DATA, 0, number, message(b"0123456789")))
    assert [sent[0::2] for sent in caller.drained() if sent[0] == DATA] == [(DATA, 1), (DATA, 3)]
    caller.feed(frame(WINDOW, 0, 3, b"\0\0\0\5"))
    assert caller.drained() == [(DATA, 0, 3, b"56789")]
    caller.feed(frame(SETTINGS, 0, 0, b"\0\4\0\0\0\x0c"))
    assert [sent for sent in caller.drained() if sent[0] == DATA] == [(DATA, 0, 1, b"56")]
    caller.feed(frame(DATA, 1, 1))
    assert caller.drained() == [], "the end waits for what was sent before it"
    caller.feed(frame(WINDOW, 0, 1, b"\0\0\1\0"))
    assert [sent[:2] for sent in caller.drained()] == [(DATA, 0), (HEADERS, 5)]
