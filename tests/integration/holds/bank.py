"""What tests of holds are written in: short words for the calls, with values that matter left to be given."""

from __future__ import annotations

import itertools
import json
from typing import Any

from extproc.holds.port import Tokens
from extproc.holds.redis import RedisHolds
from extproc.money.hold import (
    NO_LIMITS,
    Admission,
    Amendment,
    Checkpoint,
    Denied,
    Ending,
    EndKind,
    EndResult,
    Granted,
    Limits,
    Verdict,
    uuid7,
)
from extproc.money.statement import Purse
from extproc.money.usage import NO_QUOTA, Quota


class Bank:
    """One payer "anna" with the key "k1", unless told otherwise. Remembers what it credited."""

    def __init__(self, holds: RedisHolds) -> None:
        self.holds = holds
        self.credited: dict[str, int] = {}
        self.tokens: dict[str, Tokens] = {}
        self.trimmed = False
        self._ids = itertools.count(1)
        self._versions = itertools.count(1)

    def id(self) -> str:
        return uuid7(unix_ms=1_760_000_000_000, random_bits=next(self._ids))

    async def payer(self, nanos: int = 1_000, *, payer: str = "anna", key: str = "k1", credit: int = 0, **fields: str) -> None:
        assert await self.holds.install_payer(payer, version=1, total_nanos=nanos, available_nanos=nanos, credit_nanos=credit)
        self.credited[payer] = nanos
        await self.key(payer=payer, key=key, **fields)

    async def key(self, *, payer: str = "anna", key: str = "k1", version: int | None = None, **fields: str) -> None:
        given = {"revoked": "0", "expires_ms": "0", "budget_nanos": "", "budget_period": "none"} | fields
        await self.holds.put_key(payer, key, version=next(self._versions) if version is None else version, fields=given)

    async def admit(
        self,
        hold: str,
        *,
        entry: int = 10,
        payer: str = "anna",
        key: str = "k1",
        request: str = "",
        account: Limits = NO_LIMITS,
        limits: Limits = NO_LIMITS,
        shadow: bool = False,
    ) -> Verdict:
        return await self.holds.admit(
            Admission(
                hold_id=hold,
                payer_id=payer,
                key_id=key,
                request_id=request,
                entry_nanos=entry,
                account_limits=account,
                key_limits=limits,
                row=row(hold, "admit"),
                is_shadow=shadow,
            )
        )

    async def amend(
        self,
        hold: str,
        reserved: int,
        *,
        owner: str = "",
        cap: int | None = None,
        tokens: int = 0,
        payer: str = "anna",
        key: str = "k1",
        account: Limits = NO_LIMITS,
        limits: Limits = NO_LIMITS,
        sandbox: int | None = None,
        would_hold: int | None = None,
        goes_on: bool = False,
        quota: Quota = NO_QUOTA,
        beside: int = 0,
    ) -> Verdict:
        return await self.holds.amend(
            Amendment(
                hold_id=hold,
                owner=owner or hold,
                payer_id=payer,
                key_id=key,
                reserved_nanos=reserved,
                cap_nanos=reserved if cap is None else cap,
                tokens=tokens,
                account_limits=account,
                key_limits=limits,
                row=row(hold, "amend"),
                sandbox_tokens_per_day=sandbox,
                would_hold_nanos=would_hold,
                goes_on=goes_on or would_hold is not None,
                quota=quota,
                reserved_beside_nanos=beside,
            )
        )

    async def open(self, reserved: int, **options: Any) -> str:
        """An exact hold, granted."""
        hold = self.id()
        granted(await self.admit(hold, entry=options.pop("entry", 0)))
        granted(await self.amend(hold, reserved, **options))
        return hold

    async def beat(
        self, hold: str, charge: int, *, owner: str = "", payer: str = "anna", data: bytes | None = None, used: Quota = NO_QUOTA
    ) -> None:
        given = row(hold, f"beat {charge}") if data is None else data
        checkpoint = Checkpoint(hold_id=hold, owner=owner or hold, payer_id=payer, charge_nanos=charge, row=given, quota=used)
        await self.holds.beat([checkpoint])

    async def settle(
        self, hold: str, charge: int, *, owner: str = "", payer: str = "anna", key: str = "k1", tokens: int = 0, used: Quota = NO_QUOTA
    ) -> EndResult:
        return await self._end(hold, EndKind.SETTLE, charge, owner=owner, payer=payer, key=key, tokens=tokens, used=used)

    async def void(self, hold: str, *, owner: str = "", payer: str = "anna", key: str = "k1") -> EndResult:
        return await self._end(hold, EndKind.VOID, 0, owner=owner, payer=payer, key=key, tokens=0)

    async def _end(
        self, hold: str, kind: EndKind, charge: int, *, owner: str, payer: str, key: str, tokens: int, used: Quota = NO_QUOTA
    ) -> EndResult:
        return await self.holds.end(
            Ending(
                hold_id=hold,
                owner=owner or hold,
                payer_id=payer,
                key_id=key,
                kind=kind,
                charge_nanos=charge,
                tokens=tokens,
                row=row(hold, kind.value),
                quota=used,
            )
        )

    async def give(self, tokens: Tokens, *, version: int = 2, payer: str = "anna", credit: int = 0) -> None:
        """Free tokens, beside the money that was credited."""
        nanos = self.credited[payer]
        assert await self.holds.credit(payer, version=version, total_nanos=nanos, credit_nanos=credit, total=tokens)
        self.tokens[payer] = tokens

    async def quota(self, payer: str = "anna") -> tuple[tuple[int, int], tuple[int, int]]:
        """Free tokens of input and output: there, and held."""
        view = await self.holds.view(payer)
        assert view is not None
        return view.quota.both, view.held_quota.both

    async def budget_used(self, payer: str = "anna", key: str = "k1") -> int | None:
        purse = await self.holds.purse(payer, key)
        assert isinstance(purse, Purse), purse
        return purse.budget_used_nanos

    async def balance(self, payer: str = "anna") -> tuple[int, int, int, int]:
        """available, held, entry_held, open holds."""
        view = await self.holds.view(payer)
        assert view is not None
        return view.available_nanos, view.held_nanos, view.entry_held_nanos, view.open_holds


def row(hold: str, word: str) -> bytes:
    return json.dumps({"id": hold, "last": word}).encode()


def granted(verdict: Verdict) -> Granted:
    assert isinstance(verdict, Granted), verdict
    return verdict


def denied(verdict: Verdict) -> Denied:
    assert isinstance(verdict, Denied), verdict
    return verdict
