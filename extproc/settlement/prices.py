"""Prices in full by their ids, remembered: what the second witness recomputes charges with."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping

from extproc.errors import StoreError
from extproc.money.price import Price
from extproc.settlement.witnessed import Named

PRICES_MAX = 1_000
"""Models × priorities × tiers; a price takes 1 KB."""

WAIT_S = 1.0
"""For PostgreSQL: a hold is not kept waiting for a price any longer."""

Read = Callable[[Collection[str]], Awaitable[Mapping[str, str]]]
"""Price ids → texts of those that the ledger has."""


class Prices:
    """Out of rows that carry them, or of the ledger."""

    def __init__(self, read: Read) -> None:
        self._read = read
        self._known: dict[str, Price] = {}

    async def of(self, named: Iterable[Named]) -> Mapping[str, Price]:
        """All that are known. Those that are not to be had now, because the ledger is away, are asked for again the next time."""
        asked = {one.price_id: one.text for one in named if one.price_id}
        missing = [price_id for price_id, text in asked.items() if price_id not in self._known and not self._learn(price_id, text)]
        if missing:
            try:
                async with asyncio.timeout(WAIT_S):
                    texts = await self._read(missing)
            except (StoreError, TimeoutError):
                texts = {}
            for price_id, text in texts.items():
                self._learn(price_id, text)
        return {price_id: self._known[price_id] for price_id in asked if price_id in self._known}

    def _learn(self, price_id: str, text: str) -> bool:
        """A text that is not this price is none."""
        try:
            price = Price.parse(text)
        except (ValueError, KeyError, TypeError, AssertionError):
            return False
        if price.price_id != price_id:
            return False
        if len(self._known) >= PRICES_MAX:
            self._known.clear()
        self._known[price_id] = price
        return True
