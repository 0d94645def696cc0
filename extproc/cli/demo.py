"""``extproc demo``."""

from __future__ import annotations

import sys
from dataclasses import asdict
from typing import Any

import click

from extproc.cli.deployment import as_json
from extproc.cli.output import print_json, print_table, say

COLUMNS = {
    "name": "request", "model": "model", "status": "status", "input_tokens": "in", "output_tokens": "out", "usage_source": "source",
    "hold": "hold", "cost": "cost", "given_back": "given back", "ending": "ending", "end_reason": "reason",
}  # fmt: skip


@click.command()
@as_json
def demo(*, as_json: bool) -> None:
    """Run a stack in a temporary directory, send real requests, and show what became of their money.

    A streamed, a JSON, an aborted and a refused request, with the openai SDK over TLS. Exit code 0 only if every figure is as it must be.
    """
    from extproc.local import demo as local

    outcome = local.run(say=say)
    if as_json:
        print_json({**asdict(outcome), "holds": outcome.holds})
    else:
        _show(outcome.requests, outcome.proofs)
    sys.exit(0 if outcome.holds else 1)


def _show(requests: list[dict[str, Any]], proofs: list[dict[str, Any]]) -> None:
    click.echo(f"\nRequests (amounts in {requests[0]['currency']})")
    print_table([{**one["request"], "name": one["name"]} for one in requests], COLUMNS)
    click.echo("\nEntries in the ledger")
    entries = [
        {"name": one["name"], "account": ":".join(filter(None, (entry["kind"], entry["name"]))), "amount": entry["amount"]}
        for one in requests
        for entry in one["entries"]
    ]
    print_table(entries, {"name": "request", "account": "account", "amount": "amount"})
    click.echo("\nProof")
    for proof in proofs:
        click.echo(f"  {'ok  ' if proof['holds'] else 'FAIL'}  {proof['what']}")
