"""What a model costs, as ``models.yaml`` says it: ``method`` and ``price``, ``minimum_charge``, ``off_peak``.

Each method has its shape of ``price``, each key of it prices one unit of :class:`~extproc.money.price.Rates`. A ``hybrid`` price is the sum
of several. A price of what the endpoints of a model never use is a fault, and so is an endpoint that uses nothing of what is priced.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import NamedTuple
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from extproc.catalog.dated import EFFECTIVE_AT, effective_ms, over_time
from extproc.catalog.model import CHARGEABLE, OffPeak, Tariff
from extproc.money.amount import DECIMALS, NANOS_PER_UNIT, parse_scaled
from extproc.money.price import FACTOR_DECIMALS, FACTOR_ONE, PER_RATE, PER_TOKEN, Band, Rates
from extproc.yamlfile import Cursor

MILLION_MAX = 1_000_000 * NANOS_PER_UNIT  # units of currency for a million; dearer is a slip of the decimal point
ONE_MAX = 10_000 * NANOS_PER_UNIT  # for a call, an image, a second; and of a minimum charge
FACTOR_MAX = 1_000 * FACTOR_ONE
BANDS_MAX = 16  # of long prompts; vendors have two or three
HYBRID = "hybrid"

HOURS = r"([01][0-9]|2[0-3]):[0-5][0-9]-(([01][0-9]|2[0-3]):[0-5][0-9]|24:00)"


class Part(NamedTuple):
    """What a key of ``price`` prices: a unit, of which the file prices so ``many`` at once, which is ``per`` in words."""

    unit: str
    many: int = PER_RATE
    per: str = "a million"

    @property
    def nanos_max(self) -> int:
        return MILLION_MAX if self.many == PER_RATE else ONE_MAX


SHAPES: Mapping[str, Mapping[str, Part]] = {
    PER_TOKEN: {
        "input": Part("input"),
        "cached_input": Part("cached_input"),
        "cache_creation": Part("cache_creation"),
        "image": Part("image_tokens"),
        "audio": Part("audio_tokens"),
        "output": Part("output"),
        "reasoning": Part("reasoning"),
    },
    "per_call": {"call": Part("calls", 1, "a call")},
    "per_character": {"input": Part("input_characters"), "output": Part("output_characters")},
    "per_word": {"input": Part("input_words"), "output": Part("output_words")},
    "per_image": {"image": Part("images", 1, "an image")},
    "per_second": {"second": Part("audio_ms", 1_000, "a second")},
}
METHODS = (*SHAPES, HYBRID)
OF_IMAGES = frozenset({"images", "image_tokens"})
WHOLES = ("input", "output", "call", "image", "second")  # keys that a method cannot do without, if the endpoints use them


@dataclass(frozen=True, slots=True, kw_only=True)
class Sale:
    """What else of a model its price must fit. ``has_images``: it takes images."""

    method: str
    endpoints: frozenset[str]
    has_images: bool
    context_tokens: int
    minimum_nanos: int

    @property
    def units(self) -> frozenset[str]:
        """What requests to it can use."""
        used = frozenset[str]().union(*(CHARGEABLE[endpoint] for endpoint in self.endpoints))
        return used if self.has_images else used - OF_IMAGES

    @property
    def said(self) -> str:
        return ", ".join(sorted(self.endpoints)) + ("" if self.has_images else "; no `image`")


class _Asked(NamedTuple):
    """Rates by unit, and those of bands by what they are above of."""

    rates: dict[str, int]
    bands: dict[int, dict[str, int]]


def scaled(at: Cursor, *, decimals: int, high: int, unit: str) -> int:
    """A quoted decimal as an int of ``10**-decimals``; 0 and a fault if it is none, or above ``high``."""
    text = at.text("")
    if not text:
        return 0
    try:
        value = parse_scaled(text, decimals=decimals)
    except ValueError as error:
        at.fault(str(error))
        return 0
    if value > high:
        at.fault(f"{text} is above {high // 10**decimals}{unit}: is the decimal point in its place?")
    return value


def factor(at: Cursor) -> int:
    """A multiplier in millionths."""
    return scaled(at, decimals=FACTOR_DECIMALS, high=FACTOR_MAX, unit="")


def minimum_charge(at: Cursor) -> int:
    """In nanos, of one request."""
    return scaled(at, decimals=DECIMALS, high=ONE_MAX, unit=" for a request")


def off_peak(at: Cursor) -> OffPeak | None:
    """``{time_zone, hours, factor}``; ``null``: none, where the defaults have one."""
    if at.is_null:
        return None
    keys = ("time_zone", "hours", "factor")
    members = at.members(keys, required=keys)
    zone = _zone(members["time_zone"]) if "time_zone" in members else None
    hours = members["hours"].text("", pattern=HOURS, what="a part of the day such as 00:30-08:30") if "hours" in members else ""
    millionths = factor(members["factor"]) if "factor" in members else FACTOR_ONE
    if zone is None or not hours:
        return None
    begin, end = (int(clock[:2]) * 60 + int(clock[3:]) for clock in hours.split("-"))
    if begin == end:
        members["hours"].fault(f"{hours} is no time at all; all day is 00:00-24:00")
    return OffPeak(zone=zone, begin_minute=begin, end_minute=end, factor=millionths, name=f"off-peak {hours} {zone.key}")


def _zone(at: Cursor) -> ZoneInfo | None:
    name = at.text("")
    try:
        return ZoneInfo(name) if name else None
    except (ZoneInfoNotFoundError, ValueError, OSError):  # a directory of zones, such as America, is no zone
        at.fault(f"{name!r} is no time zone such as Asia/Shanghai")
        return None


def tariffs(at: Cursor, sale: Sale) -> tuple[Tariff, ...]:
    """The price, or the prices of a list, each from its moment on. What is faulty costs nothing: nobody uses it."""
    return over_time(at, lambda one, dated: _tariff(one, sale, dated), "price") or (Tariff(rates=Rates()),)


def _tariff(at: Cursor, sale: Sale, dated: tuple[str, ...]) -> Tariff:
    if sale.method == HYBRID:
        members = at.members((*SHAPES, *dated), required=dated)
        members.pop(EFFECTIVE_AT, None)
        if isinstance(at.node.value, dict) and len(members) < 2:
            at.fault("a hybrid price has two parts at least, such as per_token and per_call")
        asked = _sum([_part(part, name, sale) for name, part in members.items()])
    else:
        asked = _part(at, sale.method, sale, dated=dated)
    if asked.rates:
        for endpoint in sorted(sale.endpoints):
            if not asked.rates.keys() & CHARGEABLE[endpoint]:
                at.fault(f"has nothing that {endpoint} uses: its requests would be free")
    return Tariff(
        effective_ms=effective_ms(at) if dated else 0,
        method=sale.method,
        rates=Rates(**asked.rates),
        bands=tuple(Band(above_tokens=above, rates=Rates(**rates)) for above, rates in asked.bands.items()),
        minimum_nanos=sale.minimum_nanos,
    )


def _sum(parts: Collection[_Asked]) -> _Asked:
    """Of a hybrid price: each unit is priced by one part; the bands of tokens are bands of the whole."""
    rates = {unit: rate for part in parts for unit, rate in part.rates.items()}
    return _Asked(rates, {above: rates | banded for part in parts for above, banded in part.bands.items()})


def _part(at: Cursor, method: str, sale: Sale, *, dated: tuple[str, ...] = ()) -> _Asked:
    """One method's price."""
    shape = SHAPES[method]
    usable = {key for key, part in shape.items() if part.unit in sale.units}
    if not usable:
        others = [name for name, parts in SHAPES.items() if any(part.unit in sale.units for part in parts.values())]
        at.fault(f"{method} prices nothing that requests to this model use ({sale.said}): {', '.join(others)} may")
        return _Asked({}, {})
    banded = ("above",) if method == PER_TOKEN else ()
    needed = [key for key in WHOLES if key in usable and not (method == PER_TOKEN and key == "image")]
    members = at.members((*shape, *banded, *dated), required=(*needed, *dated))
    above = members.pop("above", None)
    for key in dated:
        members.pop(key, None)
    rates = _rates(members, shape, usable, sale)
    bands = dict(_bands(above, list(members), shape, usable, sale)) if above is not None else {}
    return _Asked(rates, bands)


