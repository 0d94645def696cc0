"""``extproc explain``."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click

from extproc.cli.deployment import at_desk, of_deployment
from extproc.cli.output import print_json, table


@click.command()
@click.argument("request_id")
@of_deployment
def explain(*, request_id: str, config: Path | None, data: Path | None, as_json: bool) -> None:
    """How the charge of a request came about, worked out again from its row and its price.

    REQUEST_ID is the id of its hold or the x-request-id of the answer. Exit code 1 if what was booked is not what comes out.
    """
    facts = at_desk(config, data, lambda desk: desk.explain(request_id))
    if as_json:
        print_json(facts)
    else:
        click.echo("\n".join(text_of(facts)))
    sys.exit(0 if facts["agrees"] else 1)


def text_of(facts: dict[str, Any]) -> list[str]:
    """For people."""
    row, currency = facts["request"], facts["currency"]
    lines = [*_head(row), "", *_usage(facts), "", *_price(facts), *_sum(facts), ""]
    lines += [
        f"hold        {row['hold']} {currency}",
        f"charged     {row['cost']} {currency}",
        f"given back  {row['given_back']} {currency}",
        f"ended       {row['ending']}, {row['end_reason'] or '-'}",
    ]
    lines += _policies(row)
    if row["refunded_nanos"]:
        lines.append(f"refunded    {row['refunded']} {currency}  (of the charge, afterwards)")
    for name, what in (("overage", "used beyond the hold, on the operator"), ("loss", "charged late and not covered, on the operator")):
        if row[f"{name}_nanos"]:
            lines.append(f"{name:<10}  {row[name]} {currency}  ({what})")
    lines += ["", *_entries(facts), ""]
    lines += ["agrees: the row, the price and the entries give the same figures"] if facts["agrees"] else []
    return lines + [f"DOES NOT AGREE: {fault}" for fault in facts["faults"]]


def _policies(row: dict[str, Any]) -> list[str]:
    """What a setting has to do with the figures above."""
    lines = [f"policy      {policy.replace('=', ': ')}" for policy in row["policies"]]
    if row["sandbox"]:
        lines.append(f"sandbox     never debited; the list price is {row['list']}")
    if row["shadow"]:
        would = f"would have been refused: {row['would_deny']}" if row["would_deny"] else f"would have been charged {row['list']}"
        lines.append(f"shadow      nothing was refused or charged; it {would}")
    return lines


def _head(row: dict[str, Any]) -> list[str]:
    said = [row["model"] or "no model", row["endpoint"] or "-", "stream" if row["stream"] else "one answer"]
    said += [f"priority {row['priority'] or '-'}", f"tier {row['tier'] or '-'}"]
    lines = [f"request     {row['id']}", f"x-request-id  {row['request_id'] or '-'}", f"            {' · '.join(said)}"]
    lines.append(f"            {row['created_at']}, {row['duration_ms']} ms, first token after {row['ttft_ms']} ms, status {row['status']}")
    if row["error_code"]:
        lines.append(f"            {row['error_code']}: {row['error_msg']}")
    if row["times"] > 1:
        lines.append(f"            stands for {row['times']} refusals of one key, reason and minute")
    return lines


def _usage(facts: dict[str, Any]) -> list[str]:
    row = facts["request"]
    flags = f"; {', '.join(row['usage_flags'])}" if row["usage_flags"] else ""
    given = f"input {row['input_tokens']} (cached {row['cached_tokens']})"
    made = f"output {row['output_tokens']} (reasoning {row['reasoning_tokens']})"
    lines = [f"usage       {given}, {made}; source: {row['usage_source']}{flags}"]
    if rest := [f"{_words(name)} {quantity}" for name, quantity in facts["other"].items()]:
        lines.append(f"            {', '.join(rest)}")
    if row["free_input"] or row["free_output"]:
        lines.append(f"free quota  paid for {row['free_input']} tokens of the input and {row['free_output']} of the output")
    return lines


def _price(facts: dict[str, Any]) -> list[str]:
    price = facts["price"]
    if price is None:
        return ["price       none: it was refused before it was priced"]
    lines = [f"price       {price['price_id']}", *_rates(price["rates"], facts["currency"])]
    for band in price["above"]:
        lines += [f"            above {band['input_tokens']} tokens of input:", *_rates(band["rates"], facts["currency"])]
    return lines + [f"            {factor['name']} × {factor['factor']}" for factor in price["factors"]]


def _rates(rates: list[dict[str, Any]], currency: str) -> list[str]:
    """A line for what is priced by the same number of the same unit."""
    found: dict[str, list[str]] = {}
    for rate in rates:
        found.setdefault(_per(rate), []).append(f"{_words(rate['name'])} {rate['price']}")
    return [f"            {' · '.join(said)} {currency} {per}" for per, said in found.items()]


def _per(rate: dict[str, Any]) -> str:
    return f"per {rate['unit']}" if rate["per"] == 1 else f"per {rate['per']:,} {_plural(rate['unit'])}"


def _plural(unit: str) -> str:
    return unit if unit == "ms" else f"{unit}s"


def _words(name: str) -> str:
    return name.replace("_", " ")


def _sum(facts: dict[str, Any]) -> list[str]:
    total = facts["sum"]
    if total is None:
        return []
    rows = [{**line, "×": "×", "is": "=", "name": f"            {_words(line['name'])}", "by": _per(line)} for line in total["lines"]]
    lines = table(rows, {"name": "", "quantity": "quantity", "×": "", "price": "price", "by": "", "is": "", "amount": "amount"})
    lines.append(f"            sum {total['subtotal']}")
    lines += [f"            × {factor['factor']} ({factor['name']})" for factor in total["factors"]]
    how = "at least the minimum charge:" if total["is_minimum"] else "rounded up to"
    return [*lines, f"            {how} {total['cost']}, at most the hold: {total['charge']} {facts['currency']}"]


def _entries(facts: dict[str, Any]) -> list[str]:
    if not facts["entries"]:
        return ["entries     none"]
    rows = [{**entry, "name": ":".join(filter(None, (entry["kind"], entry["name"])))} for entry in facts["entries"]]
    rows = [row if row["unit"] == "nanos" else {**row, "name": f"{row['name']}, {_words(row['unit'])} tokens"} for row in rows]
    sums = f"sum of entries: {facts['entries_sum_nanos']} nanos"
    return ["entries", *table(rows, {"event_id": "event", "name": "account", "amount": "amount"}), sums]
