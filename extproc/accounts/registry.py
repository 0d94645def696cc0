"""Accounts and keys as an operator changes them. PostgreSQL first, then Redis; what Redis does not confirm, the settler's sweep brings."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Protocol

from extproc.accounts.codec import delivery_of_row
from extproc.accounts.directory import KeyDeliveries, KeyStore
from extproc.accounts.keys import hash_of, hint_of, new_key
from extproc.accounts.model import Account, Change, FreezeDelivery, Key, KeyDelivery, Period, as_of
from extproc.accounts.scopes import parse_networks
from extproc.accounts.terms import CHANGES_MAX, changes_of, plain, with_change
from extproc.errors import StoreError, UsageError
from extproc.money.amount import format_scaled
from extproc.money.hold import NO_LIMITS, Limits
from extproc.money.price import FACTOR_DECIMALS, FACTOR_ONE
from extproc.stores.postgres import Params, Row, Transaction
from extproc.stores.queries import Query, load_queries

PAGE_MAX = 1_000  # rows of one answer
KEYS_MAX = 1_000  # shown of one account, and brought to Redis while an operator waits; the sweep brings the rest
PRICE_FACTOR_MAX = 1_000 * FACTOR_ONE  # as in the catalog; more is a slip of the decimal point


class Deliveries(KeyDeliveries, Protocol):
    """The part of ``holds.port.Delivery`` that accounts and keys need."""

    def epoch_of(self, payer_id: str) -> str:
        """The life of Redis that a delivery would reach now."""

    async def install_payer(self, payer_id: str, *, version: int, total_nanos: int, available_nanos: int, credit_nanos: int) -> bool:
        """A payer that Redis has never had."""

    async def set_frozen(self, payer_id: str, *, version: int, frozen: bool) -> bool:
        """False: the payer is missing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Scopes:
    """What a key may do. Empty or ``None`` = no restriction; ``expires_ms`` 0 = never."""

    models: Sequence[str] = ()
    networks: Sequence[str] = ()
    expires_ms: int = 0
    limits: Limits = NO_LIMITS
    budget_nanos: int | None = None
    budget_period: Period = Period.NONE
    sandbox: bool = False

    @classmethod
    def of(cls, key: Key) -> Scopes:
        """The scopes of a key, for one that replaces it."""
        return cls(
            models=sorted(key.models),
            networks=key.networks,
            expires_ms=key.expires_ms,
            limits=key.limits,
            budget_nanos=key.budget_nanos,
            budget_period=key.budget_period,
            sandbox=key.sandbox,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class NewKey:
    """A key and its secret, shown this once. ``is_delivered`` False: it works as soon as the sweep has brought it to Redis."""

    id: str
    secret: str
    is_delivered: bool

    def __repr__(self) -> str:
        return f"NewKey(id={self.id!r}, secret='sk-…{hint_of(self.secret)}', is_delivered={self.is_delivered})"


class Registry:
    """``new_id`` makes a UUIDv7. Mistakes of the operator are :class:`UsageError`."""

    def __init__(self, store: KeyStore, delivery: Deliveries, *, new_id: Callable[[], str]) -> None:
        self._store = store
        self._database = store.database
        self._delivery = delivery
        self._new_id = new_id
        self._queries = load_queries("extproc.accounts")

    # --- accounts

    async def create_account(self, *, name: str, email: str = "", tier: str, actor: str) -> Account:
        """A new account with nothing on it. Its tier is not looked up: the catalog is another's."""
        account_id = self._new_id()
        _require(1 <= len(name) <= 200, "an account needs a name of 1 to 200 characters")
        _require(len(email) <= 320, "an e-mail address has at most 320 characters")
        _require(1 <= len(tier) <= 100, "an account needs a tier")
        async with self._database.transaction() as transaction:
            if email and await self._named(transaction, email):
                raise UsageError(f"there is an account with the address {email} already")
            await transaction.run(
                [
                    (self._queries["insert_user"], {"id": account_id, "email": email, "name": name, "tier": tier}),
                    (self._queries["insert_balance"], {"id": account_id}),
                    self._audit(actor=actor, action="create_account", subject=account_id, reason=""),
                ]
            )
        await self._install(account_id)
        return await self.account(account_id)

    async def account(self, account_id: str) -> Account:
        rows = await self._database.fetch(self._queries["account_of_id"], {"id": account_id})
        if not rows:
            raise UsageError(f"there is no account {account_id}")
        return _account(rows[0])

    async def account_named(self, name: str) -> Account:
        """By e-mail address or name, if only one has it."""
        async with self._database.transaction() as transaction:
            found = await self._named(transaction, name)
        if len(found) != 1:
            raise UsageError(f"{name!r} names more than one account; use its id" if found else f"there is no account {name!r}")
        return _account(found[0])

    async def accounts(self, *, limit: int = 100, after: str | None = None) -> list[Account]:
        """Oldest first, after the id given."""
        rows = await self._database.fetch(self._queries["list_accounts"], {"limit": min(limit, PAGE_MAX), "after": after})
        return [_account(row) for row in rows]

    async def freeze(self, account_id: str, *, frozen: bool, actor: str, reason: str) -> bool:
        """Refuse an account's new requests, or accept them again; running ones finish. True: Redis has it."""
        _require(bool(reason), "freezing and thawing need a reason")
        async with self._database.transaction() as transaction:
            rows = await transaction.fetch(self._queries["freeze_user"], {"id": account_id, "frozen": frozen})
            if rows:
                action = "freeze" if frozen else "thaw"
                query, params = self._audit(actor=actor, action=action, subject=account_id, reason=reason)
                await transaction.fetch(query, params)
        if not rows:
            await self.account(account_id)
            return bool(await self._database.fetch(self._queries["freeze_is_delivered"], {"id": account_id, "frozen": frozen}))
        delivery = FreezeDelivery(payer_id=account_id, frozen=frozen, version=rows[0]["version"])
        try:
            return await self.deliver_freeze(delivery)
        except StoreError:
            return False

    async def change_terms(self, account_id: str, change: Change, *, actor: str, reason: str) -> bool:
        """Another tier or price factor, for requests that begin from its moment on (0: from now on). The tier is not looked up: the catalog
        is another's. A worker that knows one of the account's keys goes on with what it knows until it forgets it
        (``identity.cache_ttl_s``): what is to change later than that is exact. True: Redis has it.
        """
        _require(bool(reason.strip()), "other terms of an account need a reason")
        _require(change.tier is None or 1 <= len(change.tier) <= 100, "a tier has a name of 1 to 100 characters")
        _require(0 <= (change.price_factor or 0) <= PRICE_FACTOR_MAX, f"a factor is at most {PRICE_FACTOR_MAX // FACTOR_ONE}")
        async with self._database.transaction() as transaction:
            rows = await transaction.fetch(self._queries["account_to_change"], {"id": account_id})
            if not rows:
                raise UsageError(f"there is no account {account_id}")
            before = _account(rows[0])
            after = with_change(before, change, now_ms=self._store.unix_ms())
            _require(len(after.changes) <= CHANGES_MAX, f"{CHANGES_MAX} changes of this account wait already")
            terms = {"tier": after.tier, "price_factor": after.price_factor, "changes": json.dumps(plain(after.changes))}
            await transaction.fetch(self._queries["set_terms"], {"id": account_id, **terms})
            keys = await transaction.fetch(self._queries["renew_keys"], {"user_id": account_id})
            action = "set_tier" if change.price_factor is None else "set_price_factor"
            why = _told(before, change, now_ms=self._store.unix_ms())
            query, params = self._audit(actor=actor, action=action, subject=account_id, reason=f"{why}: {reason}")
            await transaction.fetch(query, params)
        delivered = [await self._try_to_deliver(key["id"]) for key in keys[:KEYS_MAX]]
        return all(delivered) and len(keys) <= KEYS_MAX

    # --- keys

    async def create_key(self, account_id: str, *, name: str, scopes: Scopes, actor: str) -> NewKey:
        """The secret is in the answer and nowhere else."""
        await self.account(account_id)
        secret, key_id = new_key(), self._new_id()
        row = _key_row(key_id, account_id, secret, name, scopes)
        async with self._database.transaction() as transaction:
            await transaction.run(
                [
                    (self._queries["insert_key"], row),
                    self._audit(actor=actor, action="create_key", subject=key_id, reason=""),
                ]
            )
        return NewKey(id=key_id, secret=secret, is_delivered=await self._try_to_deliver(key_id))

    async def keys(self, account_id: str) -> list[Row]:
        """The keys of an account for its list: columns of ``credentials`` without the hash."""
        await self.account(account_id)
        return await self._database.fetch(self._queries["list_keys"], {"user_id": account_id, "limit": KEYS_MAX})

    async def revoke(self, key_id: str, *, actor: str, reason: str = "") -> bool:
        """From the next request on, nobody gets in with it. True: Redis has it; False: the sweep will bring it."""
        await self._key(key_id)
        async with self._database.transaction() as transaction:
            if await transaction.fetch(self._queries["revoke_key"], {"id": key_id}):
                query, params = self._audit(actor=actor, action="revoke_key", subject=key_id, reason=reason)
                await transaction.fetch(query, params)
        return await self._try_to_deliver(key_id)

    async def rotate(self, key_id: str, *, actor: str) -> NewKey:
        """A new key with the same scopes, which goes on with the same budget; the old one is revoked in the same transaction."""
        delivery = await self._key(key_id)
        old = delivery.key
        _require(not old.revoked, f"key {key_id} is revoked: create a new one")
        secret, new_id = new_key(), self._new_id()
        row = _key_row(new_id, old.payer_id, secret, old.name, Scopes.of(old), budget_id=delivery.budget_id)
        async with self._database.transaction() as transaction:
            if not await transaction.fetch(self._queries["revoke_key"], {"id": key_id}):
                raise UsageError(f"key {key_id} was revoked meanwhile")
            await transaction.run(
                [
                    (self._queries["insert_key"], row),
                    self._audit(actor=actor, action="rotate_key", subject=key_id, reason=f"replaced by {new_id}"),
                ]
            )
        await self._try_to_deliver(key_id)
        return NewKey(id=new_id, secret=secret, is_delivered=await self._try_to_deliver(new_id))

    # --- what the sweep calls

    async def undelivered_keys(self, *, after: str | None, limit: int) -> list[KeyDelivery]:
        """Keys whose version Redis has not confirmed, by key id, after the one given."""
        rows = await self._database.fetch(self._queries["undelivered_keys"], {"after": after, "limit": min(limit, PAGE_MAX)})
        return [delivery_of_row(row) for row in rows]

    async def deliver_key(self, delivery: KeyDelivery) -> None:
        """Bring it to Redis and remember that it is there."""
        epoch = self._delivery.epoch_of(delivery.key.payer_id)
        await self._store.deliver(delivery)
        confirmed = {"id": delivery.key.id, "version": delivery.version, "epoch": epoch}
        await self._database.fetch(self._queries["confirm_key"], confirmed)

    async def undelivered_freezes(self, *, after: str | None, limit: int) -> list[FreezeDelivery]:
        """The same for freezes, by payer id."""
        rows = await self._database.fetch(self._queries["undelivered_freezes"], {"after": after, "limit": min(limit, PAGE_MAX)})
        return [FreezeDelivery(**row) for row in rows]

    async def deliver_freeze(self, delivery: FreezeDelivery) -> bool:
        """False: Redis lacks the payer."""
        epoch = self._delivery.epoch_of(delivery.payer_id)
        there = await self._delivery.set_frozen(delivery.payer_id, version=delivery.version, frozen=delivery.frozen)
        if there:
            confirmed = {"id": delivery.payer_id, "version": delivery.version, "epoch": epoch}
            await self._database.fetch(self._queries["confirm_freeze"], confirmed)
        return there

    # --- within

    async def _install(self, account_id: str) -> None:
        epoch = self._delivery.epoch_of(account_id)
        try:
            await self._delivery.install_payer(account_id, version=0, total_nanos=0, available_nanos=0, credit_nanos=0)
            await self._database.fetch(self._queries["confirm_install"], {"id": account_id, "epoch": epoch})
        except StoreError:
            return  # redis_version stays NULL: the sweep installs it

    async def _try_to_deliver(self, key_id: str) -> bool:
        try:
            await self.deliver_key(await self._key(key_id))
        except StoreError:
            return False  # redis_version stays behind: the sweep delivers it
        return True

    async def _key(self, key_id: str) -> KeyDelivery:
        rows = await self._database.fetch(self._queries["key_of_id"], {"id": key_id})
        if not rows:
            raise UsageError(f"there is no key {key_id}")
        return delivery_of_row(rows[0])

    async def _named(self, transaction: Transaction, name: str) -> list[Row]:
        return await transaction.fetch(self._queries["accounts_named"], {"name": name})

    def _audit(self, *, actor: str, action: str, subject: str, reason: str) -> tuple[Query, Params]:
        params = {"id": self._new_id(), "actor": actor, "action": action, "subject": subject, "reason": reason}
        return self._queries["insert_audit"], params


def _account(row: Row) -> Account:
    return Account(**{**row, "changes": changes_of(row["changes"])})


def _told(before: Account, change: Change, *, now_ms: int) -> str:
    """For the audit: what it was at that moment, and what it becomes."""
    was = as_of(before, max(change.at_ms, now_ms))
    if change.price_factor is None:
        what = f"{was.tier} → {change.tier}"
    else:
        what = " → ".join(format_scaled(factor, decimals=FACTOR_DECIMALS) for factor in (was.price_factor, change.price_factor))
    at = datetime.fromtimestamp(change.at_ms // 1_000, UTC)
    return f"{what} from {at:%Y-%m-%dT%H:%M:%SZ} on" if change.at_ms > now_ms else what


def _key_row(key_id: str, account_id: str, secret: str, name: str, scopes: Scopes, *, budget_id: str | None = None) -> dict[str, object]:
    try:
        parse_networks(tuple(scopes.networks))
    except ValueError as error:
        raise UsageError(f"networks: {error}") from error
    _require(len(name) <= 200, "a key's name has at most 200 characters")
    _require(scopes.budget_nanos is None or scopes.budget_nanos >= 0, "a budget is not negative")
    limits = scopes.limits
    return {
        "id": key_id,
        "user_id": account_id,
        "hash": hash_of(secret),
        "hint": hint_of(secret),
        "name": name,
        "models": list(scopes.models),
        "networks": list(scopes.networks),
        "expires_ms": scopes.expires_ms,
        "sandbox": scopes.sandbox,
        "budget_nanos": scopes.budget_nanos,
        "budget_period": scopes.budget_period.value,
        "requests_per_minute": limits.requests_per_minute,
        "requests_per_hour": limits.requests_per_hour,
        "tokens_per_minute": limits.tokens_per_minute,
        "concurrent_requests": limits.concurrent_requests,
        "budget_id": budget_id,
    }


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise UsageError(message)
