"""Three who counted independently of each other: the client that read the answers, the simulators that made them, the ledger that billed."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from house import Guest, House, until
from multiplexed import Reading

POSTED_S = 60.0  # for the settler, after the last of many thousand requests


def assert_agreed(house: House, guests: Iterable[Guest], readings: Iterable[Reading]) -> int:
    """Every stream ended well, and each has the same number of tokens with all three. Returns the sum."""
    faults = [f"{reading.fault or 'no end'} after {reading.tokens} tokens" for reading in readings if not reading.good]
    assert not faults, f"{len(faults)} streams failed: {sorted(set(faults))[:10]}"
    read = {reading.request_id: reading.tokens for reading in readings}
    made = {seen["request_id"]: seen["generated_tokens"] for one in house.simulators.values() for seen in one.log()[0] if seen["stream"]}
    payers = [guest.id for guest in guests]

    def billed() -> dict[str, int]:
        sql = "SELECT request_id, output_tokens FROM requests WHERE user_id = ANY(%s) AND usage_source = 'upstream' AND cost > 0"
        return {row["request_id"]: row["output_tokens"] for row in house.rows(sql, payers)}

    until(lambda: len(billed()) >= len(read), "everything posted", POSTED_S)
    bill = billed()
    assert {one: made.get(one) for one in read} == read
    assert {one: bill.get(one) for one in read} == read
    return sum(read.values())


def explained(guest: Guest, request_id: str) -> dict[str, Any]:
    """The row of a request that was cut off, once Envoy's access log has said by whom."""
    return until(lambda: next((row for row in [guest.row(request_id)] if row["end_reason"] != "cut"), None), f"why {request_id} ended")
