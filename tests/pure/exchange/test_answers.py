"""What we answer ourselves, and the machine's way to it."""

from __future__ import annotations

import json
from datetime import UTC, date, timedelta
from decimal import Decimal
from typing import Any

import pytest
from stage import PAYER, RATE, error_of, headers, key, model, pinned, play

from extproc.accounts.model import Key, Period
from extproc.catalog.model import OffPeak, Tariff
from extproc.exchange import actions as act
from extproc.exchange import events as ev
from extproc.exchange.machine import Exchange, State
from extproc.exchange.policy import Policy
from extproc.exchange.tab import Pinned
from extproc.money.hold import Denied, DenyReason, Limits
from extproc.money.price import UNITS, Band, Rates
from extproc.money.statement import Enquiry, Purse, Spent, Statement
from extproc.money.usage import Quota

UNIT = 10**9
TODAY = date(2023, 11, 14)  # a Tuesday: 1,700,000,000 s
CREDITS, KEY, SUBSCRIPTION, USAGE = (
    "/v1/credits", "/v1/key", "/v1/dashboard/billing/subscription", "/v1/dashboard/billing/usage",
)  # fmt: skip


def get(path: str, **more: str) -> ev.Headers:
    return headers(path, method="GET", end=True, **more)


def answer_of(actions: Any) -> Any:
    answer, note = actions
    assert (answer.status, note.record.status, note.row) == (200, 200, b"")
    assert dict(answer.headers) == {"content-type": "application/json", "x-request-id": "r1"}
    return json.loads(answer.body, parse_float=Decimal)


def models(path: str = "/v1/models", owner: Key | None = None, catalog: Pinned | None = None) -> Any:
    exchange = Exchange(catalog or pinned())
    actions = play(exchange, get(path), ev.KeyRead(key=owner or key()))[1:]
    assert exchange.state is State.CLOSED
    return answer_of(actions)


# models


def test_a_model_with_everything_that_it_costs():
    rates = Rates(**{unit: 10**9 * (place + 1) for place, unit in enumerate(UNITS)})
    tariff = Tariff(rates=rates, bands=(Band(above_tokens=128_000, rates=Rates(input=5, output=0)),), minimum_nanos=3)
    shop = pinned(
        model(tariffs=(tariff,), aliases=("gpt",), priority_factors={"standard": 1_500_000, "spot": 500_000}),
        price_factor=800_000,
        priorities=frozenset({"standard", "spot"}),
    )
    (row,) = models(catalog=shop)["data"]
    assert (row["id"], row["object"], row["aliases"], row["context_length"], row["max_output_tokens"]) == (
        "m",
        "model",
        ["gpt"],
        10_000,
        1_000,
    )
    assert row["pricing"] == {
        "prompt": "0.0000012", "input_cache_read": "0.0000024", "input_cache_write": "0.0000036", "image_token": "0.0000048",
        "audio": "0.000006", "completion": "0.0000072", "internal_reasoning": "0.0000084", "request": "0.0000096", "image": "0.0000108",
        "audio_second": "0.012", "input_character": "0.0000132", "output_character": "0.0000144", "input_word": "0.0000156",
        "output_word": "0.0000168", "minimum": "0.000000003",
    }  # fmt: skip
    (above,) = row["pricing_above"]
    assert above["prompt_tokens"] == 128_000
    assert (above["pricing"]["prompt"], above["pricing"]["completion"]) == ("0.000000000000006", "0")
    assert row["pricing_at_priority"]["spot"]["prompt"] == "0.0000004"


def test_the_price_is_that_of_the_moment_and_of_the_account():
    old, new = Tariff(rates=Rates(input=RATE)), Tariff(effective_ms=1_600_000_000_000, rates=Rates(input=2 * RATE))
    night = OffPeak(zone=UTC, begin_minute=22 * 60, end_minute=6 * 60, factor=500_000, name="off-peak")
    (row,) = models(owner=key(price_factor=250_000), catalog=pinned(model(tariffs=(old, new), off_peak=night)))["data"]
    assert (row["pricing"]["prompt"], row["pricing"]["completion"]) == ("0.00000025", "0"), "2 × 1/2 (22:13 UTC) × 1/4"


