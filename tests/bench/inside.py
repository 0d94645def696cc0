"""Our own code alone: the driver fed with Envoy's messages, in one process, stores that answer at once, no transport.

What the gate worker's CPU holds above the empty server is this, and the Redis client. Alone it hardly depends on what else the machine does:
the right figure for before and after. ``python -m tests.bench.inside json 5000`` runs it so often, for a profiler to watch.
"""

# ruff: noqa: T201 - it is there to print
from __future__ import annotations

import asyncio
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import uvloop

from extproc.accounts.model import Key
from extproc.app.compose import outbox_of
from extproc.app.live import LiveCatalog, LivePolicy
from extproc.edge.announced import Announced
from extproc.edge.answering import Answering
from extproc.edge.beats import Beats
from extproc.edge.closing import Closing
from extproc.edge.driver import Driver, Gate
from extproc.edge.lending import Lending
from extproc.edge.pressure import Pressure
from extproc.edge.threads import Threads
from extproc.edge.transport.port import StatusCode
from extproc.edge.upstream_tokens import UpstreamTokens
from extproc.edge.wire import ext_proc_pb2 as wire
from extproc.metrics import Metrics, registry
from extproc.money.hold import Admission, Amendment, Checkpoint, Ending, EndResult, Granted, Verdict
from extproc.settings import load_settings
from extproc.stores.shards import shard_of

from .plan import NAMED, SMALL, Workload, prompt

ROOT = Path(__file__).parents[2]
FILTER = "envoy.filters.http.ext_proc"
NO_CONTEXT = b"\x42\x00"  # Envoy puts an empty metadata_context behind every phase
TURNS = 4  # of the loop, for answers of stores to arrive
PLENTY = 10**15
MULTIPROCESS = "PROMETHEUS_MULTIPROC_DIR"


class AtOnce:
    """A hold store without a server."""

    def admit(self, admission: Admission) -> Awaitable[Verdict]:
        return done(Granted(hold_id=admission.hold_id, spendable_nanos=PLENTY))

    def amend(self, amendment: Amendment) -> Awaitable[Verdict]:
        return done(Granted(hold_id=amendment.hold_id, spendable_nanos=PLENTY))

    def end(self, ending: Ending) -> Awaitable[EndResult]:
        return done(EndResult.ENDED)

    def beat(self, checkpoints: Sequence[Checkpoint]) -> Awaitable[None]:
        return done(None)

    def note(self, payer_id: str, row: bytes) -> Awaitable[None]:
        return done(None)


class OneKey:
    """A directory that knows everybody."""

    key = Key(id="key", payer_id="payer", name="bench", tier="business")

    def peek(self, secret: str) -> Key:
        return self.key


class Sink:
    """The transport's end."""

    def __init__(self) -> None:
        self.replies = 0

    def send(self, message: bytes) -> None:
        self.replies += 1

    def close(self, code: StatusCode, message: str) -> None:
        raise AssertionError(f"closed: {code} {message}")


def done(value: Any) -> Any:
    future = asyncio.get_running_loop().create_future()
    future.set_result(value)
    return future


async def a_gate(directory: Path) -> Gate:
    """A worker's gate with the example catalog, and an outbox below this directory."""
    (directory / "models.yaml").write_text((ROOT / "examples/models.yaml").read_text())
    (directory / "extproc.yaml").write_text(json.dumps({"version": 1, "catalog": {"file": "models.yaml"}}))
    settings = load_settings(directory / "extproc.yaml", {})
    metrics, holds = Metrics(registry()), AtOnce()
    catalog, policy = LiveCatalog(settings.catalog.file, metrics), LivePolicy(settings)
    outbox = outbox_of(settings, 0)
    await outbox.start()
    return Gate(
        directory=OneKey(),  # type: ignore[arg-type]
        answering=Answering(OneKey(), OneKey(), now_s=time.monotonic),  # type: ignore[arg-type]  # nobody asks
        holds=holds,
        lending=Lending(outbox, workers=1, monotonic_s=time.monotonic),
        closing=Closing(holds, outbox, metrics, jitter=lambda: 0.0),
        announced=Announced(shard_of, lives=lambda: outbox.lives),
        catalog=lambda: catalog.current,
        policy=lambda: policy.current,
        bounds=settings.bounds(),
        counters=lambda: catalog.counters,
        metrics=metrics,
        threads=Threads(ThreadPoolExecutor(1)),
        upstream_tokens=UpstreamTokens({}, monotonic_s=time.monotonic, metrics=metrics),
        open=set(),
        beats=Beats(holds, metrics),
        missed=lambda _: None,
        pressure=Pressure(lambda: done(0.0), metrics),
        random=random.Random(1),
    )


async def exchange(gate: Gate, messages: Sequence[bytes]) -> None:
    """One request from its headers to its end."""
    sink = Sink()
    driver = Driver(gate, sink)
    for place, message in enumerate(messages):
        driver.message(message)
        for _ in range(TURNS if sink.replies <= place else 0):
            await asyncio.sleep(0)
    driver.gone("closed")
    assert sink.replies == len(messages)


