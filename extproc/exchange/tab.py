"""The tab of one exchange: everything that is known so far, and the values that are made of it for stores, ledger and log.

The machine decides what happens; the tab knows what it is about. It has no states: methods may be called as soon as what they
need is known.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec
from msgspec import structs

from extproc.accounts.model import Key, as_of
from extproc.catalog.model import Catalog, Model, Tier
from extproc.exchange.actions import Amend, Answer, Beat, End, Lend, Note, Pairs
from extproc.exchange.ask import Ask
from extproc.exchange.doors import NO_DOOR
from extproc.exchange.endpoints import BY_PATH
from extproc.exchange.events import Headers
from extproc.exchange.figures import FIGURES_EVERY_NS, figures
from extproc.exchange.meter import Expected, Meter
from extproc.exchange.meter_stream import StreamMeter
from extproc.exchange.policy import Bounds, Policy
from extproc.exchange.record import Record
from extproc.exchange.replies import unavailable
from extproc.exchange.sizing import Size, with_text
from extproc.money.hold import Admission, Amendment, Checkpoint, Ending, EndKind, EndReason, Window
from extproc.money.price import FACTOR_ONE, Price
from extproc.money.quote import NOTHING_DUE, Quote, Terms, quote, worth_taking
from extproc.money.receipt import cost_nanos
from extproc.money.usage import CHARACTERS_PER_TOKEN_MAX, NO_QUOTA, NO_USAGE, Quota, Usage, UsageSource, rare_of, used_of
from extproc.tokens.counter import Counter, Counters

STANDARD = "standard"
NANOS_PER_MS = 1_000_000

Finish = tuple[End, Note] | tuple[Note]
"""How an exchange ends. Without an :class:`End`: a stranger's, who holds nothing."""


