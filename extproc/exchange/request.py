"""The first half of a request: who asks (headers), for what (body), and whether there is money for it. Steps of the machine's table."""

from __future__ import annotations

from extproc.accounts.scopes import key_fault
from extproc.errors import ClientError
from extproc.exchange import replies
from extproc.exchange.actions import Admit, Amend, Answer, Count, LookUpKey, PassBody, PassHeaders
from extproc.exchange.body import understand
from extproc.exchange.doors import FORBIDDEN_HEADERS, door_of, secret_of, too_large
from extproc.exchange.events import Admitted, Amended, Body, Counted, Headers, KeyRead, Refused, StoreFailed
from extproc.exchange.sizing import Size, clamped, size
from extproc.exchange.state import Outcome, State
from extproc.exchange.tab import Tab
from extproc.money.hold import DenyReason, EndReason
from extproc.money.price import Price
from extproc.money.quote import Quote, affordable_output_tokens

# request headers


def headers(tab: Tab, event: Headers) -> Outcome:
    """Through which door, and with which key."""
    tab.arrive(event)
    try:
        tab.door = door_of(event, tab.pinned.bounds)
        secret = secret_of(event)
    except ClientError as error:
        return _refuse(tab, event.at_ns, error)
    return State.KEYING, (LookUpKey(secret=secret),)


def key_read(tab: Tab, event: KeyRead) -> Outcome:
    """Who asks; may this key come in like this?"""
    key = event.key
    if key is None:
        return _refuse(tab, event.at_ns, replies.unauthorized("The API key is not valid."))
    tab.key = key
    tab.tier = tab.pinned.catalog.tier(key.tier)
    try:
        key_fault(key, client_ip=tab.client_ip, unix_ms=tab.created_ms)
    except ClientError as error:
        return _refuse(tab, event.at_ns, error)
    if tab.priority not in tab.tier.priorities:
        words = f"Your account may ask for priority {', '.join(sorted(tab.tier.priorities))}, not {tab.priority[:32]!r}."
        return _refuse(tab, event.at_ns, replies.forbidden(words, "priority_not_allowed"))
    assert tab.door is not None
    if tab.door.endpoint is None:
        return State.CLOSED, (replies.model_list(tab.pinned.catalog, key.models, request_id=tab.request_id),)
    return State.ADMITTING, (Admit(admission=tab.admission()),)


def admitted(tab: Tab, event: Admitted) -> Outcome:
    """The entry hold stands: let Envoy read the body."""
    tab.hold_id = event.granted.hold_id
    assert tab.key is not None
    assert tab.door is not None
    headers = [("x-account-id", tab.key.payer_id), ("x-hold-id", tab.hold_id)]
    if tab.door.query:
        headers.append((":path", tab.door.path))
    return State.OPEN, (PassHeaders(set_headers=tuple(headers), remove_headers=FORBIDDEN_HEADERS),)


def not_admitted(tab: Tab, event: Refused) -> Outcome:
    """A limit is reached, or there is not even money for the least."""
    denied = event.denied
    reply, code = _refusal(tab, event)
    return State.CLOSED, (reply, tab.refused(event.at_ns, error_code=code, error=denied.reason.value))


# request body


def body(tab: Tab, event: Body) -> Outcome:
    """What is asked for. Texts above the bound of a loop are counted in a thread."""
    try:
        if len(event.data) > tab.pinned.bounds.body_bytes_max:
            raise too_large(tab.pinned.bounds.body_bytes_max)
        understand(tab, event.data)
        assert tab.ask is not None
        counter, prompt = tab.counter, tab.ask.prompt
        if counter is None or prompt.text_bytes > tab.pinned.bounds.count_exactly_bytes_max:
            return _amend(tab, None)
        if prompt.work_bytes <= tab.pinned.bounds.offload_bytes:
            return _amend(tab, prompt.count(counter))
    except ClientError as error:
        return _refuse_held(tab, event.at_ns, error)
    assert tab.key is not None
    return State.COUNTING, (Count(payer_id=tab.key.payer_id, job=lambda: prompt.count(counter)),)


