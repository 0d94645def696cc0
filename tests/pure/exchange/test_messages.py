"""`/v1/messages` and `…/count_tokens`: what is asked, held and forwarded; and our errors in Anthropic's words."""

from __future__ import annotations

import json
from typing import Any

import pytest
from stage import chunk, delivered, granted, headers, key, model, pinned, play, to_open

from extproc.exchange import actions as act
from extproc.exchange import events as ev
from extproc.exchange.endpoints.messages import Messages
from extproc.exchange.machine import Exchange
from extproc.exchange.meter import Expected
from extproc.exchange.policy import Policy
from extproc.money.hold import Denied, DenyReason, EndKind
from extproc.money.usage import Usage, UsageSource
from extproc.tokens.counter import Call, Tools

PATH = "/v1/messages"
SERVING = model(endpoints=frozenset({"messages"}))


def ask(exchange: Exchange, *, path: str = PATH, **fields: Any) -> list[act.Action]:
    to_open(exchange, path=path)
    body = {"model": "m", "messages": [{"role": "user", "content": "hello"}], "max_tokens": 50} | fields
    return list(exchange.receive(ev.Body(at_ns=2_000_000, data=json.dumps(body).encode())))


def forwarded(**fields: Any) -> dict[str, Any]:
    exchange = Exchange(pinned(SERVING))
    (amend,) = ask(exchange, **fields)
    assert isinstance(amend, act.Amend)
    (passed,) = exchange.receive(ev.Amended(granted=granted()))
    assert isinstance(passed, act.PassBody)
    return json.loads(passed.data)


def said(answer: act.Action) -> dict[str, Any]:
    """Anthropic's error."""
    assert isinstance(answer, act.Answer)
    body = json.loads(answer.body)
    assert body["type"] == "error"
    return body["error"]


def test_a_conversation_is_held_for_and_forwarded():
    exchange = Exchange(pinned(SERVING))
    (amend,) = ask(exchange, system="be kind", stream=True, metadata={"user_id": "u"}, stop_sequences=["x"])
    assert amend.amendment.reserved_nanos == (3 + 7 + 3 + 5 + 3 + 16 + 8 + 2) * 1_000 + 50 * 2_000
    (passed,) = exchange.receive(ev.Amended(granted=granted()))
    assert json.loads(passed.data) == {
        "model": "m", "messages": [{"role": "user", "content": "hello"}], "system": "be kind", "max_tokens": 50, "stream": True,
        "stop_sequences": ["x"],
    }  # fmt: skip


CONVERSATION = [
    {"role": "user", "content": [{"type": "text", "text": "go", "cache_control": {"type": "ephemeral", "ttl": "1h", "x": 1}, "more": 1}]},
    {
        "role": "assistant",
        "content": [
            {"type": "thinking", "thinking": "hm", "signature": "s"},
            {"type": "tool_use", "id": "t1", "name": "f", "input": {"a": 1}, "caller": {}},
        ],
    },
    {
        "role": "user",
        "content": [{"type": "tool_result", "tool_use_id": "t1", "content": [{"type": "text", "text": "42"}], "is_error": False}],
    },
]


def test_blocks_go_on_with_what_is_counted_and_nothing_else():
    sent = forwarded(messages=CONVERSATION)["messages"]
    assert sent == [
        {"role": "user", "content": [{"type": "text", "text": "go", "cache_control": {"type": "ephemeral", "ttl": "1h"}}]},
        {
            "role": "assistant",
            "content": [
                {"type": "thinking", "thinking": "hm", "signature": "s"},
                {"type": "tool_use", "id": "t1", "name": "f", "input": {"a": 1}},
            ],
        },
        {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "t1", "content": [{"type": "text", "text": "42"}]}]},
    ]
    prompt = Messages().parse({"model": "m", "messages": CONVERSATION, "max_tokens": 1}, reject_unknown=False).prompt
    assert prompt.messages == (("user", "go"), ("assistant", "hm"), ("tool", "42"))
    assert prompt.tools == Tools(calls=(Call(1, "f", {"a": 1}),))
    assert prompt.extra_bytes > len('{"name":"f","arguments":{"a":1}}')


