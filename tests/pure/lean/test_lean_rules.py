"""What ends a connection, what ends a stream, and what ends nothing: RFC 9113, case by case."""

from __future__ import annotations

import pytest
from lean_wire import (
    CONTINUATION,
    DATA,
    ERRORS,
    GOAWAY,
    HEADERS,
    HELLO,
    PING,
    PREFACE,
    PRIORITY,
    PUSH,
    RST,
    SETTINGS,
    WINDOW,
    Caller,
    block,
    echo,
    frame,
    greeted,
    literal,
    message,
    opened,
)  # fmt: skip

from extproc.edge.transport.lean import limits
from extproc.edge.transport.lean.stream import Stream
from extproc.edge.transport.port import MESSAGE_BYTES_MAX

SETTING = {"push": 2, "window": 4, "frame": 5, "unknown": 77}


def setting(name: str, value: int) -> bytes:
    return frame(SETTINGS, 0, 0, SETTING[name].to_bytes(2, "big") + value.to_bytes(4, "big"))


@pytest.mark.parametrize(
    ("sent", "code"),
    [
        (b"GET / HTTP/1.1\r\nhost: x\r\n\r\n", "PROTOCOL"),
        (b"PRI * HTTP/2.0\r\n\r\nXX", "PROTOCOL"),
        (PREFACE + frame(PING, 0, 0, bytes(8)), "PROTOCOL"),
        (PREFACE + frame(SETTINGS, 1, 0), "PROTOCOL"),
        (PREFACE + opened(1, b"x"), "PROTOCOL"),
        (HELLO + frame(DATA, 0, 1, bytes(16_385)), "FRAME_SIZE"),
        (HELLO + frame(DATA, 0, 1, bytes(16_385))[:9], "FRAME_SIZE"),  # before its payload is waited for
        (HELLO + frame(DATA, 0, 1, b"x"), "PROTOCOL"),
        (HELLO + frame(DATA, 0, 0, b"x"), "PROTOCOL"),
        (HELLO + opened(5, b"x") + frame(DATA, 0, 7, b"x"), "PROTOCOL"),
        (HELLO + opened(5, b"x") + frame(DATA, 0, 4, b"x"), "PROTOCOL"),
        (HELLO + opened(1) + frame(DATA, 8, 1, b""), "FRAME_SIZE"),
        (HELLO + opened(1) + frame(DATA, 8, 1, b"\x05abc"), "PROTOCOL"),
        (HELLO + frame(HEADERS, 4, 0, block()), "PROTOCOL"),
        (HELLO + frame(HEADERS, 4, 2, block()), "PROTOCOL"),
        (HELLO + frame(HEADERS, 4 | 8, 1, b"\xff" + block()), "PROTOCOL"),
        (HELLO + frame(HEADERS, 4 | 32, 1, b"abc"), "FRAME_SIZE"),
        (HELLO + frame(HEADERS, 4, 1, b"\xff\xff\xff\xff\xff\xff\xff\xff\xff"), "COMPRESSION"),
        (HELLO + frame(HEADERS, 4, 1, b"\x00\x7fabc"), "COMPRESSION"),
        (HELLO + frame(HEADERS, 4, 1, b"\x3f\xe1\x1f" + block()[1:]), "COMPRESSION"),  # a table, after our SETTINGS were acknowledged
        (HELLO + frame(HEADERS, 4, 1, block()[1:]), "COMPRESSION"),  # and nothing said of its table
        (HELLO + frame(HEADERS, 0, 1, block()) + opened(3), "PROTOCOL"),
        (HELLO + frame(HEADERS, 0, 1, block()) + frame(CONTINUATION, 4, 3, b""), "PROTOCOL"),
        (HELLO + frame(HEADERS, 0, 1, block()) + frame(PING, 0, 0, bytes(8)), "PROTOCOL"),
        (HELLO + frame(CONTINUATION, 4, 1, block()), "PROTOCOL"),
        (HELLO + frame(CONTINUATION, 4, 0, block()), "PROTOCOL"),
        (HELLO + frame(HEADERS, 0, 1, bytes(16_000)) + frame(CONTINUATION, 0, 1, bytes(16_384)) * 2, "CALM"),
        (HELLO + frame(PRIORITY, 0, 0, bytes(5)), "PROTOCOL"),
        (HELLO + frame(PRIORITY, 0, 1, bytes(4)), "FRAME_SIZE"),
        (HELLO + frame(RST, 0, 0, bytes(4)), "PROTOCOL"),
        (HELLO + frame(RST, 0, 1, bytes(4)), "PROTOCOL"),
        (HELLO + opened(1, b"x") + frame(RST, 0, 1, bytes(3)), "FRAME_SIZE"),
        (HELLO + frame(SETTINGS, 0, 1), "PROTOCOL"),
        (HELLO + frame(SETTINGS, 0, 0, bytes(5)), "FRAME_SIZE"),
        (HELLO + frame(SETTINGS, 1, 0, bytes(6)), "FRAME_SIZE"),
        (HELLO + setting("push", 2), "PROTOCOL"),
        (HELLO + setting("window", 2**31), "FLOW_CONTROL"),
        (HELLO + setting("frame", 16_383), "PROTOCOL"),
        (HELLO + setting("frame", 2**24), "PROTOCOL"),
        (HELLO + opened(1) + frame(WINDOW, 0, 1, (2**31 - 65_536).to_bytes(4, "big")) + setting("window", 65_537), "FLOW_CONTROL"),
        (HELLO + frame(PUSH, 4, 1, bytes(4)), "PROTOCOL"),
        (HELLO + frame(PING, 0, 1, bytes(8)), "PROTOCOL"),
        (HELLO + frame(PING, 0, 0, bytes(7)), "FRAME_SIZE"),
        (HELLO + frame(GOAWAY, 0, 1, bytes(8)), "PROTOCOL"),
        (HELLO + frame(GOAWAY, 0, 0, bytes(7)), "FRAME_SIZE"),
        (HELLO + frame(WINDOW, 0, 0, bytes(3)), "FRAME_SIZE"),
        (HELLO + frame(WINDOW, 0, 0, bytes(4)), "PROTOCOL"),
        (HELLO + frame(WINDOW, 0, 1, b"\0\0\0\1"), "PROTOCOL"),
        (HELLO + frame(WINDOW, 0, 0, b"\x7f\xff\xff\xff"), "FLOW_CONTROL"),
    ],
)
def test_what_breaks_the_protocol_ends_the_connection(sent: bytes, code: str) -> None:
    caller = Caller().feed(sent)
    assert caller.goaway() == code
    assert caller.connection.failed
    seen = list(caller.seen)
    assert seen[-1][:2] == ("Failed", ERRORS.index(code))
    assert caller.feed(opened(9, b"x")).seen == seen, "nothing is listened to any more"


