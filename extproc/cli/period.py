"""``extproc period …``."""

from __future__ import annotations

import datetime as dt
import sys
from pathlib import Path

import click

from extproc.cli.deployment import at_desk, of_deployment
from extproc.cli.output import print_facts, print_json, print_table, say

PATIENCE_S = 600  # for one day of a month: thirty million requests
COLUMNS = {
    "month": "month", "closed_at": "closed", "actor": "by", "reason": "reason", "events": "events",
    "late": "late", "is_complete": "complete",
}  # fmt: skip
SUMS = {"kind": "account", "name": "name", "unit": "unit", "sum": "sum"}


@click.group()
def period() -> None:
    """Months of the ledger (UTC), such as 2026-10. Nothing is booked into a closed one; what comes late goes into the open one."""


@period.command()
@click.argument("month")
@click.option("--reason", default="", help="For the audit.")
@of_deployment
def close(*, month: str, reason: str, config: Path | None, data: Path | None, as_json: bool) -> None:
    """Close MONTH for good and freeze its sums. Refused while anything of it waits to be booked."""
    done = at_desk(config, data, lambda desk: desk.books.close_period(month, reason=reason, progress=_summing), patience_s=PATIENCE_S)
    if as_json:
        print_json(done)
        return
    print_facts(done, "month", "closed_at", "actor", "events", "late")
    print_table(done["sums"], SUMS, empty="nothing was booked")


@period.command("list")
@of_deployment
def list_periods(*, config: Path | None, data: Path | None, as_json: bool) -> None:
    """Closed months, the newest first."""
    found = at_desk(config, data, lambda desk: desk.books.periods())
    print_json(found) if as_json else print_table(found, COLUMNS, empty="no month is closed")


@period.command()
@click.argument("month")
@click.option("--recount", is_flag=True, help="Work its sums out again; exit code 1 if they are not the frozen ones.")
@of_deployment
def show(*, month: str, recount: bool, config: Path | None, data: Path | None, as_json: bool) -> None:
    """A closed MONTH: what it did to each account of the ledger, as it was frozen."""
    found = at_desk(config, data, lambda desk: desk.books.period(month, recount=_summing if recount else None), patience_s=PATIENCE_S)
    agrees = found.get("agrees", True)
    if as_json:
        print_json(found)
    else:
        print_facts(found, "month", "closed_at", "actor", "reason", "events", "late", "currency")
        print_table(found["sums"], SUMS, empty="nothing was booked")
        click.echo("recounted: the same" if recount and agrees else "" if agrees else "DOES NOT AGREE with what is booked now")
    sys.exit(0 if agrees else 1)


def _summing(day: dt.date) -> None:
    say(f"summing {day}")
