"""The official SDK against the whole house: streams and JSON, chat and completions, two models, two backends."""

from __future__ import annotations

import pytest
from house import LARGE, NANOS_IN, NANOS_OUT, SMALL, Guest, House

ASK = [{"role": "user", "content": "hello"}]


def test_json_chat(house: House, guest: Guest):
    answer = guest.openai().chat.completions.with_raw_response.create(model=SMALL, messages=ASK, max_tokens=20)
    usage = answer.parse().usage
    row = guest.row(answer.headers["x-request-id"])
    assert (row["input_tokens"], row["output_tokens"], row["usage_source"]) == (usage.prompt_tokens, usage.completion_tokens, "upstream")
    assert row["cost"] == usage.prompt_tokens * NANOS_IN + usage.completion_tokens * NANOS_OUT
    assert answer.headers["x-request-cost"] == f"{row['cost'] / 1e9:.9f}".rstrip("0")
    guest.check()


@pytest.mark.parametrize("wants_usage", [True, False])
def test_streamed_chat(guest: Guest, wants_usage: bool):
    options = {"stream_options": {"include_usage": True}} if wants_usage else {}
    stream = guest.openai().chat.completions.create(model=SMALL, messages=ASK, max_tokens=20, stream=True, **options)
    chunks = list(stream)
    assert [chunk.usage is not None for chunk in chunks].count(True) == wants_usage
    assert all(chunk.choices for chunk in chunks) is not wants_usage
    row = guest.row(stream.response.headers["x-request-id"])
    assert row["output_tokens"] == sum(1 for chunk in chunks if chunk.choices and chunk.choices[0].delta.content)
    assert (row["usage_source"], row["end_reason"]) == ("upstream", "stop")
    guest.check()


@pytest.mark.parametrize("stream", [True, False])
def test_completions(guest: Guest, stream: bool):
    answer = guest.openai().completions.create(model=LARGE, prompt=["hello", "world"], max_tokens=5, n=2, stream=stream)
    if stream:
        list(answer)
    guest.at_rest()
    (row,) = guest.rows()
    assert (row["output_tokens"], row["end_reason"]) == (20, "length")
    guest.check()


def test_two_models_reach_two_backends(house: House, guest: Guest):
    for model in (SMALL, LARGE):
        answer = guest.openai().chat.completions.with_raw_response.create(model=model, messages=ASK)
        (seen,) = house.simulators[model].requests(answer.headers["x-request-id"])
        assert seen["model"] == model
        names = (
            {name.lower() for name, _ in seen["headers"]}
            if isinstance(seen["headers"], list)
            else {name.lower() for name in seen["headers"]}
        )
        assert not names & {"authorization", "x-api-key", "cookie", "proxy-authorization"}
        assert guest.secret not in str(seen)
    guest.check()