@pytest.mark.parametrize(
    ("sent", "code"),
    [
        (opened(1, b"x") + frame(WINDOW, 0, 1, bytes(4)), "PROTOCOL"),
        (opened(1, b"x") + frame(WINDOW, 0, 1, b"\x7f\xff\xff\xff"), "FLOW_CONTROL"),
        (opened(1, b"x") + frame(HEADERS, 4, 1, block()), "PROTOCOL"),
    ],
)
def test_what_breaks_a_streams_rules_ends_the_stream(sent: bytes, code: str) -> None:
    def large(caller: Caller, stream: Stream, data: bytes) -> None:
        """So large that the stream stays after its end."""
        caller.send(stream, bytes(100_000))

    caller = greeted(large).feed(sent + opened(3, b"y"))
    resets = {stream_id: payload for kind, _, stream_id, payload in caller.drained() if kind == RST}
    assert {stream_id: ERRORS[payload[3]] for stream_id, payload in resets.items()} == {1: code}
    assert ("Over", 1) in caller.seen
    assert ("Message", 3, b"y") in caller.seen
    assert not caller.connection.failed


def test_a_stream_that_exceeds_its_window_is_reset() -> None:
    """Whose window stays closed, because two of the longest messages are on their way."""
    longest = frame(DATA, 0, 1, b"\0" + MESSAGE_BYTES_MAX.to_bytes(4, "big"))
    caller = greeted().feed(opened(1) + longest + opened(3) + longest.replace(b"\0\0\0\1", b"\0\0\0\3", 1) + opened(5))
    caller.drained()
    for size in (16_384, 16_384, 16_384, 16_383):
        assert caller.feed(frame(DATA, 0, 5, b"\0\1\0\0\0"[: 5 if size else 0] + bytes(size - 5))).drained() == []
    assert caller.feed(frame(DATA, 0, 5, b"x")).drained() == [(RST, 0, 5, b"\0\0\0\3")]
    assert caller.seen[-1] == ("Over", 5)


