"""Sidecars that behave badly: our own worker with a fault at one phase, and a foreign one that ends its stream however it likes.

A request orders its fault by a header: ``x-sabotage: PHASE/KIND``.
"""

from __future__ import annotations

import asyncio
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h2.config
import h2.connection
import h2.errors
import h2.events
from house import House

from extproc.app.compose import TRANSPORTS, GateWorker, gate_worker
from extproc.edge.driver import Driver
from extproc.edge.envoy_codec import decode, encode
from extproc.edge.health import METHOD as HEALTH
from extproc.edge.transport.port import Call, GoneReason, Listen, StatusCode, Transport
from extproc.edge.wire import ext_proc_pb2 as wire
from extproc.exchange import actions, events
from extproc.settings import load_settings

ORDER = "x-sabotage"
PHASES = ("request headers", "request body", "response headers", "response body")
EVENTS = dict(zip((events.Headers, events.Body, events.ResponseHeaders, events.Chunk), PHASES, strict=True))
GARBAGE = b"\xff\xff\xff\xff"


def order_of(event: events.Event) -> tuple[str, str]:
    """(phase, kind), or nothing."""
    assert isinstance(event, events.Headers)
    phase, _, kind = event.headers.get(ORDER, "").partition("/")
    assert phase in ("", *PHASES)
    return phase, kind


class SabotagedCall:
    """The transport's end of a stream, as the driver sees it; replies may be spoilt."""

    def __init__(self, call: Call) -> None:
        self._call = call
        self.spoil: Callable[[bytes], list[bytes]] | None = None

    def send(self, message: bytes) -> None:
        spoil, self.spoil = self.spoil, None
        for one in spoil(message) if spoil else [message]:
            self._call.send(one)

    def close(self, code: StatusCode, message: str) -> None:
        self._call.close(code, message)


class Buggy:
    """An exchange whose next step raises what nobody expects."""

    def __init__(self, exchange: Any) -> None:
        self._exchange = exchange
        self.fuse = True

    def __getattr__(self, name: str) -> Any:
        return getattr(self._exchange, name)

    def receive(self, event: events.Event) -> Any:
        if self.fuse:
            self.fuse = False
            raise ZeroDivisionError("a bug that quotes zyzzyva quokka")
        return self._exchange.receive(event)


class Saboteur:
    """The handler of one stream: the real driver, but for the phase that was ordered."""

    def __init__(self, make: Callable[[Call], Driver], call: Call, stop: Callable[[], None]) -> None:
        self._call = SabotagedCall(call)
        self._driver = make(self._call)
        self._order = ("", "")
        self._stop = stop
        self._silent = False

    def message(self, data: bytes) -> None:
        event = decode(data)
        if isinstance(event, events.Headers):
            self._order = order_of(event)
        phase, kind = self._order
        if self._silent:
            return
        if EVENTS.get(type(event)) != phase:
            self._driver.message(data)
            return
        self._order = ("", "")
        self._act(phase, kind, data)

    def gone(self, reason: GoneReason) -> None:
        self._driver.gone(reason)

    def _act(self, phase: str, kind: str, data: bytes) -> None:
        match kind:
            case "bug":
                self._driver._exchange = Buggy(self._driver._exchange)  # type: ignore[assignment]
                self._driver.message(data)
            case "raise":
                raise ZeroDivisionError("a handler that raises")
            case "raise after":
                self._driver.message(data)
                raise ZeroDivisionError("a handler that raises")
            case "internal" | "unavailable":
                self._call.close(StatusCode[kind.upper()], "sabotage")
            case "close after":
                self._driver.message(data)
                self._call.close(StatusCode.UNAVAILABLE, "sabotage")
            case "garbage":
                self._call.spoil = lambda _: [GARBAGE]
                self._driver.message(data)
            case "stranger":
                self._call.spoil = lambda _: [encode(actions.PassTrailers(response=True))]
                self._driver.message(data)
            case "twice":
                self._call.spoil = lambda reply: [reply, reply]
                self._driver.message(data)
            case "unreadable":
                self._driver.message(GARBAGE)
            case "illegal":
                self._driver.message(_illegal(phase))
            case "silence":
                self._silent = True
            case "stop":
                self._driver.message(data)
                self._stop()
            case _:
                raise AssertionError(kind)


def _illegal(phase: str) -> bytes:
    """A message that the exchange does not expect there."""
    message = wire.ProcessingRequest()
    if phase == PHASES[0]:
        message.response_body.body = b"x"
    else:
        message.request_headers.headers.headers.add(key=":method", raw_value=b"POST")
    return message.SerializeToString()