def messages_of(workload: Workload) -> list[bytes]:
    """What Envoy sends of one request: as recorded, in substance."""
    stream = workload.stream
    asked = {"model": SMALL, "messages": [{"role": "user", "content": prompt(workload.prompt_bytes)}], "max_tokens": 200}
    body = json.dumps(asked | ({"stream": True} if stream else {})).encode()
    headers = wire.ProcessingRequest(request_headers=wire.HttpHeaders(headers=_headers(
        {":authority": "bench", ":path": "/v1/chat/completions", ":method": "POST", ":scheme": "https", "authorization": "Bearer sk-of-nobody",
         "content-type": "application/json", "content-length": str(len(body)), "x-forwarded-for": "127.0.0.1", "x-forwarded-proto": "https",
         "user-agent": "bench", "x-request-id": "6f0e0c1e-6d5f-4a4c-9b73-0d3f2f6a8c11"})))  # fmt: skip
    asker = headers.attributes[FILTER].fields
    asker["source.address"].string_value = "127.0.0.1:41414"
    asker["request.id"].string_value = "6f0e0c1e-6d5f-4a4c-9b73-0d3f2f6a8c11"
    kind = {"content-type": "text/event-stream; charset=utf-8"} if stream else {"content-type": "application/json", "content-length": "600"}
    answer = wire.ProcessingRequest(
        response_headers=wire.HttpHeaders(headers=_headers({":status": "200", "date": "today", "server": "uvicorn"} | kind))
    )
    answerer = answer.attributes[FILTER].fields
    answerer["upstream.address"].string_value = "127.0.0.1:8000"
    answerer["upstream.request_attempt_count"].number_value = 1
    answerer["response.code_details"].string_value = "via_upstream"
    asking = wire.ProcessingRequest(request_body=wire.HttpBody(body=body, end_of_stream=True))
    chunks = _events(workload.tokens) if stream else [_answer(workload.tokens)]
    last = len(chunks) - 1
    bodies = [wire.HttpBody(body=chunk, end_of_stream=place == last) for place, chunk in enumerate(chunks)]
    whole = [headers, asking, answer, *(wire.ProcessingRequest(response_body=one) for one in bodies)]
    return [message.SerializeToString() + NO_CONTEXT for message in whole]


def _headers(pairs: dict[str, str]) -> wire.HeaderMap:
    return wire.HeaderMap(headers=[wire.HeaderValue(key=name, raw_value=value.encode()) for name, value in pairs.items()])


def _events(tokens: int) -> list[bytes]:
    def event(**members: Any) -> bytes:
        head = {"id": "chatcmpl-6f0e0c1e6d5f", "object": "chat.completion.chunk", "created": 1_760_000_000, "model": SMALL}
        return b"data: " + json.dumps(head | members, separators=(",", ":")).encode() + b"\n\n"

    def choice(text: str, finish: str | None = None, **more: str) -> list[dict[str, Any]]:
        return [{"index": 0, "delta": {**more, "content": text}, "logprobs": None, "finish_reason": finish}]

    usage = {"prompt_tokens": 240, "total_tokens": 240 + tokens, "completion_tokens": tokens}
    texts = [event(choices=choice(" word")) for _ in range(tokens)]
    ends = [event(choices=choice("", "stop")), event(choices=[], usage=usage) + b"data: [DONE]\n\n", b""]
    return [event(choices=choice("", role="assistant")), *texts, *ends]


def _answer(tokens: int) -> bytes:
    message = {"role": "assistant", "content": " word" * tokens}
    usage = {"prompt_tokens": 240, "total_tokens": 240 + tokens, "completion_tokens": tokens}
    choices = [{"index": 0, "message": message, "logprobs": None, "finish_reason": "stop"}]
    head = {"id": "chatcmpl-6f0e0c1e6d5f", "object": "chat.completion", "created": 1_760_000_000, "model": SMALL}
    return json.dumps(head | {"choices": choices, "usage": usage}).encode()


async def inside_us(workload: Workload, count: int) -> float:
    """CPU µs of one request."""
    with tempfile.TemporaryDirectory() as directory:
        gate = await a_gate(Path(directory))
        messages = messages_of(workload)
        for _ in range(10):
            await exchange(gate, messages)
        start_ns = time.process_time_ns()
        for _ in range(count):
            await exchange(gate, messages)
        return (time.process_time_ns() - start_ns) / count / 1e3


def alone(workload: Workload, count: int) -> float:
    """``inside_us`` in a process of its own, with its metrics in files, as a worker has them (a choice that is made at import)."""
    with tempfile.TemporaryDirectory() as directory:
        argv = [sys.executable, "-m", "tests.bench.inside", workload.name, str(count)]
        told = subprocess.run(argv, cwd=ROOT, env={**os.environ, MULTIPROCESS: directory}, check=True, capture_output=True, timeout=120)
    return float(told.stdout)


def main() -> None:
    workload, count = NAMED[sys.argv[1]], int(sys.argv[2])
    print(uvloop.run(inside_us(workload, count)) if MULTIPROCESS in os.environ else alone(workload, count))


if __name__ == "__main__":
    main()