def test_images_are_seen_wherever_they_are():
    source = {"type": "base64", "media_type": "image/png", "data": "AAAA"}
    result = {"type": "tool_result", "tool_use_id": "t", "content": [{"type": "image", "source": source}]}
    blocks = [{"type": "image", "source": {"type": "url", "url": "https://x/y.png"}}, result]
    parsed = Messages().parse({"model": "m", "messages": [{"role": "user", "content": blocks}], "max_tokens": 1}, reject_unknown=False)
    assert parsed.prompt.images == ("https://x/y.png", "AAAA")
    assert parsed.fields["messages"] == [{"role": "user", "content": blocks}]


def test_tools_are_those_of_the_client():
    tool = {"name": "f", "description": "d", "input_schema": {"type": "object"}, "cache_control": {"type": "ephemeral"}}
    assert forwarded(tools=[{"type": "custom", **tool, "x": 1}])["tools"] == [tool]


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"max_tokens": None}, "max_tokens"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages[0]"),
        ({"messages": [{"role": "user"}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": [{"type": "document"}]}]}, "messages[0].content[0]"),
        ({"messages": [{"role": "user", "content": [{"type": ["text"]}]}]}, "messages[0].content[0]"),
        ({"messages": [{"role": "user", "content": [{"type": "text"}]}]}, "messages[0].content[0].text"),
        ({"messages": [{"role": "user", "content": [{"type": "image", "source": {"type": "file"}}]}]}, "messages[0].content[0].source"),
        ({"messages": [{"role": "user", "content": [{"type": "image", "source": {"type": "url", "url": "file:///etc"}}]}]},
         "messages[0].content[0].source.url"),
        ({"system": [{"type": "image"}]}, "system[0]"),
        ({"tools": [{"type": "web_search_20250305", "name": "web_search"}]}, "tools[0]"),
        ({"stop_sequences": ["x" * 300]}, "stop_sequences"),
        ({"messages": [{"role": "user", "content": [{"type": "text", "text": "x", "cache_control": {"type": "for ever"}}]}]},
         "messages[0].content[0].cache_control"),
    ],
)  # fmt: skip
def test_what_cannot_be_held_for_is_refused(fields: dict[str, Any], param: str):
    answer, end, *_ = ask(Exchange(pinned(SERVING)), **fields)
    error = said(answer)
    assert (answer.status, error["type"], error["param"]) == (400, "invalid_request_error", param)
    assert end.ending.kind is EndKind.VOID


EXPECTED = Expected(
    endpoint=Messages(), counter=None, prompt=Usage(input_tokens=11, flags=("prompt_estimated",)), input_tokens_max=100,
    output_tokens_max=50, output_tokens_held=50, choices=1,
)  # fmt: skip


@pytest.mark.parametrize(
    ("raw", "used", "flags"),
    [
        ((5, 3, 2, 7), (10, 3, 2, 7), ()),
        ((5, None, None, 7), (5, 0, 0, 7), ()),
        ((0, 0, 0, 0), (0, 0, 0, 0), ()),
        ((90, 30, 20, 7), (100, 30, 20, 7), ("input_tokens_impossible",)),
        ((0, 90, 20, 7), (100, 90, 10, 7), ("input_tokens_impossible",)),
        ((-1, 3, 0, 51), (3, 3, 0, 50), ("input_tokens_impossible", "output_tokens_impossible")),
        ((None, 3, None, 7), (11, 3, 0, 7), ("prompt_estimated",)),
        ((5, None, None, None), None, ()),
        ((None, None, None, None), None, ()),
        ((5, 0, 0, "7"), None, ()),
    ],
)
def test_input_counts_are_apart_and_cannot_be_more_than_can_be(raw: tuple, used: tuple | None, flags: tuple):
    names = ("input_tokens", "cache_read_input_tokens", "cache_creation_input_tokens", "output_tokens")
    usage = Messages().usage(dict(zip(names, raw, strict=True)), UsageSource.UPSTREAM, EXPECTED)
    if used is None:
        assert usage is None
        return
    assert usage is not None
    assert (usage.input_tokens, usage.cached_tokens, usage.cache_creation_tokens, usage.output_tokens) == used
    assert usage.flags == flags


def test_an_answer_is_charged_by_its_usage_and_counted_without_it():
    content = [
        {"type": "thinking", "thinking": "hm"},
        {"type": "text", "text": "abc"},
        {"type": "tool_use", "name": "f", "input": {"a": 1}},
    ]
    for usage, charge in (({"input_tokens": 10, "cache_read_input_tokens": 4, "output_tokens": 3}, 18_000), (None, 11_000 + 26_000)):
        exchange = Exchange(pinned(SERVING))
        ask(exchange)
        exchange.receive(ev.Amended(granted=granted()))
        exchange.receive(ev.ResponseHeaders(status=200, headers={"content-type": "application/json"}))
        body = {"type": "message", "content": content, "stop_reason": "max_tokens", "usage": usage}
        end, _, note = play(exchange, chunk(json.dumps(body).encode(), end=True))
        assert (end.ending.charge_nanos, note.record.end_reason) == (charge, "length")


# errors


@pytest.mark.parametrize(
    ("path", "request_headers", "status", "kind"),
    [
        (PATH, {"authorization": None}, 401, "authentication_error"),
        (PATH, {"content_encoding": "gzip"}, 415, "invalid_request_error"),
        (PATH, {"content_length": "99999999"}, 413, "request_too_large"),
        (f"{PATH}/count_tokens?beta=true", {"authorization": "Basic x"}, 401, "authentication_error"),
    ],
)
def test_errors_of_the_door(path: str, request_headers: dict[str, Any], status: int, kind: str):
    exchange = Exchange(pinned(SERVING))
    answer, *_ = exchange.receive(headers(path, **request_headers))
    if isinstance(answer, act.LookUpKey):
        answer, *_ = exchange.receive(ev.KeyRead(key=key()))
    assert (answer.status, said(answer)["type"]) == (status, kind)


@pytest.mark.parametrize(
    ("reason", "policy", "status", "kind"),
    [
        (DenyReason.INSUFFICIENT, Policy(), 402, "billing_error"),
        (DenyReason.INSUFFICIENT, Policy(out_of_money_status=429), 429, "billing_error"),
        (DenyReason.HELD, Policy(), 429, "rate_limit_error"),
        (DenyReason.REQUESTS_PER_MINUTE, Policy(), 429, "rate_limit_error"),
        (DenyReason.FROZEN, Policy(), 403, "permission_error"),
        (DenyReason.KEY_REVOKED, Policy(), 401, "authentication_error"),
    ],
)
def test_refusals_of_the_store(reason: DenyReason, policy: Policy, status: int, kind: str):
    exchange = Exchange(pinned(SERVING, policy=policy))
    exchange.receive(headers(PATH))
    exchange.receive(ev.KeyRead(key=key()))
    answer, *_ = exchange.receive(ev.Refused(denied=Denied(reason=reason)))
    assert (answer.status, said(answer)["type"]) == (status, kind)


def test_other_errors():
    exchange = Exchange(pinned(SERVING))
    answer, *_ = ask(exchange, model="nobody's")
    assert (answer.status, said(answer)["type"]) == (404, "not_found_error")
    away = Exchange(pinned(SERVING))
    away.receive(headers(PATH))
    answer, *_ = away.receive(ev.StoreFailed(what="away"))
    assert (answer.status, said(answer)["type"]) == (503, "overloaded_error")


def test_a_cut_stream_ends_with_an_error_that_the_sdk_raises():
    exchange = Exchange(pinned(SERVING))
    ask(exchange, stream=True)
    exchange.receive(ev.Amended(granted=granted()))
    exchange.receive(ev.ResponseHeaders(status=200, headers={"content-type": "text/event-stream"}))
    start = {"type": "message_start", "message": {"usage": {"input_tokens": 30, "output_tokens": 0}}}
    delta = {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": "abc"}}
    play(exchange, *(chunk(b"data: " + json.dumps(event).encode() + b"\n\n") for event in (start, delta)))
    end, note = exchange.receive(ev.Stopped())
    assert (end.ending.charge_nanos, note.record.end_reason) == (30_000 + 6_000, "cut")
    shown = delivered(b"", play(exchange, chunk(b"rest")))
    assert shown.startswith(b"\n\nevent: error\ndata: {")
    assert json.loads(shown.partition(b"data: ")[2])["error"]["type"] == "overloaded_error"


@pytest.mark.parametrize(
    ("events", "policy", "charge"),
    [
        ([], Policy(), 11_000),
        ([{"type": "message_start", "message": {"usage": {"input_tokens": 30}}}], Policy(), 30_000),
        ([{"type": "message_start", "message": {"usage": {"input_tokens": 0}}}], Policy(), 11_000),  # some say 0 until they know
        ([{"type": "message_start", "message": {"usage": {"input_tokens": 30}}}, {"type": "message_delta", "usage": {"output_tokens": 5}}],
         Policy(), 40_000),
        ([{"type": "message_start", "message": {"usage": {"input_tokens": 30, "cache_read_input_tokens": 10}}},
          {"type": "content_block_delta", "delta": {"type": "text_delta", "text": "abc"}}], Policy(ended_early="input_only"), 35_000),
    ],
)  # fmt: skip
def test_who_leaves_before_the_answer_pays_the_prompt_as_it_was_told(events: list[dict[str, Any]], policy: Policy, charge: int):
    exchange = Exchange(pinned(SERVING, policy=policy))
    ask(exchange, stream=True)
    exchange.receive(ev.Amended(granted=granted()))
    exchange.receive(ev.ResponseHeaders(status=200, headers={"content-type": "text/event-stream"}))
    play(exchange, *(chunk(b"data: " + json.dumps(event).encode() + b"\n\n") for event in events))
    end, _ = exchange.receive(ev.Gone())
    assert end.ending.charge_nanos == charge


# counting


def test_counting_tokens_costs_nothing():
    exchange = Exchange(pinned(SERVING))
    (amend,) = ask(exchange, path=f"{PATH}/count_tokens", thinking={"type": "disabled"}, stream=True)
    assert (amend.amendment.reserved_nanos, amend.amendment.tokens) == (0, 0)
    (passed,) = exchange.receive(ev.Amended(granted=granted()))
    assert json.loads(passed.data) == {
        "model": "m", "messages": [{"role": "user", "content": "hello"}], "thinking": {"type": "disabled"},
    }  # fmt: skip
    exchange.receive(ev.ResponseHeaders(status=200, headers={"content-type": "application/json"}))
    sent = b'{"input_tokens":11}'
    actions = play(exchange, chunk(sent, end=True))
    end, _, note = actions
    assert delivered(sent, actions) == sent
    assert (end.ending.kind, end.ending.charge_nanos, note.record.list_nanos) == (EndKind.SETTLE, 0, 0)
    assert (note.record.endpoint, note.record.end_reason, note.record.input_tokens) == ("messages.count_tokens", "stop", 0)


def test_counting_that_fails_or_is_given_up_costs_nothing():
    for last in (chunk(b'{"type":"error","error":{"type":"x"}}', end=True), ev.Gone()):
        exchange = Exchange(pinned(SERVING))
        ask(exchange, path=f"{PATH}/count_tokens")
        exchange.receive(ev.Amended(granted=granted()))
        exchange.receive(ev.ResponseHeaders(status=200, headers={"content-type": "application/json"}))
        end, *_, note = play(exchange, last)
        assert (end.ending.charge_nanos, note.record.list_nanos, note.record.overage_nanos) == (0, 0, 0)
