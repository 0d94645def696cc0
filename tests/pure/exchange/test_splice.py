from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from msgspec import structs
from recordings import Recording, recordings
from stage import DONE, chat, chunk, delta, granted, pinned, play, to_open, to_streaming, usage_event

from extproc.exchange import actions as act
from extproc.exchange import events as ev
from extproc.exchange.machine import Exchange
from extproc.exchange.meter_stream import StreamMeter
from extproc.exchange.splice import USAGE_BYTES_MAX, with_cost

USAGE = {"prompt_tokens": 11, "completion_tokens": 5, "prompt_tokens_details": {"cached_tokens": 2}, "other": None}
VALUES = st.recursive(
    st.none() | st.integers(-9, 9) | st.sampled_from(['"usage":{', "}", "{", "\\", "é"]), lambda one: st.lists(one, max_size=2)
)


@pytest.mark.parametrize("separators", [(",", ":"), (", ", ": ")])
def test_the_cost_is_the_last_member_of_the_usage(separators: tuple[str, str]) -> None:
    data = json.dumps({"a": {"usage": {"x": 1}}, "usage": USAGE, "b": '"usage":{}'}, separators=separators).encode()
    priced = with_cost(data, USAGE, 1)
    assert json.loads(priced) == json.loads(data) | {"usage": USAGE | {"cost": 1e-9}}
    assert priced.replace(b',"cost":0.000000001', b"") == data


def test_it_is_found_inside_of_others() -> None:
    data = json.dumps({"type": "response.completed", "response": {"usage": USAGE, "metadata": {"usage": "none"}}}).encode()
    assert json.loads(with_cost(data, USAGE, 10**9))["response"]["usage"]["cost"] == 1


@pytest.mark.parametrize(
    ("data", "usage"),
    [
        (b'{"usage":{"a":1}}', {"a": 2}),
        (b'{"usage":{"a":1}}', None),
        (b'{"usage":{"cost":1}}', {"cost": 1}),
        (b'{"usage":{"a":1', {"a": 1}),
        (b'{"usage":[{"a":1}]}', {"a": 1}),
        (b'{"usage":' + b"{" * 9 + b"}" * 9 + b"}", {}),
        (b'{"usage":{"a":"' + b"x" * USAGE_BYTES_MAX + b'"}}', {"a": "x" * USAGE_BYTES_MAX}),
        (b'{"usage":{"a":1}}' + b'{"usage":{}}' * 9, {"a": 1}),
    ],
)
def test_what_is_not_found_as_it_was_read_stays_as_it_is(data: bytes, usage: Any) -> None:
    assert with_cost(data, usage, 5) == data


def test_an_empty_usage() -> None:
    assert with_cost(b'{"usage": {} }', {}, 5) == b'{"usage": {"cost":0.000000005} }'


@given(
    st.dictionaries(st.sampled_from(["a", "usage", "b"]), VALUES | st.dictionaries(st.sampled_from(["usage", "c"]), VALUES)), st.booleans()
)
@example({"usage": {"usage": 0}}, False)
def test_nothing_else_is_ever_touched(members: dict[str, Any], is_ascii: bool) -> None:
    data = json.dumps(members, ensure_ascii=is_ascii).encode()
    usage = members.get("usage")
    priced = with_cost(data, usage, 7)
    if isinstance(usage, dict) and priced != data:
        assert json.loads(priced) == members | {"usage": usage | {"cost": 7e-9}}
    assert priced.replace(b',"cost":0.000000007', b"").replace(b'"cost":0.000000007', b"") == data


# through the machine


def shown(sent: list[bytes], **fields: Any) -> bytes:
    """What a client gets of a stream that comes in these chunks."""
    exchange = Exchange(pinned())
    to_streaming(exchange, **fields)
    got = b""
    for place, data in enumerate([*sent, b""]):
        for action in exchange.receive(chunk(data, end=place == len(sent))):
            if isinstance(action, act.PassChunk):
                got += data if action.data is None else action.data
    return got


def test_at_every_split_the_cost_is_told_once_in_the_last_usage() -> None:
    whole = delta("he") + delta("llo", "stop") + usage_event() + DONE
    expected = whole.replace(b"}}", b',"cost":0.000021}}')
    asked = {"stream_options": {"include_usage": True}}
    for cut in range(len(delta("he")), len(whole) + 1):
        assert shown([whole[:cut], whole[cut:]], **asked) == expected, cut
    assert shown([whole]) == whole.replace(usage_event(), b""), "who has not asked gets neither"


def test_per_chunk_usage_stays_as_it_is() -> None:
    running = delta("he").replace(b"]}", b'],"usage":{"prompt_tokens":11,"completion_tokens":2}}')
    whole = running + delta("llo", "stop") + usage_event() + DONE
    asked = {"stream_options": {"include_usage": True, "continuous_usage_stats": True}}
    assert shown([whole], **asked) == whole.replace(usage_event(), usage_event().replace(b"}}", b',"cost":0.000021}}'))


def json_answer(**headers: str) -> act.PassChunk:
    exchange = Exchange(pinned())
    to_open(exchange)
    exchange.receive(chat())
    exchange.receive(ev.Amended(granted=granted()))
    exchange.receive(ev.ResponseHeaders(status=200, headers={"content-type": "application/json"} | headers))
    (reply,) = [action for action in play(exchange, chunk(ANSWER, end=True)) if isinstance(action, act.PassChunk)]
    return reply


ANSWER = json.dumps({"choices": [{"message": {"content": "hello"}, "finish_reason": "stop"}], "usage": USAGE}).encode()


def test_a_whole_answer_has_it_in_a_header_and_stays_as_it_is() -> None:
    reply = json_answer(**{"content-length": str(len(ANSWER))})
    assert dict(reply.set_headers)["x-request-cost"] == "0.00002"
    assert reply.data is None


# of every endpoint


@pytest.mark.parametrize("size", [1, 1_000_000])
def test_a_recorded_stream_is_the_same_but_for_the_cost_in_its_last_usage(size: int) -> None:
    for one in recordings():
        if one.is_stream and one.row["tokens"] == "letters":
            check(one, size)


def check(one: Recording, size: int) -> None:
    sent, row, asked = one.data, one.row, one.asked().exchange.tab.expected
    assert asked is not None
    meter = StreamMeter(structs.replace(asked, tells_cost=True, hide_final=False, hide_running=False, rename=None))
    got, was_complete = b"", False
    for at in range(0, len(sent), size):
        shown = meter.feed(sent[at : at + size], end_of_stream=False)
        got += meter.priced(shown, 123_000) if meter.complete and not was_complete else shown
        was_complete = meter.complete
    got += meter.feed(b"", end_of_stream=True)
    assert got.replace(b',"cost":0.000123', b"") == sent, one.name
    tells = row["end"] and row["usage"]["source"] == "upstream"
    assert got.count(b'"cost":') == tells, one.name
    if tells:
        assert got.rindex(b'"usage":') < got.index(b'"cost":'), "the last one"
