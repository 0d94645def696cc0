"""Records the answers of the simulator: ``PYTHONPATH=tests .venv/bin/python tests/data/streams/record.py`` writes them and ``recorded.json`` anew.

The truth beside each is what the simulator's books say that it read and made, and what that costs at the prices of ``models.yaml``,
reckoned here by hand. What a backend is asked is what our exchange forwards: with the usage that we ask for on our own.
"""

# ruff: noqa: T201 - it is there to print
from __future__ import annotations

import http.client
import json
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

from fuzz.walk import Walk, pinned
from recordings import CATALOG, STREAMS, PlainCounters, body_of

from extproc.local import simulator

SOUND_NANOS = {"audio_ms": 1_000}
NANOS = {"input_tokens": 1_000, "cached_tokens": 250 - 1_000, "output_tokens": 3_000, "reasoning_tokens": 4_000 - 3_000}
MODEL, READER, EAR = {"model": "gpt"}, {"model": "reader"}, {"model": "ear"}
SAYS = [{"role": "user", "content": "hello there world"}]
LOOK = {"name": "look", "parameters": {"type": "object"}}
PIXEL = "data:image/png;base64,iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
ASKS_USAGE = {"stream_options": {"include_usage": True}}
ASKS_ALL = {"stream_options": {"include_usage": True, "continuous_usage_stats": True}}


class Take(NamedTuple):
    """``orders``: of the simulator. ``also``: of the truth, what no backend tells; ``source`` of the usage."""

    name: str
    path: str
    request: dict[str, Any]
    orders: dict[str, str] = {}  # noqa: RUF012 - never changed
    also: dict[str, int] = {}  # noqa: RUF012
    source: str = "upstream"
    end_reason: str = "length"
    end: bool = True
    tells_cost: bool = True


