"""One HTTP request through Envoy, as a state machine without IO. This is the heart of the house: read it first.

Envoy sends us one message after the other, and waits for our one reply to each::

    request headers ─ request body ─ response headers ─ response body × n ─ (end of stream)

A request walks down these states. On its **headers** the key is looked up (``KEYING``) and an entry hold is asked for (``ADMITTING``);
with the hold it is ``OPEN``. (Who asks about his money gets his answer from us, once the stores have told: ``ANSWERING``.) On its
**body** the prompt is counted (``COUNTING``, long texts only), the worst case priced, and the exact hold asked for (``AMENDING``, or
``CLAMPING`` the second time, with fewer output tokens). Granted, it is ``FORWARDED``: Envoy chooses the route by the model and asks a
backend. With the **response headers** of a success it is ``STREAMING``: chunks are passed, and looked at. The final usage, ``[DONE]``,
the end of the stream, or somebody hanging up **ends the hold**, exactly once: ``ENDED`` (Envoy may still have messages for us) or
``CLOSED`` (it has none). Whoever leaves while a store is still thinking leaves an ``ORPHANED`` exchange, which waits for that one answer
and voids. What Envoy answers by itself before it has asked us anything (a path that it rejects) is ``FOREIGN``: passed, and none of our
business. A drain that has lost patience cuts the stream: ``CUTTING`` until the next chunk can be replaced by an error event, ``CUT``
afterwards. If Envoy answers while a store is still thinking (a body above its buffer), we are ``SIDELINED``: its answer passes, and the
store's is waited for and voided. What shadow mode lets pass although nobody can price it is ``SPARED``.

Everything that can happen stands in one table, :data:`TRANSITIONS`, with late and doubled events as rows. What is not in it is
illegal: the driver counts it and sends ``Gone(sidecar_error)``, which every state knows. The steps themselves stand in ``request.py``
(until it is forwarded), ``response.py`` (until it is charged) and ``endings.py`` (what cuts it short). The tab keeps facts
(``tab.py``); what may happen next is told by the state alone. Nothing here knows the time, a socket or a store: events bring facts,
actions ask for deeds (``events.py``, ``actions.py``).

Three promises hold over every walk through the table, and are tested by random ones: a granted hold ends exactly once; Envoy gets at
most one reply to a message; nothing is forwarded that is not held, unless shadow mode spares it.
"""

from __future__ import annotations

from typing import get_args

