"""Every endpoint through what `extproc up` runs, with the SDKs that people use: answered, and each billed as its price says."""

from __future__ import annotations

from typing import Any

import httpx
import openai
import pytest
from upstack import HEARS, LOOKS, READS, TEXT, Up, png, wav


@pytest.mark.parametrize("texts", ["hello", ["hello", "bonjour"], [1, 2, 3], [[1], [2, 3]]])
def test_embeddings(up: Up, texts: Any):
    raw = up.openai.embeddings.with_raw_response.create(model=READS, input=texts, dimensions=8)
    answer, row = raw.parse(), up.row(raw.headers["x-request-id"])
    assert len(answer.data) == (len(texts) if isinstance(texts, list) and not isinstance(texts[0], int) else 1)
    assert (row["input_tokens"], row["output_tokens"], row["usage_source"]) == (answer.usage.prompt_tokens, 0, "upstream")
    assert row["cost"] == answer.usage.prompt_tokens * 100 <= row["hold_nanos"]


@pytest.mark.parametrize("path", ["/rerank", "/v1/rerank", "/v2/rerank", "/score", "/v1/score"])
def test_rerank_and_score(up: Up, path: str):
    body = {"query": "what is a river?", "documents": ["a stream of water", "a kind of tree", "x"], "top_n": 2}
    if "score" in path:
        body = {"text_1": "what is a river?", "text_2": ["a stream of water", "a kind of tree"]}
    answer, row = up.post(path, json={"model": READS} | body)
    assert row["endpoint"] == path.rpartition("/")[2]
    usage = answer["usage"]
    assert row["input_tokens"] == usage.get("prompt_tokens", usage["total_tokens"])
    assert 0 < row["cost"] == row["input_tokens"] * 100 <= row["hold_nanos"]


@pytest.mark.parametrize(
    ("path", "form", "audio_ms", "source"),
    [
        ("transcriptions", "json", 4_000, "upstream"),  # whole seconds, begun
        ("transcriptions", "verbose_json", 3_200, "upstream"),
        ("translations", "verbose_json", 3_200, "upstream"),
        ("translations", "json", 3_200, "counted"),  # nothing but the header of the file tells
    ],
)
def test_transcriptions(up: Up, path: str, form: str, audio_ms: int, source: str):
    _, row = up.post(f"/v1/audio/{path}", data={"model": HEARS, "response_format": form}, files={"file": ("a.wav", wav(3.2))})
    assert (row["endpoint"], row["usage_source"], row["audio_ms"]) == ("transcriptions", source, audio_ms)
    assert row["cost"] == audio_ms * 100 <= row["hold_nanos"]


def test_the_sdk_sends_sound_and_streams_the_text(up: Up):
    answer = up.openai.audio.transcriptions.create(model=HEARS, file=("a.wav", wav(2)), language="en")
    assert answer.text
    with up.openai.audio.transcriptions.with_streaming_response.create(model=HEARS, file=("a.wav", wav(2)), stream=True) as raw:
        lines = [line for line in raw.iter_lines() if line]
        request_id = raw.headers["x-request-id"]
    assert lines[-1] == "data: [DONE]"
    assert not any('"usage":{' in line for line in lines)  # we asked for it, the client did not
    row = up.row(request_id)
    assert (row["stream"], row["audio_ms"], row["cost"], row["usage_source"]) == (True, 2_000, 200_000, "upstream")
    sent = up.seen(HEARS, request_id)
    assert "multipart/form-data" in str(sent["headers"])


def test_images(up: Up):
    parts = [{"type": "text", "text": "what is this?"}, {"type": "image_url", "image_url": {"url": png(512, 512)}}]
    raw = up.openai.chat.completions.with_raw_response.create(model=LOOKS, messages=[{"role": "user", "content": parts}], max_tokens=5)
    usage, row = raw.parse().usage, up.row(raw.headers["x-request-id"])
    assert usage is not None
    assert usage.prompt_tokens > 324
    assert row["cost"] == usage.prompt_tokens * 1_500 + usage.completion_tokens * 4_500 <= row["hold_nanos"]
    assert row["hold_nanos"] < 2 * row["cost"]
    with pytest.raises(openai.BadRequestError, match="takes text only"):
        up.openai.chat.completions.create(model=TEXT, messages=[{"role": "user", "content": parts}])


@pytest.mark.parametrize("stream", [False, True])
def test_completions_of_several_prompts_with_their_echo(up: Up, stream: bool):
    body = {"model": TEXT, "prompt": ["The river", "A tree"], "echo": True, "n": 2, "max_tokens": 5, "stream": stream}
    answer = up.http.post("/v1/completions", json=body)
    row = up.row(answer.headers["x-request-id"])
    assert row["output_tokens"] == 20
    assert answer.text.count("The river") >= 2
    nobody_counts = up.http.post("/v1/completions", json=body, headers={"x-sim-fault": "no_usage"})
    again = up.row(nobody_counts.headers["x-request-id"])
    assert (again["usage_source"], again["input_tokens"]) == ("counted", row["input_tokens"])
    assert abs(again["output_tokens"] - 20) <= 4  # words that melt with the end of a prompt


def test_tokens_are_counted_for_nothing(up: Up):
    answer, row = up.post("/tokenize", json={"model": TEXT, "prompt": "The river runs through the valley."})
    assert answer["count"] == len(answer["tokens"]) > 3
    assert (row["cost"], row["hold_nanos"], row["input_tokens"]) == (0, 0, 0)
    back, row = up.post("/detokenize", json={"model": TEXT, "tokens": answer["tokens"]})
    assert back["prompt"] == "The river runs through the valley."
    assert row["cost"] == 0


def test_what_only_we_may_say_is_said(up: Up):
    body = {"model": TEXT, "messages": [{"role": "user", "content": "hi"}], "max_tokens": 1, "cache_salt": "mine", "priority": -9}
    answer = up.http.post("/v1/chat/completions", json=body)
    sent = str(up.seen(TEXT, answer.headers["x-request-id"])["body"])
    assert "cache_salt" in sent
    assert "mine" not in sent
    assert "priority" not in sent


@pytest.mark.parametrize("path", ["/invocations", "/pooling", "/v1/chat/completions/batch", "/inference/v1/generate", "/v1/audio/speech"])
def test_other_paths_lead_nowhere(up: Up, path: str):
    answer = up.http.post(path, json={"model": TEXT, "prompt": "x"})
    assert (answer.status_code, answer.json()["error"]["code"]) == (404, "unknown_url")


@pytest.mark.parametrize("http2", [False, True])
def test_an_hour_of_sound(up: Up, http2: bool):
    """25 MB, as OpenAI takes them."""
    sound = wav(1_638)
    with httpx.Client(base_url=up.http.base_url, verify=up.trust, timeout=60, headers=up.http.headers, http2=http2) as client:
        answer = client.post("/v1/audio/transcriptions", data={"model": HEARS}, files={"file": ("a.wav", sound)})
    assert answer.status_code == 200, answer.text
    row = up.row(answer.headers["x-request-id"])
    assert (row["audio_ms"], row["cost"]) == (1_638_000, 163_800_000)
    assert answer.http_version == ("HTTP/2" if http2 else "HTTP/1.1")


def test_too_much_sound_is_told(up: Up):
    answer = up.http.post("/v1/audio/transcriptions", data={"model": HEARS}, files={"file": ("a.wav", wav(1_700))})
    assert (answer.status_code, answer.json()["error"]["code"]) == (413, "request_too_large")
