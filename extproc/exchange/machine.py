"""One HTTP request through Envoy, as a state machine without IO. This is the heart of the house: read it first.

Envoy sends us one message after the other, and waits for our one reply to each::

    request headers ─ request body ─ response headers ─ response body × n ─ (end of stream)

A request walks down these states. On its **headers** the key is looked up (``KEYING``) and an entry hold is asked for (``ADMITTING``);
with the hold it is ``OPEN``. On its **body** the prompt is counted (``COUNTING``, long texts only), the worst case priced, and the
exact hold asked for (``AMENDING``, or ``CLAMPING`` the second time, with fewer output tokens). Granted, it is ``FORWARDED``: Envoy
chooses the route by the model and asks a backend. With the **response headers** of a success it is ``STREAMING``: chunks are passed,
and looked at. The final usage, ``[DONE]``, the end of the stream, or somebody hanging up **ends the hold**, exactly once: ``ENDED``
(Envoy may still have messages for us) or ``CLOSED`` (it has none). Whoever leaves while a store is still thinking leaves an
``ORPHANED`` exchange, which waits for that one answer and voids. What Envoy answers by itself before it has asked us anything (a path
that it rejects) is ``FOREIGN``: passed, and none of our business. A drain that has lost patience cuts the stream: ``CUTTING`` until
the next chunk can be replaced by an error event, ``CUT`` afterwards. If Envoy answers while a store is still thinking (a body above its
buffer), we are ``SIDELINED``: its answer passes, and the store's is waited for and voided.

Everything that can happen stands in one table, :data:`TRANSITIONS`, with late and doubled events as rows. What is not in it is
illegal: the driver counts it and sends ``Gone(sidecar_error)``, which every state knows. The tab keeps facts (``tab.py``); what may
happen next is told by the state alone. Nothing here knows the time, a socket or a store: events bring facts, actions ask for deeds
(``events.py``, ``actions.py``).

Three promises hold over every walk through the table, and are tested by random ones: a granted hold ends exactly once; Envoy gets at
most one reply to a message; nothing is forwarded that is not held.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import StrEnum
from typing import Any, get_args

from extproc.accounts.scopes import key_fault
from extproc.errors import ClientError, IllegalEvent
from extproc.exchange import replies
from extproc.exchange.actions import (
    Action,
    Admit,
    Amend,
    Answer,
    Count,
    End,
    LookUpKey,
    Note,
    PassBody,
    PassChunk,
    PassHeaders,
    PassResponseHeaders,
    PassTrailers,
)
from extproc.exchange.body import understand
from extproc.exchange.doors import FORBIDDEN_HEADERS, door_of, secret_of, too_large
from extproc.exchange.events import (
    Admitted,
    Amended,
    Body,
    Chunk,
    Counted,
    Event,
    Gone,
    Headers,
    KeyRead,
    Refused,
    ResponseHeaders,
    Stopped,
    StoreFailed,
    Tick,
    Trailers,
)
from extproc.exchange.meter_stream import StreamMeter
from extproc.exchange.response import begin
from extproc.exchange.sizing import Size, clamped, size
from extproc.exchange.tab import Pinned, Tab
from extproc.money.amount import format_amount
from extproc.money.hold import DenyReason, EndReason
from extproc.money.price import Price
from extproc.money.quote import Quote, affordable_output_tokens
from extproc.money.usage import UsageSource


class State(StrEnum):
    """Where an exchange stands. In brackets: the message of Envoy that waits for our reply."""

    FRESH = "fresh"
    KEYING = "keying"  # (headers)
    ADMITTING = "admitting"  # (headers)
    OPEN = "open"
    COUNTING = "counting"  # (body)
    AMENDING = "amending"  # (body)
    CLAMPING = "clamping"  # (body)
    FORWARDED = "forwarded"
    STREAMING = "streaming"
    CUTTING = "cutting"
    CUT = "cut"
    ENDED = "ended"
    FOREIGN = "foreign"
    SIDELINED = "sidelined"
    ORPHANED = "orphaned"
    CLOSED = "closed"


Step = tuple[State, tuple[Action, ...]]
StoreAnswer = KeyRead | Admitted | Amended | Refused | Counted | StoreFailed
HOLDING = frozenset(
    {State.ADMITTING, State.OPEN, State.COUNTING, State.AMENDING, State.CLAMPING, State.FORWARDED, State.STREAMING}
    | {State.ORPHANED, State.SIDELINED}
)
PASS = PassChunk()
SWALLOW = PassChunk(data=b"")
PASSED: Step = (State.STREAMING, (PASS,))  # what nearly every message of Envoy comes to
FAILURES = frozenset({EndReason.UPSTREAM_ERROR, EndReason.ABORT})  # as the backend itself tells them


class Exchange:
    """One exchange. ``receive`` an event, carry out its actions in order."""

    __slots__ = ("pinned", "state", "tab")

    def __init__(self, pinned: Pinned) -> None:
        self.pinned = pinned
        self.state = State.FRESH
        self.tab: Tab

    def receive(self, event: Event) -> tuple[Action, ...]:
        """The actions that this event asks for. :class:`~extproc.errors.IllegalEvent` if the table has no row for it."""
        step = TRANSITIONS.get((self.state, type(event)))
        if step is None:
            raise IllegalEvent(self.state, type(event).__name__)
        self.state, actions = step(self, event)
        return actions

    def abandon(self, at_ns: int) -> tuple[Action, ...]:
        """A bug of ours has broken this exchange: end what it holds at its last checkpoint, whatever the table would say."""
        holding, self.state = self.state in HOLDING, State.CLOSED
        return self.tab.abandon(at_ns) if holding else ()


# request headers


def _headers(exchange: Exchange, event: Headers) -> Step:
    tab = exchange.tab = Tab(exchange.pinned, event)
    try:
        tab.door = door_of(event, exchange.pinned.bounds)
        secret = secret_of(event)
    except ClientError as error:
        return _refuse(exchange, event.at_ns, error)
    return State.KEYING, (LookUpKey(secret=secret),)


def _key_read(exchange: Exchange, event: KeyRead) -> Step:
    tab, key = exchange.tab, event.key
    if key is None:
        return _refuse(exchange, event.at_ns, replies.unauthorized("The API key is not valid."))
    tab.key = key
    tab.tier = exchange.pinned.catalog.tier(key.tier)
    try:
        key_fault(key, client_ip=tab.client_ip, unix_ms=tab.created_ms)
    except ClientError as error:
        return _refuse(exchange, event.at_ns, error)
    if tab.priority not in tab.tier.priorities:
        words = f"Your account may ask for priority {', '.join(sorted(tab.tier.priorities))}, not {tab.priority[:32]!r}."
        return _refuse(exchange, event.at_ns, replies.forbidden(words, "priority_not_allowed"))
    assert tab.door is not None
    if tab.door.endpoint is None:
        return State.CLOSED, (replies.model_list(exchange.pinned.catalog, key.models, request_id=tab.request_id),)
    return State.ADMITTING, (Admit(admission=tab.admission()),)


def _admitted(exchange: Exchange, event: Admitted) -> Step:
    tab = exchange.tab
    tab.hold_id = event.granted.hold_id
    assert tab.key is not None
    assert tab.door is not None
    headers = [("x-account-id", tab.key.payer_id), ("x-hold-id", tab.hold_id)]
    if tab.door.query:
        headers.append((":path", tab.door.path))
    return State.OPEN, (PassHeaders(set_headers=tuple(headers), remove_headers=FORBIDDEN_HEADERS),)


def _not_admitted(exchange: Exchange, event: Refused) -> Step:
    tab, denied = exchange.tab, event.denied
    reply, code = _refusal(exchange, event)
    return State.CLOSED, (reply, tab.refused(event.at_ns, error_code=code, error=denied.reason.value))


# request body


def _body(exchange: Exchange, event: Body) -> Step:
    tab = exchange.tab
    try:
        if len(event.data) > exchange.pinned.bounds.body_bytes_max:
            raise too_large(exchange.pinned.bounds.body_bytes_max)
        understand(tab, event.data)
        assert tab.ask is not None
        counter, prompt = tab.counter, tab.ask.prompt
        if counter is None or prompt.text_bytes > exchange.pinned.bounds.count_exactly_bytes_max:
            return _amend(exchange, None)
        if prompt.work_bytes <= exchange.pinned.bounds.offload_bytes:
            return _amend(exchange, prompt.count(counter))
    except ClientError as error:
        return _refuse_held(exchange, event.at_ns, error)
    assert tab.key is not None
    return State.COUNTING, (Count(payer_id=tab.key.payer_id, job=lambda: prompt.count(counter)),)


def _counted(exchange: Exchange, event: Counted) -> Step:
    """Not counted in time: the bound is held for, and the backend asked to tell the prompt's tokens with the first chunk."""
    try:
        return _amend(exchange, event.tokens)
    except ClientError as error:
        return _refuse_held(exchange, event.at_ns, error)


