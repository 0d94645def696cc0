"""One exchange's IO: messages of Envoy in, actions of the machine carried out.

The machine is fed one event at a time. While it waits for an answer of a store, Envoy may leave, or answer by itself; while the reply
to the last chunk waits for its settle, what arrives is kept in a mailbox. Everything here runs on the worker's loop and returns at once.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

from extproc.accounts.directory import Directory, Miss
from extproc.accounts.model import Key
from extproc.catalog.model import Catalog
from extproc.edge.announced import Announced
from extproc.edge.answering import Answering
from extproc.edge.beats import Beats
from extproc.edge.closing import Closing, Done
from extproc.edge.envoy_codec import MalformedMessage, decode, encode
from extproc.edge.lending import Lending
from extproc.edge.pressure import Pressure
from extproc.edge.threads import Threads
from extproc.edge.transport.port import Call, GoneReason, StatusCode
from extproc.edge.upstream_tokens import UpstreamTokens
from extproc.errors import ExchangeError, StoreError
from extproc.exchange import actions as act
from extproc.exchange import events as ev
from extproc.exchange.machine import Exchange
from extproc.exchange.policy import Bounds, Policy
from extproc.exchange.tab import Pinned
from extproc.holds.port import Holds
from extproc.metrics import Metrics
from extproc.money.hold import Denied, DenyReason, Granted, Loan, Verdict, uuid7
from extproc.money.statement import Statement
from extproc.tokens.counter import Counters

log = logging.getLogger(__name__)

SAFE_WAIT_S = 2.0  # the longest that the reply to the last chunk waits for its charge to be safe (Redis takes 1 ms, the outbox 20) …
PHASE_S = 1.0  # … and a store for its answer: both end before Envoy's message_timeout of 3 s
MAILBOX_EVENTS_MAX = 4_096  # chunks that arrive within SAFE_WAIT_S; more is no stream of tokens
COUNT_S = 0.5  # a prompt that has not been counted by then is held for by its bound as well


@dataclass(frozen=True, slots=True, kw_only=True)
class Gate:
    """What the exchanges of one worker share. ``catalog``, ``policy`` and ``counters`` give the present snapshot; an exchange pins it.

    ``missed`` is told of payers that a script has not found.
    """

    directory: Directory
    answering: Answering
    holds: Holds
    lending: Lending
    closing: Closing
    announced: Announced
    catalog: Callable[[], Catalog]
    policy: Callable[[], Policy]
    bounds: Bounds
    counters: Callable[[], Counters]
    metrics: Metrics
    threads: Threads
    upstream_tokens: UpstreamTokens
    open: set[Driver]
    beats: Beats
    missed: Callable[[str], None]
    pressure: Pressure
    random: random.Random

    @property
    def why_shut(self) -> str:
        """Why nobody new is let in, "" = everybody is. What runs goes on, and its ending is taken."""
        return self.closing.why_full or ("store_memory" if self.pressure.is_high else "")

    def pinned(self) -> Pinned:
        """The snapshot for a new exchange."""
        return Pinned(
            catalog=self.catalog(),
            policy=self.policy(),
            bounds=self.bounds,
            counters=self.counters(),
            price_known=self.announced.known,
        )


class Driver:
    """The handler of one gRPC stream of Envoy (``edge/transport/port.py``)."""

    __slots__ = ("_call", "_counting", "_ending", "_exchange", "_gate", "_loan", "_mailbox", "_rest", "_secret", "_timer")

    def __init__(self, gate: Gate, call: Call) -> None:
        self._gate = gate
        self._call = call
        self._exchange = Exchange(gate.pinned())
        self._mailbox: list[ev.Event] = []  # no deque: an empty one takes 600 bytes, of every stream
        self._rest: tuple[act.Action, ...] | None = None  # what waits until the ending is safe
        self._timer: asyncio.TimerHandle | None = None
        self._ending: Done | None = None
        self._counting: asyncio.Future[Any] | None = None
        self._secret = ""
        self._loan: Loan | None = None
        gate.open.add(self)
        gate.metrics.exchange_opened()

    @property
    def exchange(self) -> Exchange:
        """To be looked at only."""
        return self._exchange

    def message(self, data: bytes) -> None:
        """One message of Envoy. What cannot be read ends the stream with an error: never an early OK."""
        unix_ms, hold_id = 0, ""
        if self._exchange.state == "fresh":
            unix_ms = time.time_ns() // 1_000_000
            hold_id = uuid7(unix_ms=unix_ms, random_bits=self._gate.random.getrandbits(74))
        try:
            event = decode(data, at_ns=time.monotonic_ns(), unix_ms=unix_ms, hold_id=hold_id)
        except MalformedMessage as error:
            self._fail(error)
            return
        self.push(event)

    def gone(self, reason: GoneReason) -> None:
        """Envoy's stream is over."""
        self._gate.open.discard(self)
        self._gate.metrics.exchange_closed()
        if self._counting is not None:
            self._counting.cancel()
        self.push(ev.Gone(at_ns=time.monotonic_ns(), reason=reason))

    def push(self, event: ev.Event) -> None:
        """Feed the machine, or the mailbox while an ending is on its way."""
        if self._rest is not None:
            if len(self._mailbox) >= MAILBOX_EVENTS_MAX and not isinstance(event, ev.Gone):
                self._call.close(StatusCode.RESOURCE_EXHAUSTED, "too many chunks at once")
                return
            self._mailbox.append(event)
            return
        try:
            self._carry(self._exchange.receive(event))
        except Exception as error:  # noqa: BLE001 - whatever it is, Envoy must not wait, and the client must not pay for it
            self._fail(error)

    def _fail(self, error: Exception) -> None:
        """Something that cannot be: end what is held, and the stream with an error. Never raises: others share this loop."""
        illegal = isinstance(error, ExchangeError)
        log.error("exchange failed: %s", error if illegal else _place_of(error))
        self._gate.metrics.illegal_event()
        self._call.close(StatusCode.INTERNAL, "internal error")
        at_ns = time.monotonic_ns()
        try:
            gone = ev.Gone(at_ns=at_ns, reason="sidecar_error")
            self._carry(self._exchange.receive(gone) if illegal else self._exchange.abandon(at_ns))
        except Exception as again:  # noqa: BLE001 - the lease ends the hold
            log.error("exchange failed at its end: %s", _place_of(again))

    def _carry(self, actions: tuple[act.Action, ...]) -> None:
        left = iter(actions)
        for action in left:
            deed = self._deeds.get(type(action))
            if deed is None:
                self._reply(action)
            elif deed(self, action):
                self._wait(tuple(left))
                return

    def _reply(self, action: act.Action) -> None:
        """A reply that cannot be made ends the stream, but must not keep the ending behind it from being made."""
        try:
            self._call.send(encode(action))
        except Exception as error:  # noqa: BLE001 - see above
            log.error("a reply could not be made: %s", _place_of(error))
            self._gate.metrics.illegal_event()
            self._call.close(StatusCode.INTERNAL, "internal error")

    # deeds; True = the actions after it wait

    def _answer(self, action: act.Answer) -> bool:
        if action.code:
            self._gate.metrics.rejected(action.code)
        self._reply(action)
        return False

    def _look_up(self, action: act.LookUpKey) -> bool:
        if why := self._gate.why_shut:
            self._gate.metrics.turned_away(why)
            self.push(ev.StoreFailed(at_ns=time.monotonic_ns(), what=why))
            return False
        self._secret = action.secret
        key = self._gate.directory.peek(action.secret)
        if not isinstance(key, Miss):
            self.push(ev.KeyRead(at_ns=time.monotonic_ns(), key=key))
            return False
        answer = asyncio.ensure_future(asyncio.wait_for(self._gate.directory.find(action.secret), PHASE_S))
        answer.add_done_callback(self._looked_up)
        return False

    def _find_answer(self, action: act.FindAnswer) -> bool:
        answer = asyncio.ensure_future(asyncio.wait_for(self._gate.answering.find(action.enquiry), PHASE_S))
        answer.add_done_callback(partial(self._answered, self._told))
        return False

    def _told(self, found: Statement | Denied) -> ev.Event:
        return self._denied(found) if isinstance(found, Denied) else ev.Answered(at_ns=time.monotonic_ns(), statement=found)

    def _admit(self, action: act.Admit) -> bool:
        answer = asyncio.ensure_future(self._gate.holds.admit(action.admission))
        answer.add_done_callback(partial(self._answered, partial(self._verdict, ev.Admitted)))
        return False

    def _amend(self, action: act.Amend) -> bool:
        answer = asyncio.ensure_future(self._gate.holds.amend(action.amendment))
        if action.waits:
            answer.add_done_callback(partial(self._answered, partial(self._verdict, ev.Amended)))
        else:
            answer.add_done_callback(self._trusted)
            self.push(ev.Amended(at_ns=time.monotonic_ns(), granted=Granted(hold_id=action.amendment.hold_id, spendable_nanos=0)))
        return False

    def _trusted(self, answer: asyncio.Future[Verdict]) -> None:
        """Nobody has waited for it. Where nothing is reserved the settle comes late: it takes what is there, the rest is a loss."""
        if answer.cancelled() or answer.exception() is not None:
            self._gate.metrics.trusted_untaken("unknown")
            return
        verdict = answer.result()
        reason = verdict.reason if isinstance(verdict, Denied) else verdict.would_deny
        if reason is not None:
            self._gate.metrics.trusted_untaken(reason.value)

    def _lend(self, action: act.Lend) -> bool:
        lent = self._gate.lending.lend(action.amendment, credit_nanos=self._credit_nanos)
        if lent is None:
            self.push(ev.StoreFailed(at_ns=time.monotonic_ns(), what="no credit"))
            return False
        self._loan, granted = lent
        answer = asyncio.ensure_future(asyncio.wait_for(granted, PHASE_S))
        answer.add_done_callback(partial(self._answered, self._lent))
        return False

    def _lent(self, granted: Granted) -> ev.Event:
        self._gate.metrics.failed_open()
        return ev.Amended(at_ns=time.monotonic_ns(), granted=granted)

    def _count(self, action: act.Count) -> bool:
        return self._await_count(self._gate.threads.run(action.payer_id, action.job))

    def _count_upstream(self, action: act.CountUpstream) -> bool:
        return self._await_count(self._gate.upstream_tokens.ask(action.payer_id, action.model, action.question))

    def _await_count(self, answer: asyncio.Future[int] | asyncio.Future[int | None] | None) -> bool:
        if answer is None:
            self._uncounted()
            return False
        self._counting = answer
        self._timer = asyncio.get_running_loop().call_later(COUNT_S, answer.cancel)
        answer.add_done_callback(self._counted)
        return False

    def _counted(self, answer: asyncio.Future[Any]) -> None:
        self._counting = None
        if self._timer is not None:
            self._timer.cancel()
        if answer.cancelled() or answer.exception() is not None:
            self._uncounted()
        else:
            self.push(ev.Counted(at_ns=time.monotonic_ns(), tokens=answer.result()))

    def _uncounted(self) -> None:
        self.push(ev.Counted(at_ns=time.monotonic_ns(), tokens=None))

    def _beat(self, action: act.Beat) -> bool:
        self._gate.beats.put(action.checkpoint)
        if self._loan is not None:
            self._loan = self._gate.lending.beat(self._loan, action.checkpoint)
        return False

    def _end(self, action: act.End) -> bool:
        ending = action.ending
        self._gate.beats.drop(ending.hold_id)
        self._ending = self._gate.closing.end(ending)
        if self._loan is not None:
            self._gate.lending.end(self._loan, ending)
        return action.wait and not self._ending.done()

    def _note(self, action: act.Note) -> bool:
        record = action.record
        self._gate.metrics.request_done(record)
        if action.row:
            self._gate.closing.note(action.payer_id, action.row)
        if record.price and self._ending is not None:
            self._ending.add_done_callback(partial(self._gate.announced.ended, record.user_id, record.price_id))
        if record.error_code:
            log.info("not served", extra={"request_id": record.request_id, "code": record.error_code, "status": record.status})
        return False

    # answers

    def _answered(self, event_of: Callable[[Any], ev.Event], answer: asyncio.Future[Any]) -> None:
        error = answer.exception() if not answer.cancelled() else StoreError("cancelled")
        if error is None:
            self.push(event_of(answer.result()))
            return
        if not isinstance(error, StoreError | TimeoutError):
            log.error("a store raised what it must not: %r", error)
        self.push(ev.StoreFailed(at_ns=time.monotonic_ns(), what=type(error).__name__))

    def _looked_up(self, answer: asyncio.Future[Key | None]) -> None:
        if (answer.cancelled() or answer.exception() is not None) and self._credit_nanos:
            key = self._gate.directory.recall(self._secret)
            if key is not None:
                self.push(self._key_read(key))
                return
        self._answered(self._key_read, answer)

    def _key_read(self, key: Key | None) -> ev.Event:
        return ev.KeyRead(at_ns=time.monotonic_ns(), key=key)

    @property
    def _credit_nanos(self) -> int:
        """What all workers may lend one payer while the hold store is away."""
        return self._exchange.tab.pinned.policy.stores_away_credit_nanos or 0

    def _verdict(self, granted: type[ev.Admitted | ev.Amended], verdict: Verdict) -> ev.Event:
        if isinstance(verdict, Granted):
            if granted is ev.Admitted and self._exchange.tab.key is not None:
                self._gate.lending.saw(self._exchange.tab.key.payer_id, verdict.spendable_nanos)
            return granted(at_ns=time.monotonic_ns(), granted=verdict)
        return self._denied(verdict)

    def _denied(self, verdict: Denied) -> ev.Event:
        if verdict.reason is DenyReason.MISSING:
            # Redis has lost this key or payer: what we remember of it is worth nothing, the next request reads it anew.
            self._gate.metrics.store_failed("redis_missing")
            self._gate.directory.forget(self._secret)
            if self._exchange.tab.key is not None:
                self._gate.missed(self._exchange.tab.key.payer_id)
        return ev.Refused(at_ns=time.monotonic_ns(), denied=verdict)

    # waiting for an ending: an exchange has one, so it waits at most once

    def _wait(self, rest: tuple[act.Action, ...]) -> None:
        assert self._ending is not None
        self._rest = rest
        self._timer = asyncio.get_running_loop().call_later(SAFE_WAIT_S, self._let_go, self._ending)
        self._ending.add_done_callback(self._resume)

    def _let_go(self, ending: Done) -> None:
        """The limit is over. Nobody is made to pay for an answer without its end: it goes, and whoever runs the disk hears of it."""
        if not ending.done():
            self._gate.metrics.left_unsafe()
            tab = self._exchange.tab
            log.error("an answer ends before its charge is safe", extra={"request_id": tab.request_id, "hold_id": tab.hold_id})
        self._resume(ending)

    def _resume(self, _ending: Done) -> None:
        """Safe, or the limit is over: go on with what waited, whichever is first."""
        if self._rest is None or self._timer is None:
            return
        self._timer.cancel()
        rest, self._rest = self._rest, None
        try:
            self._carry(rest)
        except Exception as error:  # noqa: BLE001 - as in push
            self._fail(error)
        mailbox, self._mailbox = self._mailbox, []
        for event in mailbox:
            self.push(event)

    _deeds: ClassVar[Mapping[type[act.Action], Callable[[Driver, Any], bool]]] = {
        act.Answer: _answer,
        act.LookUpKey: _look_up,
        act.FindAnswer: _find_answer,
        act.Admit: _admit,
        act.Amend: _amend,
        act.Lend: _lend,
        act.Count: _count,
        act.CountUpstream: _count_upstream,
        act.Beat: _beat,
        act.End: _end,
        act.Note: _note,
    }


def _place_of(error: Exception) -> str:
    """Kind and place of a bug. Not its message: that may quote a prompt."""
    places = (f"{place.name}:{place.lineno}" for place in traceback.extract_tb(error.__traceback__)[-4:])
    return f"{type(error).__name__} in {' > '.join(places)}"
