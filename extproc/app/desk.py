"""The operator's verbs, over the stores: texts in, plain mappings out, ready to be printed or written as JSON.

Every amount comes twice: ``x_nanos`` as an int, and ``x`` as the exact decimal in the currency of the catalog. Mistakes of the operator are
:class:`~extproc.errors.UsageError`.
"""

from __future__ import annotations

import datetime as dt
import re
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any, Final
from uuid import UUID

from extproc.accounts.model import Account, Period
from extproc.accounts.registry import NewKey, Scopes
from extproc.app.compose import Stores, office, unix_ms
from extproc.app.explain import explained
from extproc.catalog.load import load_catalog
from extproc.catalog.model import Catalog
from extproc.errors import ConfigError, StoreRefused, UsageError
from extproc.money.amount import format_amount, parse_amount
from extproc.money.hold import Limits
from extproc.settings import Settings

ROWS_MAX: Final = 1_000  # of one answer
_SECONDS: Final = {"m": 60, "h": 3_600, "d": 86_400, "w": 604_800}
_AMOUNTS: Final = {  # column of a row → name in an answer
    "hold_nanos": "hold",
    "cost": "cost",
    "refund_nanos": "given_back",
    "list_nanos": "list",
    "overage_nanos": "overage",
    "loss_nanos": "loss",
    "budget_nanos": "budget",
    "amount": "amount",
    "balance_after": "balance_after",
    "charge_nanos": "charge",
}

Facts = dict[str, Any]


class Desk:
    """Opened by :func:`desk`. ``actor`` is who asks, for the audit."""

    def __init__(self, stores: Stores, settings: Settings, *, actor: str) -> None:
        self._stores = stores
        self._settings = settings
        self._actor = actor

    # --- accounts

    async def create_account(self, *, name: str, email: str = "", tier: str | None = None) -> Facts:
        """Without a tier: the catalog's first."""
        catalog = self._catalog()
        if tier is not None and tier not in catalog.tiers:
            raise UsageError(f"the catalog has no tier {tier!r}; it has {', '.join(catalog.tiers)}")
        account = await self._stores.registry.create_account(name=name, email=email, tier=tier or catalog.default_tier, actor=self._actor)
        return _account(account)

    async def account(self, named: str) -> Facts:
        """The account and its money."""
        account = await self._find(named)
        return _account(account) | await self._money(account.id)

    async def accounts(self, *, limit: int = ROWS_MAX) -> list[Facts]:
        """Oldest first."""
        return [_account(account) for account in await self._stores.registry.accounts(limit=limit)]

    async def freeze(self, named: str, *, frozen: bool, reason: str) -> Facts:
        """Refuse its new requests, or accept them again."""
        account = await self._find(named)
        delivered = await self._stores.registry.freeze(account.id, frozen=frozen, actor=self._actor, reason=reason)
        return {**_account(account), "frozen": frozen, "in_force": delivered}

    async def deposit(self, named: str, amount: str, *, method: str, reference: str | None) -> Facts:
        """Money in. With a reference it is booked once, however often it is told."""
        account = await self._find(named)
        nanos = _amount(amount)
        receipt = await self._stores.deposits.deposit(account.id, nanos, method=method, actor=self._actor, payment_id=reference)
        return {
            "account": account.id,
            "event": receipt.event_id,
            "booked_before": not receipt.fresh,
            **_money("amount", nanos),
            **_money("balance", receipt.balance.balance_nanos),
            "currency": self.currency(),
            "in_force": receipt.is_delivered,
        }

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
            expires_ms=expiry_ms(expires, now_ms=unix_ms()) if expires else 0,
            budget_nanos=_amount(budget) if budget is not None else None,
            budget_period=Period(budget_period),
            limits=Limits(**limits or {}),
            sandbox=sandbox,
        )
        made = await self._stores.registry.create_key(account.id, name=name, scopes=scopes, actor=self._actor)
        return {**_new_key(made), "account": account.id, "name": name, "sandbox": sandbox}

    async def keys(self, named: str) -> list[Facts]:
        """Of one account, oldest first, no secret among them."""
        account = await self._find(named)
        return [plain(row) for row in await self._stores.registry.keys(account.id)]

    async def revoke_key(self, key_id: str, *, reason: str = "") -> Facts:
        """In force from the next request on (``in_force`` False: as soon as Redis is back)."""
        delivered = await self._stores.registry.revoke(_uuid(key_id, "key"), actor=self._actor, reason=reason)
        return {"id": key_id, "revoked": True, "in_force": delivered}

    async def rotate_key(self, key_id: str) -> Facts:
        """A new secret with the same scopes; the old one is over."""
        made = await self._stores.registry.rotate(_uuid(key_id, "key"), actor=self._actor)
        return {**_new_key(made), "replaces": key_id}

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
            "entries": [plain(entry) for entry in found.entries],
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
                **_money("reserved", hold.reserved_nanos),
                **_money("checkpoint", hold.checkpoint_nanos),
                "lease_until": _time(hold.lease_ms),
                "lease_left_ms": hold.lease_ms - unix_ms(),
            }
            for hold in found
        ]

    async def drift(self, named: str | None = None) -> list[Facts]:
        """Accounts whose balance is not the sum of their entries."""
        account_id = (await self._find(named)).id if named else None
        return [plain(row) for row in await self._stores.ledger.drift(account_id)]

    def currency(self) -> str:
        """Of the catalog; "" where there is none to be read: amounts are shown all the same."""
        try:
            return self._catalog().currency
        except ConfigError:
            return ""

    # --- within

    def _catalog(self) -> Catalog:
        return load_catalog(self._settings.catalog.file)

    def _model(self, name: str) -> str:
        model = self._catalog().models.get(name)
        if model is None:
            raise UsageError(f"the catalog has no model {name!r}")
        return model.name

    async def _find(self, named: str) -> Account:
        """By id, e-mail address or name."""
        registry = self._stores.registry
        return await (registry.account(named.lower()) if _is_uuid(named) else registry.account_named(named))

    async def _money(self, account_id: str) -> Facts:
        posted = await self._stores.ledger.balance(account_id)
        if posted is None:
            raise UsageError(f"there is no account {account_id}")
        view = await self._stores.holds.view(account_id)
        redis = view and {
            **_money("available", view.available_nanos),
            **_money("held", view.held_nanos),
            **_money("entry_held", view.entry_held_nanos),
            "open_holds": view.open_holds,
            "version": view.version,
        }
        return {
            "currency": self.currency(),
            **_money("balance", posted.balance_nanos),
            **_money("credit", posted.credit_nanos),
            **_money("credited", posted.credited_total),  # ever, by deposits and corrections
            "version": posted.version,
            "redis": redis,
        }


