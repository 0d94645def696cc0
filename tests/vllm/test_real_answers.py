"""Every way to ask a real vLLM, through Envoy: what was billed is what its own counters counted, token for token."""

from __future__ import annotations

import json
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest
from real_books import Block, Books, price_of, tell
from real_model import END_OF_TURN
from upstack import Up

from extproc.exchange.ask import Prompt

pytestmark = pytest.mark.vllm

CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
SAYS: Any = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Wie weit ist es bis 北京? 🚲"}]
SCHEMA = {"type": "object", "properties": {"city": {"enum": ["Bern", "Basel"]}}, "required": ["city"], "additionalProperties": False}
TOOL = {"type": "function", "function": {"name": "look", "description": "Looks.", "parameters": SCHEMA}}
NANOS = {"fresh": 500, "cached": 125, "created": 750, "output": 1_000}  # of tiny, a token
PLAIN = {"fresh": 500, "cached": 500, "created": 500, "output": 1_000}  # of the others
CLIENTS, EACH = 12, 6


def post(up: Up, path: str, **body: Any) -> tuple[httpx.Response, str]:
    answer = up.http.post(path, json={"model": "tiny"} | body)
    assert answer.status_code == 200, answer.text
    return answer, answer.headers["x-request-id"]


def events(answer: httpx.Response) -> list[Any]:
    lines = [line.removeprefix("data: ") for line in answer.text.split("\n") if line.startswith("data: ")]
    return [json.loads(line) for line in lines if line != "[DONE]"]


def paid(row: dict[str, Any]) -> None:
    nanos = NANOS if row["model"] == "tiny" else PLAIN
    assert row["cost"] == price_of(row, **nanos) <= row["hold_nanos"]


@pytest.mark.parametrize("choices", [1, 3])
def test_chat(up: Up, books: Books, choices: int):
    with books.agree(f"chat, n={choices}") as block:
        answer, request_id = post(up, CHAT, messages=SAYS, max_tokens=20, n=choices)
        block.add(request_id)
    usage, row = answer.json()["usage"], up.row(request_id)
    assert (
        (usage["prompt_tokens"], usage["completion_tokens"])
        == (row["input_tokens"], row["output_tokens"])
        == (row["input_tokens"], 20 * choices)
    )
    assert (row["usage_source"], row["usage_flags"], row["end_reason"]) == ("upstream", [], "length")
    paid(row)


@pytest.mark.parametrize("choices", [1, 3])
@pytest.mark.parametrize("model", ["tiny", "tiny-continuous"])
@pytest.mark.parametrize("options", [None, {"include_usage": True}, {"include_usage": True, "continuous_usage_stats": True}])
def test_chat_streamed(up: Up, books: Books, model: str, options: dict[str, bool] | None, choices: int):
    """The client sees the usage that it asked for, and no other."""
    with books.agree(f"{model}, streamed, n={choices}, {'+'.join(options or ['no usage asked for'])}") as block:
        answer, request_id = post(up, CHAT, model=model, messages=SAYS, max_tokens=20, n=choices, stream=True, stream_options=options)
        block.add(request_id)
    row, seen = up.row(request_id), events(answer)
    assert answer.text.endswith("data: [DONE]\n\n")
    assert (row["usage_source"], row["output_tokens"], row["end_reason"]) == ("upstream", 20 * choices, "length")
    told = [event["usage"] for event in seen if not event["choices"]]
    assert [one["completion_tokens"] for one in told] == [20 * choices] * bool(options)
    running = [event["usage"] for event in seen if event["choices"] and "usage" in event]
    assert bool(running) == ("continuous_usage_stats" in (options or {}))
    assert {event["model"] for event in seen} == {model}
    paid(row)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("echo", [False, True])
def test_completions(up: Up, books: Books, stream: bool, echo: bool):
    prompts = ["The river runs", "A tree", "Ein Fluss"]
    with books.agree(f"completions, 3 prompts × 2, echo={echo}, stream={stream}") as block:
        answer, request_id = post(up, COMPLETIONS, prompt=prompts, n=2, max_tokens=7, echo=echo, stream=stream)
        block.add(request_id)
    row = up.row(request_id)
    assert (row["usage_source"], row["output_tokens"]) == ("upstream", 3 * 2 * 7)
    assert answer.text.count("The river runs") == (2 if echo else 0)
    paid(row)


def test_tokens_as_prompts(up: Up, books: Books):
    with books.agree("completions of token ids") as block:
        for prompt in ([[9707, 1879], [3838]], [9707, 1879, 0]):
            _, request_id = post(up, COMPLETIONS, prompt=prompt, max_tokens=3)
            block.add(request_id)
    assert up.row(request_id)["input_tokens"] == 3