def test_only_what_the_key_may_use():
    shop = pinned(model("a", sandbox=True, aliases=("x/y",)), model("b"), model("spot", priority_factors={"spot": 1_000_000}))
    listed = lambda owner: [row["id"] for row in models(owner=owner, catalog=shop)["data"]]  # noqa: E731
    assert listed(key()) == ["a", "b"], "nobody may ask for spot"
    assert listed(key(models=frozenset({"b"}))) == ["b"]
    assert listed(key(sandbox=True)) == ["a"]
    alias = models("/v1/models/x/y", catalog=shop)
    assert (alias["id"], alias["root"]) == ("x/y", "a")
    assert models("/v1/models/%61", catalog=shop)["id"] == "a"


@pytest.mark.parametrize("name", ["b", "spot", "nothing", "%00", "é" * 300])
def test_a_model_that_is_not_for_this_key_does_not_exist(name: str):
    exchange = Exchange(pinned(model("a"), model("b"), model("spot", priority_factors={"spot": 1_000_000})))
    play(exchange, get(f"/v1/models/{name}"))
    answer, note = exchange.receive(ev.KeyRead(key=key(models=frozenset({"a", "spot"}))))
    assert answer.status == 404
    assert error_of(answer)["code"] == "model_not_found"
    assert note.record.error_code == "model_not_found"


# money


def statement(**changes: Any) -> Statement:
    """100 put in; 30 spent, of which 2 is not posted yet; 5 held; 4 on its way into the hold store."""
    days = (
        (TODAY - timedelta(days=40), 16 * UNIT),
        (TODAY - timedelta(days=3), 5 * UNIT),
        (TODAY - timedelta(days=1), 4 * UNIT),
        (TODAY, 3 * UNIT),
    )
    purse = {"balance_nanos": 66 * UNIT, "held_nanos": 5 * UNIT, "credit_nanos": 0, "total_nanos": 96 * UNIT} | changes.pop("purse", {})
    spent = {"credits_nanos": 100 * UNIT, "told_nanos": 100 * UNIT, "key_nanos": 28 * UNIT, "days": days} | changes
    return Statement(purse=Purse(**purse), spent=Spent(**spent))


def money(path: str, owner: Key | None = None, told: Statement | None = None, **tier: Any) -> tuple[Enquiry, Any]:
    exchange = Exchange(pinned(**tier))
    _, find = play(exchange, get(path), ev.KeyRead(key=owner or key()))
    assert exchange.state is State.ANSWERING
    told = told or statement()
    first, last = find.enquiry.since, find.enquiry.until
    days = tuple((day, nanos) for day, nanos in told.spent.days if first <= day < last)
    spent = Spent(credits_nanos=told.spent.credits_nanos, told_nanos=told.spent.told_nanos, key_nanos=told.spent.key_nanos, days=days)
    answer = answer_of(exchange.receive(ev.Answered(statement=Statement(purse=told.purse, spent=spent))))
    assert exchange.state is State.CLOSED
    return find.enquiry, answer


def test_credits_of_an_account():
    enquiry, answer = money(CREDITS, key(budget_nanos=1))
    assert (enquiry.payer_id, enquiry.key_id, enquiry.since) == (PAYER, "k1", enquiry.until)
    none = {"available": 0, "held": 0}
    assert answer == {
        "data": {
            "total_credits": 100, "total_usage": 30, "available": 61, "held": 5, "credit_line": 0, "currency": "CNY",
            "free_tokens": {"prompt": none, "completion": none},
        }
    }  # fmt: skip


