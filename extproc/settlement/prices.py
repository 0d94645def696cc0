"""Prices in full by their ids, remembered: what the second witness recomputes charges with."""

from __future__ import annotations

import contextlib
from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping

from extproc.errors import StoreError
from extproc.money.price import Price
from extproc.settlement.witnessed import Named

PRICES_MAX = 1_000
"""Models × priorities × tiers; a price takes 1 KB."""

Read = Callable[[Collection[str]], Awaitable[Mapping[str, str]]]
"""Price ids → texts of those that the ledger has."""


class Prices:
    """Out of rows that carry them, or of the ledger."""

    def __init__(self, read: Read) -> None:
        self._read = read
        self._known: dict[str, Price] = {}

    async def of(self, named: Iterable[Named]) -> Mapping[str, Price]:
        """All that are known. Those that are not to be had now, because the ledger is away, are asked for again the next time."""
        asked = {one for one in named if one.price_id}
        for one in asked:
            self._learn(*one)
        missing = {one.price_id for one in asked} - self._known.keys()
        if missing:
            with contextlib.suppress(StoreError):
                for price_id, text in (await self._read(missing)).items():
                    self._learn(price_id, text)
        return {one.price_id: self._known[one.price_id] for one in asked if one.price_id in self._known}

    def _learn(self, price_id: str, text: str) -> None:
        """A text that is not this price is none."""
        if not text or price_id in self._known:
            return
        try:
            price = Price.parse(text)
        except (ValueError, KeyError, TypeError, AssertionError):
            return
        if price.price_id != price_id:
            return
        if len(self._known) >= PRICES_MAX:
            self._known.clear()
        self._known[price_id] = price