class Pinned(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """What an exchange keeps from its headers to its end, whatever is reloaded meanwhile.

    ``price_known(payer, price_id)``: the ledger has that price in full, it need not travel with the row.
    """

    catalog: Catalog
    policy: Policy
    bounds: Bounds
    counters: Counters
    price_known: Callable[[str, str], bool]


class Tab:
    """Facts in the order in which they become known; ``None`` until then.

    A shadow request may stay without a key: then it is metered and counted like any other, and nobody is asked to hold or charge anything.
    """

    __slots__ = (
        "ask", "attempts", "body", "checkpoint", "clamped", "client_ip", "content_type", "counter", "created_ms", "door", "expected",
        "figures_due_ns", "free", "hold_id", "is_shadow", "key", "meter", "model", "owner", "path", "pinned", "price", "priority", "quota",
        "quote", "remarks", "request_id", "requests_left", "sized", "spendable_nanos", "started_ns", "status", "stream", "terms", "tier",
        "tokens_left", "told", "ttft_ns", "upstream",
    )  # fmt: skip

    def __init__(self, pinned: Pinned) -> None:
        self.pinned = pinned
        self.hold_id = self.owner = ""  # they differ when Envoy has retried: then the hold is the first attempt's
        self.request_id = ""
        self.path = ""
        self.client_ip = ""
        self.content_type = ""
        self.created_ms = 0
        self.started_ns = 0
        self.priority = STANDARD
        self.is_shadow = pinned.policy.shadow  # nothing is refused, changed or charged
        self.terms = Terms.SHADOW if self.is_shadow else Terms.PAID
        self.remarks: dict[str, Any] = {"shadow": True} if self.is_shadow else {}  # fields of the record that are rarely there
        self.spendable_nanos = 0  # when it was admitted
        self.free = NO_QUOTA  # tokens that are there, as far as we were told
        self.quota = NO_QUOTA  # of them, what the hold has taken
        self.requests_left: Window | None = None  # of the tightest limit, this request counted
        self.tokens_left: Window | None = None
        self.body = b""  # as it came: what a shadow request forwards
        self.door = NO_DOOR
        self.key: Key | None = None
        self.tier: Tier | None = None
        self.ask: Ask | None = None  # until it is forwarded
        self.stream = False
        self.model: Model | None = None
        self.counter: Counter | None = None
        self.price: Price | None = None
        self.sized: Size | None = None
        self.quote: Quote | None = None
        self.expected: Expected | None = None
        self.meter: Meter | None = None
        self.clamped = False
        self.status = 0
        self.upstream = ""
        self.attempts = 0
        self.ttft_ns = 0
        self.figures_due_ns = 0  # 0: nothing has been delivered yet
        self.told: Pairs = ()
        self.checkpoint: Checkpoint | None = None

    def arrive(self, headers: Headers) -> None:
        """What the request's headers say of it, whoever asks."""
        self.hold_id = self.owner = headers.hold_id
        self.request_id = headers.request_id
        self.path = headers.path
        self.client_ip = headers.client_ip
        self.created_ms = headers.unix_ms
        self.started_ns = headers.at_ns
        self.content_type = headers.headers.get("content-type", "")
        self.priority = headers.headers.get("x-priority", "").strip().lower() or STANDARD

    def identify(self, key: Key | None) -> None:
        """Who asks. ``None``: a stranger, whom only shadow mode lets in; he is priced as a new account would be."""
        self.key = key = as_of(key, self.created_ms) if key else None
        self.tier = self.pinned.catalog.tier(key.tier if key else "", at_ms=self.created_ms)
        if key is not None and key.sandbox:
            self.remarks["sandbox"] = True
            self.terms = Terms.SHADOW if self.is_shadow else Terms.SANDBOX

    def spares(self, reason: str) -> bool:
        """Only shadow mode does: what would have been refused is noted (the first reason stands), and goes on."""
        if self.is_shadow:
            self.remarks.setdefault("would_deny", reason)
        return self.is_shadow

    def borrows(self) -> bool:
        """The hold store is away; from now on this request is served on credit, if the policy says so and there is money to be charged."""
        if self.pinned.policy.stores_away_credit_nanos is None or self.key is None or self.terms not in (Terms.PAID, Terms.LENT):
            return False
        if self.terms is Terms.PAID:
            self.terms = Terms.LENT
            self.decided_by("stores_away", "credit")
        return True

    def to_client(self, error: Answer) -> Answer:
        """An error of ours, in the shape that clients of this path understand. Its status is the one of the row."""
        self.status = error.status
        endpoint = BY_PATH.get(self.path.partition("?")[0])
        return error if endpoint is None else endpoint.refusal(error)

    def unavailable(self) -> Answer:
        """503: billing is away, or this worker goes."""
        return self.to_client(unavailable(self.request_id))

    def decided_by(self, policy: str, value: object) -> None:
        """A setting of section ``policy`` made the figure, or let this request in."""
        self.remarks["policies"] = (*self.remarks.get("policies", ()), f"{policy}={value}")

    # what the stores are asked

    def admission(self) -> Admission:
        """The entry hold. It costs nothing for a key that can reach something free, nor (as the store says) for an account with a quota."""
        key, tier = self._key(), self._tier()
        needs_money = self.terms is not Terms.SANDBOX and not reaches_free(self.pinned.catalog, tier, key)
        return Admission(
            hold_id=self.hold_id,
            payer_id=key.payer_id,
            key_id=key.id,
            request_id=self.request_id,
            entry_nanos=self.pinned.bounds.entry_nanos if needs_money and self.free is NO_QUOTA else 0,
            account_limits=tier.limits,
            key_limits=key.limits,
            row=self._begun(EndReason.SIDECAR_LOST).to_row(),
            is_shadow=self.is_shadow,
        )

    def ask_for(self, sized: Size) -> None:
        """Fix size, price and quote: the worst case that the exact hold is asked for. The price is that of the moment of the request."""
        model, tier, ask = self._model(), self._tier(), self.ask
        assert ask is not None
        factor = self.key.price_factor if self.key else FACTOR_ONE
        self.price = self.pinned.catalog.price(model, priority=self.priority, tier=tier, at_ms=self.created_ms, account_factor=factor)
        self.sized = sized = with_text(sized, ask, self.price)
        self.quote = NOTHING_DUE if ask.is_free else quote(self.price, sized.demand, self.terms)

    def amend(self) -> Amend | Lend:
        """Ask for the exact hold; a trusted account does not wait for it. When the store is away: ask for credit."""
        amendment = self._amendment()
        if self.terms is Terms.LENT:
            return Lend(amendment=amendment)
        if not self._is_trusted(amendment):
            return Amend(amendment=amendment)
        self.decided_by("trust_factor", self.pinned.policy.trust_factor)
        return Amend(amendment=self._amendment(is_trusted=True), waits=False)

    def _is_trusted(self, amendment: Amendment) -> bool:
        """The balance alone stands in its way, and has plenty. What else may not be there has to be heard of: free tokens, a budget,
        tokens a minute.
        """
        trust = self.pinned.policy.trust_factor
        if trust is None or not amendment.reserved_nanos or self.spendable_nanos < trust * amendment.reserved_nanos:
            return False
        limited = (amendment.account_limits.tokens_per_minute, amendment.key_limits.tokens_per_minute, self._key().budget_nanos)
        return amendment.quota is NO_QUOTA and limited == (None, None, None)

    def _amendment(self, *, is_trusted: bool = False) -> Amendment:
        key, worst, sized = self._key(), self._quote(), self.sized
        assert sized is not None
        quota, beside_nanos = NO_QUOTA, worst.list_nanos
        if self.free is not NO_QUOTA and self.price is not None and (worst.reserved_nanos or (self.is_shadow and worst.list_nanos)):
            quota, beside_nanos = worth_taking(self.price, sized.demand, self.free)
        return Amendment(
            hold_id=self.hold_id,
            owner=self.owner,
            payer_id=key.payer_id,
            key_id=key.id,
            reserved_nanos=worst.reserved_nanos,
            cap_nanos=worst.cap_nanos,
            tokens=sized.demand.limited_tokens,
            account_limits=self._tier().limits,
            key_limits=key.limits,
            row=self._begun(EndReason.SIDECAR_LOST).to_row(),
            sandbox_tokens_per_day=self._tier().sandbox_tokens_per_day if self.terms is Terms.SANDBOX else None,
            would_hold_nanos=beside_nanos if self.is_shadow else None,
            goes_on=is_trusted or self.is_shadow,
            quota=NO_QUOTA if self.is_shadow else quota,
            reserved_beside_nanos=beside_nanos,
        )

    def take(self, quota: Quota) -> None:
        """The hold has taken these free tokens, and reserved what is due beside them."""
        if quota is not NO_QUOTA:
            assert self.sized is not None
            assert self.price is not None
            self.quota, self.quote = quota, quote(self.price, self.sized.demand, self.terms, quota)

    def beat(self, at_ns: int) -> tuple[Beat, ...]:
        """What would be charged if this worker died now: nothing before output; never less than the last time."""
        if self.key is None:
            return ()
        usage = NO_USAGE
        if self.meter is not None and self.meter.started:
            meter = self._figure_meter()
            usage = meter.usage(ended_early=True) if meter else self.prompt_usage()
        cost, nanos = self._cost_and_charge(usage)
        used, last = used_of(self.quota, usage), self.checkpoint
        if last is None or (nanos >= last.charge_nanos and last.quota.is_within(used)):
            record = self._record(EndReason.SIDECAR_LOST, at_ns, usage=usage, list_nanos=cost, charge_nanos=nanos)
            last = self.checkpoint = Checkpoint(
                hold_id=self.hold_id, owner=self.owner, payer_id=self.key.payer_id, charge_nanos=nanos, row=record.to_row(), quota=used
            )
        return (Beat(checkpoint=last),)

    def tell(self, at_ns: int) -> Pairs:
        """What would be charged at least, for the other witness: what of it is new. Only after something was delivered."""
        self.figures_due_ns = at_ns + FIGURES_EVERY_NS
        meter = self._figure_meter()
        usage, delivered = (meter.usage_at_least(), meter.delivered()) if meter else (self.prompt_usage(), None)
        cost, nanos = self._cost_and_charge(usage)
        before, self.told = self.told, figures(usage, cost_nanos=cost, charge_nanos=nanos, delivered=delivered)
        return tuple([pair for pair in self.told if pair not in before])

    def _figure_meter(self) -> StreamMeter | None:
        """Who counts output that is charged if it ends now. ``None``: the prompt alone is, of half a JSON answer, or by the policy."""
        return self.meter if isinstance(self.meter, StreamMeter) and self.pinned.policy.ended_early != "input_only" else None

    # how it ends

    def settle(self, usage: Usage, reason: EndReason, at_ns: int, *, wait: bool = False) -> Finish:
        """Charge a usage, at most the cap."""
        cost, nanos = self._cost_and_charge(usage)
        record = self._record(reason, at_ns, usage=usage, list_nanos=cost, charge_nanos=nanos)
        return self._end(EndKind.SETTLE, nanos, usage.limited_tokens, record, wait=wait, used=used_of(self.quota, usage))

    def void(self, reason: EndReason, at_ns: int, *, error_code: str = "", error: str = "") -> Finish:
        """Give everything back."""
        record = self._record(reason, at_ns, error_code=error_code, error=error)
        return self._end(EndKind.VOID, 0, 0, record, wait=False)

    def abandon(self, at_ns: int) -> Finish | tuple[()]:
        """What the last checkpoint says is charged, and no figure is worked out any more."""
        if self.key is None:
            return ()
        checkpoint = self.checkpoint
        if checkpoint is None or not (checkpoint.charge_nanos or any(checkpoint.quota.both)):
            return self.void(EndReason.SIDECAR_ERROR, at_ns, error_code="internal_error")
        ending = Ending(
            hold_id=self.hold_id,
            owner=self.owner,
            payer_id=self.key.payer_id,
            key_id=self.key.id,
            kind=EndKind.SETTLE,
            charge_nanos=checkpoint.charge_nanos,
            tokens=0,
            row=checkpoint.row,
            reserved_nanos=self.quote.reserved_nanos if self.quote and self.is_forwarded else 0,
            is_forwarded=self.is_forwarded,
            quota=checkpoint.quota,
        )
        return End(ending=ending), Note(record=Record(id=self.hold_id, end_reason=EndReason.SIDECAR_ERROR.value, status=self.status))

    def refused(self, at_ns: int, *, error_code: str = "", error: str = "") -> Note:
        """Never held anything. Known keys leave a row, others a metric."""
        record = self._record(EndReason.REFUSED, at_ns, error_code=error_code, error=error)
        if self.key is None:
            return Note(record=record)
        return Note(record=record, row=record.to_row(), payer_id=self.key.payer_id)

    def answered(self, at_ns: int) -> Note:
        """We have answered it ourselves: a metric, and no row."""
        self.status = 200
        duration_ms = max(0, at_ns - self.started_ns) // NANOS_PER_MS
        return Note(record=Record(id=self.hold_id, request_id=self.request_id, status=self.status, duration_ms=duration_ms))

    def prompt_usage(self) -> Usage:
        """The prompt alone, by our own count."""
        assert self.sized is not None
        return self.sized.prompt

    def held_usage(self) -> Usage:
        """Everything that was held for: where the policy charges the hold, the row says so as a usage and can be recomputed."""
        assert self.sized is not None
        held = Usage(**structs.asdict(self.sized.demand), source=UsageSource.NONE, flags=("held",))
        if self.price is None or not self.price.needs_text:
            return held
        words = held.output_tokens
        return structs.replace(held, output_characters=CHARACTERS_PER_TOKEN_MAX * words, output_words=words)

    @property
    def is_question(self) -> bool:
        """We answer it ourselves: nothing is ever held for it."""
        return self.door.question is not None

    @property
    def is_forwarded(self) -> bool:
        """A backend has the request: the hold is exact, and nobody can take it over."""
        return self.expected is not None

    @property
    def trusts_usage(self) -> bool:
        """The backend's figures count for this model."""
        return self._model().usage != "counted"

    @property
    def payer_id(self) -> str:
        """Who pays; a stranger has no id."""
        return self.key.payer_id if self.key else ""

    def _begun(self, end_reason: EndReason) -> Record:
        """The row of a request that has come to nothing yet: who asks for what, as far as that is known."""
        key, model, price = self.key, self.model, self.price
        known = price is None or key is None or self.pinned.price_known(key.payer_id, price.price_id)
        record = Record(
            id=self.hold_id,
            request_id=self.request_id,
            user_id=self.payer_id,
            creds_id=key.id if key else "",
            model=model.name if model else "",
            endpoint=self.door.endpoint.name if self.door.endpoint else "",
            priority=self.priority if model else "",
            tier=self.tier.name if self.tier else "",
            stream=self.stream,
            end_reason=end_reason.value,
            hold_nanos=self.quote.reserved_nanos if self.quote else 0,
            price_id=price.price_id if price else "",
            price=price.text if price and not known else "",
            created_ms=self.created_ms,
        )
        return structs.replace(record, **self.remarks) if self.remarks else record

    def _record(
        self,
        end_reason: EndReason,
        at_ns: int,
        *,
        usage: Usage = NO_USAGE,
        list_nanos: int = 0,
        charge_nanos: int = 0,
        error_code: str = "",
        error: str = "",
    ) -> Record:
        """The row as things stand at ``at_ns``."""
        record = structs.replace(
            self._begun(end_reason),
            input_tokens=usage.input_tokens,
            cached_tokens=usage.cached_tokens,
            output_tokens=usage.output_tokens,
            reasoning_tokens=usage.reasoning_tokens,
            usage_source=usage.source.value,
            usage_flags=usage.flags,
            events=self.meter.events if self.meter else 0,
            cost_nanos=charge_nanos,
            list_nanos=list_nanos,
            overage_nanos=list_nanos - charge_nanos if list_nanos > charge_nanos and self.terms.is_charged else 0,
            status=self.status,
            error_code=error_code,
            error_msg=error,
            upstream=self.upstream,
            attempts=self.attempts,
            duration_ms=max(0, at_ns - self.started_ns) // NANOS_PER_MS,
            ttft_ms=max(0, self.ttft_ns - self.started_ns) // NANOS_PER_MS if self.ttft_ns else 0,
        )
        if usage.is_ordinary and self.quota is NO_QUOTA:
            return record
        free_input, free_output = used_of(self.quota, usage).both
        return structs.replace(record, **rare_of(usage), free_input=free_input, free_output=free_output)

    def _cost_and_charge(self, usage: Usage) -> tuple[int, int]:
        """What a usage costs beyond the free tokens, and what of it is charged: at most the cap (MONEY.md, "Size")."""
        if self.price is None or self.quote is None:
            return 0, 0
        quota = self.quota if self.quota is NO_QUOTA else used_of(self.quota, usage)  # as the row will say it
        cost = cost_nanos(usage, self.price, quota)
        return cost, min(cost, self.quote.cap_nanos)

    def _end(self, kind: EndKind, nanos: int, tokens: int, record: Record, *, wait: bool, used: Quota = NO_QUOTA) -> Finish:
        key, row = self.key, record.to_row()
        if key is None:
            return (Note(record=record, row=row),)
        ending = Ending(
            hold_id=self.hold_id,
            owner=self.owner,
            payer_id=key.payer_id,
            key_id=key.id,
            kind=kind,
            charge_nanos=nanos,
            tokens=tokens,
            row=row,
            reserved_nanos=self.quote.reserved_nanos if self.quote and self.is_forwarded else 0,
            is_forwarded=self.is_forwarded,
            quota=used,
        )
        return End(ending=ending, wait=wait), Note(record=record)

    def _key(self) -> Key:
        assert self.key is not None, "the key is read before anything is held"
        return self.key

    def _quote(self) -> Quote:
        assert self.quote is not None
        return self.quote

    def _tier(self) -> Tier:
        assert self.tier is not None
        return self.tier

    def _model(self) -> Model:
        assert self.model is not None
        return self.model


def reaches_free(catalog: Catalog, tier: Tier, key: Key) -> bool:
    """Some model that this key may use costs it nothing, so that an empty balance is no reason to refuse it on the headers."""
    if tier.price_factor == 0 or key.price_factor == 0:
        return True
    return any(name in key.models for name in catalog.free_models) if key.models else bool(catalog.free_models)
