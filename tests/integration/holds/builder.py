"""A rebuild by hand, of one shard: the truth is what the bank has credited and the test says was charged."""

from __future__ import annotations

import time
from collections import Counter, defaultdict
from collections.abc import Mapping
from typing import Self

from integration.holds.bank import Bank, row

from extproc.holds.port import NO_TOKENS, KeyState, OpenHold, PayerState, Reassertion, Tokens
from extproc.money.posting import Posting
from extproc.money.usage import NO_QUOTA, Quota
from extproc.stores.shards import TAGS, shard_of

FIELDS = {"revoked": "0", "expires_ms": "0", "budget_nanos": "", "budget_period": "none"}


def unix_ms() -> int:
    return time.time_ns() // 1_000_000


class Builder:
    """Of the shard of ``payer``, whose one key is "k1". ``opened`` is the shard's epoch, ``next`` the one that is being built."""

    def __init__(self, bank: Bank, shard: int, opened: str, payer: str) -> None:
        self.bank, self.shard, self.payer = bank, shard, payer
        self.opened = self.next = opened

    @classmethod
    async def of(cls, bank: Bank, payer: str = "anna") -> Self:
        shard = shard_of(payer)
        return cls(bank, shard, (await bank.holds.states())[shard].epoch, payer)

    async def lose(self) -> None:
        """Everything of the shard, as FLUSHALL does."""
        pipeline = self.bank.holds._pipeline
        for name in await pipeline.execute("KEYS", f"{TAGS[self.shard]}:*"):
            await pipeline.execute("DEL", name.decode())

    async def begin(self, *, cursor: str = "0-0") -> str:
        run_id, _, number = self.next.rpartition(".")
        self.next = f"{run_id}.{int(number) + 1}"
        for _ in range(2):
            await self.bank.holds.begin(self.shard, epoch=self.next, cursor=cursor)
        return self.next

    async def finish(
        self,
        epoch: str,
        *,
        charged: int = 0,
        version: int = 1,
        credit: int = 0,
        spent: int = 0,
        fields: Mapping[str, str] | None = None,
        frozen: bool = False,
        free_used: Tokens = NO_TOKENS,
    ) -> None:
        """Count, restore and open, each of them twice."""
        holds = self.bank.holds
        for _ in range(2):
            counted = await holds.count(self.shard, epoch=epoch)
        for _ in range(2):
            await self.restore(
                epoch,
                counted,
                charged=charged,
                version=version,
                credit=credit,
                spent=spent,
                fields=fields or {},
                frozen=frozen,
                free_used=free_used,
            )
        for _ in range(2):
            await holds.open(self.shard, epoch=epoch)
        self.opened = epoch
        await holds.states()

    async def restore(
        self,
        epoch: str,
        counted: list[OpenHold],
        *,
        charged: int = 0,
        version: int = 1,
        credit: int = 0,
        spent: int = 0,
        fields: Mapping[str, str] | None = None,
        frozen: bool = False,
        free_used: Tokens = NO_TOKENS,
    ) -> None:
        tokens = self.bank.tokens.get(self.payer, NO_TOKENS)
        held_tokens = Tokens(sum(hold.quota.input_tokens for hold in counted), sum(hold.quota.output_tokens for hold in counted))
        total = self.bank.credited[self.payer]
        held = sum(hold.reserved_nanos for hold in counted)
        budgets: dict[str, Counter[str]] = defaultdict(Counter)
        for hold in counted:
            if hold.period:
                budgets[hold.budget_id][hold.period] += hold.reserved_nanos
        line = (fields or {}).get("budget_id", "k1")
        now = time.gmtime(unix_ms() / 1_000)
        span = {"day": time.strftime("%Y-%m-%d", now), "month": time.strftime("%Y-%m", now)}.get(
            (fields or {}).get("budget_period", ""), "all"
        )
        payer = PayerState(
            payer_id=self.payer,
            version=version,
            total_nanos=total,
            credit_nanos=credit,
            spendable_nanos=total - charged + credit - held,
            held_nanos=held,
            entry_held_nanos=sum(hold.entry_nanos for hold in counted),
            open_holds=len(counted),
            frozen=frozen,
            frozen_version=1,
            free=Tokens(tokens.input - free_used.input - held_tokens.input, tokens.output - free_used.output - held_tokens.output),
            held=held_tokens,
            total=tokens,
        )
        key = KeyState(
            payer_id=self.payer,
            key_id="k1",
            version=10,
            fields={**FIELDS, **(fields or {})},
            open_holds=len(counted),
            budget_id=line,
            spent_nanos={span: spent} if spent else {},
            held_nanos=budgets[line],
        )
        await self.bank.holds.restore(self.shard, epoch=epoch, payers=[payer], keys=[key])


def reassertion(
    hold: str,
    reserved: int = 0,
    *,
    cap: int | None = None,
    entry: int | None = None,
    charge: int = 0,
    owner: str = "",
    key: str = "k1",
    payer: str = "anna",
    quota: Quota = NO_QUOTA,
    used: Quota = NO_QUOTA,
) -> Reassertion:
    """Exact, unless there is an entry."""
    return Reassertion(
        hold_id=hold,
        owner=owner or hold,
        payer_id=payer,
        key_id=key,
        is_exact=entry is None,
        entry_nanos=entry or 0,
        reserved_nanos=reserved,
        cap_nanos=reserved if cap is None else cap,
        charge_nanos=charge,
        tokens=1,
        row=row(hold, "reassert"),
        created_ms=unix_ms(),
        quota=quota,
        used=used,
    )


def posting(
    hold: str, kind: str, charge: int, reserved: int, *, payer: str = "anna", key: str = "k1", used: tuple[int, int] = (0, 0)
) -> Posting:
    """As an outbox has it."""
    return Posting(shard_of(payer), "", kind, hold, payer, key, charge, reserved, "", 0, unix_ms(), row(hold, kind), *used)
