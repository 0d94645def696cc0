"""Which path is served how: **a new endpoint is a row here**, a reader of what is asked and a shape of what is answered."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from extproc.local.sim import messages, multipart
from extproc.local.sim.ask import Ask, Model, Refused
from extproc.local.sim.audio import TranscriptionShape, TranslationShape, ask_of_sound
from extproc.local.sim.chat import ChatShape, ask_of_chat
from extproc.local.sim.completions import CompletionsShape, ask_of_completions
from extproc.local.sim.embeddings import EmbeddingsShape, ask_of_embeddings
from extproc.local.sim.fields import read_body
from extproc.local.sim.http import Request
from extproc.local.sim.responses import ResponsesShape, ask_of_responses
from extproc.local.sim.scoring import RerankShape, ScoreShape, ask_of_rerank, ask_of_score
from extproc.local.sim.shape import Shaper
from extproc.local.sim.steering import Steering
from extproc.local.sim.text import Text
from extproc.local.sim.tokenization import ToldShape, ask_of_detokenize, ask_of_tokenize


def read_json(request: Request) -> dict[str, Any]:
    """Raises :class:`Refused`."""
    return read_body(request.body)


def read_form(request: Request) -> dict[str, Any]:
    """Raises :class:`Refused`."""
    try:
        return multipart.members(request.body, request.headers.get("content-type", ""))
    except ValueError as error:
        raise Refused(422, str(error), kind="UnprocessableEntityError") from error


@dataclass(frozen=True, slots=True, kw_only=True)
class Endpoint:
    """One thing that is served. ``tells_cached``: what of the prompt was in the cache, whatever the server's flags say."""

    name: str
    ask: Callable[[Mapping[str, Any], Model, Steering, Text], Ask]
    shape: Shaper
    read: Callable[[Request], dict[str, Any]] = read_json
    refusal: Callable[[Refused], bytes] = Refused.body
    tells_cached: bool = False


_RERANK = Endpoint(name="rerank", ask=ask_of_rerank, shape=RerankShape)
_SCORE = Endpoint(name="score", ask=ask_of_score, shape=ScoreShape)

BY_PATH: Mapping[str, Endpoint] = {
    "/v1/chat/completions": Endpoint(name="chat.completions", ask=ask_of_chat, shape=ChatShape),
    "/v1/completions": Endpoint(name="completions", ask=ask_of_completions, shape=CompletionsShape),
    "/v1/responses": Endpoint(name="responses", ask=ask_of_responses, shape=ResponsesShape, tells_cached=True),
    "/v1/messages": Endpoint(name="messages", ask=messages.ask_of_messages, shape=messages.MessagesShape, refusal=messages.refusal),
    "/v1/messages/count_tokens": Endpoint(
        name="messages.count_tokens", ask=messages.ask_of_count_tokens, shape=messages.CountTokensShape, refusal=messages.refusal
    ),
    "/v1/embeddings": Endpoint(name="embeddings", ask=ask_of_embeddings, shape=EmbeddingsShape),
    "/rerank": _RERANK,
    "/v1/rerank": _RERANK,
    "/v2/rerank": _RERANK,
    "/score": _SCORE,
    "/v1/score": _SCORE,
    "/v1/audio/transcriptions": Endpoint(name="audio.transcriptions", ask=ask_of_sound, shape=TranscriptionShape, read=read_form),
    "/v1/audio/translations": Endpoint(name="audio.translations", ask=ask_of_sound, shape=TranslationShape, read=read_form),
    "/tokenize": Endpoint(name="tokenize", ask=ask_of_tokenize, shape=ToldShape),
    "/detokenize": Endpoint(name="detokenize", ask=ask_of_detokenize, shape=ToldShape),
}
"""Of POST requests."""
