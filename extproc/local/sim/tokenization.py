"""POST /tokenize and /detokenize, as vLLM reads and writes them: nothing for the engine."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from extproc.local.sim import fields as read
from extproc.local.sim.ask import Ask, Model, Refused, missing
from extproc.local.sim.chat import prompt_of_fields
from extproc.local.sim.http import json_bytes
from extproc.local.sim.prompt import prompt_of
from extproc.local.sim.shape import DocumentShape, Output
from extproc.local.sim.steering import Steering
from extproc.local.sim.text import Text


def ask_of_tokenize(fields: Mapping[str, Any], model: Model, steering: Steering, text: Text) -> Ask:
    """A text or a chat. Raises :class:`Refused`."""
    name = read.model_name(fields, model)
    if "messages" in fields:
        prompt = prompt_of_fields(fields, steering, text)
        tokens = list(range(prompt.tokens))  # the ids of a chat template's own tokens are nothing that we know
    elif isinstance(given := fields.get("prompt"), str):
        prompt = prompt_of([given], text)
        tokens = text.encode(given)
    else:
        raise missing("prompt")
    told = {"count": prompt.tokens, "max_model_len": model.context_tokens, "tokens": tokens, "token_strs": None}
    return Ask(model=name, prompts=(prompt,), runs=False, fields=told)


def ask_of_detokenize(fields: Mapping[str, Any], model: Model, steering: Steering, text: Text) -> Ask:
    """Raises :class:`Refused`."""
    del steering
    name = read.model_name(fields, model)
    tokens = fields.get("tokens")
    if not isinstance(tokens, list) or not all(isinstance(token, int) and token >= 0 for token in tokens):
        raise missing("tokens")
    try:
        told = {"prompt": text.decode(tokens)}
    except ValueError as error:
        raise Refused(400, str(error), param="tokens") from error
    return Ask(model=name, prompts=(prompt_of([tuple(tokens)], text),), runs=False, fields=told)


class ToldShape(DocumentShape):
    """Of an answer that was found while the request was read."""

    def __init__(self, request_id: str, created: int, model_json: bytes, ask: Ask) -> None:
        del request_id, created, model_json
        self._told = ask.fields

    def document(self, outputs: Sequence[Output], reason: str, usage: bytes | None) -> bytes:
        del outputs, reason, usage
        return json_bytes(self._told)
