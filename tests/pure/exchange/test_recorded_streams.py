"""Recorded streams of every endpoint that streams: usage and end reason, and every byte for the client, however they are cut."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from msgspec import structs
from stage import Words

from extproc.exchange.endpoints import ENDPOINTS
from extproc.exchange.meter import Expected
from extproc.exchange.meter_stream import StreamMeter
from extproc.money.usage import Usage, UsageSource

STREAMS = Path(__file__).parents[2] / "data" / "streams"
RECORDED = json.loads((STREAMS / "index.json").read_text())
BY_NAME = {endpoint.name: endpoint for endpoint in ENDPOINTS}


def expected(endpoint: str, **changes: Any) -> Expected:
    values: dict[str, Any] = {
        "endpoint": BY_NAME[endpoint], "counter": Words(), "prompt": Usage(input_tokens=11), "input_tokens_max": 10_000,
        "output_tokens_max": 1_000, "output_tokens_held": 1_000, "choices": 2 if endpoint == "chat.completions" else 1,
    }  # fmt: skip
    return Expected(**(values | changes))


def fed(meter: StreamMeter, *chunks: bytes) -> bytes:
    return b"".join(meter.feed(chunk, end_of_stream=False) for chunk in chunks) + meter.feed(b"", end_of_stream=True)


def told(usage: Usage) -> dict[str, Any]:
    """What differs from nothing."""
    return {name: value for name, value in structs.asdict(usage).items() if value and name != "flags"}


def asked_for(sent: bytes) -> bytes:
    """Without what was injected, under the name that the client knows."""
    events = re.split(rb"(?<=\n\n)|(?<=\r\n\r\n)", sent)
    kept = [event for event in events if b'"choices":[],' not in event]
    return re.sub(rb',"usage":\{"prompt_[^}]*\}', b"", b"".join(kept)).replace(b'"Org/M"', b'"gpt"')


@pytest.mark.parametrize("row", RECORDED, ids=lambda row: row["file"])
def test_a_recorded_stream(row: dict[str, Any]):
    sent = (STREAMS / row["file"]).read_bytes()
    meter = StreamMeter(expected(row["endpoint"]))
    assert fed(meter, sent) == sent
    assert told(meter.usage(ended_early=False)) == row["usage"]
    assert (meter.reason(), meter.complete) == (row["end_reason"], row["complete"])


@pytest.mark.parametrize("row", RECORDED, ids=lambda row: row["file"])
def test_a_recorded_stream_byte_by_byte(row: dict[str, Any]):
    """With everything hidden that a client does not ask for, and under another name."""
    sent = (STREAMS / row["file"]).read_bytes()
    injected = row["endpoint"] in ("chat.completions", "completions")
    meter = StreamMeter(expected(row["endpoint"], rename=(b'"Org/M"', b'"gpt"'), hide_final=injected, hide_running=injected))
    assert fed(meter, *(sent[at : at + 1] for at in range(len(sent)))) == asked_for(sent)
    assert told(meter.usage(ended_early=False)) == row["usage"]


def test_usage_that_is_not_trusted_is_counted():
    for row in RECORDED:
        meter = StreamMeter(expected(row["endpoint"], trust_usage=False))
        fed(meter, (STREAMS / row["file"]).read_bytes())
        usage = meter.usage(ended_early=False)
        assert (usage.source, usage.input_tokens) == (UsageSource.COUNTED, 11)
        assert usage.output_tokens >= 2
        assert meter.reason() == row["end_reason"]
