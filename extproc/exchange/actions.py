"""What an exchange asks the driver to do. Carried out in order; at most one reply per message of Envoy."""

from __future__ import annotations

from collections.abc import Callable

import msgspec

from extproc.exchange.record import Record
from extproc.money.hold import Admission, Amendment, Checkpoint, Ending
from extproc.money.statement import Enquiry

Pairs = tuple[tuple[str, str], ...]
"""Headers, or metadata."""


class Action(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """Base of all actions."""


class LookUpKey(Action, frozen=True, kw_only=True):
    """Ask the directory; it answers KeyRead or StoreFailed. ``secret`` is the client's key: never logged, hashed by the directory."""

    secret: str


class FindAnswer(Action, frozen=True, kw_only=True):
    """Ask the stores about somebody's money; they answer Answered, Refused or StoreFailed."""

    enquiry: Enquiry


class Admit(Action, frozen=True, kw_only=True):
    """Answered by Admitted, Refused or StoreFailed."""

    admission: Admission


class Count(Action, frozen=True, kw_only=True):
    """Run ``job`` in a thread; answered by Counted. ``payer_id``: whose share of the threads it takes."""

    payer_id: str
    job: Callable[[], int]


class CountUpstream(Action, frozen=True, kw_only=True):
    """Post ``question`` to a server of ``model``; answered by Counted. ``payer_id``: whose share of the questions it takes."""

    payer_id: str
    model: str
    question: bytes


class Amend(Action, frozen=True, kw_only=True):
    """Answered by Amended, Refused or StoreFailed. ``waits`` False: Amended at once, whatever the store says afterwards (trust)."""

    amendment: Amendment
    waits: bool = True


class Lend(Action, frozen=True, kw_only=True):
    """The hold store is away: ask the worker's own credit for the amendment's cap. Answered by Amended or StoreFailed."""

    amendment: Amendment


class PassHeaders(Action, frozen=True, kw_only=True):
    """Reply to the request headers: go on. ``set_headers`` overwrite, ``remove_headers`` are removed."""

    set_headers: Pairs = ()
    remove_headers: tuple[str, ...] = ()


class PassBody(Action, frozen=True, kw_only=True):
    """Reply to the request body: forward ``data`` instead, with these headers, and choose the route again.

    ``metadata`` (hold id, payer, cap, price id) goes into Envoy's dynamic metadata for the access log.
    """

    data: bytes
    set_headers: Pairs = ()
    remove_headers: tuple[str, ...] = ()
    metadata: Pairs = ()


class PassResponseHeaders(Action, frozen=True, kw_only=True):
    """Reply to the response headers. ``buffer``: have the whole body in one message (a JSON answer), else streamed."""

    buffer: bool = False
    set_headers: Pairs = ()
    remove_headers: tuple[str, ...] = ()


class PassChunk(Action, frozen=True, kw_only=True):
    """Reply to a response chunk. ``data`` ``None`` = unchanged, else what the client gets in its place.

    ``set_headers`` only in answer to a buffered body. ``metadata`` as in PassBody (final counts for the witness).
    """

    data: bytes | None = None
    set_headers: Pairs = ()
    metadata: Pairs = ()


class PassTrailers(Action, frozen=True, kw_only=True):
    """Reply to trailers: go on."""

    response: bool


class Answer(Action, frozen=True, kw_only=True):
    """Answer the client ourselves (ImmediateResponse), instead of whatever Envoy's message was about. ``code`` of a refusal's error."""

    status: int
    body: bytes
    code: str = ""
    headers: Pairs = ()


class Beat(Action, frozen=True, kw_only=True):
    """The checkpoint of this hold, for the worker's next collective beat."""

    checkpoint: Checkpoint


class End(Action, frozen=True, kw_only=True):
    """End the hold. ``wait``: the next action (the reply to the last chunk) waits for the acknowledgement (MONEY.md, 50 ms)."""

    ending: Ending
    wait: bool = False


class Note(Action, frozen=True, kw_only=True):
    """The exchange is over: metrics, log line, and, if ``row`` is not empty, a ledger row for a request that never had a hold."""

    record: Record
    row: bytes = b""
    payer_id: str = ""