def _amend(exchange: Exchange, counted: int | None) -> Step:
    tab = exchange.tab
    assert tab.ask is not None
    assert tab.model is not None
    tab.ask_for(size(tab.ask, tab.model, tab.counter, counted=counted))
    return State.AMENDING, (Amend(amendment=tab.amendment()),)


def _amended(exchange: Exchange, event: Amended) -> Step:
    tab, model, (_, worst, price) = exchange.tab, exchange.tab.model, _priced(exchange.tab)
    assert model is not None
    assert tab.key is not None
    headers: tuple[tuple[str, str], ...] = (
        ("x-model", model.name),
        ("x-priority", tab.priority),
        ("content-type", "application/json"),
    )
    metadata = (
        ("hold_id", tab.hold_id),
        ("payer_id", tab.key.payer_id),
        ("cap_nanos", str(worst.cap_nanos)),
        ("price_id", price.price_id),
    )
    if sticky := tab.sticky():
        headers = (*headers, ("x-sticky", sticky))
    return State.FORWARDED, (PassBody(data=tab.forward(), set_headers=headers, metadata=metadata),)


def _not_amended(exchange: Exchange, event: Refused) -> Step:
    """Perhaps fewer output tokens fit: silently if the client named no maximum, by policy if it did."""
    tab, policy, denied = exchange.tab, exchange.pinned.policy, event.denied
    ask, (sized, _, price) = tab.ask, _priced(tab)
    assert ask is not None
    short = denied.reason in (DenyReason.INSUFFICIENT, DenyReason.HELD, DenyReason.KEY_BUDGET)
    if not short or (ask.output_max is not None and policy.over_balance != "clamp"):
        return _never_amended(exchange, event)
    most = affordable_output_tokens(price, input_tokens=sized.demand.input_tokens, spendable_nanos=denied.spendable_nanos)
    lower = clamped(sized, output_total=max(0, most), choices=ask.choices)
    if lower.output_each < min(policy.clamp_output_tokens_min, sized.output_each):
        return _never_amended(exchange, event)
    tab.clamped = ask.output_max is not None
    tab.ask_for(lower)
    return State.CLAMPING, (Amend(amendment=tab.amendment()),)


