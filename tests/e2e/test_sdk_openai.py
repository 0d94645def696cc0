"""OpenAI's own SDK against what `extproc up` runs: every way to ask, every error, each request charged as the simulator's books say."""

from __future__ import annotations

import json
from decimal import Decimal
from typing import Any

import openai
import pytest
from upstack import LOOKS, READS, TEXT, Up, png

SAYS: Any = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Wie weit ist es bis 北京?"}]
SCHEMA = {"type": "object", "properties": {"text": {"type": "string"}}, "required": ["text"]}
CALLS: Any = {"tools": [{"type": "function", "function": {"name": "look", "description": "Looks.", "parameters": SCHEMA}}]}


def streamed(up: Up, call: Any, **asked: Any) -> tuple[list[Any], str]:
    """Events, and the id of the request."""
    with call.with_streaming_response.create(**asked, stream=True) as raw:
        return list(raw.parse()), raw.headers["x-request-id"]


def test_chat(up: Up):
    raw = up.openai.chat.completions.with_raw_response.create(model=TEXT, messages=SAYS, max_tokens=7, n=2)
    answer = raw.parse()
    assert [choice.finish_reason for choice in answer.choices] == ["length", "length"]
    row, _ = up.billed(raw.headers["x-request-id"])
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (row["input_tokens"], 14)
    assert Decimal(raw.headers["x-request-cost"]) * 10**9 == row["cost"]


@pytest.mark.parametrize("asks_usage", [False, True])
def test_chat_stream(up: Up, asks_usage: bool):
    options: Any = {"stream_options": {"include_usage": True}} if asks_usage else {}
    chunks, request_id = streamed(up, up.openai.chat.completions, model=TEXT, messages=SAYS, max_tokens=7, **options)
    row, _ = up.billed(request_id)
    assert row["output_tokens"] == sum(bool(chunk.choices and chunk.choices[0].delta.content) for chunk in chunks) == 7
    told = [(chunk.usage.completion_tokens, chunk.usage.cost) for chunk in chunks if chunk.usage]
    assert told == [(7, pytest.approx(row["cost"] / 10**9))] * asks_usage
    assert all(chunk.choices for chunk in chunks) != asks_usage


def test_tools(up: Up):
    raw = up.openai.chat.completions.with_raw_response.create(model=TEXT, messages=SAYS, tool_choice="required", **CALLS)
    (call,) = raw.parse().choices[0].message.tool_calls
    assert (call.function.name, list(json.loads(call.function.arguments))) == ("look", ["text"])
    up.billed(raw.headers["x-request-id"])
    answered = [
        *SAYS,
        {"role": "assistant", "content": None, "tool_calls": [call.model_dump()]},
        {"role": "tool", "tool_call_id": call.id, "content": "8,000 km"},
    ]
    chunks, request_id = streamed(up, up.openai.chat.completions, model=TEXT, messages=answered, **CALLS)
    assert chunks[-1].choices[0].finish_reason == "stop"
    up.billed(request_id)
    chunks, request_id = streamed(up, up.openai.chat.completions, model=TEXT, messages=SAYS, tool_choice="required", **CALLS)
    assert any(chunk.choices[0].delta.tool_calls for chunk in chunks)
    assert not any(chunk.usage for chunk in chunks)  # asked for, to know what tools cost, by us alone
    up.billed(request_id)


def test_vision(up: Up):
    parts = [{"type": "image_url", "image_url": {"url": png(512, 512)}}, {"type": "text", "text": "What is it?"}]
    asked: Any = {"model": LOOKS, "messages": [{"role": "user", "content": parts}], "max_tokens": 5}
    raw = up.openai.chat.completions.with_raw_response.create(**asked)
    row, seen = up.billed(raw.headers["x-request-id"])
    assert (row["images"], row["image_tokens"], seen["images"]) == (1, 326, 1)
    up.billed(streamed(up, up.openai.chat.completions, **asked)[1])


