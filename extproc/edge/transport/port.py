"""What a transport gives to the driver and what it expects from it, free of gRPC and of asyncio's details.

One gRPC stream of Envoy = one ``Call`` and one ``Handler``. Bytes only: a message is one serialized ProcessingRequest, a reply one
serialized ProcessingResponse. Whatever a transport is made of, it keeps these promises (tests/contract/transport):

* ``message`` is called in the order of the wire, never after ``gone``; ``gone`` exactly once, as the last call.
* ``send`` never blocks, keeps its order, and is silently ignored once the stream is over.
* Response HEADERS go out with the first reply or with the close, never earlier: until then Envoy may repeat the request elsewhere.
* **Status 0 is sent only after Envoy has ended its side.** An early OK close would let the request through unbilled. A handler that
  raises, a message that is too large, a full worker, a stop: each is an error close.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import Final, Literal, Protocol

METHOD: Final = "/envoy.service.ext_proc.v3.ExternalProcessor/Process"

MESSAGE_BYTES_MAX: Final = 33_554_432
"""Of one message. Above anything that Envoy buffers with our files (2 MiB), with room for a deployment that allows 24 MB bodies."""

UNSENT_BYTES_MAX: Final = 67_108_864
"""Of the replies of one stream that Envoy has not taken yet: two of the largest. Above it the stream ends with an error close."""

GoneReason = Literal["closed", "edge_lost", "sidecar_error"]


class StatusCode(enum.IntEnum):
    """The gRPC codes that we close with. There is no OK among them: an early OK close bills nobody."""

    RESOURCE_EXHAUSTED = 8
    INTERNAL = 13
    UNAVAILABLE = 14


@dataclass(frozen=True, slots=True, kw_only=True)
class TlsFiles:
    """PEM files; the peer (Envoy) must show a certificate of ``client_ca_file``."""

    cert_file: str
    key_file: str
    client_ca_file: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Listen:
    """Where a worker listens. ``address``: ``unix:path`` or ``host:port`` (port 0 = any); plain TCP is for the loopback only.

    ``inherited_fd``: a socket that listens there already; its file and its mode are its owner's business. (grpcio cannot take one.)
    ``socket_mode`` is that of the socket's file; its directory is made with 0750 if it is not there. ``streams_max``: open streams, above
    it new ones are closed with UNAVAILABLE (Envoy then tries another worker). ``allowed_uids``: users that may connect to a Unix socket;
    ``None`` = whoever the modes of directory and socket let in. (grpcio cannot ask who its peer is.)
    """

    address: str
    inherited_fd: int | None = None
    socket_mode: int = 0o660
    streams_max: int = 20_000
    insecure_loopback: bool = False
    allowed_uids: frozenset[int] | None = None
    tls: TlsFiles | None = None


class Call(Protocol):
    """The transport's end of one stream."""

    def send(self, message: bytes) -> None:
        """Queue one reply. Never blocks; ignored when the stream is over."""

    def close(self, code: StatusCode, message: str) -> None:
        """End the stream with an error, after what was sent before. ``gone`` follows. Ignored when it is over."""


class Handler(Protocol):
    """The driver's end of one stream. Both methods return at once: what takes long runs elsewhere and sends later."""

    def message(self, data: bytes) -> None:
        """One message of Envoy. Raising closes the stream with INTERNAL."""

    def gone(self, reason: GoneReason) -> None:
        """The stream is over: ``closed`` = Envoy ended it, ``sidecar_error`` = we did, ``edge_lost`` = the connection broke (if known)."""


class HandlerFactory(Protocol):
    """Called when a stream begins, before its first message."""

    def __call__(self, call: Call) -> Handler: ...


class Transport(Protocol):
    """A server for one worker. Made with a ``Listen``, a ``HandlerFactory`` and a ``Health``; lives on the running loop."""

    @property
    def address(self) -> str:
        """Where it listens, with the real port; valid after ``start``."""

    @property
    def open_streams(self) -> int:
        """Streams whose ``gone`` was not called yet."""

    async def start(self) -> None:
        """Listen. Raises UsageError when the address cannot be used."""

    def stop_accepting(self) -> None:
        """Listen no more; connections get GOAWAY, new streams are refused, open ones go on. Idempotent.

        Health is the worker's business: it goes on saying SERVING while a successor accepts on the same socket.
        """

    async def drain(self, grace_s: float) -> bool:
        """``stop_accepting``, then wait until no stream is open. ``False`` = some still are after ``grace_s``."""

    async def stop(self) -> None:
        """Close what is left with UNAVAILABLE (each gets its ``gone``) and give the address back. Idempotent."""