from extproc.errors import IllegalEvent
from extproc.exchange import endings, request, response
from extproc.exchange.actions import Action, PassResponseHeaders
from extproc.exchange.endings import StoreAnswer
from extproc.exchange.events import (
    Admitted,
    Amended,
    Answered,
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
from extproc.exchange.state import HOLDING, PASS, SWALLOW, State, Step, beat_in, pass_body_in, pass_trailers_in, to
from extproc.exchange.tab import Pinned, Tab


class Exchange:
    """One exchange. ``receive`` an event, carry out its actions in order."""

    __slots__ = ("state", "tab")

    def __init__(self, pinned: Pinned) -> None:
        self.state = State.FRESH
        self.tab = Tab(pinned)

    def receive(self, event: Event) -> tuple[Action, ...]:
        """The actions that this event asks for. :class:`~extproc.errors.IllegalEvent` if the table has no row for it."""
        step = TRANSITIONS.get((self.state, type(event)))
        if step is None:
            raise IllegalEvent(self.state, type(event).__name__)
        self.state, actions = step(self.tab, event)
        return actions

    def abandon(self, at_ns: int) -> tuple[Action, ...]:
        """A bug of ours has broken this exchange: end what it holds at its last checkpoint, whatever the table would say."""
        holding, self.state = self.state in HOLDING, State.CLOSED
        return self.tab.abandon(at_ns) if holding else ()


S = State
ORPHAN = to(S.ORPHANED)
CLOSE = to(S.CLOSED)
ASKING = (S.KEYING, S.ANSWERING, S.ADMITTING, S.COUNTING, S.AMENDING, S.CLAMPING)
PASSING_TRAILERS = (S.OPEN, S.FORWARDED, S.ENDED, S.FOREIGN, S.SPARED, S.SIDELINED, S.CUTTING, S.CUT)

TRANSITIONS: dict[tuple[State, type[Event]], Step] = {
    (S.FRESH, Headers): request.headers,
    (S.FRESH, ResponseHeaders): to(S.FOREIGN, PassResponseHeaders()),
    (S.FRESH, Gone): CLOSE,
    (S.KEYING, KeyRead): request.key_read,
    (S.KEYING, StoreFailed): request.look_up_failed,
    (S.KEYING, Gone): ORPHAN,
    (S.ANSWERING, Answered): request.answered,
    (S.ANSWERING, Refused): request.not_answered,
    (S.ANSWERING, StoreFailed): request.answer_failed,
    (S.ANSWERING, Gone): ORPHAN,
    (S.ADMITTING, Admitted): request.admitted,
    (S.ADMITTING, Refused): request.not_admitted,
    (S.ADMITTING, StoreFailed): request.admit_failed,
    (S.ADMITTING, Gone): ORPHAN,
    (S.OPEN, Body): request.body,
    (S.OPEN, ResponseHeaders): response.pass_and_void,
    (S.OPEN, Tick): beat_in(S.OPEN),
    (S.OPEN, Gone): endings.gone_open,
    (S.COUNTING, Counted): request.counted,
    (S.COUNTING, StoreFailed): request.store_failed,
    (S.COUNTING, Tick): beat_in(S.COUNTING),
    (S.COUNTING, Gone): ORPHAN,
    (S.AMENDING, Amended): request.amended,
    (S.AMENDING, Refused): request.not_amended,
    (S.AMENDING, StoreFailed): request.amend_failed,
    (S.AMENDING, Gone): ORPHAN,
    (S.CLAMPING, Amended): request.amended,
    (S.CLAMPING, Refused): request.never_amended,
    (S.CLAMPING, StoreFailed): request.amend_failed,
    (S.CLAMPING, Gone): ORPHAN,
    (S.FORWARDED, ResponseHeaders): response.headers,
    (S.FORWARDED, Tick): beat_in(S.FORWARDED),
    (S.FORWARDED, Stopped): endings.stopped_unanswered,
    (S.FORWARDED, Gone): endings.gone_forwarded,
    (S.STREAMING, Chunk): response.chunk,
    (S.STREAMING, Trailers): response.trailers_end,
    (S.STREAMING, Tick): beat_in(S.STREAMING),
    (S.STREAMING, Stopped): endings.stopped,
    (S.STREAMING, Gone): endings.gone_streaming,
    (S.CUTTING, ResponseHeaders): endings.cut_answer,
    (S.CUTTING, Chunk): endings.cut,
    (S.CUTTING, Gone): CLOSE,
    (S.CUT, Chunk): to(S.CUT, SWALLOW),
    (S.CUT, Gone): CLOSE,
    (S.ENDED, Chunk): response.late_chunk,
    (S.ENDED, Gone): CLOSE,
    (S.FOREIGN, Chunk): to(S.FOREIGN, PASS),
    (S.FOREIGN, Gone): CLOSE,
    (S.SPARED, Body): pass_body_in(S.SPARED),
    (S.SPARED, ResponseHeaders): to(S.SPARED, PassResponseHeaders()),
    (S.SPARED, Chunk): to(S.SPARED, PASS),
    (S.SPARED, Gone): CLOSE,
    **{(state, ResponseHeaders): endings.sidelined for state in ASKING},
    **{(S.SIDELINED, answer): endings.sidelined_answer for answer in get_args(StoreAnswer)},
    (S.SIDELINED, Chunk): to(S.SIDELINED, PASS),
    (S.SIDELINED, Gone): ORPHAN,
    **{(S.ORPHANED, answer): endings.orphan for answer in get_args(StoreAnswer)},
    (S.ORPHANED, Gone): to(S.ORPHANED),
    (S.CLOSED, Gone): to(S.CLOSED),
    **{(state, Trailers): pass_trailers_in(state) for state in PASSING_TRAILERS},
    # Where no row above says otherwise, beats and drains do not matter.
    **{(state, Tick): to(state) for state in S if state not in {S.OPEN, S.COUNTING, S.FORWARDED, S.STREAMING}},
    **{(state, Stopped): to(state) for state in S if state not in {S.FORWARDED, S.STREAMING}},
}
