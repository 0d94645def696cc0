"""What the house believes of vLLM (usage, leniency, refusals, counts), asked of the real one; and whether the simulator answers alike."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from real_books import tell
from real_model import ALSO, END_OF_TURN, SERVED
from real_server import RealVllm

from extproc.local import simulator
from extproc.settlement.reconcile_unbilled import Counters
from extproc.tokens.registry import load_counters

pytestmark = pytest.mark.vllm

ROOT = Path(__file__).parents[2]
TEXTS: dict[str, str] = json.loads((ROOT / "tests/data/texts.json").read_text())
CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
SAYS: Any = [{"role": "user", "content": "How far is it?"}]
ASKED: dict[str, Any] = {"model": SERVED, "messages": SAYS, "max_tokens": 6}
USAGE, CONTINUOUS = {"include_usage": True}, {"include_usage": True, "continuous_usage_stats": True}


@pytest.fixture(scope="module")
def sim(folder: Path) -> Iterator[simulator.Simulator]:
    vocabulary = ROOT / "extproc/tokens/vocab/qwen.tiktoken.xz"
    options = ["--chat-template", "chatml", "--enable-prompt-tokens-details", "--max-model-len", "4096"]
    started = simulator.start(folder / "sim", models=[SERVED], vocabulary=vocabulary, options=options)
    yield started
    started.stop()


def _named(value: Any) -> str:
    return str(value)[:60]


def events(answer: httpx.Response) -> list[Any]:
    """Data of every event; ``[DONE]`` as it is."""
    assert answer.status_code == 200, answer.text
    lines = [line.removeprefix("data: ") for line in answer.text.split("\n") if line.startswith("data: ")]
    return [json.loads(line) if line != "[DONE]" else line for line in lines]


def usage_of(answer: httpx.Response) -> tuple[int, int]:
    assert answer.status_code == 200, answer.text
    usage = answer.json()["usage"]
    return usage["prompt_tokens"], usage["completion_tokens"]


# where usage is


def test_a_stream_tells_nothing_by_itself(vllm: RealVllm):
    *seen, done = events(vllm.post(CHAT, **ASKED, stream=True))
    assert done == "[DONE]"
    assert not any("usage" in event for event in seen)
    assert seen[0]["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    assert seen[-1]["choices"][0]["finish_reason"] == "length"


def test_usage_comes_in_one_event_more(vllm: RealVllm):
    *seen, last, done = events(vllm.post(CHAT, **ASKED, stream=True, stream_options=USAGE))
    assert (last["choices"], done) == ([], "[DONE]")
    assert last["usage"]["completion_tokens"] == 6
    assert not any(event.get("usage") for event in seen)


def test_continuous_usage_counts_each_choice_by_itself(vllm: RealVllm):
    *seen, last, _ = events(vllm.post(CHAT, **ASKED, n=2, stream=True, stream_options=CONTINUOUS))
    assert all(event["usage"]["prompt_tokens"] == last["usage"]["prompt_tokens"] for event in seen)
    assert [event["usage"]["completion_tokens"] for event in seen if event["choices"][0]["delta"].get("role")] == [0, 0]
    assert max(event["usage"]["completion_tokens"] for event in seen) == 6
    assert last["usage"]["completion_tokens"] == 12
    assert not any("prompt_tokens_details" in event["usage"] for event in seen)
    alone = events(vllm.post(CHAT, **ASKED, stream=True, stream_options={"continuous_usage_stats": True}))
    assert not any("usage" in event for event in alone[:-1])


def test_vllm_counts_a_prompt_for_each_choice(vllm: RealVllm):
    before = vllm.rest()
    prompt, _ = usage_of(vllm.post(CHAT, **ASKED, n=3))
    grown = vllm.rest().since(before)
    assert (grown.prompt, grown.generated) == (3 * prompt, 3 * 6)


def test_the_check_of_unbilled_traffic_reads_its_page(vllm: RealVllm):
    """A request at our side; theirs is ours where a prompt has one choice."""
    before, counters = vllm.rest(), Counters(SERVED)
    counters.growth(vllm.page())
    told = usage_of(vllm.post(CHAT, **ASKED))
    grown = vllm.rest().since(before)
    assert counters.growth(vllm.page()) == (sum(grown), 0) == (sum(told), 0)


def test_every_name_is_answered_by_the_first(vllm: RealVllm):
    assert vllm.post(CHAT, **(ASKED | {"model": ALSO})).json()["model"] == SERVED


def test_counting_is_no_work_for_the_engine(vllm: RealVllm):
    before = vllm.rest()
    vllm.post("/tokenize", model=SERVED, prompt="hello")
    vllm.post("/v1/messages/count_tokens", model=SERVED, messages=SAYS)
    assert vllm.rest() == before


def test_responses_tell_at_the_end_alone(vllm: RealVllm):
    seen = events(vllm.post("/v1/responses", model=SERVED, input="How far?", max_output_tokens=6, stream=True, store=False))
    assert seen[-1]["type"] == "response.completed"
    assert (seen[-1]["response"]["status"], seen[-1]["response"]["usage"]["output_tokens"]) == ("incomplete", 6)
    assert not any(event.get("response", {}).get("usage") for event in seen[:-1])


def test_messages_tell_the_prompt_at_once(vllm: RealVllm):
    seen = events(vllm.post("/v1/messages", **ASKED, stream=True))
    assert [seen[0]["type"], seen[-2]["type"], seen[-1]["type"]] == ["message_start", "message_delta", "message_stop"]
    begun, ended = seen[0]["message"]["usage"], seen[-2]["usage"]
    parts = ("input_tokens", "cache_read_input_tokens", "cache_creation_input_tokens")
    assert begun["input_tokens"] == sum(ended.get(part) or 0 for part in parts)
    assert (begun["output_tokens"], ended["output_tokens"]) == (0, 6)


# the prompt that is counted


@pytest.mark.parametrize("kind", TEXTS)
def test_texts_have_as_many_tokens_with_us(vllm: RealVllm, kind: str):
    counter = load_counters(["qwen2"]).get("qwen2", "chatml")
    assert counter is not None
    text = TEXTS[kind]
    told = vllm.post("/tokenize", model=SERVED, prompt=text).json()["count"]
    if kind == "special":  # vLLM reads special tokens out of what people write; we count their letters, which are more
        assert told < counter.count(text)
    else:
        assert told == counter.count(text)


def test_chats_have_as_many_tokens_with_us(vllm: RealVllm):
    counter = load_counters(["qwen2"]).get("qwen2", "chatml")
    assert counter is not None
    for kind, text in TEXTS.items():
        if kind == "special":
            continue
        turns = [
            ("system", "Be brief."),
            ("user", text),
            ("assistant", "\n\nYes."),
            ("user", f"\n{text[:50]} "),
            ("tool", "42"),
            ("user", ""),
        ]
        messages = [{"role": role, "content": content} for role, content in turns]
        told = vllm.post("/tokenize", model=SERVED, messages=messages).json()["count"]
        ours = counter.count_chat(turns)
        assert told == ours, (kind, told, ours)
        assert vllm.post(CHAT, model=SERVED, messages=messages, max_tokens=1).json()["usage"]["prompt_tokens"] == told


# what is let through, and what is refused


@pytest.mark.parametrize(
    ("more", "output"),
    [
        ({"max_tokens": "3"}, 3),
        ({"max_tokens": 3.0}, 3),
        ({"max_tokens": 9, "max_completion_tokens": 3}, 3),
        ({"model": None, "max_tokens": 3}, 3),
        ({"stream": "false", "max_tokens": 3}, 3),
        ({"stream": 0, "max_tokens": 3}, 3),
        ({"cache_salt": "x" * 128, "max_tokens": 3}, 3),
        ({"stream_interval": 3, "max_tokens": 3}, 3),
        ({"priority": 3, "max_tokens": 3}, 3),  # without --scheduling-policy priority: no notice is taken
        ({"whatever": 1, "max_tokens": 3}, 3),
        ({"n": 16, "max_tokens": 1}, 16),
        ({"logit_bias": {str(END_OF_TURN): 100}}, 1),
    ],
    ids=_named,
)
def test_what_it_takes(vllm: RealVllm, more: dict[str, Any], output: int):
    assert usage_of(vllm.post(CHAT, **(ASKED | more)))[1] == output


def test_the_last_of_doubled_members_counts(vllm: RealVllm):
    content = json.dumps(ASKED)[:-1] + ', "max_tokens": 2}'
    answer = vllm.http.post(CHAT, content=content, headers={"content-type": "application/json"})
    assert usage_of(answer)[1] == 2


@pytest.mark.parametrize(
    ("status", "more"),
    [
        (404, {"model": "nobody's"}),
        (400, {"max_tokens": 5_000}),
        (400, {"messages": [{"role": "user", "content": "far " * 5_000}]}),
        (400, {"cache_salt": "a/b"}),
        (400, {"cache_salt": "x" * 129}),
        (400, {"n": 16_385}),
        (400, {"n": 0}),
        (400, {"max_tokens": 0}),
        (400, {"max_tokens": "three"}),
    ],
    ids=_named,
)
def test_what_it_refuses(vllm: RealVllm, status: int, more: dict[str, Any]):
    before = vllm.rest()
    for stream in (False, True):
        answer = vllm.post(CHAT, **(ASKED | more), stream=stream)
        assert answer.status_code == status, answer.text[:500]
        assert set(answer.json()["error"]) >= {"message", "type", "code"}
    assert vllm.rest() == before


def test_echo_without_output_makes_one_token(vllm: RealVllm):
    answer = vllm.post(COMPLETIONS, model=SERVED, prompt="The river", echo=True, max_tokens=0)
    assert (answer.json()["choices"][0]["text"], usage_of(answer)[1]) == ("The river", 1)


# the simulator beside it

ALIKE: dict[str, tuple[str, dict[str, Any]]] = {
    "chat": (CHAT, ASKED),
    "chat, n=2": (CHAT, ASKED | {"n": 2}),
    "chat streamed": (CHAT, ASKED | {"stream": True}),
    "chat streamed, usage": (CHAT, ASKED | {"stream": True, "stream_options": USAGE}),
    "chat streamed, continuous": (CHAT, ASKED | {"stream": True, "stream_options": CONTINUOUS}),
    "completions": (COMPLETIONS, {"model": SERVED, "prompt": "The river", "max_tokens": 6}),
    "completions streamed": (
        COMPLETIONS,
        {"model": SERVED, "prompt": "The river", "max_tokens": 6, "stream": True, "stream_options": CONTINUOUS},
    ),
    "responses": ("/v1/responses", {"model": SERVED, "input": "How far?", "max_output_tokens": 6, "store": False}),
    "responses streamed": ("/v1/responses", {"model": SERVED, "input": "How far?", "max_output_tokens": 6, "store": False, "stream": True}),
    "messages": ("/v1/messages", ASKED),
    "messages streamed": ("/v1/messages", ASKED | {"stream": True}),
    "count_tokens": ("/v1/messages/count_tokens", {"model": SERVED, "messages": SAYS}),
    "tokenize": ("/tokenize", {"model": SERVED, "prompt": "The river"}),
    "unknown model": (CHAT, ASKED | {"model": "nobody's"}),
    "too long": (CHAT, ASKED | {"max_tokens": 5_000}),
    "no messages": (CHAT, {"model": SERVED}),
}


def shape(value: Any) -> Any:
    """Members and their kinds, without what they say; ``null`` may stand for anything."""
    if isinstance(value, dict):
        return {name: shape(member) for name, member in sorted(value.items())}
    if isinstance(value, list):
        return [shape(value[0])] if value else []
    return "null" if value is None else "number" if isinstance(value, int | float) and not isinstance(value, bool) else type(value).__name__


def differences(theirs: Any, ours: Any, at: str = "") -> Iterator[str]:
    """What the simulator has not, or has otherwise: ``-`` it lacks, ``+`` it invents, ``~`` of another kind."""
    if isinstance(theirs, dict) and isinstance(ours, dict):
        for name in sorted(theirs.keys() | ours.keys()):
            if name not in ours:
                yield f"-{at}.{name}" + (" (null)" if theirs[name] == "null" else "")
            elif name not in theirs:
                yield f"+{at}.{name}" + (" (null)" if ours[name] == "null" else "")
            else:
                yield from differences(theirs[name], ours[name], f"{at}.{name}")
    elif isinstance(theirs, list) and isinstance(ours, list):
        if theirs and ours:
            yield from differences(theirs[0], ours[0], f"{at}[]")
    elif theirs != ours and "null" not in (theirs, ours):
        yield f"~{at}: {theirs} / {ours}"


def told(url: str, path: str, body: dict[str, Any]) -> tuple[int, list[tuple[str, Any]]]:
    """Status, and of every event its type and shape, without repetition; a JSON answer is one."""
    answer = httpx.post(url + path, json=body, timeout=60)
    if "text/event-stream" not in answer.headers["content-type"]:
        return answer.status_code, [("", shape(answer.json()))]
    kinds: list[tuple[str, Any]] = []
    for event in events(answer):
        found = (event.get("type", ""), shape(event)) if isinstance(event, dict) else (event, None)
        if found not in kinds:
            kinds.append(found)
    return answer.status_code, kinds


@pytest.mark.parametrize("what", ALIKE)
def test_the_simulator_answers_alike(vllm: RealVllm, sim: simulator.Simulator, what: str):
    path, body = ALIKE[what]
    (status, theirs), (our_status, ours) = told(vllm.url, path, body), told(sim.url, path, body)
    orders = [kind for kind, _ in theirs], [kind for kind, _ in ours]
    differing = [line for (_, one), (_, other) in zip(theirs, ours, strict=False) for line in differences(one, other)]
    tell(f"{what}: {status}", *(orders if orders[0] != orders[1] else ()), *differing)
    assert our_status == status
