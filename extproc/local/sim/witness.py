"""What the engine saw and did, independent of anybody who bills for it."""

from __future__ import annotations

import hashlib
import itertools
import json
import time
from collections import deque
from dataclasses import replace
from typing import Any, BinaryIO

from extproc.local.sim import multipart
from extproc.local.sim.http import Request, header_pairs, json_bytes
from extproc.local.sim.run import Run

RECORDS_MAX = 150_000
"""Requests remembered, half a KB each: a minute of the fastest benchmark, or ten at the pace of `make test-long`."""

BODIES_BYTES_MAX = 64 * 1024 * 1024
"""Of request bodies remembered, oldest forgotten first."""


class Record:
    """One request. ``end``: open, finished, client_gone, refused, reset, engine_death, aborted."""

    __slots__ = (
        "arrived_s",
        "cached_tokens",
        "choices",
        "delivered_tokens",
        "end",
        "ended_s",
        "endpoint",
        "events",
        "finish_reason",
        "generated_tokens",
        "images",
        "model",
        "priority",
        "prompt_tokens",
        "reasoning_tokens",
        "request",
        "run",
        "seconds",
        "sequence",
        "status",
        "stream",
        "usage_sent",
    )

    def __init__(self, sequence: int, request: Request, endpoint: str) -> None:
        self.sequence = sequence
        self.request = request
        self.endpoint = endpoint
        self.arrived_s = time.time()
        self.ended_s: float | None = None
        self.model: str | None = None
        self.stream: bool | None = None
        self.choices: int | None = None
        self.priority = 0
        self.prompt_tokens = 0
        self.cached_tokens: int | None = None
        self.images = 0
        self.seconds: float | None = None
        self.generated_tokens = 0
        self.reasoning_tokens = 0
        self.delivered_tokens = 0
        self.events = 0
        self.status = 0
        self.end = "open"
        self.finish_reason: str | None = None
        self.usage_sent: bytes | None = None
        self.run: Run | None = None

    def look(self) -> None:
        """Take down what the engine has made of it by now."""
        if self.run is not None:
            self.finish_reason = self.run.finish_reason
            self.usage_sent = self.run.usage_sent
            self.reasoning_tokens = min(self.run.reasoning_tokens, self.generated_tokens)

    def as_json(self, *, with_body: bool = False) -> dict[str, Any]:
        """For the log. Message contents and prompts only ``with_body``."""
        self.look()
        return {
            "seq": self.sequence,
            "request_id": self.request.headers.get("x-request-id"),
            "hold_id": self.request.headers.get("x-hold-id"),
            "method": self.request.method,
            "path": self.request.path,
            "endpoint": self.endpoint,
            "model": self.model,
            "stream": self.stream,
            "n": self.choices,
            "prompt_tokens": self.prompt_tokens,
            "cached_tokens": self.cached_tokens,
            "images": self.images,
            "seconds": self.seconds,
            "generated_tokens": self.generated_tokens,
            "reasoning_tokens": self.reasoning_tokens,
            "delivered_tokens": self.delivered_tokens,
            "events": self.events,
            "finish_reason": self.finish_reason,
            "usage": json.loads(self.usage_sent) if self.usage_sent else None,
            "priority": self.priority,
            "status": self.status,
            "end": self.end,
            "arrived_s": self.arrived_s,
            "duration_s": None if self.ended_s is None else self.ended_s - self.arrived_s,
            "headers": header_pairs(self.request.head),
            "body_sha256": hashlib.sha256(self.request.body).hexdigest() if self.request.body else None,
            "body": _shown(self.request, with_body=with_body),
        }


class Witness:
    """All requests of the process, the last ones in full."""

    def __init__(self, log: BinaryIO | None = None) -> None:
        self._log = log
        self._numbers = itertools.count(1)
        self._records: deque[Record] = deque(maxlen=RECORDS_MAX)
        self._with_bodies: deque[Record] = deque()
        self._bodies_bytes = 0
        self._ended_generated_tokens = 0
        self.prompt_tokens_total = 0
        self.ended: dict[str, int] = {}
        self.running: set[Record] = set()

    def open(self, request: Request, endpoint: str) -> Record:
        record = Record(next(self._numbers), request, endpoint)
        self._records.append(record)
        self._with_bodies.append(record)
        self._bodies_bytes += len(request.body)
        while self._bodies_bytes > BODIES_BYTES_MAX:
            self._forget_body(self._with_bodies.popleft())
        return record

    def started(self, record: Record, run: Run) -> None:
        """The engine begins."""
        ask = run.ask
        record.run = run
        record.model = ask.model
        record.stream, record.choices, record.priority = ask.stream, ask.n, ask.priority
        record.prompt_tokens = sum(ask.prompt_tokens)
        record.cached_tokens, record.seconds = run.cached, ask.seconds
        record.images = sum(prompt.images for prompt in ask.prompts)
        self.prompt_tokens_total += record.prompt_tokens * ask.runs
        self.running.add(record)

    def ended_as(self, record: Record, end: str) -> None:
        """Once per request; a later end is ignored."""
        if record.end != "open":
            return
        record.end = end
        record.ended_s = time.time()
        # A prompt and what was said of it are kept by nobody: the bodies that are have a limit.
        record.look()
        record.run = None
        self.running.discard(record)
        self._ended_generated_tokens += record.generated_tokens
        self.ended[end] = self.ended.get(end, 0) + 1
        if self._log is not None:
            self._log.write(json_bytes(record.as_json()) + b"\n")
            self._log.flush()

    @property
    def generation_tokens_total(self) -> int:
        return self._ended_generated_tokens + sum(record.generated_tokens for record in self.running)

    def since(self, sequence: int) -> list[Record]:
        """Requests with a greater number, oldest first."""
        return [record for record in self._records if record.sequence > sequence]

    def by_id(self, request_id: str) -> list[Record]:
        """All attempts of one ``x-request-id``."""
        return [record for record in self._records if record.request.headers.get("x-request-id") == request_id]

    def _forget_body(self, record: Record) -> None:
        self._bodies_bytes -= len(record.request.body)
        # The request keeps its headers only: its body is what the limit is about.
        record.request = replace(record.request, body=b"")


_WRITTEN = frozenset(
    {
        "messages",
        "prompt",
        "input",
        "system",
        "instructions",
        "query",
        "queries",
        "documents",
        "items",
        "text_1",
        "text_2",
        "data_1",
        "data_2",
    }
)
"""Members that people wrote."""


def _shown(request: Request, *, with_body: bool) -> Any:
    """The parsed body; instead of what people wrote, its length, and instead of files always."""
    if not request.body:
        return None
    try:
        fields = _fields(request)
    except (ValueError, RecursionError):
        return request.body.decode(errors="replace") if with_body else None
    if with_body or not isinstance(fields, dict):
        return fields if with_body else None
    return {name: _length(value) if name in _WRITTEN else value for name, value in fields.items()}


def _fields(request: Request) -> Any:
    content_type = request.headers.get("content-type", "")
    if not content_type.startswith("multipart/"):
        return json.loads(request.body)
    form = multipart.members(request.body, content_type)
    return {name: {"length": len(value)} if isinstance(value, bytes) else value for name, value in form.items()}


def _length(value: Any) -> Any:
    if isinstance(value, str):
        return {"length": len(value)}
    if isinstance(value, list):
        return [_length(item) for item in value]
    return {name: item if name == "role" else _length(item) for name, item in value.items()} if isinstance(value, dict) else value