def _never_amended(exchange: Exchange, event: Refused) -> Step:
    reply, code = _refusal(exchange, event)
    exchange.tab.status = reply.status
    void = exchange.tab.void(EndReason.REFUSED, event.at_ns, error_code=code, error=event.denied.reason.value)
    return State.CLOSED, (reply, *void)


# response


def _response_headers(exchange: Exchange, event: ResponseHeaders) -> Step:
    tab = exchange.tab
    tab.status, tab.upstream, tab.attempts = event.status, event.upstream, event.attempts
    if not 200 <= event.status < 300 or event.end_of_stream:
        return _pass_and_void(exchange, event)
    return State.STREAMING, (begin(tab, event),)


def _pass_and_void(exchange: Exchange, event: ResponseHeaders) -> Step:
    """The backend failed, or Envoy answered by itself (413, 408, 503, 504): nothing is charged."""
    tab = exchange.tab
    tab.status = event.status
    reason = EndReason.UPSTREAM_ERROR if exchange.state is State.FORWARDED else EndReason.REFUSED
    void = tab.void(reason, event.at_ns, error_code=f"http_{event.status}", error=event.code_details)
    return State.ENDED, (PassResponseHeaders(), *void)


def _chunk(exchange: Exchange, event: Chunk) -> Step:
    """An ordinary chunk is answered at once; the last one waits until its settle is safe."""
    tab = exchange.tab
    meter = tab.meter
    assert meter is not None
    data = meter.feed(event.data, end_of_stream=event.end_of_stream)
    if event.end_of_stream or meter.complete:
        return _last_chunk(exchange, event, data)
    if tab.beat_ns:
        return PASSED if data == event.data else (State.STREAMING, (_pass_chunk(event, data),))
    tab.ttft_ns = tab.ttft_ns or event.at_ns
    # Something has been delivered: from here on a worker that dies must not take the whole charge with it.
    beat = (tab.beat(event.at_ns),) if meter.started else ()
    return State.STREAMING, (_pass_chunk(event, data), *beat)


