"""Every recorded stream, cut into two chunks at every place: what is charged and what the client gets is the same.

Pure, but too long for the pure tests' seconds.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from extproc.exchange.endpoints import ENDPOINTS
from extproc.exchange.meter import Expected
from extproc.exchange.meter_stream import StreamMeter
from extproc.money.usage import Usage

STREAMS = Path(__file__).parents[2] / "data" / "streams"
RECORDED = {row["file"]: row["endpoint"] for row in json.loads((STREAMS / "index.json").read_text())}
BY_NAME = {endpoint.name: endpoint for endpoint in ENDPOINTS}
WAYS: list[dict[str, Any]] = [{}, {"hide_final": True, "hide_running": True, "rename": (b'"Org/M"', b'"gpt"')}, {"needs_text": True}]


class Letters:
    """A token a letter."""

    name = "letters"

    def __init__(self) -> None:
        self.letters = 0

    def running(self) -> Letters:
        return Letters()

    def feed(self, text: str) -> None:
        self.letters += len(text)

    def total(self) -> int:
        return self.letters


def outcome(known: Expected, *chunks: bytes) -> tuple[Any, ...]:
    meter = StreamMeter(known)
    shown = b"".join(meter.feed(chunk, end_of_stream=False) for chunk in chunks) + meter.feed(b"", end_of_stream=True)
    return shown, meter.usage(ended_early=False), meter.reason(), meter.complete, meter.events


@pytest.mark.parametrize("way", WAYS, ids=lambda way: "+".join(way) or "as it is")
@pytest.mark.parametrize("name", RECORDED)
def test_cut_anywhere_the_outcome_is_the_same(name: str, way: dict[str, Any]):
    sent = (STREAMS / name).read_bytes()
    known = Expected(
        endpoint=BY_NAME[RECORDED[name]], counter=Letters(), prompt=Usage(input_tokens=11), input_tokens_max=10_000,
        output_tokens_max=1_000, output_tokens_held=1_000, choices=2 if RECORDED[name] == "chat.completions" else 1, **way,
    )  # fmt: skip
    whole = outcome(known, sent)
    assert whole[1].output_tokens >= 2
    for cut in range(1, len(sent)):
        assert outcome(known, sent[:cut], sent[cut:]) == whole, cut
