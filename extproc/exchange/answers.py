"""What we answer ourselves: the models that a key may use, and what its owner has and has spent (shapes: ``docs/reference/client.md``).

Amounts are exact decimals in the currency of the catalog: JSON numbers where the shapes of others want numbers, strings in prices.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from datetime import UTC, date, datetime, timedelta
from enum import StrEnum
from typing import Any, NamedTuple
from urllib.parse import unquote

import msgspec

from extproc.accounts.model import Key, Period
from extproc.accounts.scopes import may_use
from extproc.catalog.model import Catalog, Model, Tier
from extproc.errors import ClientError
from extproc.exchange.actions import Answer
from extproc.exchange.replies import JSON_TYPE
from extproc.money.amount import format_amount, format_scaled
from extproc.money.hold import Limits
from extproc.money.price import FACTOR_DECIMALS, FACTOR_ONE, RATE_DECIMALS, Price, Rates
from extproc.money.statement import Enquiry, Purse, Statement

MODEL_CHARS_MAX = 256  # names in the catalog are shorter
DAYS_MAX = 1_000  # of one enquiry: a row of the ledger each, and each key
DAY = timedelta(days=1)
CENTS = 100  # of a unit: what OpenAI's dashboard counted in

Members = dict[str, Any]


class Topic(StrEnum):
    """What may be asked."""

    MODELS = "models"
    MODEL = "model"
    KEY = "key"
    CREDITS = "credits"
    SUBSCRIPTION = "subscription"
    USAGE = "usage"


class Question(NamedTuple):
    """``model``: the name in the path, if one is asked for. ``days``: the query, if there was one."""

    topic: Topic
    model: str = ""
    days: tuple[date, date] | None = None

    @property
    def is_about_models(self) -> bool:
        """The catalog answers it; about money, the stores have to be asked."""
        return self.topic in (Topic.MODELS, Topic.MODEL)


MODEL_PREFIX = "/v1/models/"
TOPICS: Mapping[str, Topic] = {
    "/v1/models": Topic.MODELS,
    "/v1/key": Topic.KEY,
    "/v1/credits": Topic.CREDITS,
    "/v1/dashboard/billing/subscription": Topic.SUBSCRIPTION,
    "/v1/dashboard/billing/usage": Topic.USAGE,
}


def topic_of(path: str) -> Topic | None:
    """``None``: none of ours."""
    return Topic.MODEL if path.startswith(MODEL_PREFIX) and len(path) > len(MODEL_PREFIX) else TOPICS.get(path)


def question_of(topic: Topic, path: str, query: str) -> Question:
    """What is asked in full. :class:`ClientError` for a query that means nothing here: it is better said than overlooked."""
    if query and topic is not Topic.USAGE:
        raise ClientError(f"{path[:128]} takes no query.", code="unexpected_query")
    if topic is Topic.MODEL:
        return Question(topic, model=unquote(path.removeprefix(MODEL_PREFIX))[:MODEL_CHARS_MAX])
    return Question(topic, days=_days_of(query) if query else None)


_DAY = re.compile(r"(start_date|end_date)=(\d{4}-\d{2}-\d{2})", re.ASCII)


def _days_of(query: str) -> tuple[date, date]:
    found = {}
    for part in query.split("&"):
        match = _DAY.fullmatch(part)
        if match is None or match[1] in found:
            raise ClientError("The query is `start_date=YYYY-MM-DD&end_date=YYYY-MM-DD`.", code="invalid_query")
        try:
            found[match[1]] = date.fromisoformat(match[2])
        except ValueError:
            raise ClientError(f"{match[2]} is no day.", code="invalid_query", param=match[1]) from None
    if len(found) < 2:
        raise ClientError("Give both `start_date` and `end_date`, or neither.", code="invalid_query")
    since, until = found["start_date"], found["end_date"]
    if not DAY <= until - since <= DAYS_MAX * DAY:
        words = f"`end_date`, which is not included, is 1 to {DAYS_MAX} days after `start_date`."
        raise ClientError(words, code="invalid_query", param="end_date")
    return since, until


# about models


def about_models(question: Question, catalog: Catalog, tier: Tier, key: Key | None, *, at_ms: int, request_id: str) -> Answer:
    """All models that a key may use (without a key: all), or one of them by name or alias; 404 for any other."""
    factor = key.price_factor if key else FACTOR_ONE

    def row(name: str, model: Model) -> Members:
        prices = {
            priority: catalog.price(model, priority=priority, tier=tier, at_ms=at_ms, account_factor=factor)
            for priority in _priorities(tier, model)
        }
        return {"id": name, **_of_model(model), "currency": catalog.currency, **_pricing(prices)}

    if question.topic is Topic.MODELS:
        rows = [row(name, model) for name, model in catalog.models.items() if name == model.name and _may_use(key, tier, model)]
        return _answer({"object": "list", "data": rows}, request_id)
    model = catalog.models.get(question.model)
    if model is None or not _may_use(key, tier, model):
        raise ClientError(
            f"The model {question.model[:64]!r} does not exist here, or this API key may not use it.",
            status=404, param="model", code="model_not_found",
        )  # fmt: skip
    return _answer(row(question.model, model), request_id)


def _may_use(key: Key | None, tier: Tier, model: Model) -> bool:
    return bool(_priorities(tier, model)) and (key is None or may_use(key, model.name, open_to_sandbox=model.sandbox))


def _priorities(tier: Tier, model: Model) -> list[str]:
    """At which this account may ask for this model, the usual one first."""
    return sorted(tier.priorities & model.priority_factors.keys(), key=lambda name: (name != "standard", name))


def _of_model(model: Model) -> Members:
    return {
        "object": "model",
        "created": 0,
        "owned_by": "extproc",
        "root": model.name,
        "aliases": list(model.aliases),
        "endpoints": sorted(model.endpoints),
        "context_length": model.context_tokens,
        "max_output_tokens": model.output_tokens_max,
        "top_provider": {"context_length": model.context_tokens, "max_completion_tokens": model.output_tokens_max},
    }


def _pricing(prices: Mapping[str, Price]) -> Members:
    """By priority, the usual one first."""
    price, *_ = prices.values()
    told: Members = {"pricing": pricing(price)}
    if price.bands:
        told["pricing_above"] = [{"prompt_tokens": band.above_tokens, "pricing": pricing(price, band.rates)} for band in price.bands]
    others = {priority: pricing(other) for priority, other in prices.items() if other is not price}
    if others:
        told["pricing_at_priority"] = others
    return told


UNITS: Mapping[str, tuple[str, int]] = {
    "input": ("prompt", 1),
    "output": ("completion", 1),
    "calls": ("request", 1),
    "images": ("image", 1),
    "image_tokens": ("image_token", 1),
    "audio_tokens": ("audio", 1),
    "audio_ms": ("audio_second", 1_000),
    "reasoning": ("internal_reasoning", 1),
    "cached_input": ("input_cache_read", 1),
    "cache_creation": ("input_cache_write", 1),
    "input_characters": ("input_character", 1),
    "output_characters": ("output_character", 1),
    "input_words": ("input_word", 1),
    "output_words": ("output_word", 1),
}
"""Units of a price (``money.price.UNITS``): their names in OpenRouter's shape, or in its manner; and how many of ours one of theirs is."""


