"""Anthropic's own SDK against what `extproc up` runs: each request charged as the simulator's books say, each error as the SDK knows it."""

from __future__ import annotations

from typing import Any

import anthropic
import pytest
from upstack import LOOKS, TEXT, Up, png

ASKED: Any = {"model": TEXT, "max_tokens": 7, "system": "Be brief.", "messages": [{"role": "user", "content": "Wie weit ist es bis 北京?"}]}
TOOLS: Any = [{"name": "look", "description": "Looks.", "input_schema": {"type": "object", "properties": {"text": {"type": "string"}}}}]


def streamed(up: Up, **asked: Any) -> tuple[anthropic.types.Message, str]:
    with up.claude.messages.stream(**asked) as stream:
        return stream.get_final_message(), stream.response.headers["x-request-id"]


def test_messages(up: Up):
    raw = up.claude.messages.with_raw_response.create(**ASKED)
    answer = raw.parse()
    row, _ = up.billed(raw.headers["x-request-id"])
    usage = answer.usage
    assert (answer.stop_reason, usage.output_tokens) == ("max_tokens", 7)
    assert usage.input_tokens + (usage.cache_read_input_tokens or 0) == row["input_tokens"]
    final, request_id = streamed(up, **ASKED)
    assert (final.content[0].text, final.usage.output_tokens) == (answer.content[0].text, 7)
    up.billed(request_id)


def test_what_was_cached_is_cheaper(up: Up):
    """Anthropic's input tokens are those that no cache had; ours are all."""
    long = ASKED | {"system": "The river runs slowly through the valley. " * 20}
    streamed(up, **long)
    final, request_id = streamed(up, **long)
    row, seen = up.billed(request_id)
    assert row["cached_tokens"] == seen["cached_tokens"] == final.usage.cache_read_input_tokens > 100
    assert final.usage.input_tokens == row["input_tokens"] - row["cached_tokens"]


def test_tools(up: Up):
    asked = ASKED | {"tools": TOOLS, "tool_choice": {"type": "any"}, "max_tokens": 60}
    raw = up.claude.messages.with_raw_response.create(**asked)
    answer = raw.parse()
    (call,) = [block for block in answer.content if block.type == "tool_use"]
    assert (call.name, list(call.input)) == ("look", ["text"])
    up.billed(raw.headers["x-request-id"])
    up.billed(streamed(up, **asked)[1])
    results = [{"type": "tool_result", "tool_use_id": call.id, "content": "8,000 km"}]
    talk = [*ASKED["messages"], {"role": "assistant", "content": [call.model_dump(include={"type", "id", "name", "input"})]}]
    up.billed(streamed(up, **ASKED | {"tools": TOOLS, "messages": [*talk, {"role": "user", "content": results}]})[1])


def test_vision(up: Up):
    source = {"type": "base64", "media_type": "image/png", "data": png(512, 512).partition(",")[2]}
    blocks = [{"type": "image", "source": source}, {"type": "text", "text": "What is it?"}]
    asked = ASKED | {"model": LOOKS, "messages": [{"role": "user", "content": blocks}]}
    raw = up.claude.messages.with_raw_response.create(**asked)
    row, seen = up.billed(raw.headers["x-request-id"])
    assert (row["images"], row["image_tokens"], seen["images"]) == (1, 326, 1)
    up.billed(streamed(up, **asked)[1])


def test_tokens_are_counted_for_nothing(up: Up):
    counted = {name: value for name, value in ASKED.items() if name != "max_tokens"}
    raw = up.claude.messages.with_raw_response.count_tokens(**counted)
    row = up.row(raw.headers["x-request-id"])
    assert (row["cost"], row["hold_nanos"]) == (0, 0)
    charged = up.row(up.claude.messages.with_raw_response.create(**ASKED).headers["x-request-id"])
    assert raw.parse().input_tokens == charged["input_tokens"]


def test_errors(up: Up):
    _, stranger = up.sdks("sk-nobody")
    _, poor = up.sdks(up.new_key(""))
    _, hasty = up.sdks(up.new_key("1", limits={"requests_per_minute": 1}))
    for stream in (False, True):
        with pytest.raises(anthropic.AuthenticationError) as unknown:
            stranger.messages.create(**ASKED, stream=stream)
        assert unknown.value.type == "authentication_error"
        with pytest.raises(anthropic.APIStatusError) as unpaid:
            poor.messages.create(**ASKED, stream=stream)
        assert (unpaid.value.status_code, unpaid.value.type) == (402, "billing_error")
        with pytest.raises(anthropic.NotFoundError) as nothing:
            up.claude.messages.create(**ASKED | {"model": "nothing"}, stream=stream)
        assert nothing.value.type == "not_found_error"
        with pytest.raises(anthropic.BadRequestError):
            up.claude.messages.create(**ASKED | {"max_tokens": -1}, stream=stream)
    hasty.messages.create(**ASKED)
    with pytest.raises(anthropic.RateLimitError) as limited:
        hasty.messages.create(**ASKED)
    assert limited.value.type == "rate_limit_error"
    assert int(limited.value.response.headers["retry-after"]) > 0
