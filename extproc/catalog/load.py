"""``models.yaml`` → :class:`~extproc.catalog.model.Catalog`. Strict: one fault anywhere refuses the whole file, and all are reported.

Amounts and factors are quoted decimals; an unquoted 1.50 is a float by the time that anybody sees it, and is refused.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import Any

from extproc.catalog.dated import effective_ms, over_time
from extproc.catalog.model import (
    CHARGEABLE,
    CHAT_COMPLETIONS,
    COMPLETIONS,
    FREE,
    SANDBOX_TOKENS_PER_DAY,
    WITH_MESSAGES,
    WITHOUT_OUTPUT,
    Catalog,
    Model,
    Tariff,
    Tier,
)
from extproc.catalog.prices import METHODS, Sale, factor, minimum_charge, off_peak, tariffs
from extproc.errors import ConfigError, Fault
from extproc.money.hold import Limits
from extproc.money.price import FACTOR_ONE, PER_TOKEN
from extproc.yamlfile import BYTES_MAX, Cursor, Node, parse, refusal

CHAT_TEMPLATES = ("chatml", "chatml-default-system", "chatml-think", "qwen3.5", "llama3", "gpt", "deepseek-v3", "deepseek-v3.1", "none")
USAGE_MODES = ("inject", "continuous", "forced", "counted")
STICKY = ("none", "account", "prefix")
IMAGE_FORMULAS = ("qwen2-vl", "qwen3-vl")
UPSTREAM = "upstream"  # the tokenizer of a model that has no vocabulary here

TOKENS_MAX = 100_000_000  # ten times the longest context that anybody offers
LIMIT_MAX = 2**53 - 1  # what Lua can count exactly
MODELS_MAX = 10_000
BACKEND_PRIORITY_MAX = 2**31 - 1  # of either sign
NAME = r"[A-Za-z0-9][A-Za-z0-9._:/@+-]{0,127}"  # goes into headers and metric labels
WORD = r"[a-z0-9][a-z0-9_-]{0,31}"

_DEFAULTS: Mapping[str, Any] = {
    "endpoints": frozenset({CHAT_COMPLETIONS, COMPLETIONS}),
    "method": PER_TOKEN,
    "minimum_charge": 0,
    "off_peak": None,
    "free": False,
    "output_tokens_default": 4096,
    "priority_factor": {"standard": FACTOR_ONE},
    "usage": "inject",
    "sticky": "none",
    "sandbox": False,
    "backend_priority": {},
}
_OWN = ("aliases", "served_name", "tokenizer", "chat_template", "context_tokens", "output_tokens_max", "price", "image")
_LIMITS = ("requests_per_minute", "requests_per_hour", "tokens_per_minute", "concurrent_requests")


def load_catalog(path: Path, *, vocabularies: Collection[str] | None = None) -> Catalog:
    """Read and validate. ``vocabularies``: the tokenizers that this program has (``None``: names are not checked).

    :class:`ConfigError` with every fault.
    """
    try:
        with path.open("rb") as file:
            raw = file.read(BYTES_MAX + 1)
    except OSError as error:
        raise ConfigError((Fault(file=str(path), line=0, message=f"cannot be read: {error.strerror}"),)) from error
    return parse_catalog(raw, file=str(path), vocabularies=vocabularies)


def parse_catalog(raw: bytes, *, file: str, vocabularies: Collection[str] | None = None) -> Catalog:
    """As :func:`load_catalog`, from the contents of a file."""
    top = Cursor(parse(raw, file=file))
    members = top.members(["version", "currency", "tiers", "defaults", "models"], required=["version", "currency", "tiers", "models"])
    version = members.get("version")
    if version is not None and version.node.value != 1:
        version.fault("this program reads version 1")
    currency = members["currency"].text("", pattern=r"[A-Z]{3}", what="a currency such as CNY (ISO 4217)") if "currency" in members else ""
    tiers = _tiers(members["tiers"]) if "tiers" in members else {}
    sold = {priority for tier in tiers.values() for one in (tier, *tier.later) for priority in one.priorities}
    reading = _Reading(sold, vocabularies)
    defaults = dict(_DEFAULTS) | (reading.shared(members["defaults"]) if "defaults" in members else {})
    models = _models(members["models"], reading, defaults) if "models" in members else {}
    if top.faults:
        raise refusal(top.faults)
    return Catalog(version=sha256(raw).hexdigest(), currency=currency, tiers=tiers, default_tier=next(iter(tiers)), models=models)


def _tiers(at: Cursor) -> dict[str, Tier]:
    tiers = {name: _tier(name, entry) for name, entry in at.entries().items()}
    if isinstance(at.node.value, dict) and not tiers:
        at.fault("at least one tier is needed: the first is that of a new account")
    return tiers


def _tier(name: str, at: Cursor) -> Tier:
    """As it is since ever, with what it becomes later."""
    _check_name(at, name, WORD)
    first, *later = over_time(at, lambda one, dated: _tier_of(name, one, dated), "tier") or (Tier(name=name, limits=Limits()),)
    return replace(first, later=tuple(later))


def _tier_of(name: str, at: Cursor, dated: tuple[str, ...]) -> Tier:
    members = at.members(["limits", "price_factor", "priorities", "sandbox_tokens_per_day", *dated], required=dated)
    return Tier(
        name=name,
        effective_ms=effective_ms(at) if dated else 0,
        limits=_limits(members["limits"]) if "limits" in members else Limits(),
        price_factor=factor(members["price_factor"]) if "price_factor" in members else FACTOR_ONE,
        priorities=_priorities(members["priorities"]) if "priorities" in members else frozenset({"standard"}),
        sandbox_tokens_per_day=_limit(members["sandbox_tokens_per_day"]) if "sandbox_tokens_per_day" in members else SANDBOX_TOKENS_PER_DAY,
    )


def _priorities(at: Cursor) -> frozenset[str]:
    priorities = frozenset(at.texts(pattern=WORD, what="the name of a priority"))
    if not priorities:
        at.fault("at least one priority is needed")
    return priorities


def _limits(at: Cursor) -> Limits:
    found = at.members(_LIMITS)
    return Limits(**{key: _limit(member) for key, member in found.items()})


def _limit(at: Cursor) -> int | None:
    return None if at.is_null else at.integer(None, low=1, high=LIMIT_MAX)


def _check_name(at: Cursor, name: str, pattern: str) -> None:
    Cursor(Node(value=name, file=at.node.file, line=at.node.line), at.name, at.faults).text(
        "", pattern=pattern, what=f"a name as it must be ({pattern})"
    )


def _models(at: Cursor, reading: _Reading, defaults: Mapping[str, Any]) -> dict[str, Model]:
    """Every model under its name, and under each alias; no name may mean two."""
    entries = at.entries()
    if isinstance(at.node.value, dict) and not 0 < len(entries) <= MODELS_MAX:
        at.fault(f"1 to {MODELS_MAX} models are needed, here are {len(entries)}")
        return {}
    found = {name: reading.model(name, entry, defaults) for name, entry in entries.items()}
    for model in list(found.values()):
        for alias in model.aliases:
            other = found.setdefault(alias, model)
            if other is not model or alias == model.name:
                entry = entries[model.name]
                entry.fault(f"alias {alias!r} is a name of model {other.name} already", line=_line(entry, "aliases"))
    return found


def _line(at: Cursor, key: str) -> int:
    node = at.node.get(key)
    return at.node.line if node is None else node.line


class _Reading:
    """What reading a model needs to know of the rest: the priorities that any tier may ask for, and the vocabularies of the program."""

    def __init__(self, priorities: Collection[str], vocabularies: Collection[str] | None) -> None:
        self._priorities = priorities
        self._tokenizers = None if vocabularies is None else (*sorted(vocabularies), UPSTREAM)

    def shared(self, at: Cursor) -> dict[str, Any]:
        """Section ``defaults``."""
        return self._values(at.members(tuple(_DEFAULTS)))

    def _values(self, members: Mapping[str, Cursor]) -> dict[str, Any]:
        readers: Mapping[str, Callable[[Cursor], Any]] = {
            "endpoints": _endpoints,
            "method": lambda at: at.text("", choices=METHODS),
            "minimum_charge": minimum_charge,
            "off_peak": off_peak,
            "free": lambda at: at.boolean(default=False),
            "output_tokens_default": lambda at: at.integer(1, low=1, high=TOKENS_MAX),
            "priority_factor": self._priority_factors,
            "usage": lambda at: at.text("inject", choices=USAGE_MODES),
            "sticky": lambda at: at.text("none", choices=STICKY),
            "sandbox": lambda at: at.boolean(default=False),
            "backend_priority": self._backend_priorities,
        }
        return {key: reader(members[key]) for key, reader in readers.items() if key in members}

    def _priority_factors(self, at: Cursor) -> dict[str, int]:
        found = {}
        for name, entry in at.entries().items():
            if name not in self._priorities:
                entry.fault(f"no tier may ask for priority {name!r}; add it to `priorities` of one, or leave it out here")
            found[name] = factor(entry)
        if isinstance(at.node.value, dict) and not found:
            at.fault("at least one priority must be sold")
        return found

    def _backend_priorities(self, at: Cursor) -> dict[str, int]:
        found = {}
        for name, entry in at.entries().items():
            if name not in self._priorities:
                entry.fault(f"no tier may ask for priority {name!r}")
            found[name] = entry.integer(0, low=-BACKEND_PRIORITY_MAX, high=BACKEND_PRIORITY_MAX)
        return found

    def model(self, name: str, at: Cursor, defaults: Mapping[str, Any]) -> Model:
        _check_name(at, name, NAME)
        members = at.members((*_DEFAULTS, *_OWN), required=("tokenizer", "context_tokens"))
        values = dict(defaults) | self._values(members)
        endpoints: frozenset[str] = values["endpoints"]
        context = members["context_tokens"].integer(TOKENS_MAX, low=1, high=TOKENS_MAX) if "context_tokens" in members else TOKENS_MAX
        output_max = _output_tokens_max(at, members, context, endpoints)
        if "output_tokens_default" in members and values["output_tokens_default"] > output_max > 0:
            members["output_tokens_default"].fault(f"is above output_tokens_max ({output_max})")
        sale = Sale(
            method=values["method"],
            endpoints=endpoints,
            has_images="image" in members,
            context_tokens=context,
            minimum_nanos=values["minimum_charge"],
        )
        image_formula, image_tokens_max = _image(members.get("image"))
        tokenizer = members["tokenizer"].text(UPSTREAM, choices=self._tokenizers or ()) if "tokenizer" in members else UPSTREAM
        if tokenizer == UPSTREAM and values["usage"] == "counted":
            at.fault("usage: counted needs a tokenizer, not upstream", line=_line(at, "usage"))
        return Model(
            name=name,
            aliases=_aliases(members.get("aliases")),
            served_name=members["served_name"].text(name, pattern=r"[!-~]{1,256}", what="a model name")
            if "served_name" in members
            else name,
            endpoints=endpoints,
            tokenizer=tokenizer,
            chat_template=_chat_template(at, members, local_chat=tokenizer != UPSTREAM and bool(endpoints & WITH_MESSAGES)),
            context_tokens=context,
            output_tokens_max=output_max,
            output_tokens_default=min(values["output_tokens_default"], output_max),
            free=values["free"],
            tariffs=_tariffs(at, members, sale, free=values["free"]),
            off_peak=None if values["free"] else values["off_peak"],
            priority_factors=values["priority_factor"],
            usage=values["usage"],
            sticky=values["sticky"],
            sandbox=values["sandbox"],
            backend_priority=values["backend_priority"],
            image_formula=image_formula,
            image_tokens_max=image_tokens_max,
        )


def _endpoints(at: Cursor) -> frozenset[str]:
    found = frozenset(at.texts(choices=tuple(CHARGEABLE)))
    if at.node.value == []:
        at.fault("at least one endpoint is needed")
    return found or frozenset({CHAT_COMPLETIONS})


def _aliases(at: Cursor | None) -> tuple[str, ...]:
    return at.texts(pattern=NAME, what="a model name") if at is not None else ()


def _chat_template(at: Cursor, members: Mapping[str, Cursor], *, local_chat: bool) -> str:
    if "chat_template" in members:
        return members["chat_template"].text("none", choices=CHAT_TEMPLATES)
    if local_chat:
        at.fault(f"chat_template is missing: prompts are counted with it ({', '.join(CHAT_TEMPLATES)})")
    return "none"


def _output_tokens_max(at: Cursor, members: Mapping[str, Cursor], context: int, endpoints: frozenset[str]) -> int:
    member = members.get("output_tokens_max")
    if endpoints <= WITHOUT_OUTPUT:
        if member is not None:
            member.fault(f"no endpoint of this model ({', '.join(sorted(endpoints))}) has output")
        return 0
    if member is None:
        at.fault("output_tokens_max is missing: it is what holds are sized by")
        return context
    output_max = member.integer(1, low=1, high=TOKENS_MAX)
    if output_max > context:
        member.fault(f"is above context_tokens ({context})")
    return output_max


def _tariffs(at: Cursor, members: Mapping[str, Cursor], sale: Sale, *, free: bool) -> tuple[Tariff, ...]:
    """What it costs, and when."""
    price = members.get("price")
    if free:
        for key in ("price", "minimum_charge", "off_peak"):
            if key in members:
                members[key].fault(f"a model with `free: true` has no {key}; leave one of both out")
        return (FREE,)
    if price is None:
        at.fault("price is missing; a model that costs nothing says `free: true`")
        return (FREE,)
    return tariffs(price, sale) if sale.method else (FREE,)  # of an unknown method nobody knows what its price looks like


def _image(at: Cursor | None) -> tuple[str, int]:
    if at is None:
        return "", 0
    members = at.members(("formula", "tokens_max"), required=("formula", "tokens_max"))
    formula = members["formula"].text("", choices=IMAGE_FORMULAS) if "formula" in members else ""
    return formula, members["tokens_max"].integer(0, low=1, high=TOKENS_MAX) if "tokens_max" in members else 0
