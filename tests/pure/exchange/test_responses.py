"""`/v1/responses`: what is asked, held and forwarded. (Streams: ``test_recorded_streams.py``.)"""

from __future__ import annotations

import json
from typing import Any

import pytest
from stage import chunk, error_of, granted, model, pinned, play, to_open

from extproc.exchange import actions as act
from extproc.exchange import events as ev
from extproc.exchange.endpoints.responses import Responses
from extproc.exchange.machine import Exchange
from extproc.exchange.policy import Policy
from extproc.tokens.counter import Call, Tools

PATH = "/v1/responses"
SERVING = model(endpoints=frozenset({"responses"}))


def ask(exchange: Exchange, **fields: Any) -> act.Action:
    to_open(exchange, path=PATH)
    body = {"model": "m", "input": "hello", "max_output_tokens": 50} | fields
    return exchange.receive(ev.Body(at_ns=2_000_000, data=json.dumps(body).encode()))[0]


def forwarded(**fields: Any) -> dict[str, Any]:
    exchange = Exchange(pinned(SERVING))
    amend = ask(exchange, **fields)
    assert isinstance(amend, act.Amend), amend
    (passed,) = exchange.receive(ev.Amended(granted=granted()))
    assert isinstance(passed, act.PassBody)
    return json.loads(passed.data)


def answered(body: dict[str, Any], *, policy: Policy | None = None, **fields: Any) -> tuple[act.End, act.Note]:
    exchange = Exchange(pinned(SERVING, policy=policy))
    ask(exchange, **fields)
    exchange.receive(ev.Amended(granted=granted()))
    exchange.receive(ev.ResponseHeaders(status=200, headers={"content-type": "application/json"}))
    end, _, note = play(exchange, chunk(json.dumps(body).encode(), end=True))
    assert isinstance(end, act.End)
    assert isinstance(note, act.Note)
    return end, note


def test_a_text_is_held_for_and_forwarded():
    exchange = Exchange(pinned(SERVING))
    amend = ask(exchange, instructions="be kind")
    assert isinstance(amend, act.Amend)
    # Two messages of 3 and their letters, 3 for the prompt; the allowance of 16, 4 a message and 2; 50 tokens out at twice the price.
    assert amend.amendment.reserved_nanos == (3 + 7 + 3 + 5 + 3 + 16 + 8 + 2) * 1_000 + 50 * 2_000
    (passed,) = exchange.receive(ev.Amended(granted=granted()))
    assert json.loads(passed.data) == {
        "model": "m", "input": "hello", "instructions": "be kind", "max_output_tokens": 50, "store": False,
    }  # fmt: skip


ITEMS: list[dict[str, Any]] = [
    {"role": "developer", "content": "short"},
    {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "and", "more": 1}]},
    {"type": "reasoning", "id": "rs_1", "summary": [], "content": [{"type": "reasoning_text", "text": "hm"}], "encrypted_content": "x"},
    {"type": "function_call", "id": "fc_1", "call_id": "c", "name": "f", "arguments": "{}", "status": "completed"},
    {"type": "function_call_output", "call_id": "c", "output": "42"},
    {
        "type": "message",
        "id": "msg_1",
        "role": "assistant",
        "status": "completed",
        "content": [{"type": "output_text", "text": "ok", "annotations": [{"a": "b"}], "logprobs": []}],
    },
]


def test_items_go_on_with_what_is_counted_and_nothing_else():
    sent = forwarded(input=ITEMS)["input"]
    assert sent == [
        {"type": "message", "role": "developer", "content": "short"},
        {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "and"}]},
        {"type": "reasoning", "id": "rs_1", "summary": [], "content": [{"type": "reasoning_text", "text": "hm"}]},
        ITEMS[3],
        ITEMS[4],
        ITEMS[5] | {"content": [{"type": "output_text", "text": "ok", "annotations": []}]},
    ]
    prompt = Responses().parse({"model": "m", "input": ITEMS}, reject_unknown=False).prompt
    assert prompt.messages == (
        ("developer", "short"), ("user", "and"), ("assistant", "hm"), ("tool", "42"), ("assistant", "ok")
    )  # fmt: skip
    assert prompt.tools == Tools(calls=(Call(2, "f", "{}"),))
    assert prompt.extra_bytes > len('{"name":"f","arguments":"{}"}')


