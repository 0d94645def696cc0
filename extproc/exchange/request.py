"""The first half of a request: who asks (headers), for what (body), and whether there is money for it. Steps of the machine's table.

Where a step would refuse, shadow mode goes on (``tab.spares``): a key that nobody knows is a stranger's, who is metered and holds nothing;
what cannot be priced at all passes as it came, and is none of our business from there on.
"""

from __future__ import annotations

from extproc.accounts.scopes import key_fault
from extproc.catalog.model import Model
from extproc.errors import ClientError
from extproc.exchange import answers, replies, upstream
from extproc.exchange.actions import Admit, Answer, Count, CountUpstream, FindAnswer, LookUpKey, Pairs, PassBody, PassHeaders
from extproc.exchange.answers import Question
from extproc.exchange.ask import JSON, Ask
from extproc.exchange.body import understand
from extproc.exchange.doors import FORBIDDEN_HEADERS, door_of, secret_of
from extproc.exchange.events import Admitted, Amended, Answered, Body, Counted, Headers, KeyRead, Refused, StoreFailed
from extproc.exchange.forwarding import forward, sticky
from extproc.exchange.sizing import Size, clamped, size
from extproc.exchange.state import Outcome, State
from extproc.exchange.tab import Tab
from extproc.money.hold import DenyReason, EndReason
from extproc.money.price import Price
from extproc.money.quote import Quote, Terms, affordable_output_tokens
from extproc.money.usage import FREE_UNITS, NO_QUOTA

UNAVAILABLE = "unavailable"
SHORT = frozenset({DenyReason.INSUFFICIENT, DenyReason.HELD, DenyReason.KEY_BUDGET})  # fewer tokens may fit

# request headers


def headers(tab: Tab, event: Headers) -> Outcome:
    """Through which door, and with which key."""
    tab.arrive(event)
    try:
        tab.door = door_of(event, tab.pinned.bounds)
    except ClientError as error:
        return _refuse(tab, event.at_ns, error)
    try:
        secret = secret_of(event)
    except ClientError as error:
        return _stranger(tab, event.at_ns, error)
    return State.KEYING, (LookUpKey(secret=secret),)


def key_read(tab: Tab, event: KeyRead) -> Outcome:
    """Who asks; may this key come in like this?"""
    key = event.key
    if key is None:
        return _stranger(tab, event.at_ns, replies.unauthorized("The API key is not valid."))
    tab.identify(key)
    assert tab.tier is not None
    try:
        key_fault(key, client_ip=tab.client_ip, unix_ms=tab.created_ms)
        if tab.priority not in tab.tier.priorities:
            words = f"Your account may ask for priority {', '.join(sorted(tab.tier.priorities))}, not {tab.priority[:32]!r}."
            raise replies.forbidden(words, "priority_not_allowed")
        if tab.door.body_fault is not None:
            raise tab.door.body_fault
    except ClientError as error:
        if not tab.spares(error.code or ""):
            return _refuse(tab, event.at_ns, error)
    question = tab.door.question
    if question is None:
        return State.ADMITTING, (Admit(admission=tab.admission()),)
    if question.is_about_models:
        return _about_models(tab, question, event.at_ns)
    return State.ANSWERING, (FindAnswer(enquiry=answers.enquiry(question, key, unix_ms=tab.created_ms)),)


def admitted(tab: Tab, event: Admitted) -> Outcome:
    """The entry hold stands: let Envoy read the body."""
    granted = event.granted
    tab.hold_id, tab.spendable_nanos, tab.free = granted.hold_id, granted.spendable_nanos, granted.quota
    tab.requests_left, tab.tokens_left = granted.requests, granted.tokens
    if granted.would_deny is not None:
        tab.spares(granted.would_deny.value)
    return _let_in(tab)


def not_admitted(tab: Tab, event: Refused) -> Outcome:
    """A limit is reached, or there is not even money for the least."""
    return _let_in(tab) if tab.spares(event.denied.reason.value) else _turn_away(tab, event)


def _let_in(tab: Tab) -> Outcome:
    names = [("x-account-id", tab.key.payer_id), ("x-hold-id", tab.hold_id)] if tab.key else []
    if tab.door.query:
        names.append((":path", tab.door.path))
    removed = FORBIDDEN_HEADERS if tab.key else (*FORBIDDEN_HEADERS, "x-account-id", "x-hold-id")
    return State.OPEN, (PassHeaders(set_headers=tuple(names), remove_headers=removed),)


def _stranger(tab: Tab, at_ns: int, error: ClientError) -> Outcome:
    """Nobody knows this key."""
    if not tab.spares(error.code or ""):
        return _refuse(tab, at_ns, error)
    tab.identify(None)
    question = tab.door.question
    if question is None:
        return _let_in(tab)
    return _about_models(tab, question, at_ns) if question.is_about_models else _refuse(tab, at_ns, error)


# what we answer ourselves


