"""``POST /tokenize`` and ``POST /detokenize``: everything about them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from extproc.errors import ClientError
from extproc.exchange.ask import NOTHING, Ask, Piece, Prompt
from extproc.exchange.endpoints import fields as read
from extproc.exchange.endpoints.chat import messages_of
from extproc.exchange.endpoints.free import Free
from extproc.exchange.endpoints.openai import Usual, decoded

_OWN = frozenset({"model", "messages"})
_KNOWN = frozenset(
    {"prompt", "add_special_tokens", "return_token_strs", "add_generation_prompt", "continue_final_message", "tools"},
)


class Tokenize(Free, Usual):
    """A prompt, or messages, in; tokens out."""

    name = "tokenize"
    paths: tuple[str, ...] = ("/tokenize",)

    def parse(self, body: Mapping[str, Any], *, reject_unknown: bool) -> Ask:
        """See :class:`~extproc.exchange.ask.Endpoint`."""
        fields = read.allowed(body, _KNOWN, _OWN, reject_unknown=reject_unknown)
        if body.get("messages") is not None:
            fields.pop("prompt", None)
            fields["messages"], prompt = messages_of(body, fields)
            read.check_inline(prompt)
        else:
            read.string(fields.get("prompt"), "prompt")
        return self._ask(body, fields)

    def _ask(self, body: Mapping[str, Any], fields: dict[str, Any]) -> Ask:
        return Ask(endpoint=self, model=read.model_name(body), prompt=Prompt(), fields=fields)

    def read_event(self, data: bytes) -> Piece:
        """See :class:`~extproc.exchange.ask.Endpoint`."""
        return self.read_answer(data)

    def read_answer(self, body: bytes) -> Piece:
        """See :class:`~extproc.exchange.ask.Endpoint`."""
        answer = decoded(_ANSWER, body)
        if answer is None:
            return NOTHING
        return Piece(usage=0, final=True, finish="stop", error=answer.error is not None)


class Detokenize(Tokenize):
    """Tokens in, their text out."""

    name = "detokenize"
    paths = ("/detokenize",)

    def parse(self, body: Mapping[str, Any], *, reject_unknown: bool) -> Ask:
        """See :class:`~extproc.exchange.ask.Endpoint`."""
        tokens = body.get("tokens")
        if not isinstance(tokens, list) or not read.are_tokens(tokens):
            raise ClientError("`tokens` must be a list of tokens.", param="tokens", code="invalid_type")
        return self._ask(body, read.allowed(body, frozenset({"tokens"}), frozenset({"model"}), reject_unknown=reject_unknown))


class _Answer(msgspec.Struct, gc=False):
    error: Any = None


_ANSWER = msgspec.json.Decoder(_Answer)
