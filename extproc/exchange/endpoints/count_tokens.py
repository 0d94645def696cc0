"""``POST /v1/messages/count_tokens``: everything about it. The backend counts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from extproc.exchange.ask import Ask, Piece
from extproc.exchange.endpoints import fields as read
from extproc.exchange.endpoints import openai
from extproc.exchange.endpoints.free import Free
from extproc.exchange.endpoints.messages import Messages, conversation

_KNOWN = frozenset({"thinking", "tool_choice", "output_config"})


class CountTokens(Free, Messages):
    """How long a conversation is, before it is asked for."""

    name = "messages.count_tokens"
    paths = ("/v1/messages/count_tokens",)

    def parse(self, body: Mapping[str, Any], *, reject_unknown: bool) -> Ask:
        """See :class:`~extproc.exchange.ask.Endpoint`."""
        fields, prompt = conversation(body, _KNOWN, reject_unknown=reject_unknown)
        read.check_inline(prompt)
        return Ask(endpoint=self, model=read.model_name(body), prompt=prompt, fields=fields)

    def read_answer(self, body: bytes) -> Piece:
        """See :class:`~extproc.exchange.ask.Endpoint`."""
        answer = openai.decoded(_ANSWER, body)
        if answer is None or answer.error is not None:
            return Piece(error=True)
        return Piece(usage=answer.input_tokens, final=True, finish="stop")


class _Answer(msgspec.Struct, gc=False):
    input_tokens: Any = None
    error: Any = None


_ANSWER = msgspec.json.Decoder(_Answer)
