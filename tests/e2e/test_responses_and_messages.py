"""`/v1/responses` and `/v1/messages` with the SDKs that people use, through Envoy: answered, billed by their own usage, and left early."""

from __future__ import annotations

import json
from collections.abc import Iterator
from decimal import Decimal
from typing import Any

import anthropic
import httpx
import pytest
from house import NANOS_IN, NANOS_OUT, SMALL, Guest, House, until
from wire import steering
from witnesses import explained

NANOS_CACHED = 125
QUESTION = [{"role": "user", "content": "What is the weather in Bern, and is it going to stay like that?"}]
SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
TOLERANCE = 1  # what was on its way when the client left


@pytest.fixture
def claude(house: House, guest: Guest) -> Iterator[anthropic.Anthropic]:
    with client_of(house, guest.secret) as client:
        yield client


def client_of(house: House, secret: str) -> anthropic.Anthropic:
    http = anthropic.DefaultHttpxClient(verify=house.context())
    return anthropic.Anthropic(base_url=house.url, api_key=secret, max_retries=0, http_client=http)


def billed(house: House, guest: Guest, request_id: str, output_tokens: int) -> dict[str, Any]:
    """The row, which says what the simulator says, and costs what the price says."""
    row = guest.row(request_id)
    (seen,) = house.upstream(request_id)
    assert (row["input_tokens"], row["output_tokens"]) == (seen["prompt_tokens"], seen["generated_tokens"])
    assert (row["output_tokens"], row["usage_source"]) == (output_tokens, "upstream")
    fresh = row["input_tokens"] - row["cached_tokens"]
    assert row["cost"] == fresh * NANOS_IN + row["cached_tokens"] * NANOS_CACHED + row["output_tokens"] * NANOS_OUT
    assert row["cost"] <= row["hold_nanos"]
    return row


@pytest.mark.parametrize("alias", [SMALL, "gpt-3.5-turbo"])
def test_responses(house: House, guest: Guest, alias: str):
    sdk = guest.openai().responses
    raw = sdk.with_raw_response.create(model=alias, input="Hello there", instructions="Be kind.", max_output_tokens=30)
    answer = raw.parse()
    assert (answer.model, answer.usage.output_tokens > 0) == (alias, True)
    row = billed(house, guest, raw.headers["x-request-id"], answer.usage.output_tokens)
    assert row["endpoint"] == "responses"
    assert Decimal(raw.headers["x-request-cost"]) * 10**9 == row["cost"]
    with sdk.with_streaming_response.create(model=alias, input="Hello there", max_output_tokens=5, stream=True) as raw:
        events = list(raw.parse())
        request_id = raw.headers["x-request-id"]
    text = "".join(event.delta for event in events if event.type == "response.output_text.delta")
    last = events[-1].response
    assert text == last.output_text
    assert (last.status, last.incomplete_details.reason, last.model) == ("incomplete", "max_output_tokens", alias)
    row = billed(house, guest, request_id, 5)
    assert (row["end_reason"], round(last.usage.cost * 10**9)) == ("length", row["cost"])
    guest.check()


def test_functions_of_responses(house: House, guest: Guest):
    sdk = guest.openai().responses
    tools = [{"type": "function", "name": "get_weather", "description": "of a city", "parameters": SCHEMA}]
    first = sdk.create(model=SMALL, input=QUESTION, tools=tools, tool_choice="required", max_output_tokens=100)
    (call,) = first.output
    assert (call.type, call.name) == ("function_call", "get_weather")
    result = {"type": "function_call_output", "call_id": call.call_id, "output": "sunny"}
    items = [*QUESTION, call.model_dump(exclude_none=True), result]
    raw = sdk.with_raw_response.create(model=SMALL, input=items, tools=tools, max_output_tokens=30)
    billed(house, guest, raw.headers["x-request-id"], raw.parse().usage.output_tokens)
    guest.check()


def test_messages(house: House, guest: Guest, claude: anthropic.Anthropic):
    raw = claude.messages.with_raw_response.create(model=SMALL, max_tokens=30, messages=QUESTION, system="Be kind.")
    usage = raw.parse().usage
    row = billed(house, guest, raw.headers["x-request-id"], usage.output_tokens)
    assert row["endpoint"] == "messages"
    cached = usage.cache_read_input_tokens or 0
    assert (usage.input_tokens + cached, cached) == (row["input_tokens"], row["cached_tokens"])
    with claude.messages.stream(model=SMALL, max_tokens=5, messages=QUESTION) as stream:
        text = "".join(stream.text_stream)
        message = stream.get_final_message()
        request_id = stream.response.headers["x-request-id"]
    assert (message.content[0].text, message.stop_reason, message.model) == (text, "max_tokens", SMALL)
    row = billed(house, guest, request_id, message.usage.output_tokens)
    assert row["end_reason"] == "length"
    guest.check()


