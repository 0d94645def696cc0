"""``extproc audit``."""

from __future__ import annotations

from pathlib import Path

import click

from extproc.cli.deployment import at_desk, of_deployment
from extproc.cli.output import print_json, print_table

COLUMNS = {"created_at": "time", "actor": "actor", "action": "action", "subject": "subject", "reason": "reason"}


@click.command()
@click.option("--subject", help="Of this only: an account, or the id of a key, a hold or a month.")
@click.option("--limit", type=click.IntRange(1, 1_000), default=50, show_default=True, help="So many of the newest.")
@of_deployment
def audit(*, subject: str | None, limit: int, config: Path | None, data: Path | None, as_json: bool) -> None:
    """Who did what to whom, and why, the newest first."""
    found = at_desk(config, data, lambda desk: desk.books.audit(subject, limit=limit))
    print_json(found) if as_json else print_table(found, COLUMNS, empty="nothing")
