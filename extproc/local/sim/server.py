"""Connections: bytes in, answers out, one request at a time on each."""

from __future__ import annotations

import asyncio
import socket
import struct
from collections import deque
from typing import Protocol, cast

from extproc.local.sim.delivery import Delivery
from extproc.local.sim.http import BrokenRequest, Request, RequestReader, response

PIPELINED_MAX = 64
"""Requests that wait on one connection; Envoy and the SDKs never send a second one before the answer."""

LINGER_RESET = struct.pack("ii", 1, 0)
"""Closing with no time to linger makes the kernel send RST."""


class Application(Protocol):
    """What answers requests."""

    def answer(self, request: Request, connection: Connection) -> bytes | Delivery | None:
        """The whole response, or what will deliver it, or ``None``: nothing will ever come."""

    def opened(self, connection: Connection) -> None:
        """A client connected."""

    def closed(self, connection: Connection) -> None:
        """A client left."""


class Connection(asyncio.Protocol):
    """One client."""

    def __init__(self, application: Application, loop: asyncio.AbstractEventLoop) -> None:
        self._application = application
        self._loop = loop
        self._reader = RequestReader()
        self._waiting: deque[Request] = deque()
        self._keep_alive = True
        self._busy = False
        self._paused = False
        self._transport: asyncio.Transport | None = None
        self.delivery: Delivery | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = writable = cast("asyncio.Transport", transport)  # uvloop's are no subclasses
        # Every write goes to the kernel at once, or pauses us: so we know what was delivered.
        writable.set_write_buffer_limits(high=0)
        self._application.opened(self)

    def data_received(self, data: bytes) -> None:
        try:
            self._waiting.extend(self._reader.feed(data))
        except BrokenRequest as error:
            self._refuse(str(error))
            return
        if len(self._waiting) > PIPELINED_MAX:
            self._refuse("too many requests at once")
            return
        self._next()

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - asyncio's
        self._transport = None
        self._waiting.clear()
        if self.delivery is not None:
            self.delivery.lost()
            self.delivery = None
        self._application.closed(self)

    def pause_writing(self) -> None:
        self._paused = True

    def resume_writing(self) -> None:
        self._paused = False
        if self.delivery is not None:
            self.delivery.resumed()

    def write(self, data: bytes) -> bool:
        """Whether the kernel has everything."""
        if self._transport is None:
            return False
        self._transport.write(data)
        return not self._paused

    def reset(self) -> None:
        """Break the connection: RST on TCP, a plain close on a Unix socket."""
        if self._transport is None:
            return
        sock: socket.socket = self._transport.get_extra_info("socket")
        if sock.family != socket.AF_UNIX:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, LINGER_RESET)
        self._transport.abort()

    def soon(self) -> None:
        self._loop.call_soon(self._go_on)

    def answered(self) -> None:
        self.delivery = None
        self._busy = False
        if not self._keep_alive:
            self.close()
        elif self._waiting:
            self._loop.call_soon(self._next)

    def close(self) -> None:
        """After what is written has gone out."""
        if self._transport is not None:
            self._transport.close()

    def drain(self) -> None:
        """Close now, or after the running answer, which is to end."""
        self._keep_alive = False
        if not self._busy:
            self.close()
        elif self.delivery is not None:
            self.delivery.abort()

    def _go_on(self) -> None:
        if self.delivery is not None and not self._paused:
            self.delivery.resumed()

    def _next(self) -> None:
        while self._waiting and not self._busy and self._transport is not None:
            request = self._waiting.popleft()
            self._keep_alive = self._keep_alive and request.keep_alive
            self._busy = True
            answer = self._application.answer(request, self)
            if isinstance(answer, bytes):
                self.write(answer)
                self.answered()
            elif answer is not None:
                self.delivery = answer
                answer.start()

    def _refuse(self, why: str) -> None:
        if self._transport is not None:
            self._transport.write(response(400, why.encode(), content_type=b"text/plain", keep_alive=False))
            self._transport.close()
