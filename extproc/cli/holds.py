"""``extproc holds …``."""

from __future__ import annotations

from pathlib import Path

import click

from extproc.cli.deployment import at_desk, of_deployment
from extproc.cli.output import print_facts, print_json, print_table

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


@holds.command()
@click.argument("hold")
@click.option("--reason", required=True, help="For the audit.")
@of_deployment
def release(*, hold: str, reason: str, config: Path | None, data: Path | None, as_json: bool) -> None:
    """End an open HOLD by hand: what it reserved goes back at once.

    For a hold that hangs. Should its request run on after all, it is charged when it settles, of what the account then has.
    """
    done = at_desk(config, data, lambda desk: desk.books.release(hold, reason=reason))
    print_json(done) if as_json else print_facts(done, "hold", "account", "state", "given_back")
