"""Money that moves without a hold, by decision of somebody: first the ledger, then Redis, by version.

A deposit that Redis did not confirm is not lost and not repeated: the sweep brings the same version again.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from extproc.errors import StoreError, UsageError
from extproc.holds.port import Delivery, Tokens
from extproc.ledger.entries import UNKNOWN_MODEL
from extproc.ledger.port import QUOTA_TOKENS_MAX, Balance, Charge, EventType, Grant, Granted, Grants, QuotaGrant, derived_id
from extproc.money.amount import BALANCE_NANOS_MAX
from extproc.settlement.meter import UNMETERED, Meter, Series

REFERENCE_CHARS_MAX = 200  # longer than any provider's; it is in a unique index


@dataclass(frozen=True, slots=True, kw_only=True)
class Receipt:
    """What became of it. ``is_delivered`` False: booked, and the sweep will bring it to Redis."""

    event_id: str
    fresh: bool
    balance: Balance
    is_delivered: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class _Decision:
    """Of an operator. ``provider`` names the account on the other side."""

    event_type: EventType
    provider: str
    reason: str
    actor: str
    reference: str | None


class Deposits:
    """``new_id`` makes UUIDv7s, ``unix_ms`` tells the time."""

    def __init__(
        self,
        ledger: Grants,
        delivery: Delivery,
        *,
        new_id: Callable[[], str],
        unix_ms: Callable[[], int],
        meter: Meter = UNMETERED,
    ) -> None:
        self._ledger = ledger
        self._delivery = delivery
        self._meter = meter
        self._new_id = new_id
        self._unix_ms = unix_ms

    async def deposit(
        self, payer_id: str, amount_nanos: int, *, method: str, actor: str, payment_id: str | None = None, deposit_id: str | None = None
    ) -> Receipt:
        """Money of the customer. With a ``payment_id`` (or ``deposit_id``) it is booked once, however often it is told."""
        if not 0 < amount_nanos <= BALANCE_NANOS_MAX:
            raise UsageError("a deposit is more than nothing, and at most what a balance can hold")
        _check_reference(payment_id)
        return await self._book(
            Grant(
                id=deposit_id or self._new_id(),
                payer_id=payer_id,
                event_type=EventType.DEPOSIT,
                amount_nanos=amount_nanos,
                provider=method,
                reference=payment_id,
                actor=actor,
                occurred_ms=self._unix_ms(),
            )
        )

    async def correct(self, payer_id: str, amount_nanos: int, *, reason: str, actor: str, reference: str | None = None) -> Receipt:
        """Either sign; the only way to set right what was booked wrongly. May leave a negative balance."""
        if not 0 < abs(amount_nanos) <= BALANCE_NANOS_MAX:
            raise UsageError("a correction has an amount other than nothing, and at most what a balance can hold")
        decision = _Decision(event_type=EventType.CORRECTION, provider="correction", reason=reason, actor=actor, reference=reference)
        return await self._decide(decision, payer_id, amount_nanos)

    async def write_off(self, payer_id: str, amount_nanos: int, *, reason: str, actor: str, reference: str | None = None) -> Receipt:
        """A debt, or a part of it, becomes the operator's loss."""
        if amount_nanos <= 0:
            raise UsageError("what is written off is more than nothing")
        decision = _Decision(event_type=EventType.WRITEOFF, provider="writeoff", reason=reason, actor=actor, reference=reference)
        return await self._decide(decision, payer_id, amount_nanos)

    async def refund(self, charge: Charge, amount_nanos: int, *, reason: str, actor: str, reference: str | None = None) -> Receipt:
        """Give back what a request was charged, or a part of it. What its key's budget has counted stays counted."""
        if amount_nanos <= 0:
            raise UsageError("what is refunded is more than nothing")
        model = charge.model or UNKNOWN_MODEL
        decision = _Decision(event_type=EventType.USAGE_REFUND, provider=model, reason=reason, actor=actor, reference=reference)
        return await self._decide(decision, charge.payer_id, amount_nanos, of_id=charge.request_id)

    async def grant_quota(
        self, payer_id: str, *, input_tokens: int, output_tokens: int, reason: str, actor: str, reference: str | None = None
    ) -> Receipt:
        """Free tokens of prompts and of answers, used before money is. With a reference they are given once."""
        if min(input_tokens, output_tokens) < 0 or not input_tokens + output_tokens or max(input_tokens, output_tokens) > QUOTA_TOKENS_MAX:
            raise UsageError(f"a quota is of more than no tokens, and at most {QUOTA_TOKENS_MAX}")
        if not reason.strip():
            raise UsageError("who gives something away says why: give a reason")
        _check_reference(reference)
        grant = QuotaGrant(
            id=self._new_id() if reference is None else derived_id(payer_id, f"{EventType.QUOTA_GRANT}/{reference}"),
            payer_id=payer_id,
            input_tokens=input_tokens,
            output_tokens=output_tokens,
            reference=reference,
            actor=actor,
            reason=reason,
            occurred_ms=self._unix_ms(),
        )
        return await self._delivered(await self._ledger.grant_quota(grant))

    async def set_credit(self, payer_id: str, credit_nanos: int, *, actor: str, reason: str) -> Receipt:
        """The line down to which an account may go below zero."""
        if not 0 <= credit_nanos <= BALANCE_NANOS_MAX:
            raise UsageError("a credit line is not negative, and at most what a balance can hold")
        balance = await self._ledger.set_credit(payer_id, credit_nanos, actor=actor, reason=reason)
        return await self._delivered(Granted(event_id="", fresh=True, balance=balance))

    async def _decide(self, decision: _Decision, payer_id: str, amount_nanos: int, *, of_id: str | None = None) -> Receipt:
        """With a reference it is booked once for its request or account, however often it is told."""
        reference = decision.reference
        if not decision.reason.strip():
            raise UsageError("who decides about money says why: give a reason")
        _check_reference(reference)
        again = f"{decision.event_type}/{reference}"
        return await self._book(
            Grant(
                id=self._new_id() if reference is None else derived_id(of_id or payer_id, again),
                payer_id=payer_id,
                event_type=decision.event_type,
                amount_nanos=amount_nanos,
                provider=decision.provider,
                reference=reference,
                of_id=of_id,
                actor=decision.actor,
                reason=decision.reason,
                occurred_ms=self._unix_ms(),
            )
        )

    async def _book(self, grant: Grant) -> Receipt:
        return await self._delivered(await self._ledger.grant(grant))

    async def _delivered(self, granted: Granted) -> Receipt:
        try:
            delivered = await deliver(granted.balance, ledger=self._ledger, delivery=self._delivery, meter=self._meter)
        except StoreError:
            delivered = False  # redis_version stays behind: the sweep delivers it
        return Receipt(event_id=granted.event_id, fresh=granted.fresh, balance=granted.balance, is_delivered=delivered)


