"""Prices that the ledger has in full, as far as this worker knows, so that they need not travel with every row.

A shard's stream is ordered, so whatever this worker adds later is posted later. A new connection may be one to a server that has lost
what it was told: then everything is told again.
"""

from __future__ import annotations

from collections.abc import Callable

from extproc.edge.closing import Done
from extproc.money.hold import EndResult

PRICES_MAX = 65_536  # prices × shards of many reloads; above it prices are sent along again


class Announced:
    """(shard, price id) of acknowledged endings that carried their price."""

    def __init__(self, shard_of: Callable[[str], int], *, connects: Callable[[], int]) -> None:
        """``connects``: how often the store was connected to."""
        self._shard_of = shard_of
        self._connects = connects
        self._connected = connects()
        self._known: set[tuple[int, str]] = set()

    def known(self, payer_id: str, price_id: str) -> bool:
        """The price need not travel with a row of this payer."""
        if self._connected != self._connects():
            self._connected = self._connects()
            self._known.clear()
        return (self._shard_of(payer_id), price_id) in self._known

    def ended(self, payer_id: str, price_id: str, ending: Done) -> None:
        """An ending with the price in full was acknowledged; only one that wrote its event has brought the price along."""
        if ending.result() is EndResult.ENDED and len(self._known) < PRICES_MAX:
            self._known.add((self._shard_of(payer_id), price_id))
