"""Bytes of Envoy to events, replies to bytes."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from extproc.edge.envoy_codec import DENIED, FILTER, NAMESPACE, MalformedMessage, client_ip, decode, encode
from extproc.edge.health import Health
from extproc.edge.wire import ext_proc_pb2 as wire
from extproc.exchange import actions, events
from extproc.exchange.record import Record

OVERWRITE = wire.HeaderValueOption.OVERWRITE_IF_EXISTS_OR_ADD


def headers_message(
    pairs: list[tuple[str, bytes]], *, response: bool = False, attributes: dict[str, Any] | None = None, eos: bool = False
) -> bytes:
    message = wire.ProcessingRequest()
    part = message.response_headers if response else message.request_headers
    part.end_of_stream = eos
    for key, value in pairs:
        part.headers.headers.add(key=key, raw_value=value)
    for name, value in (attributes or {}).items():
        field = message.attributes[FILTER].fields[name]
        if isinstance(value, str):
            field.string_value = value
        else:
            field.number_value = value
    return message.SerializeToString()


REQUEST_LINE = [(":method", b"POST"), (":path", b"/v1/chat/completions"), (":authority", b"x"), (":scheme", b"https")]


def reply(action: actions.Action) -> wire.ProcessingResponse:
    return wire.ProcessingResponse.FromString(encode(action))


def mutation(found: wire.HeaderMutation) -> dict[str, bytes]:
    assert all(option.append_action == OVERWRITE for option in found.set_headers)
    return {option.header.key: option.header.raw_value for option in found.set_headers}


def test_request_headers() -> None:
    pairs = [*REQUEST_LINE, ("X-Two", b"a"), ("x-two", b"b"), ("x-utf", "é".encode()), ("x-odd", b"caf\xe9"), ("x-empty", b"")]
    attributes = {"source.address": "10.1.2.3:4567", "request.id": "r-1"}
    event = decode(headers_message(pairs, attributes=attributes), at_ns=7, unix_ms=8, hold_id="h")
    assert event == events.Headers(
        at_ns=7,
        method="POST",
        path="/v1/chat/completions",
        headers={"x-two": "a,b", "x-utf": "é", "x-odd": "café", "x-empty": ""},
        client_ip="10.1.2.3",
        request_id="r-1",
        hold_id="h",
        unix_ms=8,
        end_of_stream=False,
    )


def test_request_headers_without_body_attributes_or_path() -> None:
    event = decode(headers_message([(":method", b"CONNECT")], eos=True))
    assert isinstance(event, events.Headers)
    assert (event.method, event.path, event.client_ip, event.request_id, event.end_of_stream) == ("CONNECT", "", "", "", True)


def test_value_is_read_when_there_is_no_raw_value() -> None:
    message = wire.ProcessingRequest()
    message.request_headers.headers.headers.add(key=":method", value="GET")
    message.request_headers.headers.headers.add(key=":path", value="/x")
    event = decode(message.SerializeToString())
    assert isinstance(event, events.Headers)
    assert (event.method, event.path) == ("GET", "/x")


def test_attributes_of_others_are_not_ours() -> None:
    message = wire.ProcessingRequest.FromString(headers_message(REQUEST_LINE))
    message.attributes["another.filter"].fields["request.id"].string_value = "not ours"
    event = decode(message.SerializeToString())
    assert isinstance(event, events.Headers)
    assert event.request_id == ""


def test_response_headers() -> None:
    attributes = {"upstream.address": "10.0.0.1:8000", "upstream.request_attempt_count": 2.0, "response.code_details": "via_upstream"}
    data = headers_message([(":status", b"200"), ("Content-Type", b"application/json")], response=True, attributes=attributes)
    assert decode(data, at_ns=9) == events.ResponseHeaders(
        at_ns=9,
        status=200,
        headers={"content-type": "application/json"},
        upstream="10.0.0.1:8000",
        attempts=2,
        code_details="via_upstream",
    )


def test_bodies_and_trailers() -> None:
    def message(**fields: Any) -> bytes:
        return wire.ProcessingRequest(**fields).SerializeToString()

    assert decode(message(request_body=wire.HttpBody(body=b"x", end_of_stream=True))) == events.Body(data=b"x")
    assert decode(message(response_body=wire.HttpBody(body=b"y")), at_ns=3) == events.Chunk(at_ns=3, data=b"y", end_of_stream=False)
    assert decode(message(response_body=wire.HttpBody(end_of_stream=True))) == events.Chunk(data=b"", end_of_stream=True)
    assert decode(message(request_trailers=wire.HttpTrailers())) == events.Trailers(response=False)
    assert decode(message(response_trailers=wire.HttpTrailers())) == events.Trailers(response=True)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\xff",
        b"not a message",
        headers_message([(":path", b"/x")]),
        headers_message([], response=True),
        headers_message([(":status", b"2OO")], response=True),
        headers_message([(":status", "２００".encode())], response=True),
    ],
)
def test_malformed_messages_have_a_name(data: bytes) -> None:
    with pytest.raises(MalformedMessage):
        decode(data)


@given(st.binary(max_size=200))
def test_any_bytes_are_an_event_or_malformed(data: bytes) -> None:
    try:
        event = decode(data)
    except MalformedMessage:
        return
    assert isinstance(event, events.Event)


@given(st.lists(st.tuples(st.sampled_from(["a", "B", "c"]), st.binary(max_size=20)), max_size=5))
def test_any_header_value_is_read(pairs: list[tuple[str, bytes]]) -> None:
    event = decode(headers_message([*REQUEST_LINE, *pairs]))
    assert isinstance(event, events.Headers)
    assert set(event.headers) == {key.lower() for key, _ in pairs}


@pytest.mark.parametrize(
    ("address", "ip"),
    [
        ("1.2.3.4:5", "1.2.3.4"),
        ("1.2.3.4:0", "1.2.3.4"),
        ("1.2.3.4", "1.2.3.4"),
        ("[2001:db8::1]:443", "2001:db8::1"),
        ("[2001:DB8:0::1]:443", "2001:db8::1"),
        ("2001:db8::1", "2001:db8::1"),
        ("::1", "::1"),
        ("[::ffff:1.2.3.4]:5", "1.2.3.4"),
        ("::ffff:1.2.3.4", "1.2.3.4"),
        ("/run/a.sock", ""),
        ("", ""),
        ("nobody:1", ""),
        ("1.2.3:4", ""),
    ],
)
def test_client_ip(address: str, ip: str) -> None:
    assert client_ip(address) == ip


def test_pass_headers() -> None:
    plain = reply(actions.PassHeaders())
    assert plain.WhichOneof("response") == "request_headers"
    assert not plain.request_headers.response.HasField("header_mutation")
    full = reply(actions.PassHeaders(set_headers=(("x-account-id", "é"),), remove_headers=("authorization", "cookie")))
    found = full.request_headers.response.header_mutation
    assert mutation(found) == {"x-account-id": "é".encode()}
    assert list(found.remove_headers) == ["authorization", "cookie"]
    assert reply(actions.PassHeaders(remove_headers=("a",))).WhichOneof("response") == "request_headers"


def test_pass_body_replaces_the_body_and_its_length_and_chooses_the_route_again() -> None:
    action = actions.PassBody(data=b"canonical", set_headers=(("x-model", "m"),), remove_headers=("a",), metadata=(("hold", "h"),))
    found = reply(action)
    response = found.request_body.response
    assert response.body_mutation.body == b"canonical"
    assert response.clear_route_cache
    assert mutation(response.header_mutation) == {"x-model": b"m", "content-length": b"9"}
    assert list(response.header_mutation.remove_headers) == ["a"]
    assert found.dynamic_metadata.fields[NAMESPACE].struct_value.fields["hold"].string_value == "h"


def test_pass_response_headers_overrides_every_mode_or_none() -> None:
    streamed, buffered = reply(actions.PassResponseHeaders()), reply(actions.PassResponseHeaders(buffer=True, set_headers=(("a", "b"),)))
    assert not streamed.HasField("mode_override")
    assert mutation(buffered.response_headers.response.header_mutation) == {"a": b"b"}
    modes = wire.ProcessingMode
    assert buffered.mode_override == modes(
        request_header_mode=modes.SEND,
        response_header_mode=modes.SEND,
        request_body_mode=modes.BUFFERED,
        response_body_mode=modes.BUFFERED,
        request_trailer_mode=modes.SKIP,
        response_trailer_mode=modes.SKIP,
    )
    assert reply(actions.PassResponseHeaders(buffer=True)).mode_override == buffered.mode_override


def test_pass_chunk() -> None:
    plain = reply(actions.PassChunk())
    assert plain.WhichOneof("response") == "response_body"
    assert not plain.response_body.response.HasField("body_mutation")
    changed = reply(actions.PassChunk(data=b"new", set_headers=(("x-request-cost", "1"),))).response_body.response
    assert changed.body_mutation.body == b"new"
    assert mutation(changed.header_mutation) == {"x-request-cost": b"1", "content-length": b"3"}
    emptied = reply(actions.PassChunk(data=b"")).response_body.response
    assert emptied.body_mutation.WhichOneof("mutation") == "clear_body"


def test_metadata_alone_is_still_a_reply() -> None:
    found = reply(actions.PassChunk(metadata=(("output", "7"),)))
    assert found.WhichOneof("response") == "response_body"
    assert found.dynamic_metadata.fields[NAMESPACE].struct_value.fields["output"].string_value == "7"


def test_pass_trailers() -> None:
    assert reply(actions.PassTrailers(response=False)).WhichOneof("response") == "request_trailers"
    assert reply(actions.PassTrailers(response=True)).WhichOneof("response") == "response_trailers"


def test_deny() -> None:
    found = reply(actions.Answer(status=402, body=b"{}", headers=(("x-should-retry", "false"),))).immediate_response
    assert (found.status.code, found.body, found.details) == (402, b"{}", DENIED)
    assert mutation(found.headers) == {"x-should-retry": b"false", "content-type": b"application/json"}
    own = reply(actions.Answer(status=200, body=b"x", headers=(("Content-Type", "text/plain"),))).immediate_response
    assert mutation(own.headers) == {"Content-Type": b"text/plain"}
    assert mutation(reply(actions.Answer(status=204, body=b"")).immediate_response.headers) == {}


def test_what_is_no_reply() -> None:
    with pytest.raises(KeyError):
        encode(actions.Note(record=Record(id="x")))


def test_constant_replies_are_the_same_object() -> None:
    assert encode(actions.PassChunk()) is encode(actions.PassChunk())
    assert encode(actions.PassHeaders()) is encode(actions.PassHeaders())
    assert encode(actions.PassResponseHeaders()) is encode(actions.PassResponseHeaders())


def test_health_serves_only_when_told() -> None:
    health = Health()
    assert (health.serving, health.check(b"")) == (False, b"\x08\x02")
    health.serve()
    assert (health.serving, health.check(b"\x0a\x01x")) == (True, b"\x08\x01")
    health.withdraw()
    assert health.check(b"") == b"\x08\x02"