def takes() -> list[Take]:
    found = []
    tokens = {"x-sim-tokens": "4"}
    for stream in (False, True):
        ways = {"stream": True} if stream else {}
        tail = "-stream" if stream else ""
        chat, text = {**MODEL, "messages": SAYS, "max_tokens": 4, **ways}, {**MODEL, "prompt": "one two", "max_tokens": 4, **ways}
        thinks = {"x-sim-tokens": "4", "x-sim-reasoning": "2", "x-sim-reasoning-told": "1"}
        answers = {**MODEL, "input": "hello there world", "max_output_tokens": 4, **ways}
        tools = {"tools": [{"type": "function", "function": LOOK}], "tool_choice": "required", "max_tokens": 40}
        look = [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": PIXEL}}, {"type": "text", "text": "what is it"}]}]
        sees = {"images": 1, "image_tokens": 6}
        again = {**tokens, "x-sim-cached-tokens": "7"}
        paths = {"chat": "/v1/chat/completions", "completions": "/v1/completions", "responses": "/v1/responses", "messages": "/v1/messages"}
        bodies = {"chat": chat, "completions": text, "responses": answers, "messages": chat}
        for kind, path in paths.items():
            found.append(Take(f"{kind}{tail}", path, bodies[kind], tokens))
            found.append(
                Take(
                    f"{kind}{tail}-no-usage", path, bodies[kind], {**tokens, "x-sim-fault": "no_usage"}, source="counted", tells_cost=False
                )
            )
            found.append(
                Take(f"{kind}{tail}-cached", path, bodies[kind], {"x-sim-tokens": "3", "x-sim-cached-tokens": "1"}, end_reason="stop")
            )
        found += [
            Take(f"chat{tail}-two", paths["chat"], {**chat, "n": 2} | (ASKS_USAGE if stream else {}), tokens),
            Take(f"chat{tail}-thinking", paths["chat"], {**chat, **(ASKS_ALL if stream else {})}, thinks),
            Take(f"chat{tail}-tools", paths["chat"], {**chat, **tools}, {"x-sim-tokens": "12"}, end_reason="stop"),
            Take(f"chat{tail}-image", paths["chat"], {**chat, "messages": look}, again, also=sees),
            Take(f"completions{tail}-prompts", paths["completions"], {**text, "prompt": ["one two", "three"], "n": 2, "max_tokens": 2}, tokens),
            Take(f"responses{tail}-thinking", paths["responses"], answers, thinks),
            Take(f"responses{tail}-tools", paths["responses"], {**answers, "tools": [{"type": "function", **LOOK}], "tool_choice": "required", "max_output_tokens": 40}, {"x-sim-tokens": "12"}, end_reason="stop"),
            Take(f"messages{tail}-tools", paths["messages"], {**chat, "tools": [{"name": "look", "input_schema": {"type": "object"}}], "tool_choice": {"type": "any"}, "max_tokens": 40}, {"x-sim-tokens": "12"}, end_reason="stop"),
        ]  # fmt: skip
        sound = {"form": {**EAR, **({"stream": "true"} if stream else {})}, "wav_ms": 1_500}
        found.append(Take(f"transcriptions{tail}", "/v1/audio/transcriptions", sound, tokens, end_reason="stop"))
    died, aborted = {"x-sim-tokens": "6", "x-sim-fault": "engine_death_after=3"}, {"x-sim-tokens": "6", "x-sim-fault": "abort_after=3"}
    chat = {**MODEL, "messages": SAYS, "max_tokens": 9, "stream": True}
    found += [
        Take("chat-stream-died", "/v1/chat/completions", chat, died, source="counted", end_reason="upstream_error"),
        Take("chat-stream-aborted", "/v1/chat/completions", chat, aborted, end_reason="abort"),
        Take("chat-stream-crlf", "/v1/chat/completions", chat, {"x-sim-tokens": "3", "x-sim-fault": "crlf"}, end_reason="stop"),
        Take("chat-stream-no-done", "/v1/chat/completions", chat, {"x-sim-tokens": "3", "x-sim-fault": "no_done"}, end_reason="stop"),
        Take("embeddings", "/v1/embeddings", {**READER, "input": ["one two", "three"], "dimensions": 2}, end_reason="stop"),
        Take("embeddings-no-usage", "/v1/embeddings", {**READER, "input": "one two three", "dimensions": 2}, {"x-sim-fault": "no_usage"}, source="counted", end_reason="stop", tells_cost=False),
        Take("rerank", "/v1/rerank", {**READER, "query": "what is it", "documents": ["a tree", "a house by the sea"]}, end_reason="stop"),
        Take("score", "/v1/score", {**READER, "text_1": "what is it", "text_2": ["a tree", "a house by the sea"]}, end_reason="stop"),
        Take("transcriptions-verbose", "/v1/audio/transcriptions", {"form": {**EAR, "response_format": "verbose_json"}, "wav_ms": 2_000}, end_reason="stop", tells_cost=False),
    ]  # fmt: skip
    return found


def record(take: Take, sim: simulator.Simulator) -> dict[str, Any]:
    walk = Walk(pinned(CATALOG, PlainCounters("words")))
    walk.ask(take.path, *body_of(take.request))
    assert walk.passed is not None, (take.name, walk.reply)
    content_type = dict(walk.passed.set_headers)["content-type"]
    connection = http.client.HTTPConnection("127.0.0.1", sim.port, timeout=10)
    connection.request("POST", take.path, walk.passed.data, {"content-type": content_type, "x-request-id": take.name, **take.orders})
    response = connection.getresponse()
    body = response.read()
    connection.close()
    is_stream = response.headers["content-type"].startswith("text/event-stream")
    (seen,) = sim.requests(take.name)
    assert seen["status"] == 200, (take.name, body)
    file = f"{take.name}.{'sse' if is_stream else 'json'}"
    (STREAMS / file).write_bytes(body)
    usage, nanos = truth(seen, take, body), SOUND_NANOS if "wav_ms" in take.request else NANOS
    orders = "".join(f", {name} {value}" for name, value in take.orders.items())
    return {
        "file": file, "origin": f"the simulator of vLLM 0.32{orders}", "path": take.path, "request": take.request, "tokens": "words",
        "usage": usage | {"source": take.source}, "cost_nanos": sum(nanos.get(name, 0) * amount for name, amount in usage.items()),
        "end_reason": take.end_reason, "end": take.end, "tells_cost": take.tells_cost,
    }  # fmt: skip


def truth(seen: dict[str, Any], take: Take, body: bytes) -> dict[str, int]:
    """As the engine's books have it. What was cached and what was thought are known to those only whom the answer tells."""
    told = (seen["usage"] or {}) if take.source == "upstream" else {}
    if take.path.startswith("/v1/audio"):
        tokens = {"input_tokens": seen["prompt_tokens"], "output_tokens": seen["generated_tokens"]} if b"data:" in body else {}
        seconds = take.request["wav_ms"] if b"data:" in body else -(-take.request["wav_ms"] // 1_000) * 1_000
        return tokens | {"audio_ms": seconds}
    reasoning = seen["reasoning_tokens"] if "reasoning_tokens" in json.dumps(told) else 0
    cached = seen["cached_tokens"] or 0 if "cache" in json.dumps(told) else 0
    usage = {"input_tokens": seen["prompt_tokens"], "cached_tokens": cached, "output_tokens": seen["generated_tokens"]}
    return {name: amount for name, amount in (usage | {"reasoning_tokens": reasoning} | take.also).items() if amount}


def main() -> None:
    with tempfile.TemporaryDirectory(prefix="xr-", dir="/tmp") as folder:
        sim = simulator.start(
            Path(folder), models=["Org/M", "reader", "ear"], options=["--enable-prompt-tokens-details", "--max-model-len", "10000"]
        )
        try:
            rows = [record(take, sim) for take in takes()]
        finally:
            sim.stop()
    (STREAMS / "recorded.json").write_text("[\n" + ",\n".join(json.dumps(row) for row in rows) + "\n]\n")
    print(f"{len(rows)} recorded, {sum((STREAMS / row['file']).stat().st_size for row in rows):,} bytes")


if __name__ == "__main__":
    main()
