"""What answers without text have in common (embeddings, rerank, score): the prompt is all that they use, and they do not stream."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from extproc.errors import ClientError
from extproc.exchange.ask import NOTHING, Ask, Endpoint, Piece, Prompt
from extproc.exchange.endpoints import fields as read
from extproc.exchange.endpoints.openai import Usual, decoded
from extproc.exchange.meter import Expected, UsageReader
from extproc.money.usage import TOKENS_MAX, Usage, UsageSource

TOKENS_EACH = 96  # around a pair of texts, at most: Qwen3-Reranker's template has 74 and its instruction, models like BERT have 4


class Pooling(Usual):
    """All but the body."""

    output_default: int | None = 0

    def usage(self, raw: Any, source: UsageSource, expected: Expected, output_tokens: int | None = None) -> Usage | None:
        """See :class:`~extproc.exchange.ask.Endpoint`. Some rerankers tell the total alone, which is the same."""
        del output_tokens
        figure, most = UsageReader(), expected.input_tokens_max
        prompt = figure(raw, "prompt_tokens", most)
        if prompt is None:
            prompt = figure(raw, "total_tokens", most)
        if prompt is None:
            return None
        details = raw.get("prompt_tokens_details")
        cached = figure(details, "cached_tokens", prompt) if details else 0
        return msgspec.structs.replace(
            expected.prompt, input_tokens=prompt, cached_tokens=cached or 0, source=source, flags=tuple(figure.flags)
        )

    def read_event(self, data: bytes) -> Piece:
        """See :class:`~extproc.exchange.ask.Endpoint`."""
        return self.read_answer(data)

    def read_answer(self, body: bytes) -> Piece:
        """See :class:`~extproc.exchange.ask.Endpoint`. Numbers are no text, and yet an answer."""
        answer = decoded(_ANSWER, body)
        if answer is None:
            return NOTHING
        if answer.error is not None:
            return Piece(error=True)
        is_answered = bytes(memoryview(answer.data or answer.results)[:1]) == b"["
        return Piece(texts=((0, ""),) if is_answered else (), usage=answer.usage, final=answer.usage is not None, finish="stop")


class _Answer(msgspec.Struct, gc=False):
    data: msgspec.Raw = msgspec.Raw()  # not read: it may be a million numbers
    results: msgspec.Raw = msgspec.Raw()
    usage: Any = None
    error: Any = None


_ANSWER = msgspec.json.Decoder(_Answer)


def ask_of(endpoint: Endpoint, body: Mapping[str, Any], fields: dict[str, Any], prompt: Prompt) -> Ask:
    """The parts that never differ."""
    truncate = read.whole(body, "truncate_prompt_tokens", low=-1, high=TOKENS_MAX)
    if truncate is not None:
        fields["truncate_prompt_tokens"] = truncate
        prompt = msgspec.structs.replace(prompt, is_truncated=True)
    return Ask(endpoint=endpoint, model=read.model_name(body), prompt=prompt, fields=fields)


def texts(value: Any, param: str) -> list[str]:
    """A text or a list of texts. ``{"text": …}`` is a text, too (Cohere, Jina)."""
    listed = value if isinstance(value, list) else [value]
    if not listed or len(listed) > read.PROMPTS_MAX:
        raise ClientError(f"`{param}` must have 1 to {read.PROMPTS_MAX} texts.", param=param, code="invalid_value")
    return [read.string(entry.get("text") if isinstance(entry, dict) else entry, param) for entry in listed]
