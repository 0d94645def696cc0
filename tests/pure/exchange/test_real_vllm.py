"""Where the real vLLM writes otherwise than OpenAI, seen by ``make vllm``: names of details, and what stands behind a usage."""

from __future__ import annotations

import pytest

from extproc.exchange.endpoints.chat import ChatCompletions
from extproc.exchange.endpoints.openai import usage_of
from extproc.exchange.meter import Expected
from extproc.exchange.meter_stream import without_usage
from extproc.exchange.sse import SseEvent
from extproc.money.usage import Usage, UsageSource

HEAD = b'{"object":"chat.completion.chunk","choices":[{"index":0,"delta":{"role":"assistant","content":",\\"usage\\":{"}}]'
USAGE = b',"usage":{"prompt_tokens":28,"total_tokens":28,"completion_tokens":0,"completion_tokens_details":null}'


def told(details: object) -> Usage | None:
    raw = {"prompt_tokens": 20, "completion_tokens": 2, "prompt_tokens_details": details}
    most = {"input_tokens_max": 100, "output_tokens_max": 100, "output_tokens_held": 100}
    expected = Expected(endpoint=ChatCompletions(), counter=None, prompt=Usage(), choices=1, **most)
    return usage_of(raw, UsageSource.UPSTREAM, expected)


@pytest.mark.parametrize(
    ("details", "created", "image", "audio"),
    [
        ({"cached_tokens": 4, "created_cache_tokens": 16, "multimodal_tokens": None}, 16, 0, 0),
        ({"cached_tokens": 4, "created_cache_tokens": 0, "multimodal_tokens": {"image": 5, "audio": 6}}, 0, 5, 6),
        ({"cached_tokens": 4, "created_cache_tokens": None, "multimodal_tokens": {"video": 5}}, 0, 0, 0),
        ({"cached_tokens": 4, "cache_write_tokens": 9, "image_tokens": 3, "audio_tokens": 2}, 9, 3, 2),
    ],
)
def test_details_of_a_prompt(details: dict[str, object], created: int, image: int, audio: int):
    usage = told(details)
    assert usage is not None
    assert (usage.cached_tokens, usage.cache_creation_tokens, usage.image_tokens, usage.audio_tokens) == (4, created, image, audio)
    assert usage.flags == ()


@pytest.mark.parametrize("details", [None, [], "cached_tokens", 5, {}])
def test_no_details(details: object):
    usage = told(details)
    assert usage is not None
    assert usage.cached_tokens == usage.cache_creation_tokens == 0


@pytest.mark.parametrize("behind", [b"}", b',"prompt_token_ids":null,"prompt_text":null}', b',"metrics":{"a":{"b":1}}}'])
@pytest.mark.parametrize("usage", [USAGE, b',"usage":null'])
def test_a_usage_is_taken_out_wherever_it_stands(behind: bytes, usage: bytes):
    whole = HEAD + usage + behind
    assert without_usage(SseEvent(data=whole, raw=b"data: " + whole + b"\n\n")) == b"data: " + HEAD + behind + b"\n\n"


@pytest.mark.parametrize("behind", [b"", b"}}", b"} ,", b',"a":}', b"]}"])
def test_what_is_no_event_stays_as_it_is(behind: bytes):
    raw = b"data: " + HEAD + USAGE + behind + b"\n\n"
    assert without_usage(SseEvent(data=HEAD + USAGE + behind, raw=raw)) == raw
