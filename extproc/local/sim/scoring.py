"""POST /score and /rerank, under each of their paths, as vLLM reads and writes them: how well texts fit, pair by pair."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

from extproc.local.sim import fields as read
from extproc.local.sim.ask import Ask, Model, Refused, missing
from extproc.local.sim.embeddings import truncated
from extproc.local.sim.http import json_bytes
from extproc.local.sim.prompt import Prompt, prompt_of
from extproc.local.sim.shape import DocumentShape, Output
from extproc.local.sim.steering import Steering
from extproc.local.sim.text import Text
from extproc.local.sim.usage import Spent, usage_of_reading, usage_of_rerank

PAIRS_MAX = 4_096
"""Of one request: enough for any test."""

_NAMES = (("text_1", "text_2"), ("queries", "documents"), ("queries", "items"), ("data_1", "data_2"))


def ask_of_score(fields: Mapping[str, Any], model: Model, steering: Steering, text: Text) -> Ask:
    """One left side for all right ones, or as many as there are of them. Raises :class:`Refused`."""
    del steering
    names = next((names for names in _NAMES if all(name in fields for name in names)), None)
    if names is None:
        raise missing("text_1")
    left, right = (_texts(fields[name], name) for name in names)
    if len(left) not in (1, len(right)):
        raise Refused(400, "Input lengths must be either 1:1, 1:N or N:N", param=names[0])
    pairs = zip(left * len(right) if len(left) == 1 else left, right, strict=True)
    return read.reading(fields, model, [truncated(_pair(one, other, text), fields, model) for one, other in pairs])


def ask_of_rerank(fields: Mapping[str, Any], model: Model, steering: Steering, text: Text) -> Ask:
    """Raises :class:`Refused`."""
    del steering
    read.integer(fields, "top_n", least=0)
    query = _text(fields.get("query"), "query")
    documents = _texts(fields.get("documents"), "documents")
    return read.reading(fields, model, [truncated(_pair(query, document, text), fields, model) for document in documents])


def _pair(one: str, other: str, text: Text) -> Prompt:
    return prompt_of([one, other], text)


def _texts(value: Any, name: str) -> list[str]:
    texts = value if isinstance(value, list) else [value]
    if not 0 < len(texts) <= PAIRS_MAX:
        raise Refused(400, f"{name} must have between 1 and {PAIRS_MAX} texts", param=name)
    return [_text(one, name) for one in texts]


def _text(value: Any, name: str) -> str:
    found = value.get("text") if isinstance(value, dict) else value
    if not isinstance(found, str):
        raise missing(name) if value is None else Refused(400, f"{name} must be text", param=name)
    return found


def _fit(prompt: Prompt) -> float:
    """Between 0 and 1, the same for the same pair."""
    return int.from_bytes(hashlib.sha256(repr(prompt.parts).encode("utf-8", "replace")).digest()[:4], "big") / 2**32


class ScoreShape(DocumentShape):
    """Of one request."""

    def __init__(self, request_id: str, created: int, model_json: bytes, ask: Ask) -> None:
        self._members = b'"id":"score-%b","object":"list","created":%d,"model":%b' % (request_id.encode(), created, model_json)
        self._prompts = ask.prompts

    def usage(self, spent: Spent, wrong: str | None) -> bytes:
        return usage_of_reading(spent, wrong)

    def document(self, outputs: Sequence[Output], reason: str, usage: bytes | None) -> bytes:
        del outputs, reason
        data = [{"index": index, "object": "score", "score": _fit(prompt)} for index, prompt in enumerate(self._prompts)]
        return b'{%b,"data":%b%b}' % (self._members, json_bytes(data), b"" if usage is None else b',"usage":%b' % usage)


class RerankShape(DocumentShape):
    """Of one request; the best fit first."""

    def __init__(self, request_id: str, created: int, model_json: bytes, ask: Ask) -> None:
        del created
        self._members = b'"id":"rerank-%b","model":%b' % (request_id.encode(), model_json)
        self._ask = ask

    def usage(self, spent: Spent, wrong: str | None) -> bytes:
        return usage_of_rerank(spent, wrong)

    def document(self, outputs: Sequence[Output], reason: str, usage: bytes | None) -> bytes:
        del outputs, reason
        results = [
            {"index": index, "document": {"text": prompt.parts[1], "multi_modal": None}, "relevance_score": _fit(prompt)}
            for index, prompt in enumerate(self._ask.prompts)
        ]
        results.sort(key=lambda result: -result["relevance_score"])  # type: ignore[operator]
        most = read.integer(self._ask.fields, "top_n", least=0) or len(results)
        return b'{%b%b,"results":%b}' % (self._members, b"" if usage is None else b',"usage":%b' % usage, json_bytes(results[:most]))
