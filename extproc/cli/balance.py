"""``extproc balance``."""

from __future__ import annotations

from pathlib import Path

import click

from extproc.cli.deployment import at_desk, of_deployment
from extproc.cli.output import print_json


@click.command()
@click.argument("account")
@of_deployment
def balance(*, account: str, config: Path | None, data: Path | None, as_json: bool) -> None:
    """What an account has: posted in PostgreSQL, and available in Redis now. ACCOUNT is its id, e-mail address or name."""
    facts = at_desk(config, data, lambda desk: desk.balance(account))
    if as_json:
        print_json(facts)
        return
    redis, currency = facts["redis"], facts["currency"]
    click.echo(f"account     {facts['account']}  {facts['name']}")
    click.echo(f"balance     {facts['balance']} {currency}  (posted, PostgreSQL)")
    if facts["credit_nanos"]:
        click.echo(f"credit      {facts['credit']} {currency}")
    if facts["free_input"] or facts["free_output"]:
        click.echo(f"free quota  {facts['free_input']} tokens of input, {facts['free_output']} of output  (posted, PostgreSQL)")
    if redis is None:
        click.echo("available   not in Redis (the settler's sweep brings it)")
        return
    click.echo(f"available   {redis['available']} {currency}  (Redis)")
    click.echo(f"held        {redis['held']} {currency}  by {redis['open_holds']} open holds")
    click.echo(f"entry held  {redis['entry_held']} {currency}")
    if redis["held_input"] or redis["held_output"] or facts["free_input"] or facts["free_output"]:
        click.echo(f"free now    {redis['free_input']} tokens of input, {redis['free_output']} of output  (Redis)")
        click.echo(f"free held   {redis['held_input']} tokens of input, {redis['held_output']} of output")