def _last_chunk(exchange: Exchange, event: Chunk, data: bytes) -> Step:
    """The only chunk of a whole answer carries the cost as a header."""
    tab, reply = exchange.tab, _pass_chunk(event, data)
    whole = event.end_of_stream and not tab.ttft_ns
    tab.ttft_ns = tab.ttft_ns or event.at_ns
    end, note = _final(exchange, event.at_ns)
    if whole:
        reply = PassChunk(data=reply.data, set_headers=(("x-request-cost", format_amount(end.ending.charge_nanos)),))
    return State.ENDED, (end, reply, note)


def _pass_chunk(event: Chunk, data: bytes) -> PassChunk:
    return PASS if data == event.data else PassChunk(data=data)


def _final(exchange: Exchange, at_ns: int) -> tuple[End, Note]:
    """The answer is complete. No output and no usage out of a failed backend: void."""
    tab, policy, meter = exchange.tab, exchange.pinned.policy, exchange.tab.meter
    assert meter is not None
    reason = meter.reason() or EndReason.UPSTREAM_ERROR
    usage = meter.usage(ended_early=False)
    failed = reason in FAILURES
    if failed and not meter.started and usage.source is not UsageSource.UPSTREAM:
        return tab.void(reason, at_ns, error_code="upstream_error")
    if not failed and usage.source is not UsageSource.UPSTREAM and policy.no_usage == "hold" and tab.trusts_usage:
        usage = tab.held_usage()
    return tab.settle(usage, reason, at_ns, wait=True)


def _trailers_end(exchange: Exchange, event: Trailers) -> Step:
    if not event.response:
        return State.STREAMING, (PassTrailers(response=False),)
    if exchange.tab.meter is not None:
        exchange.tab.meter.feed(b"", end_of_stream=True)
    end, note = _final(exchange, event.at_ns)
    return State.ENDED, (end, PassTrailers(response=True), note)


def _late_chunk(exchange: Exchange, event: Chunk) -> Step:
    """After the end: nothing counts any more, but what was to be hidden stays hidden, and what was kept back goes out."""
    meter = exchange.tab.meter
    if meter is None:
        return State.ENDED, (PASS,)
    return State.ENDED, (_pass_chunk(event, meter.feed(event.data, end_of_stream=event.end_of_stream)),)


# ends that nobody asked for


def _gone_forwarded(exchange: Exchange, event: Gone) -> Step:
    """Gone before any output. A backend that failed would have shown itself by a status, so it was the client (or our own edge)."""
    tab = exchange.tab
    reason = _reason_of(event, EndReason.CLIENT_GONE)
    if exchange.pinned.policy.abort_before_response == "void" or reason is not EndReason.CLIENT_GONE:
        return State.CLOSED, tab.void(reason, event.at_ns)
    return State.CLOSED, tab.settle(tab.prompt_usage(), reason, event.at_ns)


def _gone_streaming(exchange: Exchange, event: Gone) -> Step:
    """Gone in the middle: client or upstream, the wire does not tell (``cut``). What was delivered is charged, by policy."""
    tab, policy, meter = exchange.tab, exchange.pinned.policy, exchange.tab.meter
    assert meter is not None
    said = meter.reason()  # a client may leave at the error event, before [DONE]
    if not meter.started:
        if said in FAILURES:
            return State.CLOSED, tab.void(said, event.at_ns, error_code="upstream_error")
        return _gone_forwarded(exchange, event)
    reason = _reason_of(event, said or EndReason.CUT)
    if policy.ended_early == "input_only":
        usage = tab.prompt_usage()
    elif policy.ended_early == "full":
        usage = tab.held_usage()
    else:
        usage = meter.usage(ended_early=True)
    return State.CLOSED, tab.settle(usage, reason, event.at_ns)


def _stopped(exchange: Exchange, event: Stopped) -> Step:
    """The drain has lost patience: charge what was delivered; the next chunk becomes an error event.

    A JSON answer cannot be ended in the middle: one that has begun to go out is left to end by itself, or with the connection.
    """
    tab, meter = exchange.tab, exchange.tab.meter
    assert meter is not None
    if not meter.started:
        return _stopped_unanswered(exchange, event)
    if not isinstance(meter, StreamMeter):
        return State.STREAMING, ()
    return State.CUTTING, tab.settle(meter.usage(ended_early=True), EndReason.CUT, event.at_ns)


def _stopped_unanswered(exchange: Exchange, event: Stopped) -> Step:
    """Nothing has come from the backend yet: nothing is charged, and what comes now is replaced by a 503."""
    return State.CUTTING, exchange.tab.void(EndReason.CUT, event.at_ns)


