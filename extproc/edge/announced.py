"""Prices that the ledger gets in full, as far as this worker knows, so that they need not travel with every row.

A shard's stream is ordered, and so is an outbox, so whatever this worker adds later is posted later. A shard in another epoch may have
lost what it was told, and an outbox may have been replaced: then everything is told again.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable

from extproc.edge.closing import Done

PRICES_MAX = 65_536  # prices × shards of many reloads; above it prices are sent along again


class Announced:
    """(shard, price id) of endings that carried their price, and that both stream and outbox have."""

    def __init__(self, shard_of: Callable[[str], int], *, lives: Callable[[], Hashable]) -> None:
        """``lives``: which epochs and files these are; what was told in another life counts no more."""
        self._shard_of = shard_of
        self._lives = lives
        self._life = lives()
        self._known: set[tuple[int, str]] = set()

    def known(self, payer_id: str, price_id: str) -> bool:
        """The price need not travel with a row of this payer."""
        if self._life != (life := self._lives()):
            self._life = life
            self._known.clear()
        return (self._shard_of(payer_id), price_id) in self._known

    def ended(self, payer_id: str, price_id: str, ending: Done) -> None:
        """An ending with the price in full is over (``Closing.end``)."""
        if ending.result() and len(self._known) < PRICES_MAX:
            self._known.add((self._shard_of(payer_id), price_id))
