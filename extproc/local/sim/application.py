"""The server: what is served by the endpoints, what is told at once, and how tests look inside."""

from __future__ import annotations

import asyncio
import itertools
import re
import secrets
import time
from collections.abc import Callable
from urllib.parse import parse_qs

from extproc.local.sim.ask import Ask, Model, Refused
from extproc.local.sim.delivery import Delivery, JsonDelivery, StreamDelivery
from extproc.local.sim.endpoints import BY_PATH, Endpoint
from extproc.local.sim.fields import read_body
from extproc.local.sim.http import Request, json_bytes, response
from extproc.local.sim.metrics import metrics_text
from extproc.local.sim.pace import Pace
from extproc.local.sim.prefix_cache import PrefixCache
from extproc.local.sim.run import ENGINE_DEAD_MESSAGE, Run
from extproc.local.sim.server import Connection
from extproc.local.sim.steering import Steering, Steerings
from extproc.local.sim.text import Text
from extproc.local.sim.witness import Record, Witness

FAULT_KIND = "InternalServerError"

_PLAIN = re.compile(r"[\w.:-]+", re.ASCII)


class Simulator:
    """One simulated vLLM server."""

    def __init__(self, model: Model, text: Text, steerings: Steerings, witness: Witness, pace: Pace) -> None:
        self._model = model
        self._text = text
        self._steerings = steerings
        self._witness = witness
        self._pace = pace
        self._cache = PrefixCache()
        self._health_status = 200
        self._connections: set[Connection] = set()
        self._draining = False
        self._left = asyncio.Event()
        # Ids are unique across simulators and cheap: a random beginning, then a count.
        self._ids = (f"{beginning}{number:016x}" for beginning in (secrets.token_hex(8),) for number in itertools.count(1))
        self._model_json = {name: json_bytes(name) for name in model.names}
        self._answering: dict[tuple[str, str], Callable[[Request], bytes]] = {
            ("GET", "/v1/models"): self._models,
            ("GET", "/health"): self._health,
            ("GET", "/ping"): self._health,
            ("GET", "/version"): lambda _: response(200, b'{"version":"0.32.0+sim"}'),
            ("GET", "/metrics"): self._metrics,
            ("GET", "/sim/log"): self._log,
            ("GET", "/sim/config"): self._show_config,
            ("POST", "/sim/config"): self._configure,
        }

    def opened(self, connection: Connection) -> None:
        self._connections.add(connection)

    def closed(self, connection: Connection) -> None:
        self._connections.discard(connection)
        if self._draining and not self._connections:
            self._left.set()

    def answer(self, request: Request, connection: Connection) -> bytes | Delivery | None:
        endpoint = BY_PATH.get(request.path)
        if endpoint is not None and request.method == "POST":
            return self._serve(request, connection, endpoint)
        simple = self._answering.get((request.method, request.path))
        if simple is None and request.method == "GET" and request.path.startswith("/sim/requests/"):
            simple = self._requests
        try:
            return simple(request) if simple is not None else response(404, b'{"detail":"Not Found"}')
        except Refused as refused:
            return response(refused.status, refused.body())

    async def drain(self) -> None:
        """SIGTERM: idle connections close, running streams end with ``abort``; returns when nobody is left."""
        self._draining = True
        for connection in tuple(self._connections):
            connection.drain()
        if not self._connections:
            self._left.set()
        await self._left.wait()

    def _serve(self, request: Request, connection: Connection, endpoint: Endpoint) -> bytes | Delivery | None:
        record = self._witness.open(request, endpoint.name)
        try:
            steering = self._steerings.of(request.headers)
            if steering.faults.hang_headers:
                return _Silence(record, self._witness)
            if steering.faults.reset:
                self._witness.ended_as(record, "reset")
                connection.reset()
                return None
            ask = self._ask(request, steering, endpoint)
        except Refused as refused:
            return self._refused(record, refused, endpoint)
        except ValueError as error:
            return self._refused(record, Refused(400, f"x-sim: {error}"), endpoint)
        request_id = _harmless(request.headers.get("x-request-id") or ask.request_id or next(self._ids))
        shape = endpoint.shape(request_id, int(record.arrived_s), self._model_json[ask.model], ask)
        run = Run(ask, shape, self._text, steering, cached=self._cached(ask, endpoint))
        self._witness.started(record, run)
        return (StreamDelivery if ask.stream else JsonDelivery)(run, record, self._witness, connection, self._pace)

    def _ask(self, request: Request, steering: Steering, endpoint: Endpoint) -> Ask:
        if steering.faults.status is not None:
            raise Refused(steering.faults.status, "fault ordered by x-sim-fault", kind=FAULT_KIND)
        ask = endpoint.ask(endpoint.read(request), self._model, steering, self._text)
        if steering.faults.engine_death_after is not None and not ask.stream:
            raise Refused(500, ENGINE_DEAD_MESSAGE, kind=FAULT_KIND)
        return ask

    def _cached(self, ask: Ask, endpoint: Endpoint) -> int | None:
        """Tokens of the prompts that were known. Nobody pays for the looking where it would not be told."""
        if not ask.limit or not (self._model.prompt_tokens_details or endpoint.tells_cached):
            return None
        return sum(self._cache.read(prompt.units(self._text), salt=ask.cache_salt) for prompt in ask.prompts)

    def _refused(self, record: Record, refused: Refused, endpoint: Endpoint) -> bytes:
        record.status = refused.status
        self._witness.ended_as(record, "refused")
        return response(refused.status, endpoint.refusal(refused))

    def _models(self, _: Request) -> bytes:
        cards = [
            {
                "id": name,
                "object": "model",
                "created": int(time.time()),
                "owned_by": "vllm",
                "root": name,
                "parent": None,
                "max_model_len": self._model.context_tokens,
            }
            for name in self._model.names
        ]
        return response(200, json_bytes({"object": "list", "data": cards}))

    def _health(self, _: Request) -> bytes:
        return response(self._health_status, b"")

    def _metrics(self, _: Request) -> bytes:
        body = metrics_text(self._witness, self._model.names[0])
        return response(200, body, content_type=b"text/plain; version=0.0.4; charset=utf-8")

    def _log(self, request: Request) -> bytes:
        query = parse_qs(request.query)
        try:
            since = int(query.get("since", ["0"])[0])
        except ValueError:
            raise Refused(400, "since must be a number") from None
        records = self._witness.since(since)
        following = records[-1].sequence if records else since
        shown = [record.as_json(with_body="body" in query) for record in records]
        return response(200, json_bytes({"next": following, "requests": shown}))

    def _requests(self, request: Request) -> bytes:
        records = self._witness.by_id(request.path.removeprefix("/sim/requests/"))
        if not records:
            raise Refused(404, "no such request", kind="NotFoundError")
        return response(200, json_bytes({"requests": [record.as_json(with_body=True) for record in records]}))

    def _show_config(self, _: Request) -> bytes:
        defaults = {name: str(getattr(self._steerings.defaults, name)) for name in Steering.__slots__}
        return response(200, json_bytes({**defaults, "health": self._health_status, "languages": self._text.languages}))

    def _configure(self, request: Request) -> bytes:
        """Values by header name without ``x-sim-``, and ``health``: the status of /health."""
        fields = read_body(request.body)
        health = fields.pop("health", self._health_status)
        try:
            self._steerings.set_defaults({name: str(value) for name, value in fields.items()})
            self._health_status = int(health)
        except (ValueError, KeyError) as error:
            raise Refused(400, f"x-sim: {error}") from error
        return self._show_config(request)


def _harmless(request_id: str) -> str:
    """As it may stand within a JSON string."""
    return request_id if _PLAIN.fullmatch(request_id) else json_bytes(request_id)[1:-1].decode()


class _Silence:
    """An answer that never comes."""

    def __init__(self, record: Record, witness: Witness) -> None:
        self.record = record
        self._witness = witness

    def start(self) -> None:
        """Nothing happens."""

    def resumed(self) -> None:
        """Nothing happens."""

    def abort(self) -> None:
        """Nothing happens."""

    def lost(self) -> None:
        self._witness.ended_as(self.record, "client_gone")
