"""``extproc import-prices``: ratio tables of one-api as a catalog, or added to one.

What stands in a catalog already is never changed: where it differs from the table, that is told.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any, Final

from extproc.catalog.adding import add_to
from extproc.catalog.load import parse_catalog
from extproc.catalog.ratios import BYTES_MAX, Imported, import_ratios
from extproc.errors import UsageError
from extproc.money.amount import parse_amount

USD: Final = "USD"
INDENT: Final = "  "


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """``usd_rate``: units of ``currency`` for a dollar, as text. Sizes of models are in no ratio table: these are put."""

    currency: str = USD
    usd_rate: str | None = None
    context_tokens: int
    output_tokens_max: int


def import_prices(source: Path, wanted: Wanted, *, into: Path | None) -> dict[str, Any]:
    """Facts: the fragment as ``yaml``, how many ``tiers`` and ``models`` it has, ``notes``, and the file that it was ``written`` to."""
    try:
        with source.open("rb") as file:
            raw = file.read(BYTES_MAX + 1)
    except OSError as error:
        raise UsageError(f"{source}: {error.strerror}") from error
    found = import_ratios(raw, usd_rate=_rate(wanted))
    if not found.models:
        raise UsageError("none of its models can be taken: " + "; ".join(found.notes))
    fragment = _catalog_text(found, wanted, source.name)
    parse_catalog(fragment.encode(), file="what was imported")
    sizes = f"context_tokens {wanted.context_tokens} and output_tokens_max {wanted.output_tokens_max}, which holds are sized by"
    found.notes.insert(0, f"in no ratio table: tokenizers, endpoints, limits of tiers, {sizes}; set the real ones")
    if into is not None:
        _write(into, _added(into, fragment, found.notes) if into.exists() else fragment)
    return {
        "tiers": len(found.tiers),
        "models": len(found.models),
        "notes": found.notes,
        "written": str(into) if into else None,
        "yaml": fragment,
    }


def _rate(wanted: Wanted) -> Fraction:
    if wanted.usd_rate is None:
        if wanted.currency != USD:
            raise UsageError(f"how many {wanted.currency} is a dollar? Such a table counts in dollars: --usd-rate")
        return Fraction(1)
    try:
        rate = parse_amount(wanted.usd_rate)
    except ValueError as error:
        raise UsageError(f"--usd-rate: {error}") from error
    if not rate or (wanted.currency == USD and rate != parse_amount("1")):
        raise UsageError(f"--usd-rate {wanted.usd_rate} cannot be for {wanted.currency}")
    return Fraction(rate, parse_amount("1"))


# --- the fragment


def _catalog_text(found: Imported, wanted: Wanted, source: str) -> str:
    """A whole catalog, so that it can be read by itself."""
    rate = f"; 1 USD = {wanted.usd_rate} {wanted.currency}" if wanted.usd_rate else ""
    lines = [
        f"# Imported by `extproc import-prices` from {_printable(source)}: 500,000 of quota are 1 USD{rate}.",
        "# Set the real tokenizer, endpoints and sizes of each model, and the limits of each tier: they are in no ratio table.",
        "version: 1",
        f"currency: {wanted.currency}",
        "tiers:",
        *(line for name in found.tiers for line in _tier_lines(name, found, INDENT)),
        "models:",
        *(line for name in found.models for line in _model_lines(name, found, wanted)),
    ]
    return "\n".join(lines) + "\n"


def _tier_lines(name: str, found: Imported, indent: str) -> list[str]:
    return [f"{indent}{_quoted(name)}: {{price_factor: {_quoted(found.tiers[name])}}}"]


def _model_lines(name: str, found: Imported, wanted: Wanted) -> list[str]:
    lines = [
        f"{INDENT}{_quoted(name)}:",
        "tokenizer: upstream",
        f"context_tokens: {wanted.context_tokens}",
        f"output_tokens_max: {wanted.output_tokens_max}",
    ]
    asked = found.models[name]
    if asked is None:
        lines.append("free: true")
    else:
        method, price = asked
        said = ", ".join(f"{key}: {_quoted(amount)}" for key, amount in price.items())
        lines += [f"method: {method}", f"price: {{{said}}}"]
    return [lines[0], *(2 * INDENT + line for line in lines[1:])]


def _quoted(text: str) -> str:
    """As YAML has it, too."""
    return json.dumps(text, ensure_ascii=False)


def _printable(text: str) -> str:
    return re.sub(r"[^ -~]", "?", text)


# --- its place


def _added(into: Path, fragment: str, notes: list[str]) -> str:
    text, differences = add_to(into.read_text("utf-8"), str(into), fragment)
    notes += differences
    return text


def _write(path: Path, text: str) -> None:
    """Whole or not at all, with the mode that it had."""
    beside = path.with_name(f".{path.name}.new")
    try:
        beside.write_text(text, "utf-8")
        if path.exists():
            beside.chmod(path.stat().st_mode & 0o777)
        beside.replace(path)
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror}") from error
