"""``extproc reconcile``."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click

from extproc.cli.deployment import at_desk, of_deployment
from extproc.cli.output import print_json, say


@click.command()
@click.option("--full", is_flag=True, help="Every event that was ever booked, not only the last day's.")
@click.option("--account", help="This account only, all of it.")
@of_deployment
def reconcile(*, full: bool, account: str | None, config: Path | None, data: Path | None, as_json: bool) -> None:
    """Check the invariants of the money in PostgreSQL and Redis, while both are at work. Nothing is changed, nothing waits for it.

    Exit code 1 if something was found. What each invariant says: docs/decisions/reconcile.md.
    """
    facts = at_desk(config, data, lambda desk: desk.reconcile(account, full=full, progress=_progress))
    if as_json:
        print_json(facts)
    else:
        click.echo("\n".join(text_of(facts)))
    sys.exit(1 if facts["findings"] else 0)


def text_of(facts: dict[str, Any]) -> list[str]:
    """For people."""
    looked_at = ", ".join(f"{count} {name}" for name, count in facts["looked_at"].items())
    if not facts["findings"]:
        return [f"nothing found ({looked_at})"]
    return [f"{len(facts['findings'])} found ({looked_at})", *(line for finding in facts["findings"] for line in _finding(finding))]


def _finding(finding: dict[str, Any]) -> list[str]:
    return [
        "",
        f"invariant {finding['invariant']}: {finding['sentence']}",
        f"  account   {finding['account'] or '-'}",
        f"  {finding['what']} of {finding['subject']}",
        f"  expected  {finding['expected']}",
        f"  found     {finding['found']}",
        f"  drift     {finding['drift_nanos']} nanos",
        f"  to do     {finding['advice']}",
    ]


def _progress(phase: str, looked_at: int, found: int) -> None:
    say(f"{phase}: {looked_at} looked at, {found} found")
