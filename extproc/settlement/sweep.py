"""Brings to Redis what it has not confirmed: balances, keys, freezes. Every delivery is versioned, so one too many does no harm."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Protocol

from extproc.accounts.model import FreezeDelivery, KeyDelivery
from extproc.holds.port import Delivery
from extproc.ledger.port import Grants
from extproc.settlement.deposit import deliver
from extproc.settlement.meter import Meter, Series
from extproc.settlement.pace import Pace, keep_doing

PAGE_ROWS = 200  # read at once; pages follow until one is short
SWEEP_EVERY_S = 2.0
HOUSEKEEP_EVERY_S = 6 * 3600.0  # partitions are made months ahead: a few times a day is plenty


class KeyRegistry(Protocol):
    """What the sweep needs of ``accounts.registry``."""

    async def undelivered_keys(self, *, after: str | None, limit: int) -> list[KeyDelivery]:
        """By key id."""

    async def deliver_key(self, delivery: KeyDelivery) -> None:
        """Bring and confirm."""

    async def undelivered_freezes(self, *, after: str | None, limit: int) -> list[FreezeDelivery]:
        """By payer id."""

    async def deliver_freeze(self, delivery: FreezeDelivery) -> bool:
        """Bring and confirm. False: Redis lacks the payer."""


class Sweep:
    """``housekeep`` is the ledger's: partitions for the months to come. ``missed`` is told of payers that Redis has lost."""

    def __init__(
        self,
        *,
        ledger: Grants,
        registry: KeyRegistry,
        delivery: Delivery,
        housekeep: Callable[[], Awaitable[object]],
        missed: Callable[[str], Awaitable[object]],
        meter: Meter,
        pace: Pace,
        sweep_every_s: float = SWEEP_EVERY_S,
    ) -> None:
        self._ledger = ledger
        self._registry = registry
        self._delivery = delivery
        self._housekeep = housekeep
        self._missed = missed
        self._meter = meter
        self._pace = pace
        self._sweep_every_s = sweep_every_s
        self._housekept_s: float | None = None

    async def run(self) -> None:
        """Until the pace is over."""
        await keep_doing(self.step, pace=self._pace, meter=self._meter, failures=Series.SWEEP_FAILURES)

    async def step(self) -> float:
        """One round. A store that fails ends it: what is left stays unconfirmed and is met again."""
        await self._balances()
        await self._freezes()
        await self._keys()
        now_s = self._pace.monotonic_s()
        if self._housekept_s is None or now_s - self._housekept_s >= HOUSEKEEP_EVERY_S:
            await self._housekeep()
            self._housekept_s = now_s
        return self._sweep_every_s

    async def _balances(self) -> None:
        after: str | None = None
        while page := await self._ledger.undelivered(after=after, limit=PAGE_ROWS):
            for balance in page:
                if not await deliver(balance, ledger=self._ledger, delivery=self._delivery, meter=self._meter):
                    await self._missed(balance.payer_id)
            after = page[-1].payer_id

    async def _keys(self) -> None:
        after: str | None = None
        while page := await self._registry.undelivered_keys(after=after, limit=PAGE_ROWS):
            for delivery in page:
                await self._registry.deliver_key(delivery)
                self._meter.add(Series.DELIVERED_KEYS)
            after = page[-1].key.id

    async def _freezes(self) -> None:
        after: str | None = None
        while page := await self._registry.undelivered_freezes(after=after, limit=PAGE_ROWS):
            for delivery in page:
                if not await self._registry.deliver_freeze(delivery):
                    self._meter.add(Series.MISSING_PAYERS)
                    await self._missed(delivery.payer_id)
            after = page[-1].payer_id
