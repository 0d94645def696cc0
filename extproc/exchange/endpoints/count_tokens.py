"""``POST /v1/messages/count_tokens``: everything about it. The backend counts; nothing is held, and nothing charged."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from extproc.exchange.ask import Ask, Piece
from extproc.exchange.endpoints import fields as read
from extproc.exchange.endpoints import openai
from extproc.exchange.endpoints.messages import Messages, conversation
from extproc.exchange.meter import Expected
from extproc.money.usage import Usage, UsageSource

_OWN = frozenset({"model", "messages", "system", "tools", "max_tokens", "stream"})
_KNOWN = frozenset({"thinking", "tool_choice", "output_config"})


class CountTokens(Messages):
    """How long a conversation is, before it is asked for."""

    name = "messages.count_tokens"
    paths = ("/v1/messages/count_tokens",)
    is_listed = False
    output_default: int | None = 0

    def parse(self, body: Mapping[str, Any], *, reject_unknown: bool) -> Ask:
        """See :class:`~extproc.exchange.ask.Endpoint`."""
        fields, prompt = conversation(body, _KNOWN, _OWN, reject_unknown=reject_unknown)
        return Ask(
            endpoint=self,
            model=read.model_name(body),
            stream=False,
            choices=1,
            output_max=0,
            prompt=prompt,
            wants_usage=True,
            wants_continuous_usage=True,
            fields=fields,
            is_free=True,
        )

    def canonical(self, ask: Ask, *, served_name: str, output_max: int, usage: bool, continuous: bool) -> bytes:
        """See :class:`~extproc.exchange.ask.Endpoint`."""
        del output_max, usage, continuous
        return read.canonical(ask.fields, {"model": served_name}, stream=False, usage=False, continuous=False)

    def usage(self, raw: Any, source: UsageSource, expected: Expected) -> Usage | None:
        """Counting uses nothing."""
        del raw, expected
        return Usage(source=source)

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
