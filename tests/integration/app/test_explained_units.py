"""A charge of many units, told line by line, each with its unit, and with what the catalog says of it."""

from extproc.app.explain import explained
from extproc.cli.explain import text_of
from extproc.ledger.port import Explanation
from extproc.money.price import Band, Price, Rates
from extproc.money.usage import QUANTITIES

PRICE = Price(
    model="m",
    priority="standard",
    tier="t",
    currency="CNY",
    method="hybrid",
    rates=Rates(input=10**9, cached_input=0, output=3 * 10**9, calls=10**13, images=2 * 10**13, audio_ms=10**8, output_characters=10**9),
    bands=(Band(above_tokens=5_000, rates=Rates(input=2 * 10**9, output=3 * 10**9)),),
    minimum_nanos=1_000_000,
)
COST = 900_000 + 10_000_000 + 20_000_000 + 6_150_000 + 1_000_000
AMOUNTS = ("hold", "cost", "given_back", "list", "overage", "loss", "refunded")
ROW = {
    **dict.fromkeys(QUANTITIES, 0), **{f"{name}_nanos": 0 for name in AMOUNTS}, **dict.fromkeys(AMOUNTS, "0.00"),
    "input_tokens": 1_000, "cached_tokens": 100, "output_tokens": 300, "output_characters": 1_000, "images": 1, "audio_ms": 61_500,
    "free_input": 0, "free_output": 300, "price_id": PRICE.price_id, "hold_nanos": 50_000_000, "cost": COST, "list_nanos": COST,
    "refund_nanos": 50_000_000 - COST, "ending": "settle", "sandbox": False, "shadow": False, "policies": [], "would_deny": "",
    "usage_source": "upstream", "usage_flags": [], "model": "m", "endpoint": "chat.completions", "stream": True, "priority": "standard",
    "tier": "t", "id": "i", "request_id": "r", "created_at": "now", "duration_ms": 1, "ttft_ms": 1, "status": 200, "error_code": "",
    "end_reason": "stop", "times": 1,
}  # fmt: skip


def facts_of(price: Price = PRICE, **changes: object) -> dict:
    row = ROW | changes
    entries = [
        {"kind": kind, "name": "", "unit": "nanos", "amount": amount, "event_id": "e"}
        for kind, amount in (("customer", -row["cost"]), ("revenue", row["cost"]))
    ]
    found = Explanation(request=row, events=(), entries=entries, price=price.text)
    return {"request": row, "entries": entries, **explained(found)}


def test_every_line_has_its_unit():
    facts = facts_of()
    assert [(line["name"], line["quantity"], line["price"], line["per"], line["unit"]) for line in facts["sum"]["lines"]] == [
        ("input", 900, "1.00", 1_000_000, "token"),
        ("cached_input", 100, "0.00", 1_000_000, "token"),
        ("calls", 1, "0.01", 1, "call"),
        ("images", 1, "0.02", 1, "image"),
        ("audio_ms", 61_500, "0.0001", 1_000, "ms"),
        ("output_characters", 1_000, "1.00", 1_000_000, "character"),
    ]
    assert (facts["sum"]["cost"], facts["agrees"], facts["faults"]) == ("0.03805", True, [])
    told = "\n".join(text_of(facts))
    shown = (
        "input 1.00 · cached input 0.00 · output 3.00 CNY per 1,000,000 tokens\n",
        "calls 0.01 CNY per call\n",
        "audio ms 0.0001 CNY per 1,000 ms\n",
        "above 5000 tokens of input:\n            input 2.00 · output 3.00 CNY per 1,000,000 tokens\n",
        "free quota  paid for 0 tokens of the input and 300 of the output",
        "rounded up to 0.03805, at most the hold",
    )
    assert [part for part in shown if part not in told] == []


def test_what_is_below_the_minimum_is_charged_that():
    plain = Price(model="m", priority="standard", tier="t", currency="CNY", rates=Rates(input=10**9), minimum_nanos=1_000_000)
    facts = facts_of(plain, cost=1_000_000, list_nanos=1_000_000, refund_nanos=49_000_000, price_id=plain.price_id)
    assert facts["agrees"], facts["faults"]
    assert any("at least the minimum charge: 0.001, at most the hold: 0.001 CNY" in line for line in text_of(facts))
