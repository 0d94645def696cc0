"""Ends that nobody asked for: somebody left, a drain lost patience, Envoy answered by itself. Steps of the machine's table.

Who pays for them is said in MONEY's terms by the policies ``ended_early`` and ``abort_before_response``.
"""

from __future__ import annotations

from extproc.exchange.actions import Action, PassChunk, PassResponseHeaders
from extproc.exchange.events import (
    Admitted,
    Amended,
    Answered,
    Chunk,
    Counted,
    Gone,
    KeyRead,
    Refused,
    ResponseHeaders,
    Stopped,
    StoreFailed,
)
from extproc.exchange.figures import ended
from extproc.exchange.meter_stream import StreamMeter
from extproc.exchange.response import FAILURES
from extproc.exchange.state import Outcome, State
from extproc.exchange.tab import Tab
from extproc.money.hold import EndReason
from extproc.money.usage import Usage

StoreAnswer = KeyRead | Answered | Admitted | Amended | Refused | Counted | StoreFailed


def gone_forwarded(tab: Tab, event: Gone) -> Outcome:
    """Gone before any output. A backend that failed would have shown itself by a status, so it was the client (or our own edge)."""
    reason = _reason_of(event, EndReason.CLIENT_GONE)
    policy = tab.pinned.policy.abort_before_response
    if reason is EndReason.CLIENT_GONE:
        tab.decided_by("abort_before_response", policy)
    if policy == "void" or reason is not EndReason.CLIENT_GONE:
        return State.CLOSED, tab.void(reason, event.at_ns)
    return State.CLOSED, tab.settle(_prompt_usage(tab), reason, event.at_ns)


def gone_streaming(tab: Tab, event: Gone) -> Outcome:
    """Gone in the middle: client or upstream, the wire does not tell (``cut``). What was delivered is charged, by policy."""
    policy, meter = tab.pinned.policy, tab.meter
    assert meter is not None
    said = meter.reason()  # a client may leave at the error event, before [DONE]
    if not meter.started:
        if said in FAILURES:
            return State.CLOSED, tab.void(said, event.at_ns, error_code="upstream_error")
        return gone_forwarded(tab, event)
    reason = _reason_of(event, said or EndReason.CUT)
    tab.decided_by("ended_early", policy.ended_early)
    if policy.ended_early == "input_only":
        usage = _prompt_usage(tab)
    elif policy.ended_early == "full":
        usage = tab.held_usage()
    else:
        usage = meter.usage(ended_early=True)
    return State.CLOSED, tab.settle(usage, reason, event.at_ns)


def _prompt_usage(tab: Tab) -> Usage:
    return tab.meter.prompt_usage() if isinstance(tab.meter, StreamMeter) else tab.prompt_usage()


def stopped(tab: Tab, event: Stopped) -> Outcome:
    """The drain has lost patience: charge what was delivered; the next chunk becomes an error event.

    A JSON answer cannot be ended in the middle: one that has begun to go out is left to end by itself, or with the connection.
    """
    meter = tab.meter
    assert meter is not None
    if not meter.started:
        return stopped_unanswered(tab, event)
    if not isinstance(meter, StreamMeter):
        return State.STREAMING, ()
    return State.CUTTING, tab.settle(meter.usage(ended_early=True), EndReason.CUT, event.at_ns)


def stopped_unanswered(tab: Tab, event: Stopped) -> Outcome:
    """Nothing has come from the backend yet: nothing is charged, and what comes now is replaced by a 503."""
    return State.CUTTING, tab.void(EndReason.CUT, event.at_ns)


def cut_answer(tab: Tab, event: ResponseHeaders) -> Outcome:
    """Cut before the backend had answered anything."""
    del event
    return State.CLOSED, (tab.unavailable(),)


def cut(tab: Tab, event: Chunk) -> Outcome:
    """Cut: an error event in a stream, behind the event that the client has the beginning of; a 503 in place of an answer."""
    if isinstance(tab.meter, StreamMeter):
        assert tab.expected is not None
        rest, why = tab.meter.rest_of_event(event.data), ended(EndReason.CUT)
        if rest is None and not event.end_of_stream:
            return State.CUTTING, (PassChunk(metadata=why),)
        data = event.data if rest is None else rest
        return State.CUT, (PassChunk(data=data + tab.expected.endpoint.cut_event, metadata=why),)
    return State.CLOSED, (tab.unavailable(),)


def gone_open(tab: Tab, event: Gone) -> Outcome:
    """Gone before its body was understood."""
    return State.CLOSED, tab.void(_reason_of(event, EndReason.CLIENT_GONE), event.at_ns)


def orphan(tab: Tab, event: StoreAnswer) -> Outcome:
    """What the one outstanding answer brings goes back."""
    return State.CLOSED, _let_go(tab, event)


def _let_go(tab: Tab, event: StoreAnswer) -> tuple[Action, ...]:
    """The answer that nobody waits for any more: void what may be held."""
    if isinstance(event, KeyRead):
        tab.key = event.key
    if isinstance(event, KeyRead) or tab.key is None or tab.is_question:
        return (tab.refused(event.at_ns, error_code=f"http_{tab.status}" if tab.status else "client_gone"),)
    if isinstance(event, Admitted | Amended):
        tab.hold_id = event.granted.hold_id
    if tab.status:
        return tab.void(EndReason.REFUSED, event.at_ns, error_code=f"http_{tab.status}")
    return tab.void(EndReason.CLIENT_GONE, event.at_ns)


def sidelined(tab: Tab, event: ResponseHeaders) -> Outcome:
    """Refused while a store is thinking: its answer is waited for, and what it grants goes back."""
    tab.status = event.status
    return State.SIDELINED, (PassResponseHeaders(),)


def sidelined_answer(tab: Tab, event: StoreAnswer) -> Outcome:
    """As :func:`orphan`, but Envoy still has chunks of its own answer for us."""
    return State.FOREIGN, _let_go(tab, event)


def _reason_of(event: Gone, otherwise: EndReason) -> EndReason:
    return {"edge_lost": EndReason.EDGE_LOST, "sidecar_error": EndReason.SIDECAR_ERROR}.get(event.reason, otherwise)
