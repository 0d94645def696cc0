"""Who was served pays for it, though Redis has lost his hold and the worker that knew of it is killed: Envoy's line knows it still.

What a line says of a request with a figure is kept in the ledger's database, until there is an ending of its hold: nearly always within
seconds. If there is none when every other way has had its time (its owner, his outbox, the reaper, the stream), the line is booked as an
expire past Redis, like an ending out of an outbox. What the owner still says later becomes an adjust.

Only what can be worked out again is booked: a figure that the price of the ledger does not give charges nobody.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, Final, Protocol

from extproc.errors import StoreError
from extproc.holds.port import EventStream, Sighted
from extproc.ledger.port import EventType, Postings
from extproc.money.hold import EndReason
from extproc.money.posting import Posting
from extproc.money.price import Price
from extproc.settlement.booking import Booking
from extproc.settlement.meter import Meter, Series
from extproc.settlement.pace import Pace, keep_doing
from extproc.settlement.prices import Prices
from extproc.settlement.replay import RIPE_S
from extproc.settlement.witness_lines import Figures, Statement
from extproc.settlement.witnessed import Named, cost_of, witnessed_by

log = logging.getLogger(__name__)

LOOK_EVERY_S: Final = 2.0
PAGES_MAX: Final = 100  # of one look: all that may be kept
OTHERS_S: Final = 600  # of another host: its settler sees the outboxes there, and is given so long to come back
FIRST: Final = "00000000-0000-0000-0000-000000000000"

Row = Mapping[str, Any]


class Kept(Protocol):
    """What of all this is in the ledger's database. A row is what :func:`to_keep` made, with ``seen_ms`` and ``is_ripe``."""

    async def endings(self, log: str, *, after: str, ripe_s: int, others_s: int) -> Sequence[Row]:
        """The next holds that still have no ending, by id; those that have one are forgotten. What another ``log`` said is ripe
        ``others_s`` later.
        """

    async def forget(self, hold_ids: Collection[str]) -> None:
        """They are booked, or never will be."""

    async def prices(self, price_ids: Collection[str]) -> Mapping[str, str]:
        """Price id → price in full, of those that the ledger has."""


def to_keep(statement: Statement) -> Row | None:
    """The row of a request that is to be charged if nobody else ends it."""
    terms, figures = statement.terms, statement.figures
    if terms is None or figures is None or not (figures.charge_nanos or any(figures.free)) or not statement.payer_id:
        return None
    return {"hold_id": statement.hold_id, "payer_id": statement.payer_id, **terms._asdict(), "figures": list(figures)}


def posting_of(row: Row, price: Price, shard: int) -> Posting | None:
    """An expire past Redis, with a row that says the same; ``None``: the figure is not what this price gives."""
    figures, hold_id, cap = Figures(*json.loads(row["figures"])), row["hold_id"], row["cap_nanos"]
    if figures.cached_tokens > figures.input_tokens or figures.reasoning_tokens > figures.output_tokens:
        return None
    cost = cost_of(figures, figures.output_tokens, price)
    if figures.list_nanos != cost or figures.charge_nanos != min(cost, cap):
        return None
    begun = {
        "id": hold_id,
        "request_id": row["request_id"],
        "user_id": row["payer_id"],
        "creds_id": row["key_id"],
        "model": price.model,
        "priority": price.priority,
        "tier": price.tier,
        "stream": figures.event_bytes > 0,
        "end_reason": EndReason.SIDECAR_LOST.value,
        "hold_nanos": cap,
        "price_id": price.price_id,
        "status": row["status"],
        "created_ms": int(hold_id.replace("-", "")[:12], 16),  # a UUIDv7 begins with its time
    }
    lost = Sighted(hold_id=hold_id, payer_id=row["payer_id"], checkpoint_nanos=0, cap_nanos=cap, row=json.dumps(begun).encode())
    witnessed = witnessed_by(figures, lost, price)
    return Posting(
        shard=shard,
        stream_id="",
        kind=EventType.EXPIRE,
        hold_id=hold_id,
        payer_id=row["payer_id"],
        key_id=row["key_id"],
        charge_nanos=witnessed.checkpoint_nanos,
        reserved_nanos=cap,
        epoch="",
        seq=0,
        occurred_ms=row["seen_ms"],
        row=witnessed.row,
        free_input=witnessed.used.input_tokens,
        free_output=witnessed.used.output_tokens,
    )