def counted(tab: Tab, event: Counted) -> Outcome:
    """Not counted in time: the bound is held for, and the backend asked to tell the prompt's tokens with the first chunk."""
    try:
        return _amend(tab, event.tokens)
    except ClientError as error:
        return _refuse_held(tab, event.at_ns, error)


def _amend(tab: Tab, counted: int | None) -> Outcome:
    assert tab.ask is not None
    assert tab.model is not None
    tab.ask_for(size(tab.ask, tab.model, tab.counter, counted=counted))
    return State.AMENDING, (Amend(amendment=tab.amendment()),)


def amended(tab: Tab, event: Amended) -> Outcome:
    """The exact hold stands: forward."""
    del event
    model, (_, worst, price) = tab.model, _priced(tab)
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


def not_amended(tab: Tab, event: Refused) -> Outcome:
    """Perhaps fewer output tokens fit: silently if the client named no maximum, by policy if it did."""
    policy, denied = tab.pinned.policy, event.denied
    ask, (sized, _, price) = tab.ask, _priced(tab)
    assert ask is not None
    short = denied.reason in (DenyReason.INSUFFICIENT, DenyReason.HELD, DenyReason.KEY_BUDGET)
    if not short or (ask.output_max is not None and policy.over_balance != "clamp"):
        return never_amended(tab, event)
    most = affordable_output_tokens(price, input_tokens=sized.demand.input_tokens, spendable_nanos=denied.spendable_nanos)
    lower = clamped(sized, output_total=max(0, most), choices=ask.choices)
    if lower.output_each < min(policy.clamp_output_tokens_min, sized.output_each):
        return never_amended(tab, event)
    tab.clamped = ask.output_max is not None
    tab.ask_for(lower)
    return State.CLAMPING, (Amend(amendment=tab.amendment()),)


def never_amended(tab: Tab, event: Refused) -> Outcome:
    """It does not fit: give the entry hold back."""
    reply, code = _refusal(tab, event)
    tab.status = reply.status
    void = tab.void(EndReason.REFUSED, event.at_ns, error_code=code, error=event.denied.reason.value)
    return State.CLOSED, (reply, *void)


# a store did not answer


def store_failed_keying(tab: Tab, event: StoreFailed) -> Outcome:
    """Nobody can say whose key it is: 503, never 401."""
    tab.status = 503
    note = tab.refused(event.at_ns, error_code="unavailable", error=event.what)
    return State.CLOSED, (replies.unavailable(tab.request_id), note)


def store_failed(tab: Tab, event: StoreFailed) -> Outcome:
    """The outcome is unknown: void until that is acknowledged (idempotent by id; an unknown id gets a tombstone)."""
    tab.status = 503
    void = tab.void(EndReason.SIDECAR_ERROR, event.at_ns, error_code="unavailable", error=event.what)
    return State.CLOSED, (replies.unavailable(tab.request_id), *void)


def _refuse(tab: Tab, at_ns: int, error: ClientError) -> Outcome:
    """Before anything is held."""
    tab.status = error.status
    reply = replies.deny(error, request_id=tab.request_id)
    return State.CLOSED, (reply, tab.refused(at_ns, error_code=error.code or "", error=""))


def _refuse_held(tab: Tab, at_ns: int, error: ClientError) -> Outcome:
    """After the entry hold: give it back."""
    tab.status = error.status
    reply = replies.deny(error, request_id=tab.request_id)
    return State.CLOSED, (reply, *tab.void(EndReason.REFUSED, at_ns, error_code=error.code or ""))


def _refusal(tab: Tab, event: Refused) -> tuple[Answer, str]:
    pinned = tab.pinned
    reply, code = replies.refusal(event.denied, policy=pinned.policy, currency=pinned.catalog.currency, request_id=tab.request_id)
    tab.status = reply.status
    return reply, code


def _priced(tab: Tab) -> tuple[Size, Quote, Price]:
    assert tab.sized is not None
    assert tab.quote is not None
    assert tab.price is not None
    return tab.sized, tab.quote, tab.price
