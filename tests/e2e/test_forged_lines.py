"""What a client sends stands in Envoy's log as text: it neither makes a line unreadable nor says anything of a hold."""

from __future__ import annotations

import asyncio
import json

import pytest
from asking import CHAT, body, post, raw, status_of
from house import SMALL, Guest, House, until
from wire import BROKEN, Line, Told, chat, steering

from extproc.settlement.witness_lines import Statement, read_lines

STRANGER = "018bcfe5-6800-7000-8000-000000000001"
FORGED = f'","billing":{{"hold_id":"{STRANGER}","payer_id":"{STRANGER}","charge_nanos":"1","input_tokens":"1","output_tokens":"0"}},"x":"'
TEXTS = [FORGED, FORGED.replace('"', '\\"'), '"end_reason":"stop"', "\\ud800", "\\", "{", "\\u0000"]


async def left(house: House, guest: Guest, text: str) -> Told:
    """A stream that somebody left in the middle: its line has figures, and no end."""
    headers = {**guest.headers, **steering(tokens=200, delay_ms=20), "x-request-id": text, "user-agent": text, "traceparent": text}
    line = await Line.open(house)
    told = Told()
    try:
        await line.send(headers, chat(SMALL), path=f"{CHAT}?{text.replace(' ', '')}")
        head = await line.head()
        told.status, told.headers = head.status, head.headers
        async for _ in line.events(told):
            if told.tokens == 3:
                break
    except BROKEN:
        pass
    finally:
        await line.leave()
    return told


def lines_since(house: House, begin: int) -> list[bytes]:
    return house.envoy.access_log_file.read_bytes()[begin:].split(b"\n")[:-1]


@pytest.mark.parametrize("text", TEXTS)
async def test_a_line_says_what_the_gate_says(house: House, guest: Guest, text: str):
    begin = house.envoy.access_log_file.stat().st_size if house.envoy.access_log_file.exists() else 0
    told = await left(house, guest, text)
    assert (told.status, told.tokens) == (200, 3)
    assert text not in told.request_id

    def of_ours() -> list[Statement]:
        statements, unreadable = read_lines(lines_since(house, begin))
        assert unreadable == 0
        return [one for one in statements if one.payer_id == guest.id]

    (statement,) = await asyncio.to_thread(until, of_ours, "its line")
    row = await asyncio.to_thread(guest.row, told.request_id)
    assert statement.hold_id == str(row["id"])
    assert statement.terms is not None
    assert (statement.terms.key_id, statement.terms.request_id) == (guest.key_id, told.request_id)
    assert statement.figures is not None
    assert statement.figures.list_nanos <= row["cost"]
    await asyncio.to_thread(guest.check)


@pytest.mark.parametrize("name", ["x_request_id", "user_agent", "traceparent"])
@pytest.mark.parametrize("value", ["\xff\xfe", "\xed\xa0\x80", "caf\xc3", "\x80"])
def test_bytes_that_are_no_text_are_none_in_the_log_either(house: House, guest: Guest, name: str, value: str):
    begin = house.envoy.access_log_file.stat().st_size if house.envoy.access_log_file.exists() else 0
    content = json.dumps(body()).encode()
    with house.client() as client:
        status = status_of(raw(house, post(guest.headers, content, **{name: value})))
        mark = client.get("/v1/models", headers=guest.headers).headers["x-request-id"].encode()
    assert status in (200, 400)
    lines = until(lambda: (found := lines_since(house, begin)) and any(mark in line for line in found) and found, "the lines")
    assert read_lines(lines)[1] == 0
    assert all(json.loads(line) for line in lines)