@pytest.mark.parametrize("stream", [False, True])
def test_responses(up: Up, books: Books, stream: bool):
    asked: dict[str, Any] = {"model": "tiny", "input": SAYS[1]["content"], "instructions": "Be brief.", "max_output_tokens": 20}
    with books.agree(f"responses, stream={stream}") as block:
        answer, request_id = post(up, "/v1/responses", **asked, stream=stream)
        block.add(request_id)
    told = events(answer)[-1]["response"] if stream else answer.json()
    row = up.row(request_id)
    assert (told["status"], told["usage"]["output_tokens"], told["usage"]["input_tokens"]) == ("incomplete", 20, row["input_tokens"])
    assert (row["usage_source"], row["endpoint"], row["end_reason"]) == ("upstream", "responses", "length")
    paid(row)


@pytest.mark.parametrize("stream", [False, True])
def test_messages(up: Up, books: Books, stream: bool):
    with books.agree(f"messages, stream={stream}") as block:
        answer, request_id = post(up, "/v1/messages", messages=SAYS[1:], system="Be brief.", max_tokens=20, stream=stream)
        block.add(request_id)
    row = up.row(request_id)
    usage = events(answer)[-2]["usage"] if stream else answer.json()["usage"]
    cached, created = usage.get("cache_read_input_tokens") or 0, usage.get("cache_creation_input_tokens") or 0
    assert (usage["input_tokens"] + cached + created, usage["output_tokens"]) == (row["input_tokens"], 20)
    assert (row["usage_source"], row["endpoint"], row["end_reason"]) == ("upstream", "messages", "length")
    paid(row)


def test_sdks(up: Up, books: Books):
    with books.agree("the official SDKs") as block:
        raw = up.openai.chat.completions.with_raw_response.create(model="tiny", messages=SAYS, max_tokens=5)
        block.add(raw.headers["x-request-id"])
        with up.openai.responses.with_streaming_response.create(model="tiny", input="Hello", max_output_tokens=5, stream=True) as streamed:
            assert list(streamed.parse())[-1].response.usage.output_tokens == 5
            block.add(streamed.headers["x-request-id"])
        with up.claude.messages.stream(model="tiny", max_tokens=5, messages=SAYS[1:]) as stream:
            assert stream.get_final_message().usage.output_tokens == 5
            block.add(stream.response.headers["x-request-id"])


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("path", [CHAT, "/v1/responses", "/v1/messages"])
def test_functions(up: Up, books: Books, path: str, stream: bool):
    """Random weights call what a grammar makes them call; in white space between two brackets they may be lost until they are cut."""
    body: dict[str, Any] = {"messages": SAYS, "tools": [TOOL], "tool_choice": "required", "max_tokens": 60}
    if path == "/v1/responses":
        body = {
            "input": "Look.",
            "tools": [{"type": "function", "name": "look", "parameters": SCHEMA}],
            "tool_choice": "required",
            "max_output_tokens": 60,
        }
    if path == "/v1/messages":
        tool = {"name": "look", "description": "Looks.", "input_schema": SCHEMA}
        body = {"messages": SAYS[1:], "tools": [tool], "tool_choice": {"type": "any"}, "max_tokens": 60}
    with books.agree(f"a function by {path}, stream={stream}") as block:
        answer, request_id = post(up, path, **body, stream=stream)
        block.add(request_id)
    row = up.row(request_id)
    assert "look" in answer.text
    assert (row["usage_source"], row["usage_flags"]) == ("upstream", [])
    paid(row)


@pytest.mark.parametrize("stream", [False, True])
def test_an_answer_of_nothing(up: Up, books: Books, stream: bool):
    """The end of the turn is the first token: billed, though there is nothing to read."""
    with books.agree(f"the end at once, stream={stream}") as block:
        _, request_id = post(up, CHAT, messages=SAYS, max_tokens=20, logit_bias={str(END_OF_TURN): 100}, stream=stream)
        block.add(request_id)
    row = up.row(request_id)
    assert (row["output_tokens"], row["end_reason"], row["usage_source"]) == (1, "stop", "upstream")


def test_a_stop_string(up: Up, books: Books, words: list[int]):
    with books.agree("a stop string") as block:
        _, request_id = post(up, CHAT, messages=SAYS, max_tokens=200, stop=["e"], allowed_token_ids=words, stream=True)
        block.add(request_id)
    assert up.row(request_id)["end_reason"] == "stop"


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("path", [CHAT, "/v1/responses", "/v1/messages"])
def test_a_prompt_that_was_asked_before(up: Up, books: Books, path: str, stream: bool):
    """Its blocks come from the cache, and cost what cached input costs; what was put there costs what creating costs."""
    text = f"{path} {stream} " + "The river runs through the valley. " * 30
    body = (
        {"input": text, "max_output_tokens": 5}
        if path == "/v1/responses"
        else {"messages": [{"role": "user", "content": text}], "max_tokens": 5}
    )
    with books.agree(f"cached prompts by {path}, stream={stream}") as block:
        found = []
        for _ in range(2):
            _, request_id = post(up, path, **body, stream=stream)
            block.add(request_id)
            found.append(up.row(request_id))
    first, second = found
    tell(f"{path} stream={stream}: {[(row['input_tokens'], row['cached_tokens'], row['cache_creation_tokens']) for row in found]}")
    assert first["cached_tokens"] == 0
    assert second["cached_tokens"] >= 128
    assert second["cached_tokens"] % 32 == 0
    assert first["cache_creation_tokens"] >= 128
    for row in found:
        paid(row)


