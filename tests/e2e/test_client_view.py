"""What a client is told of models and money, through the whole house. Shapes: docs/reference/client.md."""

from __future__ import annotations

import json
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from typing import Any

import httpx
import openai
import pytest
from asking import CHAT, body, error_of, events_of
from house import LARGE, NANOS_IN, NANOS_OUT, SMALL, Guest, House, until

from extproc.accounts.model import Period

UNIT = 10**9
DASHBOARD = "/v1/dashboard/billing"
PRICES = {"prompt": "0.0000005", "input_cache_read": "0.000000125", "completion": "0.000001"}


def get(client: httpx.Client, guest: Guest, path: str) -> Any:
    answer = client.get(path, headers=guest.headers)
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"] == "application/json"
    assert len(answer.headers["x-request-id"]) == 36
    return json.loads(answer.text, parse_float=Decimal)


def nanos(number: Any) -> int:
    scaled = number * UNIT
    assert scaled == int(scaled)
    return int(scaled)


def served(guest: Guest, client: httpx.Client, **more: Any) -> int:
    """One request, charged and posted: its cost."""
    answer = client.post(CHAT, headers=guest.headers, json=body(**more))
    assert answer.status_code == 200
    guest.at_rest()
    return int(guest.row(answer.headers["x-request-id"])["cost"])


# models


def test_the_official_client_lists_models_with_prices(guest: Guest):
    client = guest.openai()
    listed = {model.id: model for model in client.models.list()}
    assert {SMALL, LARGE} <= listed.keys()
    small = listed[SMALL]
    assert PRICES.items() <= small.pricing.items()
    assert (small.currency, small.context_length, small.max_output_tokens, small.aliases) == ("CNY", 32_768, 8_192, ["gpt-3.5-turbo"])
    assert client.models.retrieve(SMALL) == small
    alias = client.models.retrieve("gpt-3.5-turbo")
    assert (alias.id, alias.root, alias.pricing) == ("gpt-3.5-turbo", SMALL, small.pricing)
    with pytest.raises(openai.NotFoundError) as refused:
        client.models.retrieve("gpt-9")
    assert refused.value.code == "model_not_found"


def test_prices_are_those_of_the_account_and_models_those_of_the_key(house: House):
    business = house.guest(tier="business", models=frozenset({SMALL}))
    (row,) = business.openai().models.list()
    assert row.pricing["prompt"] == "0.000000425", "15 % less"
    with pytest.raises(openai.NotFoundError):
        business.openai().models.retrieve(LARGE)
    house.close_clients()


# money


def test_credits_are_exact_live_and_free_of_charge(house: House, guest: Guest):
    with house.client() as client, guest.charged_nothing():
        before = get(client, guest, "/v1/credits")["data"]
    free = before.pop("free_tokens")
    assert before == {"total_credits": 10, "total_usage": 0, "available": 10, "held": 0, "credit_line": 0, "currency": "CNY"}
    assert free == {"prompt": {"available": 0, "held": 0}, "completion": {"available": 0, "held": 0}}
    with house.client() as client:
        cost = served(guest, client)
        told = get(client, guest, "/v1/credits")["data"]
        assert (nanos(told["total_usage"]), nanos(told["available"])) == (cost, 10 * UNIT - cost)
        with client.stream(
            "POST", CHAT, headers=guest.headers | {"x-sim-delay-ms": "50"}, json=body(stream=True, max_tokens=100)
        ) as stream:
            pieces = stream.iter_bytes()
            next(pieces)
            held = get(client, guest, "/v1/credits")["data"]
            assert held["held"] > 0
            assert nanos(held["total_usage"]) == cost, "what is held is not used"
            assert held["available"] == told["available"] - held["held"]
    guest.check()
    assert [row["endpoint"] for row in guest.rows()] == ["chat.completions"] * 2, "no rows of questions"


