"""Money that moves without a hold, in PostgreSQL: once, under the lock of its payer's balance, audited, with a version for Redis.

What a kind of grant moves between which accounts, and how much at most, its row in ``port.GRANTS`` says; nothing here asks for the kind,
but that a deposit leaves its payment in ``topups``.
"""

from __future__ import annotations

from extproc.errors import UsageError
from extproc.ledger import entries as book
from extproc.ledger.audit import audit
from extproc.ledger.journal import Journal, Statement
from extproc.ledger.plan import Record, entry_rows
from extproc.ledger.port import QUOTA_TOKENS_MAX, Balance, Bound, Charge, EventType, Grant, Granted, QuotaGrant, derived_id
from extproc.ledger.rows import is_uuid
from extproc.money.amount import BALANCE_NANOS_MAX, format_amount
from extproc.stores.postgres import Database, Row, Transaction
from extproc.stores.queries import load_queries

PAGE_MAX = 1_000  # rows of one answer


class PostgresGrants:
    """The port Grants."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._queries = load_queries("extproc.ledger")
        self._journal = Journal(self._queries)

    async def grant(self, grant: Grant) -> Granted:
        """Book it once. ``UsageError``: no such account, beyond its bound, or booked before as something else."""
        async with self._database.transaction() as transaction:
            *_, open_month, locked = await transaction.run([*self._journal.begin(), self._lock(grant.payer_id)])
            balance = _balance(locked, grant.payer_id)
            event_id = derived_id(grant.id, grant.event_type)
            before = await self._granted_before(transaction, grant, event_id)
            if before is not None:
                return Granted(event_id=before, fresh=False, balance=balance)
            await self._hold_to_bound(transaction, grant, balance)
            rule = grant.rule
            lines = book.granted(
                payer_id=grant.payer_id,
                provider=grant.provider,
                source=rule.source,
                target=rule.target,
                amount_nanos=grant.amount_nanos,
            )
            event = _event(grant, event_id, balance)
            await self._journal.copy(transaction, open_month=open_month, events=[event], entries=entry_rows(event_id, lines))
            await transaction.run(self._changes(grant, event_id))
            return Granted(event_id=event_id, fresh=True, balance=await self._read(transaction, grant.payer_id))

    async def grant_quota(self, grant: QuotaGrant) -> Granted:
        """Book free tokens once. ``UsageError``: no such account, more than it may have, or booked before as something else."""
        async with self._database.transaction() as transaction:
            *_, open_month, locked = await transaction.run([*self._journal.begin(), self._lock(grant.payer_id)])
            balance = _balance(locked, grant.payer_id)
            event = _quota_event(grant, derived_id(grant.id, EventType.QUOTA_GRANT), balance)
            booked = await transaction.fetch(self._queries["find_event"], {"id": event["id"]})
            if booked:
                before = booked[0]
                if any(before[name] != event[name] for name in ("user_id", "free_input", "free_output")):
                    raise UsageError(f"{grant.reference or grant.id} was booked before, for another account or other tokens")
                return Granted(event_id=event["id"], fresh=False, balance=balance)
            tokens = {"input": grant.input_tokens, "output": grant.output_tokens}
            if max(balance.free_input + grant.input_tokens, balance.free_output + grant.output_tokens) > QUOTA_TOKENS_MAX:
                raise UsageError(f"the account would have more than {QUOTA_TOKENS_MAX} free tokens")
            lines = tuple(
                line
                for unit, number in zip((book.Unit.FREE_INPUT, book.Unit.FREE_OUTPUT), tokens.values(), strict=True)
                for line in book.quota_granted(payer_id=grant.payer_id, unit=unit, tokens=number)
            )
            await self._journal.copy(transaction, open_month=open_month, events=[event], entries=entry_rows(event["id"], lines))
            credited = {f"credited_{name}": number for name, number in tokens.items()}
            told = audit(
                self._queries,
                derived_id(event["id"], "audit"),
                actor=grant.actor,
                action=EventType.QUOTA_GRANT,
                subject=grant.payer_id,
                reason=grant.reason,
                detail={"event": event["id"], **tokens},
            )
            await transaction.run([self._journal.write("change_quotas", [{"user_id": grant.payer_id, **tokens, **credited}]), told])
            return Granted(event_id=event["id"], fresh=True, balance=await self._read(transaction, grant.payer_id))

    async def set_credit(self, payer_id: str, credit_nanos: int, *, actor: str, reason: str) -> Balance:
        """A new credit line; the same again changes nothing. A lowered one may leave the account below it: nothing is taken back."""
        async with self._database.transaction() as transaction:
            balance = _balance(await transaction.fetch(*self._lock(payer_id)), payer_id)
            if balance.credit_nanos == credit_nanos:
                return balance
            audit_id = derived_id(payer_id, f"credit/{balance.version + 1}")
            detail = {"before_nanos": balance.credit_nanos, "after_nanos": credit_nanos}
            await transaction.run(
                [
                    (self._queries["set_credit_line"], {"payer": payer_id, "credit": credit_nanos}),
                    audit(self._queries, audit_id, actor=actor, action="credit_line", subject=payer_id, reason=reason, detail=detail),
                ]
            )
            return await self._read(transaction, payer_id)

    async def charge(self, name: str) -> Charge:
        """Of a request, by its hold's id or Envoy's."""
        async with self._database.transaction() as transaction:
            request = await self._find_request(transaction, name)
            return await self._charge(transaction, str(request["id"]) if request else "", name)

    async def balance(self, payer_id: str) -> Balance | None:
        rows = await self._database.fetch(self._queries["balance_of"], {"payer": payer_id})
        return Balance(**rows[0]) if rows else None

    async def undelivered(self, *, after: str | None, limit: int) -> list[Balance]:
        rows = await self._database.fetch(self._queries["undelivered_balances"], {"after": after, "limit": min(limit, PAGE_MAX)})
        return [Balance(**row) for row in rows]

    async def confirm(self, payer_id: str, version: int, *, epoch: str) -> None:
        await self._database.fetch(self._queries["confirm_balance"], {"payer": payer_id, "version": version, "epoch": epoch})

    # --- within

    def _lock(self, payer_id: str) -> Statement:
        return self._queries["lock_balance"], {"payer": payer_id}

    async def _read(self, transaction: Transaction, payer_id: str) -> Balance:
        return _balance(await transaction.fetch(self._queries["balance_of"], {"payer": payer_id}), payer_id)

    async def _find_request(self, transaction: Transaction, name: str) -> Row | None:
        rows: list[Row] = []
        if is_uuid(name):
            rows = await transaction.fetch(self._queries["request_of_id"], {"id": name})
        if not rows:
            rows = await transaction.fetch(self._queries["request_of_envoy_id"], {"request_id": name.replace("\x00", "")})
        return rows[0] if rows else None

    async def _charge(self, transaction: Transaction, request_id: str, name: str) -> Charge:
        rows = await transaction.fetch(self._queries["charge_of_request"], {"id": request_id}) if request_id else []
        if not rows:
            raise UsageError(f"the ledger has no request {name}: it is still running, waits to be posted, or is nobody's")
        return Charge(**rows[0])

    async def _granted_before(self, transaction: Transaction, grant: Grant, event_id: str) -> str | None:
        """The id of the event that this grant became already."""
        booked = await transaction.fetch(self._queries["find_event"], {"id": event_id})
        if not booked and grant.event_type is EventType.DEPOSIT and grant.reference is not None:
            named = {"method": grant.provider, "payment": grant.reference}
            paid = await transaction.fetch(self._queries["find_payment"], named)
            booked = [{**row, "id": derived_id(row["id"], EventType.DEPOSIT), "of_id": None} for row in paid]
        if not booked:
            return None
        before = booked[0]
        if (before["user_id"], before["amount"], before["of_id"]) != (grant.payer_id, grant.customer_nanos, grant.of_id):
            raise UsageError(f"{grant.provider} {grant.reference or grant.id} was booked before, for another account, request or amount")
        if (before["provider"], before["reference"]) != (grant.provider, grant.reference):
            raise UsageError(f"{grant.id} was booked before, for another payment: {before['provider']} {before['reference']}")
        return str(before["id"])

    async def _hold_to_bound(self, transaction: Transaction, grant: Grant, balance: Balance) -> None:
        """``UsageError``: more than there is to move. The payer is locked, so what is found here holds until the commit."""
        after = balance.balance_nanos + grant.customer_nanos
        if abs(after) > BALANCE_NANOS_MAX:
            raise UsageError(f"the balance would be {format_amount(after)}, beyond what a balance can hold")
        match grant.rule.bound:
            case Bound.NONE:
                return
            case Bound.FUNDS:
                most, what = balance.balance_nanos + balance.credit_nanos, "the account has"
            case Bound.DEBT:
                most, what = -balance.balance_nanos, "the account owes"
            case Bound.CHARGE:
                assert grant.of_id is not None
                charge = await self._charge(transaction, grant.of_id, grant.of_id)
                if charge.payer_id != grant.payer_id:
                    raise UsageError(f"request {grant.of_id} is another account's")
                most, what = charge.left_nanos, f"of the charge of request {grant.of_id} there is left"
        if grant.amount_nanos > most:
            raise UsageError(f"{format_amount(grant.amount_nanos)} is too much: {what} {format_amount(max(0, most))}")

    def _changes(self, grant: Grant, event_id: str) -> list[Statement]:
        """What else is written with the event."""
        change = {"user_id": grant.payer_id, "amount": grant.customer_nanos, "credited": grant.customer_nanos}
        detail = {"event": event_id, "amount_nanos": grant.amount_nanos} | ({"request": grant.of_id} if grant.of_id else {})
        statements = [
            self._journal.write("change_balances", [change]),
            audit(
                self._queries,
                derived_id(event_id, "audit"),
                actor=grant.actor,
                action=grant.event_type,
                subject=grant.payer_id,
                reason=grant.reason,
                detail=detail,
            ),
        ]
        if grant.of_id is not None:
            statements.append((self._queries["add_refund"], {"id": grant.of_id, "amount": grant.amount_nanos}))
        if grant.event_type is EventType.DEPOSIT:
            topup = {
                "id": grant.id,
                "payer": grant.payer_id,
                "amount": grant.amount_nanos,
                "method": grant.provider,
                "payment": grant.reference,
                "occurred_ms": grant.occurred_ms,
            }
            statements.append((self._queries["insert_topup"], topup))
        return statements


def _balance(rows: list[Row], payer_id: str) -> Balance:
    if not rows:
        raise UsageError(f"there is no account {payer_id}")
    return Balance(**rows[0])


def _event(grant: Grant, event_id: str, balance: Balance) -> Record:
    return {
        "id": event_id,
        "user_id": grant.payer_id,
        "event_type": grant.event_type,
        "amount": grant.customer_nanos,
        "balance_after": balance.balance_nanos + grant.customer_nanos,
        "charge_nanos": 0,
        "of_id": grant.of_id,
        "shard": None,
        "epoch": "",
        "seq": None,
        "metadata": {"provider": grant.provider, "reference": grant.reference, "actor": grant.actor, "reason": grant.reason},
        "occurred_ms": grant.occurred_ms,
    }


def _quota_event(grant: QuotaGrant, event_id: str, balance: Balance) -> Record:
    """It moves tokens, no money."""
    return {
        "id": event_id,
        "user_id": grant.payer_id,
        "event_type": EventType.QUOTA_GRANT,
        "amount": 0,
        "balance_after": balance.balance_nanos,
        "charge_nanos": 0,
        "of_id": None,
        "shard": None,
        "epoch": "",
        "seq": None,
        "metadata": {"reference": grant.reference, "actor": grant.actor, "reason": grant.reason},
        "occurred_ms": grant.occurred_ms,
        "free_input": grant.input_tokens or None,
        "free_output": grant.output_tokens or None,
    }
