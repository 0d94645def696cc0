"""Requests as people send them, to every endpoint, by seed."""

from __future__ import annotations

import io
import json
import random
import struct
import wave
import zlib
from base64 import b64encode
from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple

BOUNDARY = "a-boundary"
PIECES = (
    *(
        "the river ",
        "runs through ",
        "a valley. ",
        "\n",
        "42",
        " and ",
        "don't ",
        "值得",
        "注意 的是 ",
        "한국어 ",
        "مرحبا ",
        "😀👩‍👩‍👧",
        "é",
        "e\u0301",
    ),
    *('{"a": [1, 2]}', "    def f(x):\n", "AAAAaaaa", "   ", "<|im_end|>", "\u2028", "\x00", "ﬀ", "Ⅷ"),
)


class Ask(NamedTuple):
    """``body`` is the bytes that are sent; ``members`` what they say, ``None`` of a form."""

    path: str
    body: bytes
    content_type: str
    members: dict[str, Any] | None


def text(dice: random.Random, most: int = 60) -> str:
    return "".join(dice.choices(PIECES, k=dice.randint(1, max(1, int(most ** dice.random())))))


def random_ask(dice: random.Random, models: Callable[[str], str]) -> Ask:
    """``models``: a model that serves an endpoint."""
    path = dice.choice(tuple(BODIES))
    endpoint, make = BODIES[path]
    if endpoint == "transcriptions":
        return form_ask(path, make(dice, models(endpoint)), sound(dice.randint(1, 40) * 250))
    members = make(dice, models(endpoint))
    return Ask(path, json.dumps(members, ensure_ascii=dice.random() < 0.5).encode("utf-8", "surrogatepass"), "application/json", members)


