"""POST /v1/embeddings, as vLLM reads and writes it."""

from __future__ import annotations

import base64
import hashlib
import struct
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from extproc.local.sim import fields as read
from extproc.local.sim.ask import Ask, Model, Refused
from extproc.local.sim.completions import prompts_of
from extproc.local.sim.http import json_bytes
from extproc.local.sim.prompt import Part, Prompt, prompt_of
from extproc.local.sim.shape import DocumentShape, Output
from extproc.local.sim.steering import Steering
from extproc.local.sim.text import Text
from extproc.local.sim.usage import Spent, usage_of_reading

DIMENSIONS, DIMENSIONS_MAX = 64, 4_096
"""Of a vector, unless the request says how many."""


def ask_of_embeddings(fields: Mapping[str, Any], model: Model, steering: Steering, text: Text) -> Ask:
    """Raises :class:`Refused`."""
    del steering
    dimensions = read.integer(fields, "dimensions", least=1)
    if dimensions is not None and dimensions > DIMENSIONS_MAX:
        raise Refused(400, f"dimensions must be at most {DIMENSIONS_MAX}", param="dimensions")
    if fields.get("encoding_format", "float") not in ("float", "base64"):
        raise Refused(400, "encoding_format must be float or base64", param="encoding_format")
    parts = prompts_of(fields.get("input"), name="input")
    return read.reading(fields, model, [truncated(prompt_of([part], text), fields, model) for part in parts])


def truncated(prompt: Prompt, fields: Mapping[str, Any], model: Model) -> Prompt:
    """No longer than the member ``truncate_prompt_tokens`` says (-1: than the context); what is cut off is not counted."""
    most = read.integer(fields, "truncate_prompt_tokens", least=-1)
    if most is None:
        return prompt
    return replace(prompt, tokens=min(prompt.tokens, model.context_tokens - 1 if most == -1 else most))


class EmbeddingsShape(DocumentShape):
    """Of one request."""

    def __init__(self, request_id: str, created: int, model_json: bytes, ask: Ask) -> None:
        self._members = b'"id":"embd-%b","object":"list","created":%d,"model":%b' % (request_id.encode(), created, model_json)
        self._ask = ask

    def usage(self, spent: Spent, wrong: str | None) -> bytes:
        return usage_of_reading(spent, wrong)

    def document(self, outputs: Sequence[Output], reason: str, usage: bytes | None) -> bytes:
        del outputs, reason
        fields = self._ask.fields
        dimensions = read.integer(fields, "dimensions", least=1) or DIMENSIONS
        written = _base64 if fields.get("encoding_format") == "base64" else list
        data = [
            {"index": index, "object": "embedding", "embedding": written(_vector(prompt.parts[0], dimensions))}
            for index, prompt in enumerate(self._ask.prompts)
        ]
        return b'{%b,"data":%b%b}' % (self._members, json_bytes(data), b"" if usage is None else b',"usage":%b' % usage)


def _vector(part: Part, dimensions: int) -> tuple[float, ...]:
    """The same for the same prompt; float32, so that both formats say the same."""
    random = hashlib.shake_128(repr(part).encode("utf-8", "replace")).digest(2 * dimensions)
    return tuple(number / 32_768 for number in struct.unpack(f"<{dimensions}h", random))


def _base64(vector: tuple[float, ...]) -> str:
    return base64.b64encode(struct.pack(f"<{len(vector)}f", *vector)).decode()
