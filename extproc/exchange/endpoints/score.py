"""``POST /score`` (also ``/v1/score``): everything about it. The model reads pairs of texts: one with many, or many with as many."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from extproc.errors import ClientError
from extproc.exchange.ask import Ask, Prompt
from extproc.exchange.endpoints import fields as read
from extproc.exchange.endpoints.pooling import TOKENS_EACH, Pooling, ask_of, texts

_OWN = frozenset({"model", "text_1", "text_2", "truncate_prompt_tokens"})
_KNOWN = frozenset({"use_activation"})


class Score(Pooling):
    """Pairs of texts in, how alike they are out (vLLM's way)."""

    name = "score"
    paths = ("/v1/score", "/score")

    def parse(self, body: Mapping[str, Any], *, reject_unknown: bool) -> Ask:
        """See :class:`~extproc.exchange.ask.Endpoint`."""
        fields = read.allowed(body, _KNOWN, _OWN, reject_unknown=reject_unknown)
        first, second = (texts(body.get(name), name) for name in ("text_1", "text_2"))
        if len(first) not in (1, len(second)):
            raise ClientError("`text_1` must be one text, or as many as `text_2`.", param="text_1", code="invalid_value")
        fields["text_1"], fields["text_2"] = first[0] if len(first) == 1 else first, second
        prompt = Prompt(
            param="text_2",
            shared=first[0] if len(first) == 1 else "",
            texts=tuple(second if len(first) == 1 else first + second),
            prompts=len(second),
            tokens_each=TOKENS_EACH,
        )
        return ask_of(self, body, fields, prompt)