def _check_reference(reference: str | None) -> None:
    # Above all not "": every payment without a reference would be a repetition of the first.
    if reference is not None and not (0 < len(reference) <= REFERENCE_CHARS_MAX and reference.isprintable() and reference.strip()):
        raise UsageError(f"a reference has 1 to {REFERENCE_CHARS_MAX} printable characters; leave it out if there is none")


async def deliver(balance: Balance, *, ledger: Grants, delivery: Delivery, meter: Meter) -> bool:
    """Bring a balance's version to Redis and remember that it is there. False: Redis lacks a payer that it had confirmed, or has this
    version of another ledger, which has fallen back to an older copy.

    Such a payer is alarmed, and left to a rebuild: what of its money was held or spent there is not known here.
    """
    payer_id, version, total, credit = balance.payer_id, balance.version, balance.credited_total, balance.credit_nanos
    epoch = delivery.epoch_of(payer_id)
    free, tokens = Tokens(balance.free_input, balance.free_output), Tokens(balance.credited_input, balance.credited_output)
    there = balance.redis_version is None and await delivery.install_payer(
        payer_id, version=version, total_nanos=total, available_nanos=balance.balance_nanos, credit_nanos=credit, free=free, total=tokens
    )
    if not there:
        there = await delivery.credit(payer_id, version=version, total_nanos=total, credit_nanos=credit, total=tokens)
    if not there:
        meter.add(Series.MISSING_PAYERS)
        return False
    await ledger.confirm(payer_id, version, epoch=epoch)
    meter.add(Series.DELIVERED_BALANCES)
    return True