def pricing(price: Price, rates: Rates | None = None) -> dict[str, str]:
    """What one of each unit costs, with all factors. Units without a rate of their own are left out, but for prompt and completion."""
    times, decimals = 1, FACTOR_DECIMALS + RATE_DECIMALS  # nanos per million units → currency per unit
    for factor in price.factors:
        times *= factor.millionths
        decimals += FACTOR_DECIMALS
    rates = rates or price.rates
    told = {"prompt": "0", "completion": "0"}
    for unit, rate in rates.spec().items():
        name, each = UNITS[unit]
        told[name] = format_scaled(rate * times * each, decimals=decimals)
    if price.minimum_nanos:
        told["minimum"] = format_scaled(price.minimum_nanos, decimals=RATE_DECIMALS)
    return told


# about money


def enquiry(question: Question, key: Key, *, unix_ms: int) -> Enquiry:
    """What the stores have to be asked. What a dashboard shows is of the key if it has a budget of its own, else of its account."""
    today = _today(unix_ms)
    month, week = today.replace(day=1), today - today.weekday() * DAY
    spans = {Topic.KEY: (min(month, week), today + DAY), Topic.CREDITS: (today, today)}
    since, until = question.days or spans.get(question.topic, (month, today + DAY))
    of_account = question.topic is not Topic.KEY and key.budget_nanos is None
    return Enquiry(payer_id=key.payer_id, key_id=key.id, of_account=of_account, since=since, until=until)


def about_money(question: Question, key: Key, tier: Tier, statement: Statement, *, currency: str, unix_ms: int, request_id: str) -> Answer:
    """The answer, once the stores have told what it is made of."""
    today = _today(unix_ms)
    match question.topic:
        case Topic.KEY:
            body: Members = {"data": _key(key, tier, statement, today) | {"currency": currency}}
        case Topic.CREDITS:
            body = {"data": _credits(statement) | {"currency": currency}}
        case Topic.SUBSCRIPTION:
            body = _subscription(key, tier, statement, today) | {"currency": currency}
        case _:
            body = _usage(statement)
    return _answer(body, request_id)


