"""One file per endpoint, with everything about it; its name stands nowhere else."""

from __future__ import annotations

from collections.abc import Mapping

from extproc.exchange.ask import Endpoint
from extproc.exchange.endpoints.chat import ChatCompletions
from extproc.exchange.endpoints.completions import Completions

BY_PATH: Mapping[str, Endpoint] = {endpoint.path: endpoint for endpoint in (ChatCompletions(), Completions())}
