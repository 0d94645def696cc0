"""What the engine saw and did, independent of anybody who bills for it."""

from __future__ import annotations

import hashlib
import itertools
import json
import time
from collections import deque
from dataclasses import replace
from typing import Any, BinaryIO

from extproc.local.sim.http import Request, header_pairs, json_bytes
from extproc.local.sim.run import Run

RECORDS_MAX = 50_000
"""Requests remembered: 20 s of the fastest benchmark; tests read their own by id."""

BODIES_BYTES_MAX = 64 * 1024 * 1024
"""Of request bodies remembered, oldest forgotten first."""


class Record:
    """One request. ``end``: open, finished, client_gone, refused, reset, engine_death, aborted."""

    __slots__ = (
        "arrived_s",
        "delivered_tokens",
        "end",
        "ended_s",
        "events",
        "generated_tokens",
        "model",
        "prompt_tokens",
        "request",
        "run",
        "sequence",
        "status",
    )

    def __init__(self, sequence: int, request: Request) -> None:
        self.sequence = sequence
        self.request = request
        self.arrived_s = time.time()
        self.ended_s: float | None = None
        self.model: str | None = None
        self.prompt_tokens = 0
        self.generated_tokens = 0
        self.delivered_tokens = 0
        self.events = 0
        self.status = 0
        self.end = "open"
        self.run: Run | None = None

    def as_json(self, *, with_body: bool = False) -> dict[str, Any]:
        """For the log. Message contents and prompts only ``with_body``."""
        headers = header_pairs(self.request.head)
        run = self.run
        return {
            "seq": self.sequence,
            "request_id": self.request.headers.get("x-request-id"),
            "hold_id": self.request.headers.get("x-hold-id"),
            "method": self.request.method,
            "path": self.request.path,
            "model": self.model,
            "stream": run.ask.stream if run else None,
            "n": run.ask.n if run else None,
            "prompt_tokens": self.prompt_tokens,
            "generated_tokens": self.generated_tokens,
            "delivered_tokens": self.delivered_tokens,
            "events": self.events,
            "finish_reason": run.finish_reason if run else None,
            "usage": json.loads(run.usage_sent) if run and run.usage_sent else None,
            "status": self.status,
            "end": self.end,
            "arrived_s": self.arrived_s,
            "duration_s": None if self.ended_s is None else self.ended_s - self.arrived_s,
            "headers": headers,
            "body_sha256": hashlib.sha256(self.request.body).hexdigest() if self.request.body else None,
            "body": _shown(self.request.body, with_body=with_body),
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

    def open(self, request: Request) -> Record:
        record = Record(next(self._numbers), request)
        self._records.append(record)
        self._with_bodies.append(record)
        self._bodies_bytes += len(request.body)
        while self._bodies_bytes > BODIES_BYTES_MAX:
            self._forget_body(self._with_bodies.popleft())
        return record

    def started(self, record: Record, run: Run) -> None:
        """The engine begins."""
        record.run = run
        record.model = run.ask.model
        record.prompt_tokens = sum(run.ask.prompt_tokens)
        self.prompt_tokens_total += record.prompt_tokens
        self.running.add(record)

    def ended_as(self, record: Record, end: str) -> None:
        """Once per request; a later end is ignored."""
        if record.end != "open":
            return
        record.end = end
        record.ended_s = time.time()
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


def _shown(body: bytes, *, with_body: bool) -> Any:
    """The parsed body; instead of what people wrote, its length."""
    if not body:
        return None
    try:
        fields = json.loads(body)
    except (ValueError, RecursionError):
        return body.decode(errors="replace") if with_body else None
    if with_body or not isinstance(fields, dict):
        return fields if with_body else None
    return {name: _length(value) if name in ("messages", "prompt", "input") else value for name, value in fields.items()}


def _length(value: Any) -> Any:
    if isinstance(value, str):
        return {"length": len(value)}
    if isinstance(value, list):
        return [_length(item) for item in value]
    return {name: item if name == "role" else _length(item) for name, item in value.items()} if isinstance(value, dict) else value
