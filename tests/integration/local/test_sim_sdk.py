"""The simulator as the official SDKs see it."""

from __future__ import annotations

import json

import anthropic
import openai
import pytest

from extproc.local.simulator import Simulator

MESSAGES = [{"role": "user", "content": "hello there world"}]


@pytest.fixture
def sdk(simulator: Simulator):
    with openai.OpenAI(base_url=f"{simulator.url}/v1", api_key="sk-none", max_retries=0) as client:
        yield client


def test_chat(sdk):
    answer = sdk.chat.completions.create(model="sim-model", messages=MESSAGES, max_tokens=4)
    assert answer.choices[0].message.content == " the time people make"
    assert answer.choices[0].finish_reason == "length"
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (11, 4)


def test_chat_stream(sdk):
    stream = sdk.chat.completions.create(
        model="sim-model", messages=MESSAGES, max_tokens=4, stream=True, stream_options={"include_usage": True}
    )
    chunks = list(stream)
    assert "".join(chunk.choices[0].delta.content for chunk in chunks if chunk.choices) == " the time people make"
    assert chunks[-1].usage.total_tokens == 15


def test_completions(sdk):
    answer = sdk.completions.create(model="other-model", prompt="one two", max_tokens=3)
    assert answer.choices[0].text == " the time people"
    assert answer.usage.total_tokens == 5
    chunks = list(sdk.completions.create(model="other-model", prompt="one two", max_tokens=3, stream=True))
    assert "".join(chunk.choices[0].text for chunk in chunks) == " the time people"


def test_models(sdk):
    assert [model.id for model in sdk.models.list()] == ["sim-model", "other-model"]


def test_errors(sdk):
    with pytest.raises(openai.NotFoundError):
        sdk.chat.completions.create(model="nothing", messages=MESSAGES)
    with pytest.raises(openai.InternalServerError):
        sdk.chat.completions.create(model="sim-model", messages=MESSAGES, extra_headers={"x-sim-fault": "status=503"})
    with pytest.raises(openai.APIError):
        list(
            sdk.chat.completions.create(
                model="sim-model", messages=MESSAGES, stream=True, extra_headers={"x-sim-fault": "engine_death_after=2"}
            )
        )


def test_responses(sdk):
    answer = sdk.responses.create(model="sim-model", input="hello there world", max_output_tokens=4)
    assert (answer.output_text, answer.status, answer.incomplete_details.reason) == (
        " the time people make",
        "incomplete",
        "max_output_tokens",
    )
    assert (answer.usage.input_tokens, answer.usage.output_tokens, answer.usage.total_tokens) == (11, 4, 15)


def test_responses_stream(sdk):
    with sdk.responses.stream(model="sim-model", input="hello", extra_headers={"x-sim-tokens": "3", "x-sim-reasoning": "1"}) as stream:
        events = list(stream)
        final = stream.get_final_response()
    assert "".join(event.delta for event in events if event.type == "response.output_text.delta") == " time people" == final.output_text
    assert (final.status, final.usage.output_tokens, final.usage.output_tokens_details.reasoning_tokens) == ("completed", 3, 1)


def test_tools(sdk):
    tools = [{"type": "function", "function": {"name": "look", "parameters": {"type": "object"}}}]
    answer = sdk.chat.completions.create(model="sim-model", messages=MESSAGES, tools=tools, tool_choice="required")
    (call,) = answer.choices[0].message.tool_calls
    assert (call.function.name, list(json.loads(call.function.arguments))) == ("look", ["text"])
    with sdk.chat.completions.stream(model="sim-model", messages=MESSAGES, tools=tools, tool_choice="required") as stream:
        streamed = stream.get_final_completion()
    assert streamed.choices[0].message.tool_calls[0].function.arguments == call.function.arguments


def test_embeddings(sdk):
    answer = sdk.embeddings.create(model="sim-model", input=["one two", "three"], dimensions=6)
    assert [len(row.embedding) for row in answer.data] == [6, 6]
    assert (
        answer.data[0].embedding
        == sdk.embeddings.create(model="sim-model", input="one two", dimensions=6, encoding_format="float").data[0].embedding
    )
    assert answer.usage.prompt_tokens == 3


def test_transcription(sdk):
    answer = sdk.audio.transcriptions.create(model="sim-model", file=("a.mp3", b"\xff" * 40_000))
    assert (len(answer.text.split()), answer.usage.type, answer.usage.seconds) == (16, "duration", 3)


@pytest.fixture
def claude(simulator: Simulator):
    with anthropic.Anthropic(base_url=simulator.url, api_key="none", max_retries=0) as client:
        yield client


def test_messages(claude):
    answer = claude.messages.create(model="sim-model", max_tokens=4, messages=MESSAGES)
    assert (answer.content[0].text, answer.stop_reason) == (" the time people make", "max_tokens")
    assert (answer.usage.input_tokens, answer.usage.output_tokens) == (11, 4)
    assert claude.messages.count_tokens(model="sim-model", messages=MESSAGES).input_tokens == 11


def test_messages_stream(claude):
    tools = [{"name": "look", "input_schema": {"type": "object"}}]
    with claude.messages.stream(model="sim-model", max_tokens=100, messages=MESSAGES) as stream:
        assert "".join(stream.text_stream).startswith(" the time people")
        final = stream.get_final_message()
    assert (final.role, final.stop_reason, final.usage.output_tokens) == ("assistant", "end_turn", 16)
    with claude.messages.stream(model="sim-model", max_tokens=100, messages=MESSAGES, tools=tools, tool_choice={"type": "any"}) as stream:
        (call,) = stream.get_final_message().content
    assert (call.name, list(call.input)) == ("look", ["text"])


def test_errors_of_messages(claude):
    with pytest.raises(anthropic.NotFoundError):
        claude.messages.create(model="nothing", max_tokens=4, messages=MESSAGES)
    with pytest.raises(anthropic.APIStatusError):
        list(
            claude.messages.create(
                model="sim-model", max_tokens=9, messages=MESSAGES, stream=True, extra_headers={"x-sim-fault": "engine_death_after=2"}
            )
        )