@pytest.mark.parametrize("path", [CREDITS, KEY])
def test_free_tokens_of_the_account(path: str):
    told = statement(purse={"free": Quota(input_tokens=900, output_tokens=7), "held_free": Quota(input_tokens=100)})
    free = money(path, told=told)[1]["data"]["free_tokens"]
    assert free == {"prompt": {"available": 900, "held": 100}, "completion": {"available": 7, "held": 0}}


def test_amounts_are_exact():
    exchange = Exchange(pinned())
    play(exchange, get(CREDITS), ev.KeyRead(key=key()))
    told = statement(
        purse={"balance_nanos": 123_456_789_000_000_001, "total_nanos": 0}, told_nanos=0, credits_nanos=123_456_789_000_000_003
    )
    answer, _ = exchange.receive(ev.Answered(statement=told))
    assert answer.body.startswith(b'{"data":{"total_credits":123456789.000000003,"total_usage":0.000000002,')


def test_a_key_with_a_budget():
    owner = key(budget_nanos=20 * UNIT, budget_period=Period.MONTH, expires_ms=1_800_000_000_000, limits=Limits(requests_per_minute=5))
    used = statement(purse={"budget_used_nanos": 13 * UNIT})
    enquiry, answer = money(KEY, owner, used)
    assert (enquiry.of_account, enquiry.since, enquiry.until) == (False, date(2023, 11, 1), date(2023, 11, 15))
    told = answer["data"]
    assert {name: told[name] for name in ("label", "limit", "limit_remaining", "limit_reset", "usage", "currency")} == {
        "label": "laptop", "limit": 20, "limit_remaining": 7, "limit_reset": "monthly", "usage": 28, "currency": "CNY",
    }  # fmt: skip
    assert (told["usage_daily"], told["usage_weekly"], told["usage_monthly"]) == (3, 7, 12)
    assert (told["expires_at"], told["rate_limit"]["requests"], told["is_free_tier"]) == ("2027-01-15T08:00:00Z", 5, False)


def test_a_key_without_one():
    told = money(KEY, told=statement(credits_nanos=0))[1]["data"]
    assert (told["limit"], told["limit_remaining"], told["limit_reset"], told["expires_at"]) == (None, None, None, None)
    assert (told["rate_limit"]["requests"], told["is_free_tier"]) == (-1, True)


def test_a_week_that_began_in_the_month_before():
    exchange = Exchange(pinned())
    at = headers(KEY, method="GET", end=True)
    at = ev.Headers(**{name: getattr(at, name) for name in at.__struct_fields__} | {"unix_ms": 1_698_883_200_000})  # Thursday, 2 November
    _, find = play(exchange, at, ev.KeyRead(key=key()))
    assert (find.enquiry.since, find.enquiry.until) == (date(2023, 10, 30), date(2023, 11, 3))


def test_the_dashboard_of_an_account_and_of_a_key_with_a_budget():
    enquiry, answer = money(SUBSCRIPTION)
    assert (enquiry.of_account, enquiry.since) == (True, date(2023, 11, 1))
    assert answer["hard_limit_usd"] == answer["soft_limit_usd"] == answer["system_hard_limit_usd"] == 70 + 12
    used = money(USAGE)[1]["total_usage"]
    assert answer["hard_limit_usd"] - used / 100 == 70, "what is left"
    assert (answer["object"], answer["has_payment_method"], answer["access_until"]) == ("billing_subscription", True, 0)
    owner = key(budget_nanos=20 * UNIT, budget_period=Period.MONTH)
    enquiry, answer = money(SUBSCRIPTION, owner, statement(purse={"budget_used_nanos": 12 * UNIT}))
    assert not enquiry.of_account
    assert answer["hard_limit_usd"] == 20
    poor = statement(purse={"balance_nanos": -9 * UNIT, "total_nanos": 100 * UNIT})
    assert money(SUBSCRIPTION, told=poor)[1]["hard_limit_usd"] == 12, "nothing is left"


