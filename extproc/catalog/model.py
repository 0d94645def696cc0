"""The catalog as values. A request pins one :class:`Catalog` at its headers and keeps it to its end, whatever is reloaded meanwhile."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from extproc.money.hold import Limits
from extproc.money.price import FACTOR_ONE, Factor, Price

CHAT_COMPLETIONS = "chat.completions"
COMPLETIONS = "completions"
EMBEDDINGS = "embeddings"
SANDBOX_TOKENS_PER_DAY = 100_000  # enough to try everything, too little to work with


@dataclass(frozen=True, slots=True, kw_only=True)
class Tier:
    """A customer group. ``price_factor`` in millionths; ``priorities`` = what ``X-Priority`` may ask for.

    ``sandbox_tokens_per_day``: what all sandbox keys of one account may use together; ``None`` = unlimited.
    """

    name: str
    limits: Limits
    price_factor: int = FACTOR_ONE
    priorities: frozenset[str] = frozenset({"standard"})
    sandbox_tokens_per_day: int | None = SANDBOX_TOKENS_PER_DAY


@dataclass(frozen=True, slots=True, kw_only=True)
class Model:
    """One sellable model. Rates in nanos per 1,000,000 tokens; ``priority_factors`` in millionths, a missing priority is not sold."""

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
    input_rate: int
    cached_input_rate: int
    output_rate: int
    priority_factors: Mapping[str, int]
    usage: str = "inject"  # inject | continuous | forced | counted
    sticky: str = "none"  # none | account | prefix
    method: str = "per_token"
    sandbox: bool = False  # sandbox keys may use it
    image_formula: str = ""  # "" = takes no images
    image_tokens_max: int = 0  # what an image by URL is held at


@dataclass(frozen=True, slots=True, kw_only=True)
class Catalog:
    """A validated snapshot. ``models`` is keyed by name and by alias; ``version`` is the hash of the file's contents."""

    version: str
    currency: str
    tiers: Mapping[str, Tier]
    default_tier: str
    models: Mapping[str, Model]
    _prices: dict[tuple[str, str, str], Price] = field(default_factory=dict, init=False, repr=False, compare=False)
    _free: frozenset[str] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        assert self.default_tier in self.tiers
        object.__setattr__(self, "_free", frozenset(model.name for model in self.models.values() if model.free))

    @property
    def free_models(self) -> frozenset[str]:
        """Names of the models that cost nothing."""
        return self._free

    def tier(self, name: str) -> Tier:
        """The tier of an account; one that the catalog no longer has falls back to the default tier, never to no limits."""
        return self.tiers.get(name) or self.tiers[self.default_tier]

    def price(self, model: Model, *, priority: str, tier: Tier) -> Price:
        """The resolved price; remembered per snapshot (bounded by models × priorities × tiers). The priority must be sold for the model."""
        key = (model.name, priority, tier.name)
        price = self._prices.get(key)
        if price is None:
            price = self._prices[key] = Price(
                model=model.name,
                priority=priority,
                tier=tier.name,
                currency=self.currency,
                input_rate=model.input_rate,
                cached_input_rate=model.cached_input_rate,
                output_rate=model.output_rate,
                factors=tuple(
                    factor
                    for factor in (
                        Factor(name=f"priority {priority}", millionths=model.priority_factors[priority]),
                        Factor(name=f"tier {tier.name}", millionths=tier.price_factor),
                    )
                    if factor.millionths != FACTOR_ONE
                ),
            )
        return price