def test_our_own_count(up: Up, books: Books, words: list[int]):
    """``usage: counted``: nobody asks the backend for usage, and our tokenizer comes to its figures."""
    with books.agree("our own count of streamed words") as block:
        for _ in range(5):
            answer, request_id = post(
                up, CHAT, model="tiny-counted", messages=SAYS, max_tokens=100, stream=True, allowed_token_ids=words, temperature=1
            )
            block.add(request_id)
            row = up.row(request_id)
            assert (row["usage_source"], row["output_tokens"]) == ("counted", 100)
            assert "usage" not in answer.text


def test_a_model_without_a_vocabulary(up: Up, books: Books):
    """vLLM's ``/tokenize`` says what to hold for."""
    with books.agree("a model whose prompts vLLM counts") as block:
        _, request_id = post(up, CHAT, model="tiny-upstream", messages=SAYS, max_tokens=10)
        block.add(request_id)
    row = up.row(request_id)
    by_size = Prompt(messages=tuple((one["role"], one["content"]) for one in SAYS)).bound(None)
    assert row["hold_nanos"] - row["cost"] < by_size * PLAIN["fresh"] // 4, "held by its size: nobody told its tokens"


def test_counting_costs_nothing(up: Up, books: Books):
    with books.agree("tokenize, detokenize, count_tokens: nothing to pay"):
        told = post(up, "/tokenize", prompt="The river runs")[0].json()
        assert post(up, "/detokenize", tokens=told["tokens"])[0].json()["prompt"] == "The river runs"
        counted, request_id = post(up, "/v1/messages/count_tokens", messages=SAYS[1:])
        assert counted.json()["input_tokens"] > 10
    assert up.row(request_id)["cost"] == 0


@pytest.mark.parametrize(
    ("status", "body"),
    [
        (400, {"messages": SAYS, "temperature": -1}),
        (400, {"messages": SAYS, "response_format": {"type": "json_schema"}}),
        (200, {"messages": SAYS, "logit_bias": {"9999999": 1}, "stream": True}),  # seen when the stream has begun
    ],
)
def test_what_vllm_refuses_costs_nothing(up: Up, books: Books, status: int, body: dict[str, Any]):
    with books.agree(f"refused: {sorted(body)}"):
        answer = up.http.post(CHAT, json={"model": "tiny", "max_tokens": 5} | body)
    assert answer.status_code == status, answer.text
    tell(answer.text)
    row = up.row(answer.headers["x-request-id"])
    assert (row["cost"], row["output_tokens"]) == (0, 0), row
    assert row["error_code"] == ("http_400" if status == 400 else row["error_code"])


def test_a_place_in_the_queue(up: Up, books: Books):
    """``backend_priority`` of a model whose vLLM has no ``--scheduling-policy priority``: it takes no notice."""
    with books.agree("a priority that nobody asked vLLM to have") as block:
        answer = up.http.post(CHAT, json={"model": "tiny-ranked", "messages": SAYS, "max_tokens": 5}, headers={"x-priority": "spot"})
        block.add(answer.headers["x-request-id"])
    row = up.row(answer.headers["x-request-id"])
    assert (answer.status_code, row["priority"], row["output_tokens"]) == (200, "spot", 5)


def test_many_at_once(up: Up, books: Books, words: list[int]):
    """All kinds together, batched by the engine as it likes."""
    lock = threading.Lock()

    def client(place: int, block: Block) -> None:
        for turn in range(EACH):
            body = _mixed(place, turn, words)
            answer = up.http.post(body.pop("path"), json=body)
            assert answer.status_code == 200, answer.text
            with lock:
                block.add(answer.headers["x-request-id"])

    with books.agree(f"{CLIENTS} clients at once") as block, ThreadPoolExecutor(CLIENTS) as pool:
        list(pool.map(client, range(CLIENTS), [block] * CLIENTS))
    assert len(block.requests) == CLIENTS * EACH


def _mixed(place: int, turn: int, words: Sequence[int]) -> dict[str, Any]:
    kind = (place + turn) % 5
    text = f"Client {place}, turn {turn}: " + "how far is it to the river? " * (place + 1)
    messages, length = [{"role": "user", "content": text}], 5 + 7 * turn
    chat = {"path": CHAT, "model": "tiny", "messages": messages, "max_tokens": length, "temperature": 1}
    return [
        chat,
        chat | {"stream": True, "n": 2},
        chat | {"path": COMPLETIONS, "prompt": [text, "x"], "echo": True},
        chat | {"path": "/v1/messages", "stream": True},
        {"path": "/v1/responses", "model": "tiny", "input": text, "max_output_tokens": length, "stream": bool(turn % 2)},
    ][kind]