def _about_models(tab: Tab, question: Question, at_ns: int) -> Outcome:
    assert tab.tier is not None
    catalog = tab.pinned.catalog
    try:
        answer = answers.about_models(question, catalog, tab.tier, tab.key, at_ms=tab.created_ms, request_id=tab.request_id)
    except ClientError as error:
        return _refuse(tab, at_ns, error)
    return State.CLOSED, (answer, tab.answered(at_ns))


def answered(tab: Tab, event: Answered) -> Outcome:
    """What the key's owner has, and has spent."""
    assert tab.door.question is not None
    assert tab.key is not None
    assert tab.tier is not None
    answer = answers.about_money(
        tab.door.question,
        tab.key,
        tab.tier,
        event.statement,
        currency=tab.pinned.catalog.currency,
        unix_ms=tab.created_ms,
        request_id=tab.request_id,
    )
    return State.CLOSED, (answer, tab.answered(event.at_ns))


def not_answered(tab: Tab, event: Refused) -> Outcome:
    """The key has been revoked a moment ago, or has expired."""
    if tab.spares(event.denied.reason.value):
        return State.SPARED, (PassHeaders(), tab.refused(event.at_ns))
    return _turn_away(tab, event)


def answer_failed(tab: Tab, event: StoreFailed) -> Outcome:
    """What is not known is not guessed: 503, in shadow mode too."""
    reply = tab.unavailable()
    return State.CLOSED, (reply, tab.refused(event.at_ns, error_code=UNAVAILABLE, error=event.what))


# request body


def body(tab: Tab, event: Body) -> Outcome:
    """What is asked for. Texts above the bound of a loop are counted in a thread."""
    if tab.is_shadow:
        tab.body = event.data
    try:
        prompt, counter = understand(tab, event.data).prompt, tab.counter
        if prompt.read_bytes(counter) > tab.pinned.bounds.count_exactly_bytes_max:
            return _amend(tab, None)
        if counter is None:
            return _ask_upstream(tab) or _amend(tab, None)
        if prompt.work_bytes(counter) <= tab.pinned.bounds.offload_bytes:
            return _amend(tab, prompt.count(counter))
    except ClientError as error:
        return _refuse_held(tab, event.at_ns, error)
    return State.COUNTING, (Count(payer_id=tab.payer_id, job=lambda: prompt.count(counter)),)


def _ask_upstream(tab: Tab) -> Outcome | None:
    """The model has no vocabulary here, but perhaps a server that counts."""
    ask, model = _asked(tab)
    if model.name not in tab.pinned.bounds.counted_upstream or ask.is_free:
        return None
    question = upstream.question(ask.prompt, model.served_name)
    return (State.COUNTING, (CountUpstream(payer_id=tab.payer_id, model=model.name, question=question),)) if question else None


def counted(tab: Tab, event: Counted) -> Outcome:
    """Not counted in time: the bound is held for, and the backend asked to tell the prompt's tokens with the first chunk."""
    (ask, _), tokens = _asked(tab), event.tokens
    if tokens is not None and tab.counter is None:
        tokens += ask.prompt.beside_text  # what its server was not asked
    try:
        return _amend(tab, tokens)
    except ClientError as error:
        return _refuse_held(tab, event.at_ns, error)


def _amend(tab: Tab, counted: int | None) -> Outcome:
    ask, model = _asked(tab)
    tab.ask_for(size(ask, model, tab.counter, counted=counted))
    if tab.key is None:
        return _forward(tab)
    return State.AMENDING, (tab.amend(),)


def amended(tab: Tab, event: Amended) -> Outcome:
    """The exact hold stands, or (in shadow mode) would not: forward."""
    granted = event.granted
    tab.tokens_left = granted.tokens or tab.tokens_left
    tab.take(granted.quota)
    if granted.would_deny is not None and _lower(tab, granted.would_deny, granted.spendable_nanos) is None:
        tab.spares(granted.would_deny.value)
    return _forward(tab)


def _forward(tab: Tab) -> Outcome:
    _, worst, price = _priced(tab)
    metadata: Pairs = (
        ("hold_id", tab.hold_id),
        ("payer_id", tab.payer_id),
        ("key_id", tab.key.id if tab.key else ""),
        ("cap_nanos", str(worst.cap_nanos)),
        ("price_id", price.price_id),
    )
    if tab.quota is not NO_QUOTA:
        metadata += tuple(zip(FREE_UNITS, map(str, tab.quota.both), strict=True))
    names = _route(tab)
    if conversation := sticky(tab):
        names = (*names, ("x-sticky", conversation))
    return State.FORWARDED, (PassBody(data=forward(tab), set_headers=names, metadata=metadata),)


def _route(tab: Tab) -> Pairs:
    assert tab.model is not None
    names = ("x-model", tab.model.name), ("x-priority", tab.priority)
    if tab.is_shadow:
        return names  # the body goes on as it came
    return *names, ("content-type", tab.ask.content_type if tab.ask else JSON)


