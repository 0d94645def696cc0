"""A backend that tells no usage at all: what is charged is our own count, within half a percent of what the simulator's books say."""

from __future__ import annotations

import json
from typing import Any

import pytest
from upstack import NANOS, TEXT, Up

TOLERANCE = 0.005
LANGUAGES = ("en", "zh", "ko", "ja", "ru", "fr", "code", "emoji", "mixed")
TALE = (
    "The river runs slowly through the valley, and every stone on its bank has a story to tell. 今天天气很好，我们一起去公园散步吧。\n"
    "def total(items): return sum(item.price for item in items)  # 오늘은 날씨가 좋아서 친구와 함께 공원에 갔다.\n"
)
ASKS: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {"messages": [{"role": "system", "content": TALE}, {"role": "user", "content": "Go on."}], "max_tokens": 400},
    "/v1/completions": {"prompt": [TALE, TALE * 2], "max_tokens": 400},
    "/v1/responses": {"input": TALE, "instructions": "Go on.", "max_output_tokens": 400},
    "/v1/messages": {"messages": [{"role": "user", "content": TALE}], "system": "Go on.", "max_tokens": 400},
}


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("path", ASKS)
def test_our_own_count_is_the_truth(up: Up, path: str, stream: bool):
    off = {}
    for language in LANGUAGES:
        orders = {"x-sim-fault": "no_usage", "x-sim-language": language, "x-sim-tokens": "300"}
        answer = up.http.post(path, json=ASKS[path] | {"model": TEXT, "stream": stream}, headers=orders)
        assert answer.status_code == 200
        assert "prompt_tokens" not in answer.text
        request_id = answer.headers["x-request-id"]
        row, seen = up.row(request_id), up.seen(TEXT, request_id)
        assert (row["usage_source"], row["usage_flags"], row["end_reason"], row["stream"]) == ("counted", [], "stop", stream), language
        fresh, _, output = NANOS[TEXT]
        truth = seen["prompt_tokens"] * fresh + seen["generated_tokens"] * output
        off[language] = row["cost"] / truth - 1
        assert row["input_tokens"] == seen["prompt_tokens"], language
        assert row["cost"] == row["input_tokens"] * fresh + row["output_tokens"] * output <= row["hold_nanos"]
    assert max(map(abs, off.values())) <= TOLERANCE, json.dumps(off)


SCHEMA = {
    "properties": {"city": {"type": "string", "description": "所在城市"}, "days": {"type": "integer"}},
    "required": ["city"],
    "type": "object",
}
FUNCTION = {"name": "forecast", "description": TALE}
GIVEN = {"city": "東京", "days": [1, 2.5, None]}
CALL = {"id": "c1", "type": "function", "function": {"name": "forecast", "arguments": json.dumps(GIVEN, separators=(",", ":"))}}
WITH_TOOLS: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {
        "tools": [{"type": "function", "function": FUNCTION | {"parameters": SCHEMA, "strict": True}}, {"type": "function", "function": {"name": "now"}}],
        "messages": [
            {"role": "user", "content": TALE},
            {"role": "assistant", "content": "I ask.", "tool_calls": [CALL, CALL | {"id": "c2"}]},
            *({"role": "tool", "tool_call_id": call, "content": TALE} for call in ("c1", "c2")),
        ],
    },
    "/v1/responses": {
        "tools": [{"type": "function", **FUNCTION, "parameters": SCHEMA, "strict": False}],
        "instructions": "Be brief.",
        "input": [
            {"role": "user", "content": TALE},
            *({"type": "function_call", "call_id": call, "name": "forecast", "arguments": json.dumps(GIVEN)} for call in ("c1", "c2")),
            *({"type": "function_call_output", "call_id": call, "output": TALE} for call in ("c1", "c2")),
        ],
    },
    "/v1/messages": {
        "tools": [FUNCTION | {"input_schema": {"properties": SCHEMA["properties"]}}],
        "messages": [
            {"role": "user", "content": TALE},
            {"role": "assistant", "content": [{"type": "text", "text": "I ask."}, {"type": "tool_use", "id": "c1", "name": "forecast", "input": GIVEN}]},
            {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "c1", "content": TALE}, {"type": "text", "text": "And now?"}]},
        ],
    },
}  # fmt: skip


@pytest.mark.parametrize("path", WITH_TOOLS)
@pytest.mark.parametrize("part", ["all of it", "functions", "history"])
def test_tools_are_counted_as_the_template_prints_them(up: Up, path: str, part: str):
    asked = {"model": TEXT, "stream": True} | WITH_TOOLS[path]
    if part == "functions":
        asked |= {name: value for name, value in ASKS[path].items() if name in ("messages", "input")}
    if part == "history":
        del asked["tools"]
    limit = "max_output_tokens" if path == "/v1/responses" else "max_tokens"
    answer = up.http.post(path, json=asked | {limit: 100}, headers={"x-sim-fault": "no_usage", "x-sim-tokens": "60"})
    assert answer.status_code == 200, answer.text
    row, seen = up.row(answer.headers["x-request-id"]), up.seen(TEXT, answer.headers["x-request-id"])
    assert (row["usage_source"], row["usage_flags"]) == ("counted", [])
    assert row["input_tokens"] == seen["prompt_tokens"] > 100
    assert abs(row["output_tokens"] / seen["generated_tokens"] - 1) <= TOLERANCE
    assert row["cost"] <= row["hold_nanos"]


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/responses"])
def test_what_was_thought_is_counted_too(up: Up, path: str):
    orders = {"x-sim-fault": "no_usage", "x-sim-language": "en", "x-sim-tokens": "300", "x-sim-reasoning": "150"}
    answer = up.http.post(path, json=ASKS[path] | {"model": TEXT, "stream": True}, headers=orders)
    row, seen = up.row(answer.headers["x-request-id"]), up.seen(TEXT, answer.headers["x-request-id"])
    assert (row["usage_source"], seen["reasoning_tokens"]) == ("counted", 150)
    assert abs(row["output_tokens"] / seen["generated_tokens"] - 1) <= TOLERANCE
