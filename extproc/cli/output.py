"""What is printed: JSON for programs, aligned columns for people."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import click

Row = Mapping[str, Any]


def say(text: str) -> None:
    """Progress: on stderr, so that stdout is the answer alone."""
    click.echo(text, err=True)


def print_json(document: Any) -> None:
    """One document."""
    click.echo(json.dumps(document, indent=2, ensure_ascii=False, default=str))


def print_facts(facts: Row, *names: str) -> None:
    """``name  value`` a line; without names, everything."""
    chosen = names or tuple(facts)
    width = max(len(name) for name in chosen)
    for name in chosen:
        click.echo(f"{name.replace('_', ' '):<{width}}  {cell(facts.get(name))}")


def print_table(rows: Sequence[Row], columns: Mapping[str, str], *, empty: str = "none") -> None:
    """``columns``: name in the row → heading. Amounts and counts stand to the right."""
    if not rows:
        click.echo(empty)
        return
    click.echo("\n".join(table(rows, columns)))


def table(rows: Sequence[Row], columns: Mapping[str, str]) -> list[str]:
    """The lines of a table."""
    cells = [[cell(row.get(name)) for name in columns] for row in rows]
    headings = list(columns.values())
    widths = [max(len(line[column]) for line in [headings, *cells]) for column in range(len(headings))]
    right = [all(_is_number(line[column]) for line in cells) for column in range(len(headings))]
    return [
        "  ".join(
            text.rjust(width) if to_right else text.ljust(width) for text, width, to_right in zip(line, widths, right, strict=True)
        ).rstrip()
        for line in [headings, *cells]
    ]


def cell(value: Any) -> str:
    """As a person reads it."""
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list | tuple):
        return ", ".join(map(str, value)) or "-"
    return str(value)


def _is_number(text: str) -> bool:
    return text == "-" or text.lstrip("+-").replace(".", "").isdigit()