def test_functions_are_printed_as_chat_templates_print_them():
    tool = {"type": "function", "name": "f", "parameters": {"type": "object"}, "strict": True, "description": "d", "more": 1}
    sent = forwarded(tools=[tool], tool_choice="auto", stream="true", user="me", metadata={"a": "b"})
    assert sent["tools"] == [{name: value for name, value in tool.items() if name != "more"}]
    assert (sent["tool_choice"], sent["stream"]) == ("auto", True)
    assert not {"user", "metadata", "stream_options"} & sent.keys()


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"previous_response_id": "resp_1"}, "previous_response_id"),
        ({"conversation": {"id": "c"}}, "conversation"),
        ({"background": True}, "background"),
        ({"prompt": {"id": "p"}}, "prompt"),
        ({"tools": [{"type": "web_search"}]}, "tools[0]"),
        ({"tools": [{"type": "mcp", "name": "x", "server_url": "http://x"}]}, "tools[0]"),
        ({"tools": {}}, "tools"),
        ({"input": None}, "input"),
        ({"input": []}, "input"),
        ({"input": [{"type": "item_reference", "id": "x"}]}, "input[0].type"),
        ({"input": [{"type": ["message"], "role": "user"}]}, "input[0].type"),
        ({"input": [{"type": "computer_call"}]}, "input[0].type"),
        ({"input": ["x"]}, "input[0]"),
        ({"input": [{"role": "root", "content": "x"}]}, "input[0].role"),
        ({"input": [{"role": "user", "content": [{"type": "input_file", "file_id": "f"}]}]}, "input[0].content"),
        ({"input": [{"role": "user", "content": [{"type": "input_image", "file_id": "f"}]}]}, "input[0].content.image_url"),
        ({"input": [{"role": "user", "content": 7}]}, "input[0].content"),
        ({"input": [{"role": "user", "content": "x", "id": "x" * 129}]}, "input[0].id"),
        ({"input": [{"type": "function_call", "call_id": "c", "name": "f", "arguments": {}}]}, "input[0].arguments"),
        ({"input": [{"type": "reasoning", "content": 7}]}, "input[0].content"),
        ({"input": [{"type": "reasoning", "summary": ["x"]}]}, "input[0].summary"),
        ({"instructions": ["x"]}, "instructions"),
        ({"max_output_tokens": 0}, "max_output_tokens"),
        ({"stop": ["x" * 300]}, "stop"),
    ],
)
def test_what_cannot_be_held_for_is_refused(fields: dict[str, Any], param: str):
    answer = ask(Exchange(pinned(SERVING)), **fields)
    assert (answer.status, error_of(answer)["param"]) == (400, param)


def test_an_answer_is_charged_by_its_usage():
    usage = {
        "input_tokens": 20, "input_tokens_details": {"cached_tokens": 4}, "output_tokens": 9,
        "output_tokens_details": {"reasoning_tokens": 5},
    }  # fmt: skip
    end, note = answered({"status": "incomplete", "incomplete_details": {"reason": "max_output_tokens"}, "output": [], "usage": usage})
    assert end.ending.charge_nanos == 16 * 1_000 + 4 * 500 + 9 * 2_000
    assert (note.record.end_reason, note.record.reasoning_tokens, note.record.cached_tokens) == ("length", 5, 4)


def test_an_answer_without_usage_is_counted():
    output = [
        {"type": "reasoning", "summary": [], "content": [{"type": "reasoning_text", "text": "hm"}]},
        {"type": "message", "content": [{"type": "output_text", "text": "abc"}]},
        {"type": "function_call", "name": "f", "arguments": "{}", "call_id": "not counted"},
    ]
    end, note = answered({"status": "completed", "output": output, "error": None})
    assert (end.ending.charge_nanos, note.record.usage_source) == (11_000 + 8 * 2_000, "counted")


@pytest.mark.parametrize("body", [{"error": {"message": "no"}}, {"status": "failed", "output": [], "error": {"code": "x"}}])
def test_a_failure_is_not_charged(body: dict[str, Any]):
    end, note = answered(body)
    assert (end.ending.charge_nanos, note.record.end_reason) == (0, "upstream_error")