def test_tools_of_messages(house: House, guest: Guest, claude: anthropic.Anthropic):
    tools = [{"name": "get_weather", "description": "of a city", "input_schema": SCHEMA}]
    asked: dict[str, Any] = {"model": SMALL, "max_tokens": 100, "tools": tools}
    first = claude.messages.create(**asked, messages=QUESTION, tool_choice={"type": "any"})
    (call,) = first.content
    assert (call.type, call.name, first.stop_reason) == ("tool_use", "get_weather", "tool_use")
    result = {"type": "tool_result", "tool_use_id": call.id, "content": [{"type": "text", "text": "sunny"}]}
    turns = [*QUESTION, {"role": "assistant", "content": [call.model_dump()]}, {"role": "user", "content": [result]}]
    raw = claude.messages.with_raw_response.create(**asked, messages=turns)
    billed(house, guest, raw.headers["x-request-id"], raw.parse().usage.output_tokens)
    guest.check()


def test_counting_tokens_costs_nothing(house: House, guest: Guest, claude: anthropic.Anthropic):
    with guest.charged_nothing():
        raw = claude.messages.with_raw_response.count_tokens(model=SMALL, messages=QUESTION)
        assert raw.parse().input_tokens > 10
    row = guest.row(raw.headers["x-request-id"])
    assert (row["endpoint"], row["cost"], row["hold_nanos"], row["status"]) == ("messages.count_tokens", 0, 0, 200)
    guest.check()


def test_errors_as_the_sdk_knows_them(house: House, guest: Guest, claude: anthropic.Anthropic):
    asked: dict[str, Any] = {"model": SMALL, "max_tokens": 5, "messages": QUESTION}
    poor, stranger = client_of(house, house.guest(deposit="0").secret), client_of(house, "sk-nobody")
    for client, changed, error, kind in (
        (stranger, {}, anthropic.AuthenticationError, "authentication_error"),
        (claude, {"model": "nobody's"}, anthropic.NotFoundError, "not_found_error"),
        (claude, {"max_tokens": 0}, anthropic.BadRequestError, "invalid_request_error"),
        (claude, {"extra_headers": {"x-priority": "first"}}, anthropic.PermissionDeniedError, "permission_error"),
        (poor, {}, anthropic.APIStatusError, "billing_error"),
    ):
        with pytest.raises(error) as caught:
            client.messages.create(**(asked | changed))
        assert caught.value.body["error"]["type"] == kind
    poor.close()
    stranger.close()


DELTAS = {"/v1/responses": "response.output_text.delta", "/v1/messages": "content_block_delta"}
ASKED = {"model": SMALL, "stream": True, "input": "Hello there", "messages": QUESTION, "max_tokens": 1_000, "max_output_tokens": 1_000}


@pytest.mark.parametrize("path", DELTAS)
@pytest.mark.parametrize("after", [1, 10, 30])
def test_who_leaves_early_pays_what_was_delivered(house: House, guest: Guest, path: str, after: int):
    headers = {**guest.headers, **steering(tokens=1_000, delay_ms=30)}
    with house.client().stream("POST", path, headers=headers, json=ASKED) as answer:
        request_id = answer.headers["x-request-id"]
        read = _read(answer, DELTAS[path], after)
    row = explained(guest, request_id)
    (seen,) = until(lambda: [one for one in house.upstream(request_id) if one["end"] != "open"], "the simulator noticed")
    assert abs(row["output_tokens"] - read) <= TOLERANCE
    assert abs(row["output_tokens"] - seen["generated_tokens"]) <= TOLERANCE
    assert (row["input_tokens"], row["usage_source"]) == (seen["prompt_tokens"], "counted")
    assert (row["end_reason"], row["ending"]) == ("client_gone", "settle")
    guest.check()


def _read(answer: httpx.Response, delta: str, after: int) -> int:
    read = 0
    for line in answer.iter_lines():
        if line.startswith("data: ") and json.loads(line[6:])["type"] == delta:
            read += 1
            if read == after:
                break
    return read
