"""The yardstick: an ext_proc server that does nothing, over the very transport that gate workers use, with the same modes and the same messages.

    python -m tests.bench.empty SOCKET

Replies are constants; a message's kind is read off its first byte. What a gate worker costs above this is what *we* do.
"""

from __future__ import annotations

import asyncio
import signal
import sys

import uvloop

from extproc.edge.envoy_codec import encode
from extproc.edge.health import Health
from extproc.edge.transport.grpcio import GrpcioTransport
from extproc.edge.transport.port import Call, GoneReason, Listen
from extproc.edge.wire import ext_proc_pb2 as wire
from extproc.exchange.actions import PassChunk, PassHeaders, PassResponseHeaders

MODEL = "qwen2.5-7b"
REQUEST_ID = ("x-request-id", "00000000-0000-4000-8000-000000000000")

# The tag of the oneof's field: 2 = request_headers … 5 = response_body, each length-delimited.
REQUEST_HEADERS, RESPONSE_HEADERS, REQUEST_BODY = 0x12, 0x1A, 0x22


def body_reply() -> bytes:
    """The body as it came; the route is chosen anew by x-model."""
    reply = wire.ProcessingResponse()
    reply.request_body.response.clear_route_cache = True
    for name, value in (("x-model", MODEL), ("x-priority", "standard")):
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


async def serve(path: str) -> None:
    health = Health()
    transport = GrpcioTransport(Listen(address=f"unix:{path}"), Constant, health)
    await transport.start()
    health.serve()
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    await stop.wait()
    await transport.stop()


if __name__ == "__main__":
    uvloop.run(serve(sys.argv[1]))
