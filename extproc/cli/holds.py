"""``extproc holds list``."""

from __future__ import annotations

from pathlib import Path

import click

from extproc.cli.deployment import at_desk, of_deployment
from extproc.cli.output import print_json, print_table

COLUMNS = {
    "hold": "hold",
    "account": "account",
    "state": "state",
    "reserved": "reserved",
    "checkpoint": "checkpoint",
    "lease_until": "lease until",
}


@click.group()
def holds() -> None:
    """Holds that have not ended yet."""


@holds.command("list")
@click.option("--account", help="Of this account only.")
@of_deployment
def list_holds(*, account: str | None, config: Path | None, data: Path | None, as_json: bool) -> None:
    """Open holds, the one whose lease runs out first first."""
    found = at_desk(config, data, lambda desk: desk.holds(account))
    if as_json:
        print_json(found)
    else:
        print_table(found, COLUMNS, empty="no open holds")
