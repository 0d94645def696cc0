"""The catalog as values. A request pins one :class:`Catalog` at its headers and keeps it to its end, whatever is reloaded meanwhile."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, tzinfo
from typing import TypeVar

from extproc.money.hold import Limits
from extproc.money.price import FACTOR_ONE, PER_TOKEN, Band, Factor, Price, Rates

CHAT_COMPLETIONS = "chat.completions"
COMPLETIONS = "completions"
RESPONSES = "responses"
MESSAGES = "messages"
EMBEDDINGS = "embeddings"
RERANK = "rerank"
SCORE = "score"
TRANSCRIPTIONS = "transcriptions"

_PROMPT = frozenset({"calls", "input", "cached_input", "input_characters", "input_words"})
_TEXT = _PROMPT | {"cache_creation", "output", "reasoning", "output_characters", "output_words"}
_SEEN = _TEXT | {"images", "image_tokens"}
CHARGEABLE: Mapping[str, frozenset[str]] = {
    CHAT_COMPLETIONS: _SEEN | {"audio_tokens"},
    COMPLETIONS: _TEXT,
    RESPONSES: _SEEN | {"audio_tokens"},
    MESSAGES: _SEEN,
    EMBEDDINGS: _PROMPT,
    RERANK: _PROMPT,
    SCORE: _PROMPT,
    TRANSCRIPTIONS: frozenset({"calls", "audio_ms"}),
}
"""Every endpoint with the units (``money.price.UNITS``) that a request to it can be charged for. Of sound its seconds alone: nothing else
can be held for, and most answers tell nothing else.
"""
WITHOUT_OUTPUT = frozenset(endpoint for endpoint, units in CHARGEABLE.items() if "output" not in units)
WITH_MESSAGES = frozenset({CHAT_COMPLETIONS, RESPONSES, MESSAGES})  # a chat template is laid around the prompt

PRICES_MAX = 4_096  # resolved and remembered: models × priorities × tiers × the factors of accounts
SANDBOX_TOKENS_PER_DAY = 100_000  # enough to try everything, too little to work with


@dataclass(frozen=True, slots=True, kw_only=True)
class Tier:
    """A customer group. ``price_factor`` in millionths; ``priorities`` = what ``X-Priority`` may ask for.

    ``sandbox_tokens_per_day``: what all sandbox keys of one account may use together; ``None`` = unlimited.
    ``later``: what it becomes, each from its ``effective_ms`` (unix) on, in their order.
    """

    name: str
    limits: Limits
    price_factor: int = FACTOR_ONE
    priorities: frozenset[str] = frozenset({"standard"})
    sandbox_tokens_per_day: int | None = SANDBOX_TOKENS_PER_DAY
    effective_ms: int = 0
    later: tuple[Tier, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Tariff:
    """What a model costs from ``effective_ms`` (unix) on, before factors; ``method`` as the file names it."""

    effective_ms: int = 0
    method: str = PER_TOKEN
    rates: Rates
    bands: tuple[Band, ...] = ()
    minimum_nanos: int = 0


FREE = Tariff(rates=Rates())


One = TypeVar("One", Tier, Tariff)


@dataclass(frozen=True, slots=True, kw_only=True)
class OffPeak:
    """A factor (millionths) for every day from ``begin_minute`` to ``end_minute`` of a zone's clock; a night reaches over midnight."""

    zone: tzinfo
    begin_minute: int
    end_minute: int
    factor: int
    name: str  # as it stands in the price: ``off-peak 00:30-08:30 Asia/Shanghai``

    def covers(self, at_ms: int) -> bool:
        """Whether it is so late, or so early."""
        clock = datetime.fromtimestamp(at_ms // 1_000, UTC).astimezone(self.zone)
        minute = clock.hour * 60 + clock.minute
        if self.begin_minute <= self.end_minute:
            return self.begin_minute <= minute < self.end_minute
        return minute >= self.begin_minute or minute < self.end_minute


@dataclass(frozen=True, slots=True, kw_only=True)
class Model:
    """One sellable model. ``priority_factors`` in millionths, a missing priority is not sold.

    ``tariffs``: the first is in force since ever, others from a moment on, in their order. A free model has :data:`FREE` alone.
    """

    name: str
    aliases: tuple[str, ...] = ()
    served_name: str  # what the backend calls it
    endpoints: frozenset[str]
    tokenizer: str
    chat_template: str
    context_tokens: int
    output_tokens_max: int
    output_tokens_default: int
    free: bool
    tariffs: tuple[Tariff, ...]
    off_peak: OffPeak | None = None
    priority_factors: Mapping[str, int]
    usage: str = "inject"  # inject | continuous | forced | counted
    sticky: str = "none"  # none | account | prefix
    sandbox: bool = False  # sandbox keys may use it
    image_formula: str = ""  # "" = takes no images
    image_tokens_max: int = 0  # what an image by URL is held at
    backend_priority: Mapping[str, int] = field(default_factory=dict)  # what backends are told of a priority; lower is earlier

    def tariff(self, at_ms: int) -> Tariff:
        """The one in force."""
        return _in_force(self.tariffs, at_ms)


@dataclass(frozen=True, slots=True, kw_only=True)
class Catalog:
    """A validated snapshot. ``models`` is keyed by name and by alias; ``version`` is the hash of the file's contents."""

    version: str
    currency: str
    tiers: Mapping[str, Tier]
    default_tier: str
    models: Mapping[str, Model]
    _prices: dict[tuple[str, str, str, int, int, str, int], Price] = field(default_factory=dict, init=False, repr=False, compare=False)
    _free: frozenset[str] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        assert self.default_tier in self.tiers
        object.__setattr__(self, "_free", frozenset(model.name for model in self.models.values() if model.free))

    @property
    def free_models(self) -> frozenset[str]:
        """Names of the models that cost nothing."""
        return self._free

    def tier(self, name: str, *, at_ms: int) -> Tier:
        """The tier of an account at a moment; one that the catalog no longer has falls back to the default tier, never to no limits."""
        tier = self.tiers.get(name) or self.tiers[self.default_tier]
        return _in_force((tier, *tier.later), at_ms) if tier.later else tier

    def price(self, model: Model, *, priority: str, tier: Tier, at_ms: int, account_factor: int = FACTOR_ONE) -> Price:
        """The resolved price at a moment (unix ms); remembered per snapshot. The priority must be sold for the model.

        A factor of 0 waives the minimum charge, too: who pays nothing pays nothing.
        """
        tariff = model.tariff(at_ms)
        off_peak = model.off_peak if model.off_peak is not None and model.off_peak.covers(at_ms) else None
        night = off_peak.name if off_peak else ""
        key = (model.name, priority, tier.name, tier.effective_ms, tariff.effective_ms, night, account_factor)
        price = self._prices.get(key)
        if price is None:
            if len(self._prices) >= PRICES_MAX:
                self._prices.clear()
            factors = _factors(model, priority, tier, off_peak, account_factor)
            price = self._prices[key] = Price(
                model=model.name,
                priority=priority,
                tier=tier.name,
                currency=self.currency,
                rates=tariff.rates,
                bands=tariff.bands,
                factors=factors,
                minimum_nanos=tariff.minimum_nanos if all(factor.millionths for factor in factors) else 0,
                method=tariff.method,
            )
        return price


def _factors(model: Model, priority: str, tier: Tier, off_peak: OffPeak | None, account_factor: int) -> tuple[Factor, ...]:
    found = [
        Factor(name=f"priority {priority}", millionths=model.priority_factors[priority]),
        Factor(name=f"tier {tier.name}", millionths=tier.price_factor),
        Factor(name="account", millionths=account_factor),
    ]
    if off_peak is not None:
        found.append(Factor(name=off_peak.name, millionths=off_peak.factor))
    return tuple(factor for factor in found if factor.millionths != FACTOR_ONE)


def _in_force(over_time: tuple[One, ...], at_ms: int) -> One:
    """The first since ever, later ones from their moment on."""
    found = over_time[0]
    for one in over_time[1:]:
        if at_ms >= one.effective_ms:
            found = one
    return found
