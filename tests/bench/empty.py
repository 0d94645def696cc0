"""The yardsticks: an ext_proc server that does nothing, over either transport of ours, with the modes and messages of a gate worker.

    python -m tests.bench.empty lean|grpcio SOCKET

Replies are constants; a message's kind is read off its first byte. What a gate worker costs above this is what *we* do.
"""

from __future__ import annotations

import asyncio
import gc
import signal
import sys

import uvloop

from extproc.app.compose import TRANSPORTS
from extproc.app.worker import GC_YOUNG
from extproc.edge.envoy_codec import encode
from extproc.edge.health import Health
from extproc.edge.transport.port import Call, GoneReason, Listen
from extproc.edge.wire import ext_proc_pb2 as wire
from extproc.exchange.actions import PassChunk, PassHeaders, PassResponseHeaders

from .plan import SMALL

REQUEST_ID = ("x-request-id", "00000000-0000-4000-8000-000000000000")

# The tag of the oneof's field: 2 = request_headers … 5 = response_body, each length-delimited.
REQUEST_HEADERS, RESPONSE_HEADERS, REQUEST_BODY = 0x12, 0x1A, 0x22


def body_reply() -> bytes:
    """The body as it came; the route is chosen anew by x-model."""
    reply = wire.ProcessingResponse()
    reply.request_body.response.clear_route_cache = True
    for name, value in (("x-model", SMALL), ("x-priority", "standard")):
        option = reply.request_body.response.header_mutation.set_headers.add()
        option.append_action = wire.HeaderValueOption.OVERWRITE_IF_EXISTS_OR_ADD
        option.header.key, option.header.raw_value = name, value.encode()
    return reply.SerializeToString()


class Constant:
    """The handler of one stream."""

    __slots__ = ("_call",)

    headers = encode(PassHeaders(set_headers=(("x-account-id", "a"), ("x-hold-id", "h")), remove_headers=("authorization", "x-api-key")))
    body = body_reply()
    stream_headers = encode(PassResponseHeaders(set_headers=(REQUEST_ID,)))
    answer_headers = encode(PassResponseHeaders(set_headers=(REQUEST_ID,), buffer=True))
    chunk = encode(PassChunk())

    def __init__(self, call: Call) -> None:
        self._call = call

    def message(self, data: bytes) -> None:
        kind = data[0]
        if kind == REQUEST_HEADERS:
            self._call.send(self.headers)
        elif kind == REQUEST_BODY:
            self._call.send(self.body)
        elif kind == RESPONSE_HEADERS:
            self._call.send(self.stream_headers if b"event-stream" in data else self.answer_headers)
        else:
            self._call.send(self.chunk)

    def gone(self, reason: GoneReason) -> None:
        """Nothing was held."""


async def serve(transport_name: str, path: str) -> None:
    gc.collect()
    gc.freeze()
    gc.set_threshold(GC_YOUNG, 20, 50)  # as a gate worker does
    health = Health()
    transport = TRANSPORTS[transport_name](Listen(address=f"unix:{path}"), Constant, health)
    await transport.start()
    health.serve()
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    await stop.wait()
    await transport.stop()


if __name__ == "__main__":
    uvloop.run(serve(*sys.argv[1:]))
