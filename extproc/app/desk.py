"""The operator's verbs, over the stores: texts in, plain mappings out, ready to be printed or written as JSON.

Every amount comes twice: ``x_nanos`` as an int, and ``x`` as the exact decimal in the currency of the catalog. Mistakes of the operator are
:class:`~extproc.errors.UsageError`.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Final

from extproc.accounts.model import Account, Change, Period
from extproc.accounts.registry import Scopes
from extproc.app.compose import Stores, back_office, office, unix_ms
from extproc.app.desk_books import Books
from extproc.app.desk_facts import (
    Facts,
    account_facts,
    amount_of,
    factor_of,
    is_uuid,
    moment_ms,
    money,
    new_key_facts,
    plain,
    receipt_facts,
    time_text,
    tokens_entry,
    uuid_of,
)
from extproc.app.explain import explained
from extproc.app.reconcile import auditor, steps_of, summary
from extproc.catalog.load import load_catalog
from extproc.catalog.model import Catalog
from extproc.errors import ConfigError, StoreRefused, UsageError
from extproc.money.hold import Limits
from extproc.settings import Settings
from extproc.settlement.invariants import Finding

ROWS_MAX: Final = 1_000  # of one answer


class Desk:
    """Opened by :func:`desk`. ``actor`` is who asks, for the audit. What sets right what was booked is at ``books``."""

    def __init__(self, stores: Stores, settings: Settings, *, actor: str) -> None:
        self._stores = stores
        self._settings = settings
        self._actor = actor
        self.books = Books(stores, back_office(stores, settings), actor=actor, find=self._find, currency=self.currency)

    # --- accounts

    async def create_account(self, *, name: str, email: str = "", tier: str | None = None) -> Facts:
        """Without a tier: the catalog's first."""
        tier = self._check_tier(tier) if tier is not None else self._catalog().default_tier
        account = await self._stores.registry.create_account(name=name, email=email, tier=tier, actor=self._actor)
        return _facts(account)

    async def account(self, named: str) -> Facts:
        """The account and its money."""
        account = await self._find(named)
        return _facts(account) | await self._money(account.id)

    async def accounts(self, *, limit: int = ROWS_MAX) -> list[Facts]:
        """Oldest first."""
        return [_facts(account) for account in await self._stores.registry.accounts(limit=limit)]

    async def freeze(self, named: str, *, frozen: bool, reason: str) -> Facts:
        """Refuse its new requests, or accept them again."""
        account = await self._find(named)
        delivered = await self._stores.registry.freeze(account.id, frozen=frozen, actor=self._actor, reason=reason)
        return {**_facts(account), "frozen": frozen, "in_force": delivered}

    async def set_price_factor(self, named: str, factor: str, *, reason: str, at: str | None = None) -> Facts:
        """What its prices are multiplied with, for requests that begin from now on, or from a moment on."""
        return await self._change(named, Change(at_ms=_at_ms(at), price_factor=factor_of(factor)), reason=reason)

    async def set_tier(self, named: str, tier: str, *, reason: str, at: str | None = None) -> Facts:
        """Likewise its tier: limits, priorities and factor of that."""
        self._check_tier(tier)
        return await self._change(named, Change(at_ms=_at_ms(at), tier=tier), reason=reason)

    async def _change(self, named: str, change: Change, *, reason: str) -> Facts:
        account, registry = await self._find(named), self._stores.registry
        delivered = await registry.change_terms(account.id, change, actor=self._actor, reason=reason)
        return {**_facts(await registry.account(account.id)), "in_force": delivered}

    async def deposit(self, named: str, amount: str, *, method: str, reference: str | None) -> Facts:
        """Money in. With a reference it is booked once, however often it is told."""
        account = await self._find(named)
        nanos = amount_of(amount)
        receipt = await self._stores.deposits.deposit(account.id, nanos, method=method, actor=self._actor, payment_id=reference)
        return {"account": account.id} | receipt_facts(receipt, nanos, self.currency())

    async def balance(self, named: str) -> Facts:
        """What PostgreSQL has posted, and what Redis lets him spend now."""
        account = await self._find(named)
        return {"account": account.id, "name": account.name} | await self._money(account.id)

    # --- keys

    async def create_key(
        self,
        named: str,
        *,
        name: str,
        models: Sequence[str] = (),
        networks: Sequence[str] = (),
        expires: str | None = None,
        budget: str | None = None,
        budget_period: str = "none",
        limits: Mapping[str, int | None] | None = None,
        sandbox: bool = False,
    ) -> Facts:
        """The answer has the secret, this once."""
        account = await self._find(named)
        scopes = Scopes(
            models=[self._model(model) for model in models],
            networks=networks,
            expires_ms=moment_ms(expires, now_ms=unix_ms()) if expires else 0,
            budget_nanos=amount_of(budget) if budget is not None else None,
            budget_period=Period(budget_period),
            limits=Limits(**limits or {}),
            sandbox=sandbox,
        )
        made = await self._stores.registry.create_key(account.id, name=name, scopes=scopes, actor=self._actor)
        return {**new_key_facts(made), "account": account.id, "name": name, "sandbox": sandbox}

    async def keys(self, named: str) -> list[Facts]:
        """Of one account, oldest first, no secret among them."""
        account = await self._find(named)
        return [plain(row) for row in await self._stores.registry.keys(account.id)]

    async def revoke_key(self, key_id: str, *, reason: str = "") -> Facts:
        """In force from the next request on (``in_force`` False: as soon as Redis is back)."""
        delivered = await self._stores.registry.revoke(uuid_of(key_id, "key"), actor=self._actor, reason=reason)
        return {"id": key_id, "revoked": True, "in_force": delivered}

    async def rotate_key(self, key_id: str) -> Facts:
        """A new secret with the same scopes; the old one is over."""
        made = await self._stores.registry.rotate(uuid_of(key_id, "key"), actor=self._actor)
        return {**new_key_facts(made), "replaces": key_id}

    # --- requests and holds

    async def requests(self, named: str | None, *, limit: int = 20, after: str | None = None) -> list[Facts]:
        """The newest, newest first; with ``after`` (a ``cursor``): what was posted since, oldest first."""
        account_id = (await self._find(named)).id if named else None
        return [plain(row) for row in await self._stores.ledger.requests(account_id, limit=limit, after=after)]

    async def explain(self, request_id: str) -> Facts:
        """How the charge of a request came about. By hold id or by Envoy's ``x-request-id``."""
        found = await self._stores.ledger.explain(request_id)
        if found is None:
            raise UsageError(
                f"the ledger has no request {request_id}: it is still running, waits to be posted, or was refused before its key was known"
            )
        sums = explained(found)
        return {
            "request": plain(found.request),
            "currency": sums.pop("currency") or self.currency(),
            **sums,
            "events": [plain(event) for event in found.events],
            "entries": [plain(entry) if entry["unit"] == "nanos" else tokens_entry(entry) for entry in found.entries],
        }

    async def holds(self, named: str | None) -> list[Facts]:
        """Pending holds, the one that runs out first first."""
        account_id = (await self._find(named)).id if named else None
        found = sorted(await self._stores.holds.open_holds(account_id), key=lambda hold: hold.lease_ms)
        return [
            {
                "hold": hold.hold_id,
                "account": hold.payer_id,
                "key": hold.key_id,
                "state": hold.state,
                **money("reserved", hold.reserved_nanos),
                **money("checkpoint", hold.checkpoint_nanos),
                "free_input": hold.quota.input_tokens,
                "free_output": hold.quota.output_tokens,
                "lease_until": time_text(hold.lease_ms),
                "lease_left_ms": hold.lease_ms - unix_ms(),
            }
            for hold in found
        ]

    async def reconcile(self, named: str | None, *, full: bool, progress: Callable[[str, int, int], None]) -> Facts:
        """Check the invariants. ``progress``: phase, how much of it was looked at so far, how much was found."""
        account_id = (await self._find(named)).id if named else None
        looked_at: Counter[str] = Counter()
        findings: list[Finding] = []
        async for step in steps_of(auditor(self._settings, self._stores, asyncio.sleep), account_id, full=full):
            looked_at[step.phase] += step.looked_at
            findings += step.findings
            progress(step.phase, looked_at[step.phase], len(findings))
        return summary(looked_at, findings)

    def currency(self) -> str:
        """Of the catalog; "" where there is none to be read: amounts are shown all the same."""
        try:
            return self._catalog().currency
        except ConfigError:
            return ""

    # --- within

    def _catalog(self) -> Catalog:
        return load_catalog(self._settings.catalog.file)

    def _check_tier(self, tier: str) -> str:
        if tier not in (known := self._catalog().tiers):
            raise UsageError(f"the catalog has no tier {tier!r}; it has {', '.join(known)}")
        return tier

    def _model(self, name: str) -> str:
        model = self._catalog().models.get(name)
        if model is None:
            raise UsageError(f"the catalog has no model {name!r}")
        return model.name

    async def _find(self, named: str) -> Account:
        """By id, e-mail address or name."""
        registry = self._stores.registry
        return await (registry.account(named.lower()) if is_uuid(named) else registry.account_named(named))

    async def _money(self, account_id: str) -> Facts:
        posted = await self._stores.ledger.balance(account_id)
        if posted is None:
            raise UsageError(f"there is no account {account_id}")
        view = await self._stores.holds.view(account_id)
        redis = view and {
            **money("available", view.available_nanos),
            **money("held", view.held_nanos),
            **money("entry_held", view.entry_held_nanos),
            "open_holds": view.open_holds,
            "version": view.version,
            "free_input": view.quota.input_tokens,
            "free_output": view.quota.output_tokens,
            "held_input": view.held_quota.input_tokens,
            "held_output": view.held_quota.output_tokens,
        }
        return {
            "currency": self.currency(),
            **money("balance", posted.balance_nanos),
            **money("credit", posted.credit_nanos),
            **money("credited", posted.credited_total),  # ever, by deposits and corrections
            "free_input": posted.free_input,  # tokens of the quota that are left
            "free_output": posted.free_output,
            "version": posted.version,
            "redis": redis,
        }


def _facts(account: Account) -> Facts:
    return account_facts(account, now_ms=unix_ms())


def _at_ms(text: str | None) -> int:
    """0: now."""
    return moment_ms(text, now_ms=unix_ms()) if text else 0


@asynccontextmanager
async def desk(settings: Settings, *, actor: str, patience_s: int | None = None) -> AsyncIterator[Desk]:
    """A desk for one command. ``patience_s``: a statement may take so long, instead of what the settings say."""
    if patience_s is not None:
        settings = replace(settings, postgres=replace(settings.postgres, statement_timeout_ms=patience_s * 1_000))
    async with office(settings) as stores:
        try:
            yield Desk(stores, settings, actor=actor)
        except StoreRefused as error:
            if type(error.__cause__).__name__ == "UndefinedTable":
                raise UsageError("the database has no schema yet (or an older one): run `extproc migrate`") from error
            raise
