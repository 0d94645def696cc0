"""One request through the whole exchange, from its headers to its charge, with a store that holds what there is money for."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from copy import copy
from functools import cache
from pathlib import Path

from extproc.accounts.model import Key
from extproc.catalog.load import load_catalog
from extproc.catalog.model import Catalog
from extproc.exchange import actions as act
from extproc.exchange import events as ev
from extproc.exchange.ask import Prompt
from extproc.exchange.machine import Exchange
from extproc.exchange.policy import Bounds, Policy
from extproc.exchange.record import Record
from extproc.exchange.tab import Pinned
from extproc.money.hold import Amendment, Denied, DenyReason, Ending, Granted
from extproc.money.usage import NO_QUOTA, Quota
from extproc.tokens.counter import Counters
from extproc.tokens.registry import load_counters
from extproc.tokens.vocabulary import TOKENIZERS

HOLD = "018bcfe5-6800-7000-8000-000000000001"
KEY = Key(id="k1", payer_id="018bcfe5-6800-7000-8000-00000000000a", name="laptop", tier="default")
RICH = 10**18
BEGUN_MS = 1_700_000_000_000


@cache
def catalog(file: Path) -> Catalog:
    return load_catalog(file, vocabularies=TOKENIZERS)


@cache
def real_counters(file: Path) -> Counters:
    return load_counters({model.tokenizer for model in catalog(file).models.values()})


def pinned(file: Path, counters: Counters | None = None, *, policy: Policy | None = None, bounds: Bounds | None = None) -> Pinned:
    return Pinned(
        catalog=catalog(file), policy=policy or Policy(), bounds=bounds or Bounds(), counters=counters or real_counters(file),
        price_known=lambda payer, price: True,
    )  # fmt: skip


class Walk:
    """``passed`` to a backend with ``amendment`` held; or refused with ``reply``. ``ends``: every ending of the hold.

    ``stores_away``: credit is lent in the store's place. ``quota``: free tokens that the payer has; ``is_quota_gone``: not any more, when they are
    to be taken. ``taken`` of them, and ``reserved_nanos`` beside them. ``prompt``: as it was understood. ``begun_ms``: when it was asked (unix);
    ``thought_ms``: how long the backend needs for an answer.
    """

    def __init__(
        self, pinned: Pinned, *, key: Key = KEY, spendable_nanos: int = RICH, stores_away: bool = False, quota: Quota = NO_QUOTA
    ) -> None:
        self.exchange = Exchange(pinned)
        self.key, self.spendable_nanos, self.stores_away = key, spendable_nanos, stores_away
        self.quota, self.is_quota_gone = quota, False
        self.begun_ms, self.thought_ms = BEGUN_MS, 0
        self.taken, self.reserved_nanos = NO_QUOTA, 0
        self.prompt: Prompt | None = None
        self.is_held = False
        self.amendment: Amendment | None = None
        self.passed: act.PassBody | None = None
        self.reply: act.Answer | None = None
        self.records: list[Record] = []
        self.ends: list[Ending] = []
        self._stores: dict[type[act.Action], Callable[..., ev.Event]] = {
            act.LookUpKey: lambda _: ev.KeyRead(key=self.key),
            act.Admit: self._admit,
            act.Count: lambda action: ev.Counted(tokens=action.job()),
            act.CountUpstream: lambda _: ev.Counted(tokens=None),
            act.Amend: self._amend,
            act.Lend: self._lend,
        }

    def ask(self, path: str, data: bytes, content_type: str = "application/json", **headers: str) -> None:
        sent = {"authorization": "Bearer sk-good", "content-type": content_type} | {
            name.replace("_", "-"): headers[name] for name in headers
        }
        self._receive(
            ev.Headers(
                at_ns=1, method="POST", path=path, headers=sent, client_ip="10.1.2.3", request_id="r1", hold_id=HOLD,
                unix_ms=self.begun_ms, end_of_stream=False,
            )
        )  # fmt: skip
        if self.reply is None:
            self._receive(ev.Body(at_ns=2, data=data))

    def answer(self, chunks: Iterable[bytes], content_type: str, *, length: int | None = None) -> bytes:
        """What the client gets. The end of the stream comes by itself, unless the answer has a ``length``: then it is one message."""
        told = {"content-type": content_type} | ({"content-length": str(length)} if length is not None else {})
        self._receive(ev.ResponseHeaders(at_ns=self._later(3), status=200, headers=told))
        if length is not None:
            return self._chunk(b"".join(chunks), is_last=True)
        return b"".join([self._chunk(chunk, is_last=False) for chunk in chunks]) + self._chunk(b"", is_last=True)

    def fail(self, status: int) -> None:
        """The backend has answered, but not with a success."""
        self._receive(ev.ResponseHeaders(at_ns=self._later(3), status=status, headers={"content-type": "application/json"}))
        self._chunk(b"{}", is_last=True)

    def leave(self, chunks: Iterable[bytes], content_type: str) -> None:
        """The client hangs up when it has so much of the answer."""
        self._receive(ev.ResponseHeaders(at_ns=self._later(3), status=200, headers={"content-type": content_type}))
        for chunk in chunks:
            self._chunk(chunk, is_last=False)
        self._receive(ev.Gone(at_ns=self._later(5)))

    def fork(self) -> Walk:
        """The same request once more, from here on."""
        other = copy(self)
        other.records, other.ends = list(self.records), list(self.ends)
        other.exchange = copy(self.exchange)
        other.exchange.tab = copy(self.exchange.tab)
        other.exchange.tab.remarks = dict(self.exchange.tab.remarks)
        return other

    @property
    def record(self) -> Record:
        (record,) = self.records
        return record

    def _later(self, at_ns: int) -> int:
        return at_ns + self.thought_ms * 1_000_000

    def _chunk(self, data: bytes, *, is_last: bool) -> bytes:
        for action in self._receive(ev.Chunk(at_ns=self._later(4), data=data, end_of_stream=is_last)):
            if isinstance(action, act.PassChunk):
                return data if action.data is None else action.data
        raise AssertionError("no reply to a chunk")

    def _receive(self, event: ev.Event) -> tuple[act.Action, ...]:
        actions = self.exchange.receive(event)
        for action in actions:
            self._see(action)
        for action in actions:
            if type(action) in self._stores:
                return self._receive(self._stores[type(action)](action))
        return actions

    def _see(self, action: act.Action) -> None:
        if isinstance(action, act.PassBody):
            self.passed = action
        if isinstance(action, act.Answer):
            self.reply = action
        if isinstance(action, act.Note):
            self.records.append(action.record)
        if isinstance(action, act.End):
            self.ends.append(action.ending)

    def _admit(self, action: act.Admit) -> ev.Event:
        if self.stores_away:
            self.is_held = True  # by nobody yet, and yet it has to be voided
            return ev.StoreFailed(what="redis")
        if action.admission.entry_nanos > self.spendable_nanos and self.quota is NO_QUOTA:
            return self._denied(action.admission.entry_nanos)
        self.is_held = True
        return ev.Admitted(granted=Granted(hold_id=HOLD, spendable_nanos=self.spendable_nanos, quota=self.quota))

    def _amend(self, action: act.Amend) -> ev.Event:
        amendment = action.amendment
        taken = NO_QUOTA if self.is_quota_gone else amendment.quota
        reserved_nanos = amendment.reserved_nanos if taken is NO_QUOTA else amendment.reserved_beside_nanos
        if reserved_nanos > self.spendable_nanos and not amendment.goes_on:
            return self._denied(reserved_nanos)
        return self._granted(amendment, reserved_nanos, taken)

    def _lend(self, action: act.Lend) -> ev.Event:
        if action.amendment.cap_nanos > self.spendable_nanos:
            return ev.StoreFailed(what="no more credit")
        return self._granted(action.amendment, 0, NO_QUOTA)

    def _granted(self, amendment: Amendment, reserved_nanos: int, taken: Quota) -> ev.Event:
        ask = self.exchange.tab.ask
        assert ask is not None
        self.prompt, self.amendment, self.reserved_nanos, self.taken = ask.prompt, amendment, reserved_nanos, taken
        return ev.Amended(granted=Granted(hold_id=HOLD, spendable_nanos=self.spendable_nanos, quota=taken))

    def _denied(self, required_nanos: int) -> ev.Refused:
        quota = NO_QUOTA if self.is_quota_gone else self.quota
        reason = DenyReason.INSUFFICIENT
        return ev.Refused(denied=Denied(reason=reason, spendable_nanos=self.spendable_nanos, required_nanos=required_nanos, quota=quota))
