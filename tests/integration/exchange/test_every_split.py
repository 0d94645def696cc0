"""Every recorded answer, cut into two chunks at every place: what is charged and what the client gets is the same.

Pure, but too long for the pure tests' seconds. Answers below 1,000 bytes are cut everywhere whenever this runs, longer ones at some five
hundred places; `make fuzz` cuts all of them everywhere (a minute).
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import Any

import pytest
from msgspec import structs
from recordings import Recording, recordings

from extproc.exchange.meter import Expected
from extproc.exchange.meter_stream import StreamMeter

RECORDINGS = recordings()
WAYS: list[dict[str, Any]] = [{}, {"hide_final": True, "hide_running": True}, {"needs_text": True}]
PLACES = 10**9 if os.environ.get("HYPOTHESIS_PROFILE") == "thorough" else 500


def cuts(one: Recording) -> Iterable[int]:
    return range(1, len(one.data), max(1, len(one.data) // PLACES))


@pytest.mark.parametrize("one", RECORDINGS, ids=lambda one: one.name)
def test_cut_anywhere_the_charge_and_the_bytes_are_the_same(one: Recording):
    """Through the whole exchange."""
    asked, shown, whole = one.asked(), one.for_client(), None
    for cut in cuts(one):
        walk = asked.fork()
        assert one.answered(walk, [one.data[:cut], one.data[cut:]]) == shown, cut
        (ending,), record = walk.ends, walk.record
        assert ending.charge_nanos == record.cost_nanos == one.row["cost_nanos"], cut
        outcome = record.end_reason, record.usage_source, record.output_tokens, record.events
        assert outcome == (whole := whole or outcome), cut
        assert record.end_reason == (one.row["end_reason"] or "upstream_error")


def outcome(known: Expected, *chunks: bytes) -> tuple[Any, ...]:
    meter = StreamMeter(known)
    shown = b"".join(meter.feed(chunk, end_of_stream=False) for chunk in chunks) + meter.feed(b"", end_of_stream=True)
    return shown, meter.usage(ended_early=False), meter.reason(), meter.complete, meter.events


@pytest.mark.parametrize("way", WAYS, ids=lambda way: "+".join(way) or "as it is")
@pytest.mark.parametrize("one", [one for one in RECORDINGS if one.is_stream and one.row["tokens"] == "letters"], ids=lambda one: one.name)
def test_cut_anywhere_the_meter_says_the_same(one: Recording, way: dict[str, Any]):
    """And with what the exchange has not asked it for."""
    walk = one.asked()
    expected = walk.exchange.tab.expected
    assert expected is not None
    known = structs.replace(expected, **way)
    whole = outcome(known, one.data)
    assert whole[1].output_tokens >= 1
    for cut in cuts(one):
        assert outcome(known, one.data[:cut], one.data[cut:]) == whole, cut