def _rates(members: Mapping[str, Cursor], shape: Mapping[str, Part], usable: Collection[str], sale: Sale) -> dict[str, int]:
    rates = {}
    for key, member in members.items():
        part = shape[key]
        if key not in usable:
            member.fault(f"requests to this model ({sale.said}) never use {part.unit.replace('_', ' ')}: no price for it, please")
        rates[part.unit] = scaled(member, decimals=DECIMALS, high=part.nanos_max, unit=f" for {part.per}") * (PER_RATE // part.many)
    if rates.get("cached_input", 0) > rates.get("input", 0) and "input" in members:
        members["cached_input"].fault("is above the price of input: a cached token would cost more than a fresh one")
    return rates


def _bands(
    at: Cursor, keys: list[str], shape: Mapping[str, Part], usable: Collection[str], sale: Sale
) -> Iterator[tuple[int, dict[str, int]]]:
    """Each names all that the price itself names: what one left out would cost is nobody's guess."""
    elements = at.elements()
    if isinstance(at.node.value, list) and not 0 < len(elements) <= BANDS_MAX:
        at.fault(f"1 to {BANDS_MAX} steps are needed, here are {len(elements)}")
    before = 0
    for element in elements[:BANDS_MAX]:
        members = element.members(("tokens", *shape), required=("tokens", *keys))
        tokens = members.pop("tokens", None)
        above = tokens.integer(0, low=1, high=sale.context_tokens - 1) if tokens is not None else 0
        if tokens is not None and 0 < above <= before:
            tokens.fault(f"is not above {before}, the step before it")
        before = above or before
        yield above, _rates(members, shape, usable, sale)