def test_a_connection_that_exceeds_its_window_ends() -> None:
    """No frame can: half of it is given back at once. So the count itself."""
    caller = greeted()
    caller.connection._credit.left = 0
    assert caller.feed(opened(1, b"x")).goaway() == "FLOW_CONTROL"


def test_data_and_headers_after_the_end() -> None:
    for late in (frame(DATA, 0, 1, b"x"), frame(HEADERS, 5, 1, block())):
        caller = greeted(lambda caller, stream, data: caller.send(stream, bytes(100_000))).feed(opened(1, b"x", flags=1))
        caller.drained()
        caller.feed(late)  # our reply is not out yet, so the stream is still there
        assert caller.drained() == [(RST, 0, 1, b"\0\0\0\5")]
        assert caller.feed(late).drained() == [], "and now it is gone: words that crossed on the wire"
        assert not caller.connection.failed


@pytest.mark.parametrize(
    "wrong",
    [
        block(method=""), block(scheme=""), block(path=""), block({"Upper": "x"}), block({"connection": "close"}), block({":late": "x"}),
        block() + literal(b":path", b"/after"), b"\x20" + literal(b":path", b"/twice") + block()[1:], b"\x20" + literal(b"", b"x") + block()[1:], b"\x20",
    ],
)  # fmt: skip
def test_malformed_requests_are_reset(wrong: bytes) -> None:
    caller = greeted().feed(frame(HEADERS, 4, 1, wrong) + opened(3, b"y"))
    assert [sent for sent in caller.drained() if sent[2] == 1] == [(RST, 0, 1, b"\0\0\0\1")]
    assert caller.seen == [("Opened", 3, b"/envoy.service.ext_proc.v3.ExternalProcessor/Process"), ("Message", 3, b"y")]


@pytest.mark.parametrize("other", [block(method="GET"), block({"content-type": "text/plain"})])
def test_requests_that_are_not_grpc_get_415(other: bytes) -> None:
    caller = greeted().feed(frame(HEADERS, 4, 1, other))
    (kind, flags, _, payload), reset = caller.drained()
    assert (kind, flags, payload) == (HEADERS, 5, literal(b":status", b"415"))
    assert reset == (RST, 0, 1, b"\0\0\0\0")
    assert caller.seen == []


@pytest.mark.parametrize(
    ("broken", "status"),
    [
        (b"\1\0\0\0\1x", b"12"),
        (b"\2\0\0\0\1x", b"13"),
        (b"\0" + (MESSAGE_BYTES_MAX + 1).to_bytes(4, "big"), b"8"),
        (message(b"fine") + b"\1\0\0\0\1x", b"12"),
    ],
)
def test_broken_messages_end_their_stream_with_a_status(broken: bytes, status: bytes) -> None:
    caller = greeted().feed(frame(HEADERS, 4, 1, block()) + frame(DATA, 0, 1, broken) + opened(3, b"y"))
    trailers, reset = caller.drained()
    assert trailers[:3] == (HEADERS, 5, 1)
    assert literal(b"grpc-status", status) in trailers[3]
    assert reset == (RST, 0, 1, b"\0\0\0\0")
    assert ("Over", 1) in caller.seen
    assert ("Message", 3, b"y") in caller.seen


def test_an_end_within_a_message_is_an_error() -> None:
    caller = greeted().feed(opened(1) + frame(DATA, 1, 1, message(b"whole") + b"\0\0\0\0\5half"))
    (trailers,) = caller.drained()
    assert literal(b"grpc-status", b"13") in trailers[3]
    assert caller.seen[-1] == ("Over", 1)


def test_what_is_unknown_or_says_nothing_changes_nothing() -> None:
    odd = (
        frame(99, 255, 1, b"?") + frame(PRIORITY, 0, 5, bytes(5)) + setting("unknown", 1) + frame(GOAWAY, 0, 0, bytes(8) + b"why")
        + frame(PING, 1, 0, bytes(8)) + frame(SETTINGS, 1, 0)
    )  # fmt: skip
    caller = greeted(echo).feed(odd + opened(1, b"x") + odd)
    assert [sent[:3] for sent in caller.drained()] == [(SETTINGS, 1, 0), (SETTINGS, 1, 0), (HEADERS, 4, 1), (DATA, 0, 1)]
    assert not caller.connection.failed


