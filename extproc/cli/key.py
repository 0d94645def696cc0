"""``extproc key …``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from extproc.cli.deployment import at_desk, of_deployment
from extproc.cli.output import print_facts, print_json, print_table

COLUMNS = {
    "id": "id", "hint": "ends in", "name": "name", "models": "models", "networks": "networks", "budget": "budget",
    "budget_period": "a", "expires_at": "expires", "revoked": "revoked", "sandbox": "sandbox", "created_at": "created",
}  # fmt: skip
COUNT = click.IntRange(min=1)


@click.group()
def key() -> None:
    """API keys of an account. A key's secret is shown once, when it is made."""


@key.command()
@click.argument("account")
@click.option("--name", default="", help="To tell it from others.")
@click.option("--model", "models", multiple=True, help="Only this model; repeatable.")
@click.option("--network", "networks", multiple=True, help="Only from this address or CIDR; repeatable.")
@click.option("--expires", help="A time such as 2027-01-31T12:00:00Z, or from now: 90m, 12h, 30d, 4w.")
@click.option("--budget", help="May spend so much, such as 10.00 …")
@click.option("--budget-period", type=click.Choice(["none", "day", "month"]), default="none", show_default=True, help="… in each of these.")
@click.option(
    "--sandbox", is_flag=True, help="Metered, never debited; only models that the catalog opens for it, under a daily cap of tokens."
)
@click.option("--requests-per-minute", type=COUNT)
@click.option("--requests-per-hour", type=COUNT)
@click.option("--tokens-per-minute", type=COUNT)
@click.option("--concurrent-requests", type=COUNT)
@of_deployment
def create(*, config: Path | None, data: Path | None, as_json: bool, account: str, **options: Any) -> None:
    """A new key for ACCOUNT. Its limits may be lower than those of the account's tier, never higher."""
    names = ("requests_per_minute", "requests_per_hour", "tokens_per_minute", "concurrent_requests")
    limits = {name: options.pop(name) for name in names}
    made = at_desk(config, data, lambda desk: desk.create_key(account, limits=limits, **options))
    _show(made, as_json=as_json)


@key.command("list")
@click.argument("account")
@of_deployment
def list_keys(*, account: str, config: Path | None, data: Path | None, as_json: bool) -> None:
    """The keys of ACCOUNT, revoked ones included."""
    found = at_desk(config, data, lambda desk: desk.keys(account))
    print_json(found) if as_json else print_table(found, COLUMNS, empty="no keys")


@key.command()
@click.argument("key_id")
@click.option("--reason", default="", help="For the audit.")
@of_deployment
def revoke(*, key_id: str, reason: str, config: Path | None, data: Path | None, as_json: bool) -> None:
    """Nobody gets in with it any more, from the next request on."""
    done = at_desk(config, data, lambda desk: desk.revoke_key(key_id, reason=reason))
    print_json(done) if as_json else print_facts(done)


@key.command()
@click.argument("key_id")
@of_deployment
def rotate(*, key_id: str, config: Path | None, data: Path | None, as_json: bool) -> None:
    """A new secret with the same scopes; the old key is revoked in the same moment."""
    _show(at_desk(config, data, lambda desk: desk.rotate_key(key_id)), as_json=as_json)


def _show(made: dict[str, Any], *, as_json: bool) -> None:
    if as_json:
        print_json(made)
        return
    print_facts(made)
    click.echo("Keep the key: it is not shown again.", err=True)
