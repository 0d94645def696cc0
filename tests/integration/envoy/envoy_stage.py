"""A stage for facts about the real Envoy: the shipped files, gates with a scripted sidecar, and backends that answer what a test says."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

from extproc.edge.envoy_codec import decode, encode
from extproc.edge.health import Health
from extproc.edge.transport.grpcio import GrpcioTransport
from extproc.edge.transport.port import Call, GoneReason, Listen
from extproc.exchange import actions, events
from extproc.local import envoy, tls

COMPLETIONS = "/v1/chat/completions"
BIG = "qwen3-72b"
SMALL = "qwen2.5-7b"


# ---- backends


@dataclass(kw_only=True)
class Request:
    method: str
    path: str
    headers: dict[str, str]
    body: bytes


Responder = Callable[[Request, asyncio.StreamWriter], Awaitable[None]]


async def json_answer(request: Request, writer: asyncio.StreamWriter, body: bytes = b'{"ok": true}', status: str = "200 OK") -> None:
    head = f"HTTP/1.1 {status}\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
    writer.write(head.encode() + body)
    await writer.drain()


async def stream_start(writer: asyncio.StreamWriter) -> None:
    writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n")
    await writer.drain()


async def stream_piece(writer: asyncio.StreamWriter, data: bytes) -> None:
    writer.write(b"%x\r\n%b\r\n" % (len(data), data))
    await writer.drain()


@dataclass
class Backend:
    """A tiny HTTP/1.1 server. ``/health`` is answered and not recorded."""

    respond: Responder = json_answer
    seen: list[Request] = field(default_factory=list)
    healthy: bool = True
    _server: asyncio.Server | None = None

    async def start(self) -> str:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        return f"127.0.0.1:{self._server.sockets[0].getsockname()[1]}"

    async def stop(self) -> None:
        if self._server is not None:
            self._server.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while (request := await _read_request(reader)) is not None:
                if request.path == "/health":
                    await json_answer(request, writer, status="200 OK" if self.healthy else "503 Service Unavailable")
                    continue
                self.seen.append(request)
                await self.respond(request, writer)
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()


async def _read_request(reader: asyncio.StreamReader) -> Request | None:
    try:
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
    except asyncio.IncompleteReadError:
        return None
    line, *lines = head.strip().split("\r\n")
    method, path, _ = line.split(" ")
    headers = {name.lower(): value.strip() for name, _, value in (header.partition(":") for header in lines)}
    if headers.get("transfer-encoding") == "chunked":
        body = b""
        while size := int(await reader.readline(), 16):
            body += await reader.readexactly(size)
            await reader.readline()
        await reader.readline()
    else:
        body = await reader.readexactly(int(headers.get("content-length", "0")))
    return Request(method=method, path=path, headers=headers, body=body)


# ---- the scripted sidecar

Answer = Callable[["Exchange", events.Event], "actions.Action | None"]


def forward(exchange: Exchange, event: events.Event) -> actions.Action | None:
    """What the sidecar does with a request that it likes: route it by the model that the test says."""
    match event:
        case events.Headers():
            return actions.PassHeaders()
        case events.Body():
            return actions.PassBody(data=event.data, set_headers=(("x-model", exchange.sidecar.model), ("x-priority", "standard")))
        case events.ResponseHeaders():
            return actions.PassResponseHeaders()
        case events.Chunk():
            return actions.PassChunk()
        case events.Trailers(response=response):
            return actions.PassTrailers(response=response)
    raise AssertionError(event)


@dataclass(eq=False)
class Exchange:
    """Handler of one stream. ``answer`` of the sidecar decides; ``None`` = nothing is sent."""

    sidecar: Sidecar
    call: Call
    messages: list[bytes] = field(default_factory=list)
    events: list[events.Event] = field(default_factory=list)
    gones: list[str] = field(default_factory=list)

    def message(self, data: bytes) -> None:
        event = decode(data)
        self.messages.append(data)
        self.events.append(event)
        action = self.sidecar.answer(self, event)
        if action is not None:
            self.call.send(encode(action))

    def gone(self, reason: GoneReason) -> None:
        self.gones.append(reason)

    @property
    def headers(self) -> events.Headers:
        (event,) = [event for event in self.events if isinstance(event, events.Headers)]
        return event

    @property
    def response(self) -> events.ResponseHeaders:
        (event,) = [event for event in self.events if isinstance(event, events.ResponseHeaders)]
        return event

    @property
    def kinds(self) -> list[str]:
        return [type(event).__name__ for event in self.events]


@dataclass(eq=False)
class Sidecar:
    """HandlerFactory of one gate."""

    answer: Answer = forward
    model: str = BIG
    exchanges: list[Exchange] = field(default_factory=list)
    health: Health = field(default_factory=Health)

    def __call__(self, call: Call) -> Exchange:
        self.exchanges.append(Exchange(self, call))
        return self.exchanges[-1]

    @property
    def last(self) -> Exchange:
        return self.exchanges[-1]


# ---- all of it


@dataclass(kw_only=True)
class Stage:
    directory: Path
    envoy: envoy.Envoy
    ca_file: Path
    sidecars: list[Sidecar]
    transports: list[GrpcioTransport]
    backends: dict[str, Backend]

    @property
    def sidecar(self) -> Sidecar:
        return self.sidecars[0]

    @property
    def seen(self) -> list[Request]:
        """By all backends together."""
        return [request for backend in self.backends.values() for request in backend.seen]

    def tls(self) -> ssl.SSLContext:
        return ssl.create_default_context(cafile=str(self.ca_file))

    def client(self, *, http2: bool = False) -> httpx.AsyncClient:
        return httpx.AsyncClient(verify=self.tls(), http1=not http2, http2=http2, base_url=self.envoy.url, timeout=20)

    async def raw(self, request: bytes) -> bytes:
        """One request written as it is, over HTTP/1.1; the answer up to the end of its headers and what came with them."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.envoy.port, ssl=self.tls())
        writer.write(request)
        await writer.drain()
        answer = await asyncio.wait_for(reader.read(65_536), 10)
        writer.close()
        return answer

    async def sends(self, path: str, **options: Any) -> httpx.Response:
        async with self.client() as client:
            return await client.post(path, **options)


