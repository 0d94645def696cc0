"""Where an exchange can stand, and the steps that do nothing but lead there. What a step is: facts and an event → state and actions."""

from __future__ import annotations

from collections.abc import Callable
from enum import StrEnum
from typing import Any

from extproc.exchange.actions import Action, PassBody, PassChunk, PassTrailers
from extproc.exchange.events import Body, Event, Trailers
from extproc.exchange.tab import Tab


class State(StrEnum):
    """Where an exchange stands. In brackets: the message of Envoy that waits for our reply."""

    FRESH = "fresh"
    KEYING = "keying"  # (headers)
    ANSWERING = "answering"  # (headers)
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
    SPARED = "spared"
    SIDELINED = "sidelined"
    ORPHANED = "orphaned"
    CLOSED = "closed"


HOLDING = frozenset(
    {State.ADMITTING, State.OPEN, State.COUNTING, State.AMENDING, State.CLAMPING, State.FORWARDED, State.STREAMING}
    | {State.ORPHANED, State.SIDELINED}
)

Outcome = tuple[State, tuple[Action, ...]]
Step = Callable[[Tab, Any], Outcome]

PASS = PassChunk()
SWALLOW = PassChunk(data=b"")


def to(state: State, *actions: Action) -> Step:
    """Whatever the event says."""
    outcome = state, actions

    def step(tab: Tab, event: Event) -> Outcome:
        del tab, event
        return outcome

    return step


def beat_in(state: State) -> Step:
    """Renew the lease."""

    def step(tab: Tab, event: Event) -> Outcome:
        return state, tab.beat(event.at_ns)

    return step


def pass_body_in(state: State) -> Step:
    """As it came."""

    def step(tab: Tab, event: Body) -> Outcome:
        del tab
        return state, (PassBody(data=event.data),)

    return step


def pass_trailers_in(state: State) -> Step:
    """Nothing is counted any more, or not yet."""

    def step(tab: Tab, event: Trailers) -> Outcome:
        del tab
        return state, (PassTrailers(response=event.response),)

    return step
