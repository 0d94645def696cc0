"""What is read and written by tag, against protobuf's own classes."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from protobuf_replies import reply_of

from extproc.edge.envoy_codec import FILTER, MalformedMessage, _decode_any, decode, encode
from extproc.edge.wire import ext_proc_pb2 as wire
from extproc.edge.wire_format import MESSAGE_BYTES_MAX, body_of, number, record, tag, text, varint
from extproc.exchange import actions, events

REQUEST_BODY, RESPONSE_BODY = 0x22, 0x2A
# Envoy 1.40, as they came.
CHUNK = b"*\x0b\n\tdata: 0\n\nB\x00"
END = b"*\x02\x10\x01B\x00"
ANSWER = b'*\x10\n\x0c{"ok": true}\x10\x01B\x00'
QUESTION = b'"\x0b\n\x07{"a":1}\x10\x01B\x00'
RESPONSE_HEADERS = (
    b"\x1an\nl\n\x0e\n\x07:status\x1a\x03200\n \n\x0ccontent-type\x1a\x10application/json\n\x14\n\x0econtent-length\x1a\x0212\n"
    b'"\n\x1dx-envoy-upstream-service-time\x1a\x010B\x00J\x9c\x01\n\x1benvoy.filters.http.ext_proc\x12}\n'
    b"'\n\x15response.code_details\x12\x0e\x1a\x0cvia_upstream\n%\n\x10upstream.address\x12\x11\x1a\x0f127.0.0.1:46395\n"
    b"+\n\x1eupstream.request_attempt_count\x12\t\x11\x00\x00\x00\x00\x00\x00\xf0?"
)


def reading(read: Any, data: bytes) -> Any:
    try:
        return read(data, at_ns=1, unix_ms=2, hold_id="h")
    except MalformedMessage as error:
        return str(error)


def agrees(data: bytes) -> None:
    """The way by tag reads what the classes read, or leaves it to them."""
    assert reading(decode, data) == reading(_decode_any, data)


# ---- reading


@pytest.mark.parametrize(
    ("data", "phase", "found"),
    [
        (CHUNK, RESPONSE_BODY, (b"data: 0\n\n", False)),
        (END, RESPONSE_BODY, (b"", True)),
        (ANSWER, RESPONSE_BODY, (b'{"ok": true}', True)),
        (QUESTION, REQUEST_BODY, (b'{"a":1}', True)),
    ],
)
def test_bodies_of_a_real_envoy_are_read_by_tag(data: bytes, phase: int, found: tuple[bytes, bool]) -> None:
    assert body_of(data, phase) == found
    agrees(data)


def test_headers_of_a_real_envoy() -> None:
    assert decode(RESPONSE_HEADERS) == events.ResponseHeaders(
        status=200,
        headers={"content-type": "application/json", "content-length": "12", "x-envoy-upstream-service-time": "0"},
        upstream="127.0.0.1:46395",
        attempts=1,
        code_details="via_upstream",
    )


@pytest.mark.parametrize(
    "size", [0, 1, 120, 121, 122, 123, 124, 125, 126, 127, 128, 129, 130, 2_000, 16_371, 16_372, 16_373, 16_374, 20_000]
)
@pytest.mark.parametrize("end_of_stream", [False, True])
def test_every_size_of_a_body(size: int, end_of_stream: bool) -> None:
    data = wire.ProcessingRequest(response_body=wire.HttpBody(body=b"x" * size, end_of_stream=end_of_stream)).SerializeToString() + b"B\x00"
    by_tag = len(data) <= MESSAGE_BYTES_MAX and (size > 0 or end_of_stream)
    assert body_of(data, RESPONSE_BODY) == ((b"x" * size, end_of_stream) if by_tag else None)
    agrees(data)


@pytest.mark.parametrize(
    "data",
    [
        b"*\x0b\n\tdata: 0\n\n",  # without a context
        b"*\x0b\n\tdata: 0\n\nB\x02\n\x00",  # with one that says something
        CHUNK + b"Z\x04\x08\x02\x10\x01",  # with more behind it
        b"*\x0d\n\tdata: 0\n\n\x10\x00B\x00",  # a flag that is said to be false
        b"*\x02\x10\x01*\x0b\n\tdata: 0\n\nB\x00",  # one phase twice: protobuf merges them
        CHUNK + ANSWER,
        b"*\x8b\x00\n\tdata: 0\n\nB\x00",  # a length of two bytes that needs one
        b"*\x8b\x80\x00\n\tdata: 0\n\nB\x00",  # and of three
        b"*\x05\n\tdata: 0\n\nB\x00",  # the inner longer than the outer
        b"*\x0d\n\tdata: 0\n\n\x10B\x00",
        CHUNK[:-1],
        CHUNK[:-2],
        CHUNK[1:],
        b"*\xff\xff\xff\xff",
        b"*\xff\xff\n\xff\xffB\x00",
        b"*\x03\x10\x01B\x00",  # an outer length that is wrong
        b'*\x0e\n\x0c{"ok": true}\x10\x01B\x00',  # the end belongs to nothing
        b"*\x00B\x00",
        b"",
    ],
)
def test_odd_bodies(data: bytes) -> None:
    agrees(data)


NAMES = st.sampled_from([":method", ":path", ":status", ":authority", "x-a", "X-A", "authorization", "é", ""])
VALUES = st.one_of(st.sampled_from([b"POST", b"200", b"", b"\xff", "é".encode(), b"a" * 130]), st.binary(max_size=12))
HEADER_MAPS = st.lists(st.builds(wire.HeaderValue, key=NAMES, raw_value=VALUES), max_size=6).map(
    lambda headers: wire.HeaderMap(headers=headers)
)
HEADERS = st.builds(wire.HttpHeaders, headers=HEADER_MAPS, end_of_stream=st.booleans())
BODIES = st.builds(wire.HttpBody, body=st.one_of(st.binary(max_size=40), st.just(b"x" * 130)), end_of_stream=st.booleans())
KINDS = st.one_of(
    st.builds(wire.Value, string_value=st.sampled_from(["1.2.3.4:5", "", "é"])),
    st.builds(wire.Value, number_value=st.floats()),
    st.builds(wire.Value, bool_value=st.booleans()),
    st.just(wire.Value()),
)
ATTRIBUTES = st.dictionaries(
    st.sampled_from([FILTER, "another"]),
    st.dictionaries(st.sampled_from(["source.address", "request.id", "upstream.request_attempt_count"]), KINDS).map(
        lambda fields: wire.Struct(fields=fields)
    ),
)
PHASES = {
    "request_headers": HEADERS,
    "response_headers": HEADERS,
    "request_body": BODIES,
    "response_body": BODIES,
    "request_trailers": st.just(wire.HttpTrailers()),
    "response_trailers": st.just(wire.HttpTrailers()),
}
ENDS = st.sampled_from([b"B\x00", b"", b"B\x00Z\x04\x08\x02\x10\x01", b"P\x01B\x00", b"\x00", b"B\x00B\x00", b"\x7d1234"])


@st.composite
def messages(draw: st.DrawFn) -> bytes:
    """A message of any phase, with something behind it, perhaps another one."""
    phase = draw(st.sampled_from(sorted(PHASES)))
    message = wire.ProcessingRequest(attributes=draw(st.one_of(st.just({}), ATTRIBUTES)), **{phase: draw(PHASES[phase])})
    data: bytes = message.SerializeToString() + draw(ENDS)
    return data + draw(messages()) if draw(st.integers(0, 9)) == 9 else data


@st.composite
def broken(draw: st.DrawFn) -> bytes:
    """Cut off, or a byte changed, put in or taken out."""
    data = draw(messages())
    for _ in range(draw(st.integers(0, 3))):
        at = draw(st.integers(0, max(len(data) - 1, 0)))
        piece = draw(st.sampled_from([b"", b"\x00", b"\n", b"*", b"B", b"\x10", b"\x01", b"\x80", b"\xff"]))
        data = data[:at] + piece + data[at + draw(st.integers(0, 1)) :]
    return data[: draw(st.integers(0, len(data)))] if draw(st.booleans()) else data


@given(broken())
@example(CHUNK)
def test_reading_by_tag_is_reading(data: bytes) -> None:
    agrees(data)


# ---- writing

TEXTS = st.one_of(
    st.sampled_from(["", "a", "x-model", "é", "\udcff", "n" * 127, "n" * 128, "v" * 20_000]), st.text(alphabet="ab-é€", max_size=20)
)
PLAIN = TEXTS.filter(lambda value: "\udcff" not in value)
SETS = st.lists(st.tuples(PLAIN, TEXTS), max_size=4).map(tuple)
REMOVALS = st.lists(PLAIN, max_size=3).map(tuple)
METADATA = st.dictionaries(PLAIN, PLAIN, max_size=4).map(lambda pairs: tuple(pairs.items()))
DATA = st.one_of(st.binary(max_size=30), st.sampled_from([b"x" * 127, b"x" * 128, b"\xff" * 17_000]))
ACTIONS = st.one_of(
    st.builds(actions.PassHeaders, set_headers=SETS, remove_headers=REMOVALS),
    st.builds(actions.PassBody, data=DATA, set_headers=SETS, remove_headers=REMOVALS, metadata=METADATA),
    st.builds(actions.PassResponseHeaders, buffer=st.booleans(), set_headers=SETS, remove_headers=REMOVALS),
    st.builds(actions.PassChunk, data=st.one_of(st.none(), DATA), set_headers=SETS, metadata=METADATA),
    st.builds(actions.PassTrailers, response=st.booleans()),
    st.builds(actions.Answer, status=st.integers(100, 599), body=DATA, headers=SETS),
)


@given(ACTIONS)
def test_a_reply_is_what_protobuf_would_have_written(action: actions.Action) -> None:
    found = wire.ProcessingResponse.FromString(encode(action))
    assert found == reply_of(action)
    assert found.ByteSize() == len(found.SerializeToString())  # nothing in it that the classes do not know


def test_a_reply_that_is_no_text_cannot_be_made() -> None:
    with pytest.raises(UnicodeEncodeError):
        encode(actions.PassChunk(metadata=(("output", "\udcff"),)))
    with pytest.raises(UnicodeEncodeError):
        encode(actions.PassHeaders(set_headers=(("x-a", "\ud800"),)))


@pytest.mark.parametrize(
    ("value", "written"), [(0, b"\x00"), (127, b"\x7f"), (128, b"\x80\x01"), (150, b"\x96\x01"), (2**32, b"\x80\x80\x80\x80\x10")]
)
def test_varints(value: int, written: bytes) -> None:
    assert varint(value).encode("latin-1") == written


def test_fields() -> None:
    assert (tag(1), tag(16), number(1, 150)) == ("\x0a", "\x82\x01", "\x08\x96\x01")
    assert record(tag(2), "testing") == "\x12\x07testing"
    assert record(tag(2), "test", more_bytes=3) == "\x12\x07test"
    assert text("é") == "\xc3\xa9"
