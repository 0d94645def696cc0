"""A hold ended by hand. It is an expiry at nothing, so everything that is true of an expiry is true of it:

all of it goes back at once, one ending is booked, and a request that runs on after all is charged when it settles: by one ``adjust`` from
nothing, of what the balance then has. Who does not want to charge even that, refunds it. The audit has the actor and his reason before
it is done.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any, Final

from extproc.errors import UsageError
from extproc.holds.port import OpenHold, Releasing
from extproc.ledger.port import Audit
from extproc.money.hold import EndReason, EndResult
from extproc.money.usage import FREE_UNITS, QUANTITIES

NOTHING_USED: Final[dict[str, Any]] = {
    **dict.fromkeys((*QUANTITIES, *FREE_UNITS), 0),
    "usage_source": "none",
    "usage_flags": [],
    "cost_nanos": 0,
    "list_nanos": 0,
    "overage_nanos": 0,
    "end_reason": EndReason.RELEASED.value,
}


class Release:
    """``new_id`` makes UUIDv7s."""

    def __init__(self, holds: Releasing, audit: Audit, *, new_id: Callable[[], str]) -> None:
        self._holds = holds
        self._audit = audit
        self._new_id = new_id

    async def release(self, hold_id: str, *, actor: str, reason: str) -> OpenHold:
        """The hold as it was. ``UsageError``: it is not open (any more)."""
        if not reason.strip():
            raise UsageError("who releases a hold says why: give a reason")
        hold = next((hold for hold in await self._holds.open_holds() if hold.hold_id == hold_id), None)
        if hold is None:
            raise UsageError(f"there is no open hold {hold_id}")
        detail = {
            "account": hold.payer_id,
            "state": hold.state,
            "reserved_nanos": hold.reserved_nanos,
            "checkpoint_nanos": hold.checkpoint_nanos,
        }
        await self._audit.tell(self._new_id(), actor=actor, action="release_hold", subject=hold_id, reason=reason, detail=detail)
        if await self._holds.release(hold, row=released_row(await self._holds.row(hold), hold_id)) is not EndResult.ENDED:
            raise UsageError(f"hold {hold_id} ended by itself meanwhile")
        return hold


def released_row(row: bytes, hold_id: str) -> bytes:
    """The request's row with nothing used, so that its charge of nothing is explained. An unreadable one must not keep a hold open."""
    try:
        fields = json.loads(row)
    except ValueError:
        fields = None
    kept = fields if isinstance(fields, dict) else {"id": hold_id}
    return json.dumps(kept | NOTHING_USED).encode()