@asynccontextmanager
async def desk(settings: Settings, *, actor: str) -> AsyncIterator[Desk]:
    """A desk for one command."""
    async with office(settings) as stores:
        try:
            yield Desk(stores, settings, actor=actor)
        except StoreRefused as error:
            if type(error.__cause__).__name__ == "UndefinedTable":
                raise UsageError("the database has no schema yet (or an older one): run `extproc migrate`") from error
            raise


def expiry_ms(text: str, *, now_ms: int) -> int:
    """``2027-01-31``, ``2027-01-31T12:00:00Z`` (UTC where no zone is given), or from now: ``90m``, ``12h``, ``30d``, ``4w``."""
    duration = re.fullmatch(r"([1-9][0-9]{0,5})([mhdw])", text)
    if duration:
        return now_ms + int(duration[1]) * _SECONDS[duration[2]] * 1_000
    try:
        moment = dt.datetime.fromisoformat(text)
    except ValueError as error:
        raise UsageError(f"{text!r} is no time such as 2027-01-31T12:00:00Z and no duration such as 30d") from error
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=dt.UTC)
    at_ms = (moment - dt.datetime.fromtimestamp(0, dt.UTC)) // dt.timedelta(milliseconds=1)
    if at_ms <= now_ms:
        raise UsageError(f"{text!r} is over already")
    return at_ms


def plain(row: Mapping[str, Any]) -> Facts:
    """A row as JSON can say it: ids and times as text, amounts as :func:`_money`."""
    facts: Facts = {}
    for name, value in row.items():
        if name in _AMOUNTS:
            facts |= _money(_AMOUNTS[name], value)
        elif name.endswith("_at") and value is not None:
            facts[name] = str(value).replace("+00:00", "Z")
        else:
            facts[name] = str(value) if isinstance(value, UUID) else value
    return facts


def _money(name: str, nanos: int | None) -> Facts:
    return {name: None if nanos is None else format_amount(nanos), f"{name}_nanos": nanos}


def _account(account: Account) -> Facts:
    return {
        "id": account.id,
        "name": account.name,
        "email": account.email,
        "tier": account.tier,
        "frozen": account.frozen,
        "created_at": account.created_at,
    }


def _new_key(made: NewKey) -> Facts:
    return {"id": made.id, "key": made.secret, "in_force": made.is_delivered}


def _amount(text: str) -> int:
    try:
        return parse_amount(text)
    except ValueError as error:
        raise UsageError(str(error)) from error


def _time(at_ms: int) -> str:
    return dt.datetime.fromtimestamp(at_ms / 1_000, dt.UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _is_uuid(text: str) -> bool:
    try:
        return str(UUID(text)) == text.lower()
    except ValueError:
        return False


def _uuid(text: str, what: str) -> str:
    if not _is_uuid(text):
        raise UsageError(f"{text!r} is not the id of a {what}")
    return text.lower()