def test_completions(up: Up):
    raw = up.openai.completions.with_raw_response.create(model=TEXT, prompt=["The river", "A tree"], max_tokens=5, n=2)
    assert len(raw.parse().choices) == 4
    assert up.billed(raw.headers["x-request-id"])[0]["output_tokens"] == 20
    chunks, request_id = streamed(up, up.openai.completions, model=TEXT, prompt="The river", max_tokens=5)
    assert len([chunk for chunk in chunks if chunk.choices[0].text]) == up.billed(request_id)[0]["output_tokens"] == 5


def test_responses(up: Up):
    asked: Any = {"model": TEXT, "input": "How far is it?", "instructions": "Be brief.", "max_output_tokens": 6}
    raw = up.openai.responses.with_raw_response.create(**asked)
    answer = raw.parse()
    assert (answer.status, answer.usage.output_tokens, bool(answer.output_text)) == ("incomplete", 6, True)
    up.billed(raw.headers["x-request-id"])
    events, request_id = streamed(up, up.openai.responses, **asked)
    assert "".join(event.delta for event in events if event.type == "response.output_text.delta") == events[-1].response.output_text
    up.billed(request_id)
    tool: Any = {"type": "function", "name": "look", "parameters": SCHEMA, "strict": False}
    raw = up.openai.responses.with_raw_response.create(model=TEXT, input="Look.", tools=[tool], tool_choice="required")
    assert [item.name for item in raw.parse().output if item.type == "function_call"] == ["look"]
    up.billed(raw.headers["x-request-id"])


def test_embeddings(up: Up):
    raw = up.openai.embeddings.with_raw_response.create(model=READS, input=["hello there", "bonjour"], dimensions=8)
    assert [len(one.embedding) for one in raw.parse().data] == [8, 8]
    up.billed(raw.headers["x-request-id"])


def test_models(up: Up):
    assert {TEXT, LOOKS, READS} <= {model.id for model in up.openai.models.list()}
    assert up.openai.models.retrieve(TEXT).id == TEXT
    with pytest.raises(openai.NotFoundError):
        up.openai.models.retrieve("nothing")


ASKS: Any = {
    "chat": lambda sdk, **more: sdk.chat.completions.create(**({"model": TEXT, "messages": SAYS} | more)),
    "stream": lambda sdk, **more: sdk.chat.completions.create(**({"model": TEXT, "messages": SAYS, "stream": True} | more)),
    "completions": lambda sdk, **more: sdk.completions.create(**({"model": TEXT, "prompt": "hello"} | more)),
    "responses": lambda sdk, **more: sdk.responses.create(**({"model": TEXT, "input": "hello"} | more)),
    "embeddings": lambda sdk, **more: sdk.embeddings.create(**({"model": READS, "input": "hello"} | more)),
}


def test_errors(up: Up):
    """Each as the SDK knows it, on every endpoint; and none of them costs anything."""
    stranger, _ = up.sdks("sk-nobody")
    poor, _ = up.sdks(up.new_key(""))
    hasty, _ = up.sdks(up.new_key("1", limits={"requests_per_minute": 1}))
    narrow, _ = up.sdks(up.new_key("1", models=["qwen3-72b"]))
    for ask in ASKS.values():
        with pytest.raises(openai.AuthenticationError) as unknown:
            ask(stranger)
        assert unknown.value.code == "invalid_api_key"
        with pytest.raises(openai.APIStatusError) as unpaid:
            ask(poor)
        assert (unpaid.value.status_code, unpaid.value.code) == (402, "insufficient_quota")
        with pytest.raises(openai.NotFoundError) as nothing:
            ask(up.openai, model="nothing")
        assert (nothing.value.code, nothing.value.param) == ("model_not_found", "model")
        with pytest.raises((openai.PermissionDeniedError, openai.NotFoundError)):
            ask(narrow)
    with pytest.raises(openai.BadRequestError) as wrong:
        ASKS["chat"](up.openai, max_tokens=-1)
    assert wrong.value.param == "max_tokens"
    ASKS["chat"](hasty, max_tokens=1)
    for ask in ASKS.values():
        with pytest.raises(openai.RateLimitError) as limited:
            ask(hasty)
        assert int(limited.value.response.headers["retry-after"]) > 0