def test_padding_continuation_priority_and_trailers_are_legal() -> None:
    whole = block()
    headers = frame(HEADERS, 8 | 32, 1, b"\3" + bytes(5) + whole[:20] + bytes(3))
    sent = headers + frame(CONTINUATION, 0, 1, whole[20:40]) + frame(CONTINUATION, 4, 1, whole[40:])
    sent += frame(DATA, 8, 1, b"\7" + message(b"padded") + bytes(7)) + frame(HEADERS, 5, 1, literal(b"x", b"y"))
    caller = greeted(echo).feed(sent)
    assert [event[0] for event in caller.seen] == ["Opened", "Message", "Ended"]
    assert literal(b"grpc-status", b"0") == caller.drained()[-1][3]


def test_a_ping_is_answered_before_replies() -> None:
    caller = greeted(echo).feed(opened(1, b"x") + frame(PING, 0, 0, b"12345678"))
    assert caller.drained()[0] == (PING, 1, 0, b"12345678")


def test_status_0_only_after_the_peers_end() -> None:
    caller = greeted(echo).feed(opened(1, b"x"))
    with pytest.raises(AssertionError, match="unbilled"):
        caller.connection.finish(caller.live[1])
    caller.feed(frame(DATA, 1, 1))
    *_, trailers = caller.drained()
    assert trailers == (HEADERS, 5, 1, literal(b"grpc-status", b"0"))
    assert caller.connection.idle


def test_an_error_before_any_reply_is_one_frame() -> None:
    caller = greeted().feed(opened(1, b"x"))
    caller.connection.close(caller.live[1], 14, "100 % full\né")
    caller.flush()
    trailers, reset = caller.drained()
    assert trailers[:3] == (HEADERS, 5, 1)
    assert trailers[3].startswith(b"\x88" + literal(b"content-type", b"application/grpc") + literal(b"grpc-status", b"14"))
    assert trailers[3].endswith(literal(b"grpc-message", b"100 %25 full%0A%C3%A9"))
    assert reset == (RST, 0, 1, b"\0\0\0\0")
    assert caller.feed(frame(DATA, 0, 1, message(b"late")) + frame(RST, 0, 1, bytes(4))).drained() == []


def test_a_later_reply_has_no_headers_of_its_own_and_the_end_has_trailers_only_once() -> None:
    caller = greeted(echo).feed(opened(1, b"a", b"b"))
    caller.connection.close(caller.live[1], 13, "x")
    caller.connection.close(caller.live[1], 14, "y")
    caller.flush()
    assert [sent[:2] for sent in caller.drained()] == [(HEADERS, 4), (DATA, 0), (DATA, 0), (HEADERS, 5), (RST, 0)]


def test_more_streams_than_announced_are_refused() -> None:
    last = 2 * limits.STREAMS_MAX + 1
    caller = greeted().feed(b"".join(opened(number, b"x") for number in range(1, last + 1, 2)))
    assert caller.drained() == [(RST, 0, last, b"\0\0\0\7")]
    assert len(caller.live) == limits.STREAMS_MAX
    caller.feed(frame(RST, 0, 1, bytes(4)) + opened(last + 2, b"y"))
    assert caller.drained() == []


def test_two_goaways_and_what_comes_between_them() -> None:
    caller = greeted(echo).feed(opened(1, b"x"))
    caller.drained()
    caller.connection.drain()
    caller.connection.drain()
    caller.feed(opened(3, b"under way"))
    caller.connection.refuse_more()
    caller.connection.refuse_more()
    caller.feed(opened(5, b"too late"))
    sent = caller.drained()
    assert [payload[:4] for kind, _, _, payload in sent if kind == GOAWAY] == [b"\x7f\xff\xff\xff", b"\0\0\0\3"]
    assert [sent for sent in sent if sent[2] == 5] == [(RST, 0, 5, b"\0\0\0\7")]
    assert ("Message", 3, b"under way") in caller.seen
    caller.feed(frame(DATA, 1, 1) + frame(RST, 0, 3, bytes(4)))
    assert caller.connection.over


def test_a_connection_asks_to_be_replaced_long_before_ids_run_out() -> None:
    caller = greeted().feed(opened(limits.STREAM_ID_LAST - 1, b"x"))
    assert caller.drained() == []
    caller.feed(opened(limits.STREAM_ID_LAST + 1, b"y") + opened(limits.STREAM_ID_LAST + 3, b"z"))
    assert [sent[3][:8] for sent in caller.drained()] == [b"\x7f\xff\xff\xff\0\0\0\0"]
    assert [event[0] for event in caller.seen].count("Draining") == 1
    assert len(caller.live) == 3
