"""What the ledger has of the outboxes, and how far each is known to be in it.

A position is moved by the transaction that has read the endings below it back. So it is as old as the ledger that says it: a copy from
before, put in its place, says an earlier one, and whoever remembers the later one knows that endings were lost.
"""

from __future__ import annotations

import json
from collections.abc import Sequence

from extproc.errors import StoreRefused
from extproc.ledger.plan import digest_of, fault_of
from extproc.ledger.port import EventType, OutboxRow, Positions, ReadBack
from extproc.ledger.rows import INT8_MAX, are_uuids
from extproc.money.posting import Posting
from extproc.stores.postgres import Database, Transaction, array_of
from extproc.stores.queries import load_queries


class PostgresOutboxes:
    """The port Outboxes."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._queries = load_queries("extproc.ledger")

    async def positions(self) -> Positions:
        rows = await self._database.fetch(self._queries["outbox_positions"])
        return Positions(ledger_id=rows[0]["ledger_id"], below={row["outbox_id"]: row["below"] for row in rows if row["outbox_id"]})

    async def read_back(self, outbox_id: str, rows: Sequence[OutboxRow], *, known: int, is_first: bool = False) -> ReadBack:
        async with self._database.transaction() as transaction:
            missing = await self._missing(transaction, rows, is_first=is_first)
            below = missing[0].id if missing else rows[-1].id + 1
            if below > known:
                params = {"outbox": outbox_id, "below": below, "known": known}
                if not await transaction.fetch(self._queries["move_outbox"], params):
                    raise StoreRefused(f"the ledger has become older: it does not know that it has outbox {outbox_id} below {known}")
        return ReadBack(below=below, missing=missing)

    async def forget(self, outbox_id: str) -> None:
        await self._database.fetch(self._queries["forget_outbox"], {"outbox": outbox_id})

    async def _missing(self, transaction: Transaction, rows: Sequence[OutboxRow], *, is_first: bool) -> Sequence[OutboxRow]:
        """Nearly all have ended as they say, which one look at their events tells; only of the others it is asked what became of them."""
        odd = [] if _are_plain(rows) else [row for row in rows if not _is_plain(row.posting)]
        sound = [row for row in rows if _is_plain(row.posting)] if odd else rows
        others: Sequence[OutboxRow] = odd
        if sound:
            params = {
                "ids": array_of(row.posting.hold_id for row in sound),
                "payers": array_of(row.posting.payer_id for row in sound),
                "charges": array_of(row.posting.charge_nanos for row in sound),
            }
            answer = await transaction.fetch(self._queries["unbooked_endings"], params)
            others = [*odd, *(sound[one["number"] - 1] for one in answer)]
        if others and not is_first:
            asked = [_asked(number, row.posting) for number, row in enumerate(others)]
            unknown = await transaction.fetch(self._queries["unknown_endings"], {"rows": json.dumps(asked)})
            others = [others[one["number"]] for one in unknown]
        return sorted(others, key=lambda row: row.id) if odd else others


def _is_plain(posting: Posting) -> bool:
    """The database can be asked for it, and its charge tells whether it is there: it has used no free tokens, as few have."""
    return not (fault_of(posting) or posting.free_input or posting.free_output)


def _are_plain(rows: Sequence[OutboxRow]) -> bool:
    """All of these: a few looks at all their values together."""
    charges = [row.posting.charge_nanos for row in rows]
    return (
        are_uuids([row.posting.hold_id for row in rows])
        and are_uuids([row.posting.payer_id for row in rows])
        and {*map(type, charges)} == {int}
        and min(charges) >= 0
        and max(charges) <= INT8_MAX
        and not any(row.posting.free_input or row.posting.free_output for row in rows)
    )


def _asked(number: int, posting: Posting) -> dict[str, object]:
    asked: dict[str, object] = {"number": number, "digest": digest_of(posting)}
    if fault_of(posting):
        return asked  # it can only have been set aside
    return {
        **asked,
        "id": posting.hold_id,
        "payer": posting.payer_id,
        "charge": posting.charge_nanos,
        "free_input": posting.free_input,
        "free_output": posting.free_output,
        "is_expire": posting.kind == EventType.EXPIRE,
    }
