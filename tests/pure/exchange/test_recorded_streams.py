"""Recorded answers of every endpoint: usage, cost, hold and end, and every byte for the client, in one piece and byte by byte.

Cut in two at every place: ``tests/integration/exchange/test_every_split.py``.
"""

from __future__ import annotations

import pytest
from recordings import USAGE_FIELDS, Recording, recordings

from extproc.money.usage import UsageSource

RECORDINGS = recordings()
PATHS = {
    *("/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/messages", "/v1/embeddings", "/v1/rerank", "/v1/score"),
    "/v1/audio/transcriptions",
}


def test_every_endpoint_is_there_streaming_and_not():
    assert {one.row["path"] for one in RECORDINGS} == PATHS
    streaming = {one.row["path"] for one in RECORDINGS if one.is_stream}
    assert streaming == {path for path in PATHS if not path.endswith(("embeddings", "rerank", "score"))}
    assert {one.row["path"] for one in RECORDINGS if not one.is_stream} == PATHS
    assert all(one.row["origin"] for one in RECORDINGS)


@pytest.mark.parametrize("one", RECORDINGS, ids=lambda one: one.name)
def test_a_recorded_answer(one: Recording):
    walk = one.asked()
    row = one.row
    assert one.answered(walk, [one.data]) == one.for_client(whole=True)
    record, usage = walk.record, row["usage"]
    assert {name: getattr(record, name) for name in USAGE_FIELDS} == {name: usage.get(name, 0) for name in USAGE_FIELDS}
    assert (record.usage_source, record.end_reason) == (usage["source"], row["end_reason"] or "upstream_error")
    (ending,) = walk.ends
    assert ending.charge_nanos == row["cost_nanos"] <= walk.held_nanos == record.hold_nanos
    assert record.cost_nanos == record.list_nanos == row["cost_nanos"]


@pytest.mark.parametrize("one", [one for one in RECORDINGS if len(one.data) < 1_000], ids=lambda one: one.name)
def test_a_recorded_answer_byte_by_byte(one: Recording):
    walk = one.asked()
    assert one.answered(walk, (one.data[at : at + 1] for at in range(len(one.data)))) == one.for_client(whole=False)
    assert (walk.record.cost_nanos, walk.record.end_reason) == (one.row["cost_nanos"], one.row["end_reason"] or "upstream_error")


def test_usage_that_is_told_is_worth_what_we_would_count():
    """Where text is all that was made, our own count of it is the backend's."""
    counted = [one for one in RECORDINGS if one.row["usage"]["source"] == UsageSource.COUNTED.value and "-no-usage" in one.name]
    told = {one.name: one.row["usage"] for one in RECORDINGS}
    assert len(counted) == 9
    for one in counted:
        with_usage = told.get(one.name.replace("-no-usage", ""))
        if with_usage is not None and "embeddings" not in one.name:
            assert {**one.row["usage"], "source": "upstream"} == with_usage