def test_a_key_knows_its_own_budget_and_use(house: House):
    guest = house.guest(budget_nanos=UNIT, budget_period=Period.DAY)
    with house.client() as client:
        fresh = get(client, guest, "/v1/key")["data"]
        assert (fresh["limit"], fresh["limit_remaining"], fresh["limit_reset"], fresh["usage"]) == (1, 1, "daily", 0)
        cost = served(guest, client)
        told = until(lambda: (key := get(client, guest, "/v1/key")["data"])["usage"] and key, "the use of the key")
    assert {nanos(told[name]) for name in ("usage", "usage_daily", "usage_weekly", "usage_monthly")} == {cost}
    assert nanos(told["limit_remaining"]) == UNIT - cost
    assert (told["label"], told["is_free_tier"], told["rate_limit"]["requests"]) == ("test", False, -1)
    assert guest.secret not in str(told)
    guest.check()


def test_the_dashboard_that_old_tools_read(house: House, guest: Guest):
    today = datetime.now(UTC).date()

    def usage(first: date, last: date) -> int:
        told = get(client, guest, f"{DASHBOARD}/usage?start_date={first}&end_date={last}")
        assert told["total_usage"] == sum(day["line_items"][0]["cost"] for day in told["daily_costs"])
        return nanos(told["total_usage"] / 100)

    with house.client() as client:
        cost = served(guest, client)
        tomorrow = today + timedelta(days=1)
        assert until(lambda: usage(today.replace(day=1), tomorrow), "what this month has cost") == cost
        assert usage(today - timedelta(days=99), today) == 0, "the last day is not included"
        plan = until(lambda: (told := get(client, guest, f"{DASHBOARD}/subscription"))["hard_limit_usd"] == 10 and told, "the plan")
    assert (plan["object"], plan["has_payment_method"], plan["access_until"]) == ("billing_subscription", True, 0)
    guest.check()


def test_who_may_ask(house: House, guest: Guest):
    with house.client() as client, guest.charged_nothing():
        for path in ("/v1/key", "/v1/credits", f"{DASHBOARD}/subscription", f"{DASHBOARD}/usage"):
            error_of(client.get(path), 401, "invalid_api_key")
            assert client.post(path, headers=guest.headers, json={}).status_code == 405
        error_of(client.get("/v1/credits?x=1", headers=guest.headers), 400, "unexpected_query")
        error_of(client.get(f"{DASHBOARD}/usage?start_date=now&end_date=then", headers=guest.headers), 400, "invalid_query")
        house.run(house.stores.registry.revoke(guest.key_id, actor="test"))
        error_of(client.get("/v1/credits", headers=guest.headers), 401, "invalid_api_key")


# with answers


def test_the_cost_of_a_stream_is_in_the_last_usage_for_those_who_asked(guest: Guest):
    ask: dict[str, Any] = {"model": SMALL, "messages": [{"role": "user", "content": "hello"}], "max_tokens": 20, "stream": True}
    stream = guest.openai().chat.completions.create(**ask, stream_options={"include_usage": True})
    usage = list(stream)[-1].usage
    row = guest.row(stream.response.headers["x-request-id"])
    assert round(usage.cost * UNIT) == row["cost"] == usage.prompt_tokens * NANOS_IN + usage.completion_tokens * NANOS_OUT
    assert all(chunk.usage is None for chunk in guest.openai().chat.completions.create(**ask))
    guest.check()


def test_the_cost_of_a_whole_answer_is_in_a_header(house: House, guest: Guest):
    with house.client() as client:
        answer = client.post(CHAT, headers=guest.headers, json=body())
    assert "cost" not in answer.json()["usage"]
    assert Decimal(answer.headers["x-request-cost"]) * UNIT == guest.row(answer.headers["x-request-id"])["cost"]
    guest.check()


def test_limits_are_told_with_answers(house: House):
    guest = house.guest(tier="default")
    with house.client() as client:
        told = [client.post(CHAT, headers=guest.headers, json=body(stream=stream)) for stream in (False, True)]
    names = [f"x-ratelimit-{what}-{unit}" for what in ("limit", "remaining", "reset") for unit in ("requests", "tokens")]
    for place, answer in enumerate(told):
        assert all(name in answer.headers for name in names)
        assert answer.headers["x-ratelimit-limit-requests"] == "10"
        assert int(answer.headers["x-ratelimit-remaining-requests"]) <= 9 - place
        assert int(answer.headers["x-ratelimit-remaining-tokens"]) < 200_000
        assert answer.headers["x-ratelimit-reset-tokens"].endswith("s")
    assert events_of(told[1].content)[-1] == "[DONE]"
    guest.check()
