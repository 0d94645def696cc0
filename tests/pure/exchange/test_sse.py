from __future__ import annotations

import itertools

from hypothesis import given
from hypothesis import strategies as st

from extproc.exchange.sse import EVENT_BYTES_MAX, SseDecoder

STREAM = (
    b": hello\n\n"
    b'data: {"a": 1}\n\n'
    b"data: one\r\ndata: two\r\n\r\n"
    b"event: x\rdata:tight\r\r" + "data: 你好🙂\n\n".encode() + b"\xef\xbb\xbfdata: bom\n\n"
    b"data: [DONE]\n\n"
)
DATA = [b"", b'{"a": 1}', b"one\ntwo", b"tight", "你好🙂".encode(), b"bom", b"[DONE]"]


def read(pieces: list[bytes]) -> tuple[list[bytes], bytes]:
    decoder, data, raw = SseDecoder(), [], b""
    for piece in pieces:
        for event in decoder.feed(piece):
            raw += event.raw
            data.append(event.data)
    for event in decoder.flush():
        raw += event.raw
        data.append(event.data)
    return [value for value in data if value], raw


def test_every_split_in_two_gives_the_same_events():
    wanted = [value for value in DATA if value]
    for cut in range(len(STREAM) + 1):
        assert read([STREAM[:cut], STREAM[cut:]]) == (wanted, STREAM)


@given(st.lists(st.integers(0, len(STREAM)), max_size=12))
def test_any_cut_gives_the_same_events(cuts: list[int]):
    edges = [0, *sorted(cuts), len(STREAM)]
    assert read([STREAM[a:b] for a, b in itertools.pairwise(edges)]) == ([value for value in DATA if value], STREAM)


@given(st.lists(st.binary(max_size=40), max_size=8))
def test_no_byte_is_lost_whatever_comes(pieces: list[bytes]):
    assert read(pieces)[1] == b"".join(pieces)


def test_line_ends_stay_with_their_event_whatever_the_cut():
    """An event that is hidden must not leave one behind, or take a neighbour's along."""
    stream = b"data: a\r\n\r\ndata: b\r\n\r\ndata: c\r\n\r\n"
    for size in range(1, len(stream)):
        decoder = SseDecoder()
        events = [event for start in range(0, len(stream), size) for event in decoder.feed(stream[start : start + size])]
        assert [event.raw for event in [*events, *decoder.flush()]] == [b"data: a\r\n\r\n", b"data: b\r\n\r\n", b"data: c\r\n\r\n"]


def test_an_event_too_long_is_given_up_but_its_bytes_go_on():
    decoder = SseDecoder()
    events = decoder.feed(b"data: " + b"x" * EVENT_BYTES_MAX)
    assert [event.data for event in events] == [b""]
    assert not decoder.pending
