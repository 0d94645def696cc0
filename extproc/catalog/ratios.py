"""Prices out of the ratio tables of one-api and new-api.

There, a request costs ``(prompt + completion × completion ratio) × model ratio × group ratio`` of quota, 500,000 of which are a US dollar.
So a model ratio of 1 is 2 dollars for a million tokens. New-api has more: a ratio each for cached, written, image and audio tokens of the
prompt, and ``ModelPrice``, dollars for a call, which goes before any ratio. Groups become tiers. (Read in one-api's
``relay/controller/helper.go`` and ``relay/billing/ratio/``, new-api's ``relay/helper/price.go`` and ``setting/ratio_setting/``.)

One-api rounds up to a whole quota (0.000002 dollars), we to a nano; apart from that both give the same sum. Everything is worked out in
fractions. What a price here cannot say is told in ``notes``: nothing is left out in silence.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from fractions import Fraction
from math import ceil
from typing import Any

from extproc.catalog.load import NAME, WORD
from extproc.catalog.prices import FACTOR_MAX, MILLION_MAX, ONE_MAX
from extproc.errors import UsageError
from extproc.money.amount import DECIMALS, format_scaled
from extproc.money.price import FACTOR_DECIMALS, PER_TOKEN

QUOTA_PER_USD = 500_000
USD_PER_MILLION = 1_000_000 // QUOTA_PER_USD  # at a ratio of 1: one of quota for a token
BYTES_MAX = 8 * 1024 * 1024  # of a whole table of options; the longest in use have some 200 KB
NAMES_TOLD_MAX = 12  # in one note; beyond them their number

RATIOS = {"cached_input": "CacheRatio", "cache_creation": "CreateCacheRatio", "image": "ImageRatio", "audio": "AudioRatio"}
OF_NEW_API = ("ModelPrice", *RATIOS.values())  # one-api has none of them
TABLES = ("ModelRatio", "CompletionRatio", "GroupRatio", *OF_NEW_API)
CREATE_CACHE_RATIO = Fraction("1.25")  # new-api's, where its table names nothing; all others are 1 then

Table = Mapping[str, Fraction]
Price = dict[str, str]


@dataclass(slots=True)
class Imported:
    """``tiers``: name → factor; ``models``: name → (method, price), or ``None``: it is free. As texts of ``models.yaml``."""

    tiers: dict[str, str] = field(default_factory=dict)
    models: dict[str, tuple[str, Price] | None] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def import_ratios(raw: bytes, *, usd_rate: Fraction) -> Imported:
    """``raw``: a JSON object of the tables (as objects or as JSON in text, as the table of options has them), or an answer of
    ``/api/option/`` or ``/api/ratio_config``. ``usd_rate``: units of our currency for a dollar. :class:`UsageError`: it is none of these.
    """
    found = Imported()
    tables = _tables(raw, found.notes)
    if not tables.get("ModelRatio") and not tables.get("ModelPrice"):
        raise UsageError("there is neither a ModelRatio nor a ModelPrice in it: it is no table of prices of one-api or new-api")
    _tiers(tables.get("GroupRatio", {}), found)
    models = _Models(tables, usd_rate, found)
    for name in {**tables.get("ModelRatio", {}), **tables.get("ModelPrice", {})}:
        models.read(name)
    models.tell()
    return found


# --- reading


def _tables(raw: bytes, notes: list[str]) -> dict[str, Table]:
    """The known tables under their names; of every other member a note."""
    known = {_plain(name): name for name in TABLES}
    tables: dict[str, Table] = {}
    others = []
    for key, value in _members(raw).items():
        name = known.get(_plain(key))
        if name is None:
            others.append(key)
        else:
            tables[name] = _table(name, value, notes)
    if others:
        notes.append(f"not read, since it is no table that a price here could say: {_some(others)}")
    return tables


def _members(raw: bytes) -> Mapping[str, Any]:
    document = _json(raw, "the file")
    for _ in range(2):  # {"success": true, "data": …}
        if isinstance(document, dict) and isinstance(document.get("data"), dict | list):
            document = document["data"]
    if isinstance(document, list) and all(isinstance(one, dict) and isinstance(one.get("key"), str) for one in document):
        document = {one["key"]: one.get("value") for one in document}
    if not isinstance(document, dict):
        raise UsageError("it is neither a JSON object of tables nor a list of options with `key` and `value`")
    return document


def _table(name: str, value: Any, notes: list[str]) -> Table:
    table = _json(value.encode(), name) if isinstance(value, str) and value.strip() else value or {}
    if not isinstance(table, dict):
        raise UsageError(f"{name} is not a JSON object")
    numbers = {}
    for key, number in table.items():
        if isinstance(number, Decimal) and number.is_finite() and number >= 0:
            numbers[key] = Fraction(number)
        else:
            notes.append(f"{name} of {key!r}: {_shown(number)} is no ratio; left out")
    return numbers


def _json(raw: bytes, what: str) -> Any:
    """Numbers as they are written: what looks like 0.1 is 0.1."""
    if len(raw) > BYTES_MAX:
        raise UsageError(f"{what} is larger than {BYTES_MAX} bytes")
    try:
        return json.loads(raw, parse_float=Decimal, parse_int=Decimal)
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{what} is not JSON: {error}") from error


def _shown(value: Any) -> str:
    return str(value) if isinstance(value, Decimal) else json.dumps(value, default=str)[:40]


def _plain(name: str) -> str:
    return name.replace("_", "").lower()


# --- working out


def _tiers(groups: Table, found: Imported) -> None:
    """Group ``default`` first, since the first tier is that of a new account."""
    for name in sorted(groups, key=lambda name: name != "default"):
        if not re.fullmatch(WORD, name):
            found.notes.append(f"group {name!r} left out: a tier has a name as {WORD}; rename it there, or give its accounts another tier")
            continue
        factor = _scaled(groups[name], FACTOR_DECIMALS, FACTOR_MAX, f"group {name!r}", found.notes)
        if factor is not None:
            found.tiers[name] = factor
    if not found.tiers:
        found.tiers["default"] = "1"


class _Models:
    """Reads the models of the tables one by one."""

    def __init__(self, tables: Mapping[str, Table], usd_rate: Fraction, found: Imported) -> None:
        self._tables = tables
        self._ratios = tables.get("ModelRatio", {})
        self._calls = tables.get("ModelPrice", {})
        self._usd_rate = usd_rate
        self._found = found
        self._without_completion: list[str] = []
        self._is_new_api = any(table in tables for table in OF_NEW_API)
        self._without_creation: list[str] = []

    def read(self, name: str) -> None:
        if not re.fullmatch(NAME, name):
            self._note(f"model {name!r} left out: it is no name of a model here (a pattern, or a price of one channel only)")
        elif name in self._calls:
            self._call(name)
        else:
            self._tokens(name)

    def _call(self, name: str) -> None:
        if name in self._ratios:
            self._note(f"model {name!r} has a ModelPrice and a ModelRatio: the price of a call is taken, as new-api does")
        call = self._price(name, "call", self._calls[name], ONE_MAX)
        if call is not None:
            self._found.models[name] = ("per_call", {"call": call}) if self._calls[name] else None

    def _tokens(self, name: str) -> None:
        ratio = self._ratios[name]
        if not ratio:
            self._found.models[name] = None
            return
        completion = self._tables.get("CompletionRatio", {}).get(name)
        if completion is None:
            self._without_completion.append(name)
            completion = Fraction(1)
        asked = (
            {"input": Fraction(1)} | {key: self._tables.get(table, {}).get(name) for key, table in RATIOS.items()} | {"output": completion}
        )
        if self._is_new_api and asked["cache_creation"] is None:
            self._without_creation.append(name)
            asked["cache_creation"] = CREATE_CACHE_RATIO
        price = {
            key: self._price(name, key, ratio * times * USD_PER_MILLION, MILLION_MAX) for key, times in asked.items() if times is not None
        }
        said = {key: text for key, text in price.items() if text is not None}
        if len(said) == len(price):
            self._found.models[name] = (PER_TOKEN, self._fitting(name, said, asked))

    def _fitting(self, name: str, said: Price, asked: Mapping[str, Fraction | None]) -> Price:
        """Without what ``models.yaml`` would refuse."""
        if (asked["cached_input"] or 0) > 1:
            self._note(f"model {name!r}: its CacheRatio is above 1; left out, cached tokens cost what input costs")
            del said["cached_input"]
        if "image" in said:
            self._note(f'model {name!r}: put `image: "{said.pop("image")}"` into its price once it has an `image` with its formula')
        return said

    def _price(self, name: str, key: str, usd: Fraction, most: int) -> str | None:
        return _scaled(usd * self._usd_rate, DECIMALS, most, f"model {name!r}, {key}", self._found.notes)

    def tell(self) -> None:
        """What is to be said of many models at once."""
        if self._without_completion:
            self._note(
                f"no CompletionRatio, so output costs what input costs (one-api knows some itself): {_some(self._without_completion)}"
            )
        if self._without_creation:
            self._note(
                f"no CreateCacheRatio, so tokens written to a cache cost {float(CREATE_CACHE_RATIO)} times input, as in new-api "
                f"(leave `cache_creation` out where no backend tells of any: holds are for the dearest): {_some(self._without_creation)}"
            )
        for table in ("CompletionRatio", *RATIOS.values()):
            lost = [name for name in self._tables.get(table, {}) if name not in self._ratios and name not in self._calls]
            if lost:
                self._note(f"{table} without a ModelRatio beside it (one-api knows some itself), left out: {_some(lost)}")
            beside = [name for name in self._tables.get(table, {}) if name in self._calls]
            if beside:
                self._note(f"{table} beside a ModelPrice has no effect, left out: {_some(beside)}")

    def _note(self, note: str) -> None:
        self._found.notes.append(note)


def _scaled(value: Fraction, decimals: int, most: int, what: str, notes: list[str]) -> str | None:
    """As text with so many decimals, rounded up if it has more. ``None``: too large."""
    number = ceil(value * 10**decimals)
    text = format_scaled(number, decimals=decimals)
    if number > most:
        notes.append(f"{what}: {text} is above {most // 10**decimals}; left out")
        return None
    if number != value * 10**decimals:
        notes.append(f"{what}: {float(value):.15g} has more than {decimals} decimals; rounded up to {text}")
    return text


def _some(names: Iterable[str]) -> str:
    """Not more than anybody reads."""
    listed = list(names)
    more = f" and {len(listed) - NAMES_TOLD_MAX} more" if len(listed) > NAMES_TOLD_MAX else ""
    return ", ".join(listed[:NAMES_TOLD_MAX]) + more