class WitnessEndings:
    """``step`` is one look at all that is kept. ``name``: of this host's log. ``lease_s``: when a hold that nobody cares for has ended in
    Redis, with the reaper's grace. ``unconfirmed_ms`` blocks: when the oldest ending occurred that an outbox of this host has yet to bring,
    ``None`` = none has.

    It needs no leadership: two settlers book the same, and the ledger books it once.
    """

    def __init__(
        self,
        *,
        name: str,
        kept: Kept,
        postings: Postings,
        stream: EventStream,
        meter: Meter,
        pace: Pace,
        shard_of: Callable[[str], int],
        unconfirmed_ms: Callable[[], int | None],
        lease_s: int,
    ) -> None:
        self._name = name
        self._kept = kept
        self._postings = postings
        self._booking = Booking(postings, meter)
        self._prices = Prices(kept.prices)
        self._stream = stream
        self._meter = meter
        self._pace = pace
        self._shard_of = shard_of
        self._unconfirmed_ms = unconfirmed_ms
        self._ripe_s = int(RIPE_S) + lease_s

    async def run(self) -> None:
        """Until the pace is over."""
        await keep_doing(self.step, pace=self._pace, meter=self._meter, failures=Series.WITNESS_FAILURES)

    async def step(self) -> float:
        """:class:`StoreError`: a store is away; what is kept waits for it."""
        after = FIRST
        for _ in range(PAGES_MAX):
            rows = await self._kept.endings(self._name, after=after, ripe_s=self._ripe_s, others_s=OTHERS_S)
            if not rows or self._pace.is_over:
                break
            await self._book(await self._due([row for row in rows if row["is_ripe"]]))
            after = rows[-1]["hold_id"]
        return LOOK_EVERY_S

    async def _due(self, rows: Sequence[Row]) -> Sequence[Row]:
        """Those of which outboxes and streams have nothing more to say: the ending may be there, and the settler behind. What an owner says
        (that nothing is to be charged, or a token less than bytes let one think) does not undo what is booked.
        """
        behind_ms = await self._behind_ms()
        rows = [row for row in rows if behind_ms is None or behind_ms > row["seen_ms"]]
        if not rows:
            return ()
        cursors = await self._postings.cursors(sorted({self._shard_of(row["payer_id"]) for row in rows}))
        waiting = await self._stream.read({shard: cursor.stream_id for shard, cursor in cursors.items()}, count=1, block_ms=0)
        next_ms = {event.shard: event.occurred_ms for event in waiting}
        ripe_ms = self._ripe_s * 1_000  # what happened after that is not what is waited for
        due = []
        for row in rows:
            first_ms = next_ms.get(self._shard_of(row["payer_id"]))
            if first_ms is None or first_ms > row["seen_ms"] + ripe_ms:
                due.append(row)
        return due

    async def _behind_ms(self) -> int | None:
        """Up to when the outboxes are done, ``None`` = up to now. One that cannot be read is not waited for: it alarms, and may stay so."""
        with contextlib.suppress(StoreError):
            return await asyncio.to_thread(self._unconfirmed_ms)
        return None

    async def _book(self, rows: Sequence[Row]) -> None:
        """A price that the ledger does not have yet may come with another request: it is waited for."""
        if not rows:
            return
        prices = await self._prices.of([Named(row["price_id"], "") for row in rows])
        priced = [row for row in rows if row["price_id"] in prices]
        found = [posting_of(row, prices[row["price_id"]], self._shard_of(row["payer_id"])) for row in priced]
        postings = [posting for posting in found if posting is not None]
        if len(postings) < len(rows):
            log.warning("%d requests have no ending and no known price, %d another", len(rows) - len(priced), len(priced) - len(postings))
        if postings:
            posted = await self._booking.book(postings)
            self._meter.add(Series.WITNESSED_ENDINGS, posted.booked)
        if priced:
            await self._kept.forget([row["hold_id"] for row in priced])
