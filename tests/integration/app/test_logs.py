"""What is told again and again is told so often, and then counted."""

from __future__ import annotations

import json
import logging

from extproc.app.logs import LINES_MAX, MESSAGES_MAX, SPAN_S, Flood, JsonLines


class Told:
    """Lines that come through at a time of our choice."""

    def __init__(self) -> None:
        self.now_s = 0.0
        self.flood = Flood(lambda: self.now_s)

    def tell(self, message: object, *, count: int = 1, **extra: object) -> list[dict[str, object]]:
        records = [logging.makeLogRecord({"name": "gate", "msg": message, "levelname": "INFO", **extra}) for _ in range(count)]
        return [json.loads(JsonLines("gate-0").format(record)) for record in records if self.flood.filter(record)]


def test_a_store_that_is_away_for_an_hour_does_not_fill_the_disk():
    told, lines = Told(), []
    for second in range(60):
        told.now_s = float(second)
        lines += told.tell("not served", count=1_000, code="unavailable")
    assert len(lines) == 60 / SPAN_S * LINES_MAX
    assert [line["omitted"] for line in lines if "omitted" in line] == [SPAN_S * 1_000 - LINES_MAX] * 5


def test_what_is_seldom_is_all_told():
    told, lines = Told(), []
    for second in range(60):
        told.now_s = float(second)
        lines += [*told.tell("not served", count=int(LINES_MAX / SPAN_S)), *told.tell("another")]
    assert len(lines) == 60 * (LINES_MAX / SPAN_S + 1)
    assert not [line for line in lines if "omitted" in line]


def test_messages_are_not_remembered_for_ever():
    told = Told()
    for number in range(10 * MESSAGES_MAX):
        assert told.tell(f"formatted by somebody else: {number}")
    assert len(told.flood._seen) <= MESSAGES_MAX
