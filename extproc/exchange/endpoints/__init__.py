"""One file per endpoint, with everything about it; its name stands nowhere else."""

from __future__ import annotations

from collections.abc import Mapping

from extproc.exchange.ask import Endpoint
from extproc.exchange.endpoints.chat import ChatCompletions
from extproc.exchange.endpoints.completions import Completions

ENDPOINTS: tuple[Endpoint, ...] = (ChatCompletions(), Completions())

BY_PATH: Mapping[str, Endpoint] = {path: endpoint for endpoint in ENDPOINTS for path in endpoint.paths}
