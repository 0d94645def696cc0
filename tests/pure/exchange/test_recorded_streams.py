"""Recorded answers of every endpoint: usage, cost, hold and end, and every byte for the client, in one piece and byte by byte.

Cut in two at every place: ``tests/integration/exchange/test_every_split.py``. (Tests of one table in a loop: to pytest each costs more than to us.)
"""

from __future__ import annotations

from recordings import USAGE_FIELDS, recordings

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


def test_recorded_answers():
    for one in RECORDINGS:
        walk, row, usage = one.asked(), one.row, one.row["usage"]
        assert one.answered(walk, [one.data]) == one.for_client(), one.name
        record = walk.record
        assert {name: getattr(record, name) for name in USAGE_FIELDS} == {name: usage.get(name, 0) for name in USAGE_FIELDS}, one.name
        assert (record.usage_source, record.end_reason) == (usage["source"], row["end_reason"] or "upstream_error"), one.name
        (ending,) = walk.ends
        assert ending.charge_nanos == row["cost_nanos"] <= walk.reserved_nanos == record.hold_nanos, one.name
        assert record.cost_nanos == record.list_nanos == row["cost_nanos"], one.name


def test_recorded_answers_byte_by_byte():
    for one in RECORDINGS:
        if len(one.data) < 1_000:
            walk = one.asked()
            assert one.answered(walk, (one.data[at : at + 1] for at in range(len(one.data)))) == one.for_client(), one.name
            told = one.row["cost_nanos"], one.row["end_reason"] or "upstream_error"
            assert (walk.record.cost_nanos, walk.record.end_reason) == told, one.name


def test_what_is_told_is_what_we_would_count():
    """Where nothing but text was made, our own count of it is the backend's."""
    told = {one.name: one.row["usage"] for one in RECORDINGS}
    without = [one for one in RECORDINGS if "-no-usage" in one.name]
    assert len(without) == 9
    for one in without:
        with_usage = told[one.name.replace("-no-usage", "")]
        if one.row["path"] != "/v1/embeddings":  # another prompt
            assert {**one.row["usage"], "source": "upstream"} == with_usage