def _cut_answer(exchange: Exchange, event: ResponseHeaders) -> Step:
    return State.CLOSED, (replies.unavailable(exchange.tab.request_id),)


def _cut(exchange: Exchange, event: Chunk) -> Step:
    if isinstance(exchange.tab.meter, StreamMeter):
        return State.CUT, (PassChunk(data=replies.CUT_EVENT),)
    return State.CLOSED, (replies.unavailable(exchange.tab.request_id),)


def _gone_open(exchange: Exchange, event: Gone) -> Step:
    return State.CLOSED, exchange.tab.void(_reason_of(event, EndReason.CLIENT_GONE), event.at_ns)


def _gone_fresh(exchange: Exchange, event: Gone) -> Step:
    del exchange, event
    return State.CLOSED, ()


def _orphan(exchange: Exchange, event: StoreAnswer) -> Step:
    return State.CLOSED, _let_go(exchange.tab, event)


def _let_go(tab: Tab, event: StoreAnswer) -> tuple[Action, ...]:
    """The answer that nobody waits for any more: void what may be held."""
    if isinstance(event, KeyRead):
        tab.key = event.key
    if isinstance(event, KeyRead) or tab.key is None:
        return (tab.refused(event.at_ns, error_code=f"http_{tab.status}" if tab.status else "client_gone", error=""),)
    if isinstance(event, Admitted | Amended):
        tab.hold_id = event.granted.hold_id
    if tab.status:
        return tab.void(EndReason.REFUSED, event.at_ns, error_code=f"http_{tab.status}")
    return tab.void(EndReason.CLIENT_GONE, event.at_ns)


def _sidelined(exchange: Exchange, event: ResponseHeaders) -> Step:
    """Refused while a store is thinking: its answer is waited for, and what it grants goes back."""
    exchange.tab.status = event.status
    return State.SIDELINED, (PassResponseHeaders(),)


def _sidelined_answer(exchange: Exchange, event: StoreAnswer) -> Step:
    return State.FOREIGN, _let_go(exchange.tab, event)


# a store did not answer


def _store_failed_keying(exchange: Exchange, event: StoreFailed) -> Step:
    exchange.tab.status = 503
    note = exchange.tab.refused(event.at_ns, error_code="unavailable", error=event.what)
    return State.CLOSED, (replies.unavailable(exchange.tab.request_id), note)


def _store_failed(exchange: Exchange, event: StoreFailed) -> Step:
    """The outcome is unknown: void until that is acknowledged (idempotent by id; an unknown id gets a tombstone)."""
    tab = exchange.tab
    tab.status = 503
    void = tab.void(EndReason.SIDECAR_ERROR, event.at_ns, error_code="unavailable", error=event.what)
    return State.CLOSED, (replies.unavailable(tab.request_id), *void)


# leaves


def _beat(exchange: Exchange, event: Tick) -> Step:
    return exchange.state, (exchange.tab.beat(event.at_ns),)


def _same(exchange: Exchange, event: Event) -> Step:
    del event
    return exchange.state, ()


def _foreign(exchange: Exchange, event: ResponseHeaders) -> Step:
    return State.FOREIGN, (PassResponseHeaders(),)


def _pass(exchange: Exchange, event: Chunk) -> Step:
    return exchange.state, (PASS,)


def _pass_trailers(exchange: Exchange, event: Trailers) -> Step:
    return exchange.state, (PassTrailers(response=event.response),)


def _swallow(exchange: Exchange, event: Chunk) -> Step:
    del event
    return exchange.state, (SWALLOW,)


def _to(state: State) -> Callable[[Exchange, Any], Step]:
    def step(exchange: Exchange, event: Event) -> Step:
        del exchange, event
        return state, ()

    return step


def _refuse(exchange: Exchange, at_ns: int, error: ClientError) -> Step:
    """Before anything is held."""
    tab = exchange.tab
    tab.status = error.status
    reply = replies.deny(error, request_id=tab.request_id)
    return State.CLOSED, (reply, tab.refused(at_ns, error_code=error.code or "", error=""))


def _refuse_held(exchange: Exchange, at_ns: int, error: ClientError) -> Step:
    """After the entry hold: give it back."""
    tab = exchange.tab
    tab.status = error.status
    reply = replies.deny(error, request_id=tab.request_id)
    return State.CLOSED, (reply, *tab.void(EndReason.REFUSED, at_ns, error_code=error.code or ""))