async def until(condition: Callable[[], Any], within_s: float = 10) -> None:
    async with asyncio.timeout(within_s):
        while not condition():
            await asyncio.sleep(0.005)


async def started_gate(transport_class: type[GrpcioTransport], path: Path, sidecar: Sidecar) -> GrpcioTransport:
    sidecar.health.serve()
    transport = transport_class(Listen(address=f"unix:{path}"), sidecar, sidecar.health)
    await transport.start()
    return transport


@asynccontextmanager
async def set_up(
    transport_class: type[GrpcioTransport], directory: Path, *, gates: int = 1, models: Mapping[str, Backend] | None = None
) -> AsyncIterator[Stage]:
    backends = dict(models or {BIG: Backend(), SMALL: Backend()})
    addresses = {name: [await backend.start()] for name, backend in backends.items()}
    paths = [directory / "run" / f"gate-{number}.sock" for number in range(gates)]
    sidecars = [Sidecar() for _ in paths]
    transports = [await started_gate(transport_class, path, sidecar) for path, sidecar in zip(paths, sidecars, strict=True)]
    files = tls.ensure(directory / "tls")
    # In a thread: its readiness depends on the health checks that this loop answers.
    edge = await asyncio.to_thread(
        envoy.start,
        directory / "envoy",
        gates=paths,
        backends=addresses,
        cert_file=files.cert_file,
        key_file=files.key_file,
        health_interval_s=1,
    )
    stage = Stage(directory=directory, envoy=edge, ca_file=files.ca_file, sidecars=sidecars, transports=transports, backends=backends)
    try:
        await asyncio.to_thread(edge.wait_healthy, {"extproc": gates, **dict.fromkeys(backends, 1)})
        yield stage
    finally:
        await asyncio.to_thread(edge.stop)
        for transport in transports:
            await transport.stop()
        for backend in backends.values():
            await backend.stop()
