"""One file per endpoint, with everything about it; its name stands nowhere else."""

from __future__ import annotations

from collections.abc import Mapping

from extproc.exchange.ask import Endpoint
from extproc.exchange.endpoints.chat import ChatCompletions
from extproc.exchange.endpoints.completions import Completions
from extproc.exchange.endpoints.count_tokens import CountTokens
from extproc.exchange.endpoints.embeddings import Embeddings
from extproc.exchange.endpoints.messages import Messages
from extproc.exchange.endpoints.rerank import Rerank
from extproc.exchange.endpoints.responses import Responses
from extproc.exchange.endpoints.score import Score
from extproc.exchange.endpoints.tokenize import Detokenize, Tokenize
from extproc.exchange.endpoints.transcriptions import Transcriptions, Translations

ENDPOINTS: tuple[Endpoint, ...] = (
    ChatCompletions(),
    Completions(),
    Responses(),
    Messages(),
    CountTokens(),
    Embeddings(),
    Rerank(),
    Score(),
    Transcriptions(),
    Translations(),
    Tokenize(),
    Detokenize(),
)

BY_PATH: Mapping[str, Endpoint] = {path: endpoint for endpoint in ENDPOINTS for path in endpoint.paths}