def _refusal(exchange: Exchange, event: Refused) -> tuple[Answer, str]:
    tab, pinned = exchange.tab, exchange.pinned
    reply, code = replies.refusal(event.denied, policy=pinned.policy, currency=pinned.catalog.currency, request_id=tab.request_id)
    tab.status = reply.status
    return reply, code


def _priced(tab: Tab) -> tuple[Size, Quote, Price]:
    assert tab.sized is not None
    assert tab.quote is not None
    assert tab.price is not None
    return tab.sized, tab.quote, tab.price


def _reason_of(event: Gone, otherwise: EndReason) -> EndReason:
    return {"edge_lost": EndReason.EDGE_LOST, "sidecar_error": EndReason.SIDECAR_ERROR}.get(event.reason, otherwise)


_ORPHAN = _to(State.ORPHANED)
S = State

TRANSITIONS: dict[tuple[State, type[Event]], Callable[[Exchange, Any], Step]] = {
    (S.FRESH, Headers): _headers,
    (S.FRESH, ResponseHeaders): _foreign,
    (S.FRESH, Gone): _gone_fresh,
    (S.KEYING, KeyRead): _key_read,
    (S.KEYING, StoreFailed): _store_failed_keying,
    (S.KEYING, Gone): _ORPHAN,
    (S.ADMITTING, Admitted): _admitted,
    (S.ADMITTING, Refused): _not_admitted,
    (S.ADMITTING, StoreFailed): _store_failed,
    (S.ADMITTING, Gone): _ORPHAN,
    (S.OPEN, Body): _body,
    (S.OPEN, ResponseHeaders): _pass_and_void,
    (S.OPEN, Tick): _beat,
    (S.OPEN, Gone): _gone_open,
    (S.COUNTING, Counted): _counted,
    (S.COUNTING, StoreFailed): _store_failed,
    (S.COUNTING, Tick): _beat,
    (S.COUNTING, Gone): _ORPHAN,
    (S.AMENDING, Amended): _amended,
    (S.AMENDING, Refused): _not_amended,
    (S.AMENDING, StoreFailed): _store_failed,
    (S.AMENDING, Gone): _ORPHAN,
    (S.CLAMPING, Amended): _amended,
    (S.CLAMPING, Refused): _never_amended,
    (S.CLAMPING, StoreFailed): _store_failed,
    (S.CLAMPING, Gone): _ORPHAN,
    (S.FORWARDED, ResponseHeaders): _response_headers,
    (S.FORWARDED, Tick): _beat,
    (S.FORWARDED, Stopped): _stopped_unanswered,
    (S.FORWARDED, Gone): _gone_forwarded,
    (S.STREAMING, Chunk): _chunk,
    (S.STREAMING, Trailers): _trailers_end,
    (S.STREAMING, Tick): _beat,
    (S.STREAMING, Stopped): _stopped,
    (S.STREAMING, Gone): _gone_streaming,
    (S.CUTTING, ResponseHeaders): _cut_answer,
    (S.CUTTING, Chunk): _cut,
    (S.CUTTING, Gone): _to(S.CLOSED),
    (S.CUT, Chunk): _swallow,
    (S.CUT, Gone): _to(S.CLOSED),
    (S.ENDED, Chunk): _late_chunk,
    (S.ENDED, Gone): _to(S.CLOSED),
    (S.FOREIGN, Chunk): _pass,
    (S.FOREIGN, Gone): _to(S.CLOSED),
    **{(state, ResponseHeaders): _sidelined for state in (S.KEYING, S.ADMITTING, S.COUNTING, S.AMENDING, S.CLAMPING)},
    **{(S.SIDELINED, answer): _sidelined_answer for answer in get_args(StoreAnswer)},
    (S.SIDELINED, Chunk): _pass,
    (S.SIDELINED, Gone): _ORPHAN,
    **{(S.ORPHANED, answer): _orphan for answer in get_args(StoreAnswer)},
    (S.ORPHANED, Gone): _same,
    (S.CLOSED, Gone): _same,
    **{(state, Trailers): _pass_trailers for state in (S.OPEN, S.FORWARDED, S.ENDED, S.FOREIGN, S.SIDELINED, S.CUTTING, S.CUT)},
    # Where no row above says otherwise, beats and drains do not matter.
    **{(state, Tick): _same for state in S if state not in {S.OPEN, S.COUNTING, S.FORWARDED, S.STREAMING}},
    **{(state, Stopped): _same for state in S if state not in {S.FORWARDED, S.STREAMING}},
}