def form_ask(path: str, fields: dict[str, str], file: bytes) -> Ask:
    parts = [f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n{value}\r\n' for name, value in fields.items()]
    head = f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="file"; filename="a.wav"\r\nContent-Type: audio/wav\r\n\r\n'
    body = "".join([*parts, head]).encode("utf-8", "surrogatepass") + file + f"\r\n--{BOUNDARY}--\r\n".encode()
    return Ask(path, body, f"multipart/form-data; boundary={BOUNDARY}", None)


@cache
def sound(length_ms: int) -> bytes:
    file = io.BytesIO()
    with wave.open(file, "wb") as written:
        written.setnchannels(1)
        written.setsampwidth(1)
        written.setframerate(1_000)
        written.writeframes(bytes(length_ms))
    return file.getvalue()


@cache
def png(width: int, height: int) -> str:
    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return "data:image/png;base64," + b64encode(b"\x89PNG\r\n\x1a\n" + _part(b"IHDR", header) + _part(b"IEND", b"")).decode()


def _part(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def picture(dice: random.Random) -> str:
    return png(dice.choice((64, 512, 1_024)), dice.choice((64, 768))) if dice.random() < 0.8 else "https://example.com/a.png"


def _maybe(dice: random.Random, probability: float = 0.3, **members: Any) -> dict[str, Any]:
    return {name: value for name, value in members.items() if dice.random() < probability}


def _sampling(dice: random.Random) -> dict[str, Any]:
    given = _maybe(dice, 0.15, temperature=0.7, top_p=0.9, seed=1, stop=["\n\n"], logit_bias={"5": -100}, ignore_eos=True, top_k=20)
    return given | _maybe(
        dice, 0.1, user="u", metadata={"a": "b"}, priority=-5, cache_salt="x", request_id="r", vllm_xargs={"a": 1}, unknown=1
    )


def _output_max(dice: random.Random) -> Any:
    return dice.choice((dice.randint(1, 64), dice.randint(1, 2_000), "3", 2.0, 8_192))


def _streaming(dice: random.Random) -> dict[str, Any]:
    if dice.random() < 0.4:
        return {}
    options = {"stream_options": {"include_usage": True} | _maybe(dice, continuous_usage_stats=True)} if dice.random() < 0.5 else {}
    return {"stream": dice.choice((True, True, "true", 1))} | options


def schema(dice: random.Random) -> dict[str, Any]:
    properties = {f"p{number}": {"type": "string", "description": text(dice, 10)} for number in range(dice.choice((0, 1, 20)))}
    return {"type": "object", "properties": properties}


def chat(dice: random.Random, model: str) -> dict[str, Any]:
    messages: list[dict[str, Any]] = [{"role": "system", "content": text(dice)}] if dice.random() < 0.4 else []
    messages += [{"role": dice.choice(("user", "assistant")), "content": text(dice)} for _ in range(dice.randint(1, 4))]
    if model == "sees" and dice.random() < 0.7:
        url = picture(dice)
        parts = [
            {"type": "image_url", "image_url": dice.choice((url, {"url": url, "detail": "low"}))},
            {"type": "text", "text": text(dice)},
        ]
        messages.append({"role": "user", "content": parts})
    body: dict[str, Any] = {
        "model": model,
        "messages": messages,
        **_sampling(dice),
        **_streaming(dice),
        **_maybe(dice, n=dice.randint(1, 4)),
    }
    if dice.random() < 0.15:
        body["tools"] = [{"type": "function", "function": {"name": "look", "description": text(dice), "parameters": schema(dice)}}]
    if dice.random() < 0.1:
        messages += called(dice)
    return body | _maybe(dice, 0.6, max_tokens=_output_max(dice)) | _maybe(dice, 0.2, max_completion_tokens=_output_max(dice))


def called(dice: random.Random) -> list[dict[str, Any]]:
    """Calls of functions, and their results."""
    given = [
        json.dumps(_maybe(dice, 0.5, a=1, b=text(dice), c=[None, True]), ensure_ascii=dice.random() < 0.5)
        for _ in range(dice.randint(1, 3))
    ]
    calls = [{"id": f"c{at}", "type": "function", "function": {"name": "look", "arguments": one}} for at, one in enumerate(given)]
    results = [{"role": "tool", "tool_call_id": call["id"], "content": text(dice)} for call in calls]
    return [{"role": "assistant", "content": dice.choice((None, text(dice))), "tool_calls": calls}, *results]


def completions(dice: random.Random, model: str) -> dict[str, Any]:
    ids = [dice.randint(0, 50_000) for _ in range(dice.randint(1, 20))]
    prompt = dice.choice((text(dice), [text(dice) for _ in range(dice.randint(1, 4))], ids, [ids, ids]))
    more = _maybe(dice, 0.2, n=dice.randint(1, 3), echo=True) | _maybe(dice, 0.6, max_tokens=_output_max(dice))
    return {"model": model, "prompt": prompt, **_sampling(dice), **_streaming(dice), **more}


def responses(dice: random.Random, model: str) -> dict[str, Any]:
    items = [
        {"role": "user", "content": [{"type": "input_text", "text": text(dice)}]},
        {"type": "message", "role": "assistant", "content": text(dice)},
        *_maybe(
            dice, 0.1, call={"type": "function_call", "call_id": "c", "name": "look", "arguments": json.dumps({"a": text(dice)})}
        ).values(),
    ]
    items += [{"type": "function_call_output", "call_id": "c", "output": text(dice)} for item in items if item.get("call_id")]
    body = {"model": model, "input": dice.choice((text(dice), items)), **_maybe(dice, instructions=text(dice), temperature=0.5, store=True)}
    stream = {"stream": True} if dice.random() < 0.5 else {}
    tools = [{"type": "function", "name": "look", "parameters": schema(dice)}]
    return body | stream | _maybe(dice, 0.15, tools=tools) | _maybe(dice, 0.7, max_output_tokens=_output_max(dice))


def messages(dice: random.Random, model: str) -> dict[str, Any]:
    blocks: list[dict[str, Any]] = [{"type": "text", "text": text(dice)} | _maybe(dice, cache_control={"type": "ephemeral"})]
    if model == "sees":
        source = {"type": "base64", "media_type": "image/png", "data": png(512, 512).partition(",")[2]}
        blocks.append({"type": "image", "source": source})
    asked: list[dict[str, Any]] = [{"role": "user", "content": dice.choice((text(dice), blocks))}]
    if dice.random() < 0.1:
        result = {"type": "tool_result", "tool_use_id": "c", "content": text(dice)}
        asked += [
            {"role": "assistant", "content": [{"type": "tool_use", "id": "c", "name": "look", "input": {"a": text(dice), "b": {"c": 1}}}]},
            {"role": "user", "content": [result, *_maybe(dice, more={"type": "text", "text": text(dice)}).values()]},
        ]
    body = {"model": model, "max_tokens": _output_max(dice), "messages": asked}
    more = _maybe(dice, system=text(dice), stream=True, temperature=1, metadata={"user_id": "u"}, stop_sequences=["x"])
    return body | more | _maybe(dice, 0.15, tools=[{"name": "look", "input_schema": schema(dice)}])


def embeddings(dice: random.Random, model: str) -> dict[str, Any]:
    ids = [dice.randint(0, 50_000) for _ in range(dice.randint(1, 20))]
    given = dice.choice((text(dice), [text(dice) for _ in range(dice.randint(1, 6))], ids, [ids, ids]))
    return {"model": model, "input": given, **_maybe(dice, encoding_format="base64", dimensions=8, truncate_prompt_tokens=20)}


def rerank(dice: random.Random, model: str) -> dict[str, Any]:
    documents = [dice.choice((text(dice), {"text": text(dice)})) for _ in range(dice.randint(1, 6))]
    return {"model": model, "query": text(dice, 10), "documents": documents, **_maybe(dice, top_n=2, return_documents=True)}


def score(dice: random.Random, model: str) -> dict[str, Any]:
    second = [text(dice) for _ in range(dice.randint(1, 4))]
    return {"model": model, "text_1": dice.choice((text(dice), [text(dice) for _ in second])), "text_2": second}


def transcriptions(dice: random.Random, model: str) -> dict[str, str]:
    return {
        "model": model,
        **_maybe(dice, language="en", response_format=dice.choice(("json", "verbose_json")), temperature="0", stream="true"),
    }


def tokenize(dice: random.Random, model: str) -> dict[str, Any]:
    return {"model": model} | dice.choice(({"prompt": text(dice)}, {"messages": [{"role": "user", "content": text(dice)}]}))


def detokenize(dice: random.Random, model: str) -> dict[str, Any]:
    return {"model": model, "tokens": [dice.randint(0, 50_000) for _ in range(dice.randint(0, 20))]}


BODIES: dict[str, tuple[str, Callable[[random.Random, str], dict[str, Any]]]] = {
    "/v1/chat/completions": ("chat.completions", chat),
    "/v1/completions": ("completions", completions),
    "/v1/responses": ("responses", responses),
    "/v1/messages": ("messages", messages),
    "/v1/messages/count_tokens": ("messages", messages),
    "/v1/embeddings": ("embeddings", embeddings),
    "/v1/rerank": ("rerank", rerank),
    "/v2/rerank": ("rerank", rerank),
    "/rerank": ("rerank", rerank),
    "/v1/score": ("score", score),
    "/score": ("score", score),
    "/v1/audio/transcriptions": ("transcriptions", transcriptions),
    "/v1/audio/translations": ("transcriptions", transcriptions),
    "/tokenize": ("chat.completions", tokenize),
    "/detokenize": ("chat.completions", detokenize),
}
