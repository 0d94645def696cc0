"""``extproc account …``."""

from __future__ import annotations

from pathlib import Path

import click

from extproc.cli.deployment import at_desk, of_deployment
from extproc.cli.output import print_facts, print_json, print_table

COLUMNS = {"id": "id", "name": "name", "email": "e-mail", "tier": "tier", "frozen": "frozen", "created_at": "created"}


@click.group()
def account() -> None:
    """Accounts: who pays. ACCOUNT is an id, an e-mail address or a name."""


@account.command()
@click.option("--name", required=True)
@click.option("--email", default="")
@click.option("--tier", help="A tier of the catalog; without it: the first.")
@of_deployment
def create(*, name: str, email: str, tier: str | None, config: Path | None, data: Path | None, as_json: bool) -> None:
    """A new account, with nothing on it."""
    made = at_desk(config, data, lambda desk: desk.create_account(name=name, email=email, tier=tier))
    print_json(made) if as_json else print_facts(made)


@account.command()
@click.argument("account")
@of_deployment
def show(*, account: str, config: Path | None, data: Path | None, as_json: bool) -> None:
    """One account and its money."""
    found = at_desk(config, data, lambda desk: desk.account(account))
    if as_json:
        print_json(found)
        return
    shown = {**found, "available": (found["redis"] or {}).get("available")}
    print_facts(shown, "id", "name", "email", "tier", "frozen", "created_at", "balance", "available", "credit", "currency")


@account.command("list")
@of_deployment
def list_accounts(*, config: Path | None, data: Path | None, as_json: bool) -> None:
    """All accounts, oldest first (1,000 at most)."""
    found = at_desk(config, data, lambda desk: desk.accounts())
    print_json(found) if as_json else print_table(found, COLUMNS, empty="no accounts")


@account.command()
@click.argument("account")
@click.argument("amount")
@click.option("--method", default="manual", show_default=True, help="How it came; names the clearing account in the ledger.")
@click.option("--reference", help="The payment's id: with it, a deposit is booked once however often it is told.")
@of_deployment
def deposit(
    *, account: str, amount: str, method: str, reference: str | None, config: Path | None, data: Path | None, as_json: bool
) -> None:
    """Put AMOUNT (such as 25.00) on an account."""
    booked = at_desk(config, data, lambda desk: desk.deposit(account, amount, method=method, reference=reference))
    if as_json:
        print_json(booked)
        return
    done = "was booked before" if booked["booked_before"] else "booked"
    click.echo(f"{booked['amount']} {booked['currency']} {done}; the balance is {booked['balance']} {booked['currency']}")
    if not booked["in_force"]:
        click.echo("Redis does not know it yet; the settler brings it there")


@account.command()
@click.argument("account")
@click.option("--reason", required=True, help="For the audit.")
@click.option("--thaw", is_flag=True, help="Accept its requests again.")
@of_deployment
def freeze(*, account: str, reason: str, thaw: bool, config: Path | None, data: Path | None, as_json: bool) -> None:
    """Refuse an account's new requests from now on; running ones finish."""
    done = at_desk(config, data, lambda desk: desk.freeze(account, frozen=not thaw, reason=reason))
    print_json(done) if as_json else print_facts(done, "id", "name", "frozen", "in_force")