def _key(key: Key, tier: Tier, statement: Statement, today: date) -> Members:
    spent, left = statement.spent, _budget_left(key, statement)
    return {
        "label": key.name,
        "limit": None if key.budget_nanos is None else _number(key.budget_nanos),
        "limit_remaining": None if left is None else _number(left),
        "limit_reset": {Period.DAY: "daily", Period.MONTH: "monthly"}.get(key.budget_period) if key.budget_nanos is not None else None,
        "usage": _number(spent.key_nanos),
        "usage_daily": _number(spent.since(today)),
        "usage_weekly": _number(spent.since(today - today.weekday() * DAY)),
        "usage_monthly": _number(spent.since(today.replace(day=1))),
        "include_byok_in_limit": False,
        "byok_usage": 0,
        "byok_usage_daily": 0,
        "byok_usage_weekly": 0,
        "byok_usage_monthly": 0,
        "is_free_tier": spent.credits_nanos <= 0 and not statement.purse.credit_nanos,
        "is_management_key": False,
        "is_provisioning_key": False,
        "expires_at": _moment(key.expires_ms) if key.expires_ms else None,
        "rate_limit": _rate_limit((tier.limits, key.limits)),
        "free_tokens": _free_tokens(statement.purse),
    }


def _credits(statement: Statement) -> Members:
    return {
        "total_credits": _number(statement.spent.credits_nanos),
        "total_usage": _number(statement.used_nanos),
        "available": _number(statement.available_nanos),
        "held": _number(statement.purse.held_nanos),
        "credit_line": _number(statement.purse.credit_nanos),
        "free_tokens": _free_tokens(statement.purse),
    }


def _free_tokens(purse: Purse) -> Members:
    """Of the account's quota, in tokens: what the next request can use, and what those in flight hold. Named as units of a price are."""
    both = zip(("prompt", "completion"), purse.free.both, purse.held_free.both, strict=True)
    return {name: {"available": free, "held": held} for name, free, held in both}


def _subscription(key: Key, tier: Tier, statement: Statement, today: date) -> Members:
    """A plan of a calendar month: what is left, and what the month has cost already. So limit − usage of the month is what is left."""
    left, budget = max(0, statement.balance_nanos + statement.purse.credit_nanos), _budget_left(key, statement)
    limit = _number((left if budget is None else min(left, budget)) + statement.spent.since(today.replace(day=1)))
    return {
        "object": "billing_subscription",
        "has_payment_method": True,
        "soft_limit_usd": limit,
        "hard_limit_usd": limit,
        "system_hard_limit_usd": limit,
        "access_until": key.expires_ms // 1_000,
        "plan": {"id": tier.name, "title": tier.name},
    }


def _usage(statement: Statement) -> Members:
    days = statement.spent.days
    return {
        "object": "list",
        "daily_costs": [
            {"timestamp": _unix_s(day), "line_items": [{"name": "All models", "cost": _number(nanos * CENTS)}]} for day, nanos in days
        ],
        "total_usage": _number(sum(nanos for _, nanos in days) * CENTS),
    }


def _budget_left(key: Key, statement: Statement) -> int | None:
    """``None``: no limit of its own. By the hold store, which may have heard of a budget a moment before or after us."""
    used = statement.purse.budget_used_nanos
    return None if key.budget_nanos is None else max(0, key.budget_nanos - (used or 0))


def _rate_limit(all_limits: Iterable[Limits]) -> Members:
    """Requests a minute, -1 = unlimited."""
    minutes = [limits.requests_per_minute for limits in all_limits if limits.requests_per_minute is not None]
    return {"requests": min(minutes, default=-1), "interval": "1m", "note": "Requests a minute; answers tell more in x-ratelimit-…"}


# what they have in common


def _answer(body: Members, request_id: str) -> Answer:
    headers = (JSON_TYPE, ("x-request-id", request_id)) if request_id else (JSON_TYPE,)
    return Answer(status=200, body=msgspec.json.encode(body), headers=headers)


def _number(nanos: int) -> msgspec.Raw:
    """An exact JSON number, in units of the currency."""
    return msgspec.Raw(format_amount(nanos).encode())


def _today(unix_ms: int) -> date:
    return datetime.fromtimestamp(unix_ms // 1_000, UTC).date()


def _unix_s(day: date) -> int:
    return int(datetime(day.year, day.month, day.day, tzinfo=UTC).timestamp())


def _moment(unix_ms: int) -> str:
    return datetime.fromtimestamp(unix_ms // 1_000, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
