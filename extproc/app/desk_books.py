"""The operator's verbs that set right what was booked, end what hangs, and close months. Each leaves its actor and reason in the audit."""

from __future__ import annotations

import datetime as dt
from collections.abc import Awaitable, Callable
from typing import Final

from extproc.accounts.model import Account
from extproc.app.compose import BackOffice, Stores
from extproc.app.desk_facts import Facts, amount_of, is_uuid, money, month_of, plain, receipt_facts, uuid_of
from extproc.errors import UsageError
from extproc.ledger.entries import Unit
from extproc.ledger.port import Period, PeriodSum, PeriodSums
from extproc.money.amount import format_amount
from extproc.settlement.deposit import Receipt

ROWS_MAX: Final = 1_000  # of one answer


class Books:
    """``find`` knows an account by its id, address or name; ``actor`` is who asks."""

    def __init__(
        self, stores: Stores, back: BackOffice, *, actor: str, find: Callable[[str], Awaitable[Account]], currency: Callable[[], str]
    ) -> None:
        self._stores = stores
        self._back = back
        self._actor = actor
        self._find = find
        self._currency = currency

    # --- money

    async def refund(self, request_id: str, amount: str | None, *, reason: str, reference: str | None = None) -> Facts:
        """Give back what a request was charged; without an amount, all that is left of it. By hold id or by Envoy's ``x-request-id``."""
        charge = await self._stores.ledger.charge(request_id)
        nanos = charge.left_nanos if amount is None else amount_of(amount)
        if amount is None and not nanos:
            what = "was refunded already" if charge.refunded_nanos else "was never charged"
            raise UsageError(f"nothing is left to be refunded: request {charge.request_id} {what}")
        receipt = await self._stores.deposits.refund(charge, nanos, reason=reason, actor=self._actor, reference=reference)
        after = await self._stores.ledger.charge(charge.request_id)
        return {
            "request": charge.request_id,
            "account": charge.payer_id,
            **receipt_facts(receipt, nanos, self._currency()),
            **money("charged", after.charged_nanos),
            **money("refunded", after.refunded_nanos),
        }

    async def correct(self, named: str, amount: str, *, reason: str, reference: str | None = None) -> Facts:
        """Either sign."""
        account = await self._find(named)
        nanos = -amount_of(amount.removeprefix("-")) if amount.startswith("-") else amount_of(amount)
        receipt = await self._stores.deposits.correct(account.id, nanos, reason=reason, actor=self._actor, reference=reference)
        return self._moved(account, receipt, nanos)

    async def write_off(self, named: str, amount: str | None, *, reason: str, reference: str | None = None) -> Facts:
        """A debt, or a part of it, becomes the operator's loss; without an amount, all of it."""
        account = await self._find(named)
        nanos = await self._debt(account) if amount is None else amount_of(amount)
        receipt = await self._stores.deposits.write_off(account.id, nanos, reason=reason, actor=self._actor, reference=reference)
        return self._moved(account, receipt, nanos)

    async def grant_quota(self, named: str, *, input_tokens: int, output_tokens: int, reason: str, reference: str | None = None) -> Facts:
        """Free tokens of prompts and of answers, used before money."""
        account = await self._find(named)
        receipt = await self._stores.deposits.grant_quota(
            account.id, input_tokens=input_tokens, output_tokens=output_tokens, reason=reason, actor=self._actor, reference=reference
        )
        return {
            "account": account.id,
            "event": receipt.event_id,
            "booked_before": not receipt.fresh,
            "free_input": receipt.balance.free_input,
            "free_output": receipt.balance.free_output,
            "in_force": receipt.is_delivered,
        }

    async def set_credit(self, named: str, amount: str, *, reason: str) -> Facts:
        """How far below zero an account may go."""
        account = await self._find(named)
        receipt = await self._stores.deposits.set_credit(account.id, amount_of(amount), reason=reason, actor=self._actor)
        return {
            "account": account.id,
            **money("credit", receipt.balance.credit_nanos),
            **money("balance", receipt.balance.balance_nanos),
            "currency": self._currency(),
            "in_force": receipt.is_delivered,
        }

    # --- holds

    async def release(self, hold_id: str, *, reason: str) -> Facts:
        """End an open hold at nothing; should its request run on after all, it is charged when it settles."""
        hold = await self._back.release.release(uuid_of(hold_id, "hold"), actor=self._actor, reason=reason)
        return {"hold": hold.hold_id, "account": hold.payer_id, "state": hold.state, **money("given_back", hold.reserved_nanos)}

    # --- months

    async def close_period(self, month: str, *, reason: str, progress: Callable[[dt.date], None]) -> Facts:
        """Nothing is booked into it any more; its sums are frozen."""
        first = month_of(month)
        await self._back.month_end.close(first, actor=self._actor, reason=reason, progress=progress)
        return await self.period(month)

    async def periods(self) -> list[Facts]:
        """Closed months, newest first."""
        return [_period(period) for period in await self._back.periods.closed(limit=ROWS_MAX)]

    async def period(self, month: str, *, recount: Callable[[dt.date], None] | None = None) -> Facts:
        """As it was frozen. With ``recount``, which hears of each day, its sums are worked out again: ``agrees``."""
        period, frozen = await self._back.periods.period(month_of(month))
        facts = {**_period(period), "currency": self._currency(), "sums": [_sum(line) for line in frozen.lines]}
        if recount is not None:
            again: PeriodSums = await self._back.periods.sum_up(period.month, progress=recount)
            facts |= {"agrees": again == frozen, "recounted": [_sum(line) for line in again.lines]}
        return facts

    # --- audit

    async def audit(self, subject: str | None, *, limit: int) -> list[Facts]:
        """Who did what, why, newest first. ``subject``: an account, or the id of a key, a hold or a month."""
        if subject is not None and not is_uuid(subject) and not _is_month(subject):
            subject = (await self._find(subject)).id
        return [plain(row) for row in await self._back.audit.newest(subject, limit=limit)]

    # --- within

    def _moved(self, account: Account, receipt: Receipt, nanos: int) -> Facts:
        return {"account": account.id} | receipt_facts(receipt, nanos, self._currency())

    async def _debt(self, account: Account) -> int:
        balance = await self._stores.ledger.balance(account.id)
        if balance is None or balance.balance_nanos >= 0:
            raise UsageError(f"account {account.id} owes nothing")
        return -balance.balance_nanos


def _period(period: Period) -> Facts:
    return {
        "month": f"{period.month:%Y-%m}",
        "closed_at": period.closed_at.replace("+00:00", "Z"),
        "actor": period.actor,
        "reason": period.reason,
        "is_complete": period.is_complete,
        "events": period.events,
        "late": period.late,
    }


def _sum(line: PeriodSum) -> Facts:
    """A sum of tokens is a number, one of money also an amount."""
    text = format_amount(line.sum) if line.unit == Unit.NANOS else str(line.sum)
    return {"kind": line.kind, "name": line.name, "unit": line.unit, "sum": text, "sum_units": line.sum}


def _is_month(text: str) -> bool:
    try:
        return bool(month_of(text))
    except UsageError:
        return False
