"""What can happen to an exchange. Frozen, cheap (msgspec structs: a chunk event is made for every read of a stream)."""

from __future__ import annotations

import msgspec

from extproc.accounts.model import Key
from extproc.money.hold import Denied, Granted
from extproc.money.statement import Statement


class Event(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """``at_ns`` is monotonic time, for durations only."""

    at_ns: int = 0


class Headers(Event, frozen=True, kw_only=True):
    """The request line and headers as Envoy has them.

    ``headers`` maps lower-case names to values; several values of one name are joined by ``,`` (as Envoy does).
    ``hold_id`` is ours (UUIDv7), ``request_id`` Envoy's, ``client_ip`` without port ("" = unknown), ``unix_ms`` the wall clock.
    ``end_of_stream``: no body follows.
    """

    method: str
    path: str
    headers: dict[str, str]
    client_ip: str
    request_id: str
    hold_id: str
    unix_ms: int
    end_of_stream: bool


class Body(Event, frozen=True, kw_only=True):
    """The whole request body."""

    data: bytes


class ResponseHeaders(Event, frozen=True, kw_only=True):
    """``upstream`` and ``attempts`` come from Envoy's attributes ("" and 0 if it did not say)."""

    status: int
    headers: dict[str, str]
    end_of_stream: bool = False
    upstream: str = ""
    attempts: int = 0
    code_details: str = ""


class Chunk(Event, frozen=True, kw_only=True):
    """A piece of the response body, cut anywhere. ``end_of_stream``: it was the last."""

    data: bytes
    end_of_stream: bool


class Trailers(Event, frozen=True, kw_only=True):
    """Request or response trailers: passed on. ``response`` trailers end the body as eos does."""

    response: bool


class Gone(Event, frozen=True, kw_only=True):
    """Envoy's stream is over: the request ended, the client left, the upstream reset, or the connection to Envoy was lost.

    ``reason``: ``closed`` (Envoy closed or reset this stream), ``edge_lost`` (its connection broke), ``sidecar_error`` (we ended it).
    """

    reason: str = "closed"


class KeyRead(Event, frozen=True, kw_only=True):
    """The directory's answer; ``None`` = no such key."""

    key: Key | None


class Admitted(Event, frozen=True, kw_only=True):
    """``admit`` granted."""

    granted: Granted


class Amended(Event, frozen=True, kw_only=True):
    """``amend`` granted."""

    granted: Granted


class Refused(Event, frozen=True, kw_only=True):
    """``admit`` or ``amend`` denied, or (of a key that is over) an answer."""

    denied: Denied


class Answered(Event, frozen=True, kw_only=True):
    """What the stores know about somebody's money."""

    statement: Statement


class Counted(Event, frozen=True, kw_only=True):
    """The prompt's tokens, counted in a thread; ``None`` = no thread had time for it."""

    tokens: int | None


class StoreFailed(Event, frozen=True, kw_only=True):
    """A store refused, timed out or broke. The outcome is unknown: whatever it was, the hold is voided until that is acknowledged."""

    what: str


class Tick(Event, frozen=True, kw_only=True):
    """A beat is due."""


class Stopped(Event, frozen=True, kw_only=True):
    """The drain's patience is over: cut the stream."""
