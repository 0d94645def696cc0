"""What a line of the access log means, and what a witness makes of a hold."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
from msgspec import structs

from extproc.exchange.figures import figures
from extproc.holds.port import Sighted
from extproc.money.price import Price, Rates
from extproc.money.usage import RARE, Quota, Usage, UsageSource
from extproc.settlement.witness_endings import posting_of, to_keep
from extproc.settlement.witness_lines import Figures, Statement, Terms, read_lines, reason_of
from extproc.settlement.witnessed import price_of, usage_of, witnessed_by

HOLD, PAYER = "018bcfe5-6800-7000-8000-000000000001", "018bcfe5-6800-7000-8000-00000000000a"
BILLING = {"hold_id": HOLD, "payer_id": PAYER, "cap_nanos": "9000", "price_id": "p"}
FIGURES = {"charge_nanos": "700", "input_tokens": "100", "output_tokens": "300", "usage_source": "counted"}


def line(billing: Any, **fields: Any) -> bytes:
    known = {"status": 200, "path": "/v1/chat/completions", "details": "downstream_remote_disconnect", "flags": "DC", "billing": billing}
    return json.dumps(known | fields, separators=(",", ":")).encode()


def told(given: bytes) -> Statement:
    ([statement], unreadable) = read_lines([given])
    assert not unreadable
    return statement


def test_a_request_that_was_cut_off_says_how_much_and_why():
    assert told(line(BILLING | FIGURES)) == Statement(
        hold_id=HOLD,
        payer_id=PAYER,
        reason="client_gone",
        figures=Figures(
            charge_nanos=700,
            list_nanos=700,
            input_tokens=100,
            cached_tokens=0,
            output_tokens=300,
            reasoning_tokens=0,
            usage_source="counted",
        ),
    )


def test_figures_that_are_seldom_there():
    more = {"list_nanos": "900", "cached_tokens": "50", "reasoning_tokens": "7", "usage_source": "continuous"}
    figures = told(line(BILLING | FIGURES | more)).figures
    assert figures == Figures(700, 900, 100, 50, 300, 7, "continuous")


def test_every_unit_is_told_and_read():
    """What the gate says of a usage is what the witness works its charge out from."""
    usage = Usage(input_tokens=100, output_tokens=300, source=UsageSource.COUNTED, **{name: number for number, name in enumerate(RARE, 1)})
    pairs = figures(usage, cost_nanos=900, charge_nanos=700, delivered=None)
    read = told(line(BILLING | dict(pairs))).figures
    assert read is not None
    assert structs.replace(usage_of(read, 300), source=UsageSource.COUNTED) == usage
    kept = Figures(*json.loads(json.dumps(list(read))))  # as the ledger keeps it
    assert usage_of(kept, 300) == usage_of(read, 300)
    row = json.loads(witnessed_by(read, hold(5), None).row)
    assert {name: row[name] for name in RARE} == {name: getattr(usage, name) for name in RARE}


def test_what_the_hold_was_made_for():
    terms = {"key_id": PAYER, "cap_nanos": "9000", "price_id": "a" * 64}
    assert told(line(BILLING | terms, request_id="r")).terms == Terms(
        key_id=PAYER, request_id="r", status=200, cap_nanos=9_000, price_id="a" * 64
    )
    assert told(line(BILLING | terms | {"key_id": ""})).terms is None
    assert read_lines([line(BILLING | terms | {"key_id": "k"}), line(BILLING | terms | {"price_id": "p"})]) == ([], 2)


def test_before_the_first_output_there_are_none():
    assert told(line(BILLING)).figures is None


@pytest.mark.parametrize(
    "given",
    [
        line(BILLING | FIGURES | {"end_reason": "stop"}),  # the gate has told everything
        line(None, details="path_normalization_failed"),
        line({}, details="route_not_found"),
    ],
)
def test_lines_that_nobody_needs(given: bytes):
    assert read_lines([given]) == ([], 0)


def test_a_client_cannot_make_a_line_be_passed_over():
    assert told(line(BILLING, path='/v1/","end_reason":"stop"')).hold_id == HOLD


@pytest.mark.parametrize(
    "given",
    [
        b"",
        b"\x00\x00\x00",
        b'{"billing":{"hold_id":"' + HOLD.encode(),
        b'e":"x","billing":{"hold_id":"' + HOLD.encode() + b'"}}',
        line(BILLING | {"hold_id": "x"}),
        line(BILLING | {"hold_id": HOLD.upper()}),
        line(BILLING | {"payer_id": "anna"}),
        line({"hold_id": HOLD}),
        line(BILLING | FIGURES | {"charge_nanos": "-1"}),
        line(BILLING | FIGURES | {"charge_nanos": "1e3"}),
        line(BILLING | FIGURES | {"charge_nanos": str(2**63)}),
        line(BILLING | FIGURES | {"usage_source": "guessed"}),
        line(BILLING | FIGURES | {"delivered": "5000/250"}),
        line(BILLING | FIGURES | {"delivered": "5000/-250/1"}),
        line(BILLING | FIGURES, bytes_sent="many"),
        line(BILLING, details=7),
        b'["hold_id":"' + b"[" * 100_000,
        b'{"hold_id":"' + HOLD.encode() + b'"}',
        b'["hold_id":"x"]',
    ],
)
def test_what_cannot_be_understood_is_counted(given: bytes):
    assert read_lines([given]) == ([], 1)


@pytest.mark.parametrize(
    ("details", "reason"),
    [
        ("downstream_remote_disconnect", "client_gone"),
        ("http2.remote_reset", "client_gone"),
        ("downstream_local_disconnect(purging_socket_that_have_not_progressed_to_connections)", "edge_lost"),
        ("upstream_reset_after_response_started{protocol_error}", "upstream_reset"),
        ("upstream_reset_before_response_started{connection_termination}", "upstream_reset"),
        ("upstream_per_try_timeout", "upstream_error"),
        ("response_timeout", "upstream_error"),
        ("stream_idle_timeout", "upstream_error"),
        ("ext_proc_error_gRPC_error_13{upstream_reset_after_response_started{connection_termination}}", ""),
        ("ext_proc_error_gRPC_error_14{worker_stops{via_upstream}}", ""),
        ("via_upstream", ""),
        ("extproc_denied", ""),
        ("", ""),
    ],
)
def test_reasons(details: str, reason: str):
    """As Envoy 1.40 writes them; ``tests/chaos/test_witnessed.py`` sees it write them."""
    assert reason_of(details) == reason


def hold(
    checkpoint: int, *, cap: int = 9_000, row: bytes = b'{"id":"x","cost_nanos":5,"usage_flags":["a"],"end_reason":"sidecar_lost"}'
) -> Sighted:
    return Sighted(hold_id=HOLD, payer_id=PAYER, checkpoint_nanos=checkpoint, cap_nanos=cap, row=row)


# --- what came after the last figure

PRICE = Price(model="m", priority="standard", tier="t", currency="EUR", rates=Rates(input=1_000_000, cached_input=0, output=2_000_000))
LATER = FIGURES | {"delivered": "5000/250/1"}  # 100 of input, 300 of output: 700 nanos


def later(sent_bytes: int, *, cap: int = 9_000, price: Price | None = PRICE, **more: str) -> dict[str, Any]:
    """The row of a hold whose client got so many bytes in all."""
    return json.loads(witnessed_by(told(line(BILLING | LATER | more, bytes_sent=sent_bytes)).figures, hold(5, cap=cap), price).row)


@pytest.mark.parametrize(
    ("sent_bytes", "tokens"),
    [(0, 0), (4_999, 0), (5_000, 0), (5_124, 0), (5_125, 1), (5_250, 1), (5_374, 1), (8_000, 12), (8_100, 12), (7_890, 12)],
)
def test_bytes_tell_the_rest(sent_bytes: int, tokens: int):
    row = later(sent_bytes)
    assert (row["output_tokens"], row["cost_nanos"], row["list_nanos"]) == (300 + tokens, 700 + 2 * tokens, 700 + 2 * tokens)
    assert ("output_estimated" in row["usage_flags"]) == (tokens > 0)


@pytest.mark.parametrize(("cap", "output", "cost"), [(720, 310, 720), (721, 310, 720), (700, 300, 700), (600, 300, 600)])
def test_never_more_tokens_than_were_held_for(cap: int, output: int, cost: int):
    row = later(8_000, cap=cap)
    assert (row["output_tokens"], row["cost_nanos"]) == (output, cost)


def test_events_of_several_tokens():
    assert later(5_500, delivered="5000/250/8")["output_tokens"] == 316


@pytest.mark.parametrize("price", [None, Price.parse(PRICE.text.replace('"output":2000000', '"output":3000000'))])
def test_without_the_price_of_the_figure_the_figure_stands(price: Price | None):
    """The charge must be recomputable from the row, whatever else is uncertain."""
    row = later(8_000, price=price)
    assert (row["output_tokens"], row["cost_nanos"], "output_estimated" in row["usage_flags"]) == (300, 700, False)


def test_a_size_of_nothing_tells_nothing():
    assert later(8_000, delivered="5000/0/1")["output_tokens"] == 300


@pytest.mark.parametrize("row", [b"", b"[]", b'{"price_id":7}', b"[" * 100_000])
def test_a_row_without_a_price(row: bytes):
    assert price_of(hold(5, row=row)).price_id == ""


def test_the_higher_figure_counts_and_the_row_says_the_same():
    witnessed = witnessed_by(told(line(BILLING | FIGURES)).figures, hold(5), None)
    assert witnessed.checkpoint_nanos == 700
    assert json.loads(witnessed.row) == {
        "id": "x",
        "end_reason": "sidecar_lost",
        "input_tokens": 100,
        "cached_tokens": 0,
        "output_tokens": 300,
        "reasoning_tokens": 0,
        "usage_source": "counted",
        "usage_flags": ["a", "witnessed"],
        "cost_nanos": 700,
        "list_nanos": 700,
        "overage_nanos": 0,
    }


def test_never_above_the_cap():
    witnessed = witnessed_by(told(line(BILLING | FIGURES)).figures, hold(5, cap=600), None)
    row = json.loads(witnessed.row)
    assert (witnessed.checkpoint_nanos, row["cost_nanos"], row["list_nanos"], row["overage_nanos"]) == (600, 600, 700, 100)


@pytest.mark.parametrize("checkpoint", [700, 701])
def test_a_checkpoint_as_high_stays(checkpoint: int):
    assert witnessed_by(told(line(BILLING | FIGURES)).figures, hold(checkpoint), None) == hold(checkpoint)


@pytest.mark.parametrize("row", [b"", b"[]", b"\xff", b'{"usage_flags":3}'])
def test_a_row_that_cannot_be_read_stays_what_it_is(row: bytes):
    witnessed = witnessed_by(told(line(BILLING | FIGURES)).figures, hold(5, row=row), None)
    assert (witnessed.checkpoint_nanos, witnessed.row) == (700, row)


@pytest.mark.parametrize("number", ["1e999", "-1e999", "NaN", "9" * 5_000])
@pytest.mark.parametrize("member", ["status", "bytes_sent"])
def test_a_number_that_is_none_spoils_its_line_only(member: str, number: str):
    terms = {"key_id": PAYER, "cap_nanos": "9000", "price_id": "a" * 64}
    good = line(BILLING | terms | FIGURES)
    bad = line(BILLING | terms | FIGURES, **{member: "@"}).replace(b'"@"', number.encode())
    statements, unreadable = read_lines([bad, good])
    assert (len(statements), unreadable) == (1, 1)


# --- free tokens

FREE = FIGURES | {"charge_nanos": "400", "free_input": "100", "free_output": "100"}  # 100 + 300 tokens, of which 100 + 100 are free


def test_what_a_quota_has_paid_for_is_witnessed_too():
    figures = told(line(BILLING | FREE)).figures
    assert figures is not None
    held = replace(hold(5), quota=Quota(input_tokens=100, output_tokens=100), used=Quota(input_tokens=100, output_tokens=1))
    seen = witnessed_by(figures, held, PRICE)
    assert (seen.checkpoint_nanos, seen.used) == (400, Quota(input_tokens=100, output_tokens=100))
    row = json.loads(seen.row)
    assert (row["cost_nanos"], row["free_input"], row["free_output"], row["output_tokens"]) == (400, 100, 100, 300)
    assert witnessed_by(figures, seen, PRICE) == seen
    assert witnessed_by(figures, replace(held, checkpoint_nanos=401), PRICE).checkpoint_nanos == 401, "what contradicts it changes nothing"


def test_tokens_alone_raise_a_checkpoint():
    free = FREE | {"charge_nanos": "0", "output_tokens": "60"}
    seen = witnessed_by(told(line(BILLING | free)).figures, hold(0), PRICE)
    assert (seen.checkpoint_nanos, seen.used) == (0, Quota(input_tokens=100, output_tokens=60))


def test_what_only_the_line_knows_uses_the_quota_as_well():
    statement = told(line(BILLING | FREE | {"key_id": PAYER, "price_id": PRICE.price_id}, request_id="r"))
    kept = to_keep(statement)
    assert kept is not None
    as_stored = {**kept, "figures": json.dumps(kept["figures"]), "seen_ms": 1}
    booked = posting_of(as_stored, PRICE, 3)
    assert booked is not None
    assert (booked.charge_nanos, booked.free_input, booked.free_output) == (400, 100, 100)
    assert posting_of({**as_stored, "figures": json.dumps([*kept["figures"][:-1], [100, 99]])}, PRICE, 3) is None, "another price"
