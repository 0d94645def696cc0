"""The simulator as the official SDK sees it."""

from __future__ import annotations

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
