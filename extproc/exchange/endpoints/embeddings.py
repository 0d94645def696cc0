"""``POST /v1/embeddings``: everything about it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from extproc.errors import ClientError
from extproc.exchange.ask import Ask
from extproc.exchange.endpoints import fields as read
from extproc.exchange.endpoints.pooling import Pooling, ask_of

DIMENSIONS_MAX = 65_536
FORMATS = ("float", "base64")  # what else vLLM has is no JSON, and has no usage in it

_OWN = frozenset({"model", "input", "encoding_format", "dimensions", "truncate_prompt_tokens"})
_KNOWN = frozenset({"add_special_tokens", "normalize"})


class Embeddings(Pooling):
    """Texts in, vectors out."""

    name = "embeddings"
    paths = ("/v1/embeddings",)

    def parse(self, body: Mapping[str, Any], *, reject_unknown: bool) -> Ask:
        """See :class:`~extproc.exchange.ask.Endpoint`."""
        fields = read.allowed(body, _KNOWN, _OWN, reject_unknown=reject_unknown)
        prompt = read.prompts(body.get("input"), "input")
        fields["input"] = body["input"]
        format_ = body.get("encoding_format")
        if format_ is not None:
            if format_ not in FORMATS:
                words = f"`encoding_format` must be one of {', '.join(FORMATS)}."
                raise ClientError(words, param="encoding_format", code="invalid_value")
            fields["encoding_format"] = format_
        dimensions = read.whole(body, "dimensions", low=1, high=DIMENSIONS_MAX)
        if dimensions is not None:
            fields["dimensions"] = dimensions
        return ask_of(self, body, fields, prompt)
