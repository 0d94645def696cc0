"""An upstream that writes the time into its events: what they carry is when they were sent, so whoever reads them knows how long they took.

    python -m tests.bench.stamping PORT_FILE

The stamp is CLOCK_MONOTONIC in nanoseconds, taken just before the write; it is the same clock in all processes of a machine. One event a
write. Answers as vLLM does, to ``x-sim-tokens`` and ``x-sim-delay-ms``; usage only for who asked for it.
"""

from __future__ import annotations

import asyncio
import json
import re
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import uvloop

from extproc.local.sim.chat import ChatShape
from extproc.local.sim.http import END_OF_CHUNKS, STREAM_HEAD, Request, RequestReader, chunk, response
from extproc.local.sim.speech import TEXT
from extproc.local.sim.usage import usage_json

PROMPT_TOKENS = 240
_STAMP = re.compile(rb'"content":"(\d+)"')


def stamps(data: bytes) -> Iterator[tuple[float, int]]:
    """Of the events in these bytes: when each was sent, in seconds, and where it ends."""
    for found in _STAMP.finditer(data):
        yield int(found[1]) / 1e9, found.end()


class Upstream(asyncio.Protocol):
    """One connection, one request at a time."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._reader = RequestReader()
        self._transport: Any = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None

    def data_received(self, data: bytes) -> None:
        for request in self._reader.feed(data):
            if request.method == "GET":
                self._transport.write(response(200, b""))
            else:
                self._begin(request)

    def _begin(self, request: Request) -> None:
        body = json.loads(request.body)
        shape = ChatShape("stamped", int(time.time()), json.dumps(body["model"]).encode())
        wants_usage = body.get("stream_options", {}).get("include_usage", False)
        tokens, gap_s = int(request.headers["x-sim-tokens"]), float(request.headers["x-sim-delay-ms"]) / 1e3
        list(shape.begin(0, TEXT, b""))  # says nothing for text
        self._transport.write(STREAM_HEAD)
        self._speak(shape, tokens, tokens if wants_usage else 0, gap_s, self._loop.time())

    def _speak(self, shape: ChatShape, left: int, usage_tokens: int, gap_s: float, due_s: float) -> None:
        if self._transport is None:
            return
        if not left:
            self._end(shape, usage_tokens)
            return
        self._transport.write(chunk(shape.said(0, TEXT, b"%d" % time.monotonic_ns(), b"")))
        self._loop.call_at(due_s + gap_s, self._speak, shape, left - 1, usage_tokens, gap_s, due_s + gap_s)

    def _end(self, shape: ChatShape, usage_tokens: int) -> None:
        usage = usage_json(PROMPT_TOKENS, usage_tokens)
        events = (*shape.finish(0, "stop", b""), *shape.final("stop", usage if usage_tokens else None), shape.end)
        self._transport.write(chunk(b"".join(events)) + END_OF_CHUNKS)


async def serve(port_file: Path) -> None:
    server = await asyncio.get_running_loop().create_server(Upstream, "127.0.0.1", 0)
    unfinished = port_file.with_suffix(".tmp")
    unfinished.write_text(str(server.sockets[0].getsockname()[1]))
    unfinished.rename(port_file)
    await server.serve_forever()


if __name__ == "__main__":
    uvloop.run(serve(Path(sys.argv[1])))