class BadWorker:
    """Our worker, its stores, its transport; on the house's loop. Ends well, whatever was ordered."""

    def __init__(self, house: House, transport: str, *, slot: int) -> None:
        self._house = house
        self.worker: GateWorker = house.run(gate_worker(load_settings(house.settings_file, {}), slot, None))
        self.socket = house.directory / f"run/gate-{slot}.sock"
        listen = Listen(address=f"unix:{self.socket}")
        self.transport: Transport = TRANSPORTS[transport](listen, self._handler, self.worker.health)
        house.run(self.transport.start())
        self.worker.health.serve()

    def _handler(self, call: Call) -> Saboteur:
        return Saboteur(lambda inner: Driver(self.worker.gate, inner), call, self._stop_soon)

    def _stop_soon(self) -> None:
        self._stopping = asyncio.get_running_loop().create_task(self.transport.stop())

    def stop(self) -> None:
        async def stop() -> int:
            await self.transport.stop()
            left = await self.worker.gate.closing.drain(5)
            await self.worker.close()
            return left

        assert self._house.run(stop()) == 0


class ForeignGate:
    """A sidecar that is not ours, over bare HTTP/2: passes everything on to ``model``, holds nothing, and ends its stream as ordered.

    Kinds: ``ok`` and ``error`` (trailers with that grpc-status), ``reset`` (RST_STREAM), ``cut`` (the connection).
    """

    def __init__(self, path: Path, model: str) -> None:
        self.path = path
        self.model = model
        self.seen: list[str] = []
        self._server: asyncio.Server | None = None

    async def start(self) -> None:
        self._server = await asyncio.start_unix_server(self._serve, self.path)

    async def stop(self) -> None:
        assert self._server is not None
        self._server.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        machine = h2.connection.H2Connection(h2.config.H2Configuration(client_side=False, header_encoding="utf-8"))
        machine.initiate_connection()
        streams: dict[int, ForeignStream] = {}
        writer.write(machine.data_to_send())
        try:
            while data := await reader.read(65_536):
                for event in machine.receive_data(data):
                    self._on(machine, streams, writer, event)
                writer.write(machine.data_to_send())
        except ConnectionError:
            pass
        finally:
            writer.close()

    def _on(self, machine: Any, streams: dict[int, ForeignStream], writer: asyncio.StreamWriter, event: Any) -> None:
        if isinstance(event, h2.events.RequestReceived):
            path = dict(event.headers)[":path"]
            streams[event.stream_id] = ForeignStream(self, machine, event.stream_id, is_health=path == HEALTH, cut=writer.transport.abort)
        elif isinstance(event, h2.events.DataReceived):
            machine.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
            streams[event.stream_id].feed(event.data)
        elif isinstance(event, h2.events.StreamReset):
            streams[event.stream_id].over = True


class ForeignStream:
    def __init__(self, gate: ForeignGate, machine: Any, stream_id: int, *, is_health: bool, cut: Callable[[], None]) -> None:
        self._gate, self._machine, self._id, self._is_health, self._cut = gate, machine, stream_id, is_health, cut
        self._buffer = b""
        self._order = ("", "")
        self._answered = False
        self.over = False

    def feed(self, data: bytes) -> None:
        self._buffer += data
        while len(self._buffer) >= 5 and len(self._buffer) >= 5 + (size := struct.unpack(">I", self._buffer[1:5])[0]):
            message, self._buffer = self._buffer[5 : 5 + size], self._buffer[5 + size :]
            if self._is_health:
                self._send(b"\x08\x01")
                self._end("ok")
            elif not self.over:
                self._message(decode(message))

    def _message(self, event: events.Event) -> None:
        if isinstance(event, events.Headers):
            self._order = order_of(event)
        phase, kind = self._order
        self._gate.seen.append(EVENTS[type(event)])
        if EVENTS[type(event)] == phase:
            self._end(kind)
        else:
            self._send(encode(self._pass(event)))

    def _pass(self, event: events.Event) -> actions.Action:
        match event:
            case events.Headers():
                return actions.PassHeaders()
            case events.Body():
                return actions.PassBody(data=event.data, set_headers=(("x-model", self._gate.model), ("x-priority", "standard")))
            case events.ResponseHeaders():
                return actions.PassResponseHeaders()
            case _:
                return actions.PassChunk()

    def _begin(self) -> None:
        if not self._answered:
            self._answered = True
            self._machine.send_headers(self._id, [(":status", "200"), ("content-type", "application/grpc")])

    def _send(self, message: bytes) -> None:
        self._begin()
        self._machine.send_data(self._id, b"\0" + struct.pack(">I", len(message)) + message)

    def _end(self, kind: str) -> None:
        self.over = True
        if kind == "cut":
            self._cut()
        elif kind == "reset":
            self._machine.reset_stream(self._id, h2.errors.ErrorCodes.INTERNAL_ERROR)
        else:
            self._begin()
            self._machine.send_headers(self._id, [("grpc-status", "0" if kind == "ok" else "13")], end_stream=True)