def test_usage_of_days_in_cents():
    enquiry, answer = money(f"{USAGE}?start_date=2023-11-11&end_date=2023-11-14")
    assert (enquiry.since, enquiry.until) == (date(2023, 11, 11), date(2023, 11, 14))
    assert (answer["object"], answer["total_usage"]) == ("list", 900)
    assert [(day["timestamp"], day["line_items"][0]["cost"]) for day in answer["daily_costs"]] == [
        (1_699_660_800, 500),
        (1_699_833_600, 400),
    ]
    assert money(USAGE)[0] == money(f"{USAGE}?end_date=2023-11-15&start_date=2023-11-01")[0], "the month so far"


@pytest.mark.parametrize(
    "query",
    [
        "?", "start_date=2023-11-11", "start_date=2023-11-11&end_date=2023-11-11", "start_date=2023-11-11&end_date=2023-11-10",
        "start_date=2023-02-30&end_date=2023-03-30", "start_date=2020-01-01&end_date=2023-03-30", "start_date=1&end_date=2",
        "start_date=2023-11-11&end_date=2023-11-12&x=1", "start_date=2023-11-11&start_date=2023-11-12", "start_date=٢٠٢٣-11-11&end_date=2023-11-12",
    ],
)  # fmt: skip
def test_days_that_are_none(query: str):
    answer, _ = Exchange(pinned()).receive(get(f"{USAGE}?{query}"))
    assert (answer.status, error_of(answer)["code"]) == (400, "invalid_query")


@pytest.mark.parametrize("path", ["/v1/models", "/v1/models/m", KEY, CREDITS, SUBSCRIPTION])
def test_others_take_no_query(path: str):
    answer, _ = Exchange(pinned()).receive(get(f"{path}?limit=1"))
    assert (answer.status, error_of(answer)["code"]) == (400, "unexpected_query")


@pytest.mark.parametrize("path", ["/v1/models/m", KEY, CREDITS, SUBSCRIPTION, USAGE])
def test_they_are_asked_with_get_and_a_key(path: str):
    answer, _ = Exchange(pinned()).receive(headers(path))
    assert answer.status == 405
    answer, _ = Exchange(pinned()).receive(get(path, authorization=None))
    assert answer.status == 401


# when the stores do not tell


@pytest.mark.parametrize("event", [ev.StoreFailed(what="redis"), ev.Refused(denied=Denied(reason=DenyReason.MISSING))])
def test_what_is_not_known_is_503(event: ev.Event):
    exchange = Exchange(pinned())
    answer, note = play(exchange, get(CREDITS), ev.KeyRead(key=key()), event)[2:]
    assert (answer.status, error_of(answer)["code"], note.record.error_code) == (503, "unavailable", "unavailable")


def test_a_key_that_was_revoked_a_moment_ago():
    denied = ev.Refused(denied=Denied(reason=DenyReason.KEY_REVOKED, limit_source="key"))
    answer, note = play(Exchange(pinned()), get(KEY), ev.KeyRead(key=key()), denied)[2:]
    assert (answer.status, note.record.error_code) == (401, "invalid_api_key")
    exchange = Exchange(pinned(policy=Policy(shadow=True)))
    play(exchange, get(KEY), ev.KeyRead(key=key()), denied)
    assert exchange.state is State.SPARED
    exchange = Exchange(pinned(policy=Policy(shadow=True)))
    play(exchange, get(KEY), ev.KeyRead(key=None))
    assert exchange.state is State.SPARED, "a stranger has no money to be told about"


@pytest.mark.parametrize(
    "event", [ev.Answered(statement=statement()), ev.StoreFailed(what="x"), ev.Refused(denied=Denied(reason=DenyReason.MISSING))]
)
def test_who_leaves_before_the_answer_holds_nothing(event: ev.Event):
    exchange = Exchange(pinned())
    (note,) = play(exchange, get(CREDITS), ev.KeyRead(key=key()), ev.Tick(), ev.Stopped(), ev.Gone(), event)[2:]
    assert isinstance(note, act.Note)
    assert (exchange.state, note.record.error_code) == (State.CLOSED, "client_gone")