def not_amended(tab: Tab, event: Refused) -> Outcome:
    """Perhaps fewer output tokens fit: silently if the client named no maximum, by policy if it did."""
    denied = event.denied
    tab.free = denied.quota
    lower = _lower(tab, denied.reason, denied.spendable_nanos)
    if lower is None:
        return never_amended(tab, event)
    ask, _ = _asked(tab)
    if ask.output_max is not None:
        tab.clamped = True
        tab.decided_by("over_balance", "clamp")
    tab.ask_for(lower)
    return State.CLAMPING, (tab.amend(),)


def _lower(tab: Tab, reason: DenyReason, spendable_nanos: int) -> Size | None:
    policy, (ask, _), (sized, _, price) = tab.pinned.policy, _asked(tab), _priced(tab)
    if reason not in SHORT or (ask.output_max is not None and policy.over_balance != "clamp"):
        return None
    most = affordable_output_tokens(price, sized.demand, spendable_nanos=spendable_nanos, quota=tab.free)
    lower = clamped(sized, output_total=max(0, most), choices=ask.choices)
    return lower if lower.output_each >= min(policy.clamp_output_tokens_min, sized.output_each) else None


def never_amended(tab: Tab, event: Refused) -> Outcome:
    """It does not fit: give the entry hold back."""
    if tab.spares(event.denied.reason.value):
        return _forward(tab)
    reply, code = _refusal(tab, event)
    void = tab.void(EndReason.REFUSED, event.at_ns, error_code=code, error=event.denied.reason.value)
    return State.CLOSED, (reply, *void)


# a store did not answer


def look_up_failed(tab: Tab, event: StoreFailed) -> Outcome:
    """Nobody can say whose key it is: 503, never 401."""
    return _stranger(tab, event.at_ns, ClientError("", code=UNAVAILABLE)) if tab.is_shadow else answer_failed(tab, event)


def admit_failed(tab: Tab, event: StoreFailed) -> Outcome:
    """On credit, if the policy says so; how much is asked when it is known."""
    return _let_in(tab) if tab.spares(UNAVAILABLE) or tab.borrows() else store_failed(tab, event)


def amend_failed(tab: Tab, event: StoreFailed) -> Outcome:
    """The store has gone between headers and body, or there is no credit either."""
    if tab.spares(UNAVAILABLE):
        return _forward(tab)
    if tab.terms is not Terms.LENT and tab.borrows():
        assert tab.sized is not None
        tab.ask_for(tab.sized)
        return State.AMENDING, (tab.amend(),)
    return store_failed(tab, event)


def store_failed(tab: Tab, event: StoreFailed) -> Outcome:
    """The outcome is unknown: void until that is acknowledged (idempotent by id; an unknown id gets a tombstone)."""
    reply = tab.unavailable()
    return State.CLOSED, (reply, *tab.void(EndReason.SIDECAR_ERROR, event.at_ns, error_code=UNAVAILABLE, error=event.what))


def _refuse(tab: Tab, at_ns: int, error: ClientError) -> Outcome:
    """Before anything is held."""
    if tab.spares(error.code or ""):
        return State.SPARED, (PassHeaders(), tab.refused(at_ns))
    reply = tab.to_client(replies.deny(error, request_id=tab.request_id))
    return State.CLOSED, (reply, tab.refused(at_ns, error_code=error.code or ""))


def _refuse_held(tab: Tab, at_ns: int, error: ClientError) -> Outcome:
    """After the entry hold: give it back."""
    if tab.spares(error.code or ""):
        names = _route(tab) if tab.model else ()
        return State.SPARED, (PassBody(data=tab.body, set_headers=names), *tab.void(EndReason.REFUSED, at_ns))
    reply = tab.to_client(replies.deny(error, request_id=tab.request_id))
    return State.CLOSED, (reply, *tab.void(EndReason.REFUSED, at_ns, error_code=error.code or ""))


def _turn_away(tab: Tab, event: Refused) -> Outcome:
    """The store said no, and holds nothing."""
    reply, code = _refusal(tab, event)
    return State.CLOSED, (reply, tab.refused(event.at_ns, error_code=code, error=event.denied.reason.value))


def _refusal(tab: Tab, event: Refused) -> tuple[Answer, str]:
    pinned = tab.pinned
    reply, code = replies.refusal(event.denied, policy=pinned.policy, currency=pinned.catalog.currency, request_id=tab.request_id)
    return tab.to_client(reply), code


def _asked(tab: Tab) -> tuple[Ask, Model]:
    assert tab.ask is not None
    assert tab.model is not None
    return tab.ask, tab.model


def _priced(tab: Tab) -> tuple[Size, Quote, Price]:
    assert tab.sized is not None
    assert tab.quote is not None
    assert tab.price is not None
    return tab.sized, tab.quote, tab.price
