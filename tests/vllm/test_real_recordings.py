"""Answers of a real vLLM, byte for byte, for the tests that have none at hand (``tests/data/streams/real.json``). ``RECORD=1`` writes them anew.

The truth beside each is what vLLM's own counters grew by, and what that costs at the prices of ``models.yaml`` there.
"""

from __future__ import annotations

import json
import os
import re
from typing import Any, NamedTuple

import pytest
from fuzz.walk import Walk, pinned
from real_model import END_OF_TURN
from real_server import RealVllm
from real_wheel import REQUIREMENT
from recordings import CATALOG, STREAMS, PlainCounters, body_of

pytestmark = pytest.mark.vllm

NANOS = {"input_tokens": 1_000, "cached_tokens": 250 - 1_000, "cache_creation_tokens": 1_250 - 1_000, "output_tokens": 3_000}
ORIGIN = f"{REQUIREMENT}, two layers of random weights"
CREATED = re.compile(r'"(?:created_cache_tokens|cache_write_tokens|cache_creation_input_tokens)":(\d+)')
CHAT, COMPLETIONS, RESPONSES, MESSAGES = "/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/messages"
SAYS = [{"role": "user", "content": "How far is it to the river?"}]
ALL = {"include_usage": True, "continuous_usage_stats": True}


class Take(NamedTuple):
    """``times``: it is asked so often, and the last answer is kept."""

    name: str
    path: str
    request: dict[str, Any]
    times: int = 1
    end_reason: str = "length"


def takes() -> list[Take]:
    found = []
    for stream in (False, True):
        tail, ways = ("-stream", {"stream": True}) if stream else ("", {})
        seeded = {"temperature": 1, "seed": 7}  # vLLM gives no second choice at temperature 0
        chat = {"model": "gpt", "messages": SAYS, "max_tokens": 4, "temperature": 0, **ways}
        text = {"model": "gpt", "prompt": ["The river runs", "A tree"], "n": 2, "max_tokens": 3, "echo": True, **seeded, **ways}
        items = {"model": "gpt", "input": SAYS[0]["content"], "max_output_tokens": 4, "temperature": 0, **ways}
        long = f"again{tail}, " + "the river runs through the valley. " * 12
        found += [
            Take(f"real-chat{tail}", CHAT, chat),
            Take(f"real-chat{tail}-two", CHAT, {**chat, "n": 2, **seeded} | ({"stream_options": ALL} if stream else {})),
            Take(f"real-chat{tail}-end", CHAT, {**chat, "logit_bias": {str(END_OF_TURN): 100}}, end_reason="stop"),
            Take(f"real-chat{tail}-new", CHAT, chat | {"messages": [{"role": "user", "content": long}]}),
            Take(f"real-chat{tail}-cached", CHAT, chat | {"messages": [{"role": "user", "content": f"twice {long}"}]}, times=2),
            Take(f"real-completions{tail}", COMPLETIONS, text),
            Take(f"real-responses{tail}", RESPONSES, items),
            Take(f"real-responses{tail}-cached", RESPONSES, items | {"input": f"items {long}"}, times=2),
            Take(f"real-messages{tail}", MESSAGES, chat),
            Take(f"real-messages{tail}-new", MESSAGES, chat | {"messages": [{"role": "user", "content": f"words {long}"}]}),
            Take(f"real-messages{tail}-cached", MESSAGES, chat | {"messages": [{"role": "user", "content": f"more {long}"}]}, times=2),
        ]
    return found


def test_recordings(vllm: RealVllm):
    rows = [record(take, vllm) for take in takes()]
    index = STREAMS / "real.json"
    if os.environ.get("RECORD"):
        index.write_text("[\n" + ",\n".join(json.dumps(row) for row, _ in rows) + "\n]\n")
        for row, body in rows:
            (STREAMS / row["file"]).write_bytes(body)
    assert [row for row, _ in rows] == json.loads(index.read_text()), "vLLM tells something else now: RECORD=1 make vllm"


def record(take: Take, vllm: RealVllm) -> tuple[dict[str, Any], bytes]:
    """The row of the index, and the answer."""
    walk = Walk(pinned(CATALOG, PlainCounters("letters")))
    walk.ask(take.path, *body_of(take.request))
    assert walk.passed is not None, (take.name, walk.reply)
    for _ in range(take.times):
        before, cached = vllm.rest(), vllm.cached()
        answer = vllm.http.post(take.path, content=walk.passed.data, headers={"content-type": "application/json"})
        assert answer.status_code == 200, (take.name, answer.text)
        grown, cached = vllm.rest().since(before), vllm.cached() - cached
    choices = take.request.get("n", 1)
    created = [int(figure) for figure in CREATED.findall(answer.text)]
    usage = {
        "input_tokens": grown.prompt // choices,
        "cached_tokens": cached if choices == 1 else 0,
        "cache_creation_tokens": created[-1] if created else 0,
        "output_tokens": grown.generated,
    }
    usage = {name: amount for name, amount in usage.items() if amount}
    is_stream = answer.headers["content-type"].startswith("text/event-stream")
    row = {
        "file": f"{take.name}.{'sse' if is_stream else 'json'}", "origin": ORIGIN, "path": take.path, "request": take.request, "tokens": "letters",
        "usage": usage | {"source": "upstream"}, "cost_nanos": sum(NANOS[name] * amount for name, amount in usage.items()),
        "end_reason": take.end_reason, "end": True, "tells_cost": True,
    }  # fmt: skip
    return row, answer.content
