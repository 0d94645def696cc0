"""``extproc account …``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from extproc.cli.deployment import at_desk, of_deployment
from extproc.cli.output import print_facts, print_json, print_table

COLUMNS = {
    "id": "id",
    "name": "name",
    "email": "e-mail",
    "tier": "tier",
    "price_factor": "price factor",
    "frozen": "frozen",
    "created_at": "created",
}

SHOWN = (
    "id", "name", "email", "tier", "price_factor", "later", "frozen", "created_at", "balance", "available", "credit", "currency",
    "free_input", "free_output",
)  # fmt: skip

because = click.option("--reason", required=True, help="For the audit.")
once = click.option("--reference", help="A name of yours, such as a ticket's: with it, the same is booked once however often it is told.")


at = click.option(
    "--at",
    help="From this moment on, a time or 12h, 30d, 4w: exactly then, if it is a minute away. What was to change the same later is dropped.",
)


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
    shown = {**found, "available": (found["redis"] or {}).get("available"), "later": _later(found)}
    print_facts(shown, *SHOWN)


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
    _show_booked(booked, as_json=as_json)


@account.command()
@click.argument("account")
@because
@click.option("--thaw", is_flag=True, help="Accept its requests again.")
@of_deployment
def freeze(*, account: str, reason: str, thaw: bool, config: Path | None, data: Path | None, as_json: bool) -> None:
    """Refuse an account's new requests from now on; running ones finish."""
    done = at_desk(config, data, lambda desk: desk.freeze(account, frozen=not thaw, reason=reason))
    print_json(done) if as_json else print_facts(done, "id", "name", "frozen", "in_force")


@account.command("set-price-factor")
@click.argument("account")
@click.argument("factor")
@because
@at
@of_deployment
def set_price_factor(
    *, account: str, factor: str, reason: str, at: str | None, config: Path | None, data: Path | None, as_json: bool
) -> None:
    """Multiply the prices of an account with FACTOR (such as 0.85; 1: none of its own), beside those of tier and priority.

    For requests that begin from now on, everywhere within identity.cache_ttl_s (a minute); running ones keep their price.
    """
    _show_terms(at_desk(config, data, lambda desk: desk.set_price_factor(account, factor, reason=reason, at=at)), as_json=as_json)


@account.command("set-tier")
@click.argument("account")
@click.argument("tier")
@because
@at
@of_deployment
def set_tier(*, account: str, tier: str, reason: str, at: str | None, config: Path | None, data: Path | None, as_json: bool) -> None:
    """Give an account another tier of the catalog: its limits, priorities and factor.

    For requests that begin from now on, everywhere within identity.cache_ttl_s (a minute); running ones keep theirs.
    """
    _show_terms(at_desk(config, data, lambda desk: desk.set_tier(account, tier, reason=reason, at=at)), as_json=as_json)


@account.command()
@click.argument("request_id")
@click.argument("amount", required=False)
@click.option("--all", "everything", is_flag=True, help="All that is left of its charge.")
@because
@once
@of_deployment
def refund(
    *, request_id: str, amount: str | None, everything: bool, reason: str, reference: str | None,
    config: Path | None, data: Path | None, as_json: bool,
) -> None:  # fmt: skip
    """Give back AMOUNT of what a request was charged, never more than is left of it.

    REQUEST_ID is the id of its hold or the x-request-id of the answer.
    """
    wanted = _amount_or_all(amount, everything=everything)
    done = at_desk(config, data, lambda desk: desk.books.refund(request_id, wanted, reason=reason, reference=reference))
    _show_booked(done, as_json=as_json)


@account.command(context_settings={"ignore_unknown_options": True})
@click.argument("account")
@click.argument("amount")
@because
@once
@of_deployment
def correct(
    *, account: str, amount: str, reason: str, reference: str | None, config: Path | None, data: Path | None, as_json: bool
) -> None:
    """Set right by AMOUNT (such as 2.50 or -2.50) what was booked wrongly. May leave a negative balance."""
    done = at_desk(config, data, lambda desk: desk.books.correct(account, amount, reason=reason, reference=reference))
    _show_booked(done, as_json=as_json)


@account.command()
@click.argument("account")
@click.argument("amount", required=False)
@click.option("--all", "everything", is_flag=True, help="All that it owes.")
@because
@once
@of_deployment
def writeoff(
    *, account: str, amount: str | None, everything: bool, reason: str, reference: str | None,
    config: Path | None, data: Path | None, as_json: bool,
) -> None:  # fmt: skip
    """Take over AMOUNT of what an account owes as a loss of the operator, never more than it owes."""
    wanted = _amount_or_all(amount, everything=everything)
    done = at_desk(config, data, lambda desk: desk.books.write_off(account, wanted, reason=reason, reference=reference))
    _show_booked(done, as_json=as_json)


@account.command("grant-quota")
@click.argument("account")
@click.option("--input", "given", type=click.IntRange(min=0), default=0, help="So many tokens of prompts.")
@click.option("--output", "made", type=click.IntRange(min=0), default=0, help="So many tokens of answers.")
@because
@once
@of_deployment
def grant_quota(
    *, account: str, given: int, made: int, reason: str, reference: str | None, config: Path | None, data: Path | None, as_json: bool
) -> None:
    """Give an account free tokens, of prompts, of answers or of both; they are used before its money is."""
    done = at_desk(
        config,
        data,
        lambda desk: desk.books.grant_quota(account, input_tokens=given, output_tokens=made, reason=reason, reference=reference),
    )
    print_json(done) if as_json else print_facts(done, "account", "free_input", "free_output", "booked_before", "in_force")


@account.command()
@click.argument("account")
@click.argument("amount")
@because
@of_deployment
def credit(*, account: str, amount: str, reason: str, config: Path | None, data: Path | None, as_json: bool) -> None:
    """Let an account go down to AMOUNT below zero (0: not at all). A lowered line takes nothing back."""
    done = at_desk(config, data, lambda desk: desk.books.set_credit(account, amount, reason=reason))
    print_json(done) if as_json else print_facts(done, "account", "credit", "balance", "currency", "in_force")


def _amount_or_all(amount: str | None, *, everything: bool) -> str | None:
    if (amount is None) != everything:
        raise click.UsageError("give an AMOUNT or --all")
    return amount


def _show_terms(done: dict[str, Any], *, as_json: bool) -> None:
    shown = {**done, "later": _later(done)}
    print_json(done) if as_json else print_facts(shown, "id", "name", "tier", "price_factor", "later", "in_force")


def _later(facts: dict[str, Any]) -> list[str]:
    """What is to change, in words."""
    return [f"{change.get('tier') or change['price_factor']} from {change['effective_at']} on" for change in facts["later"]]


def _show_booked(booked: dict[str, Any], *, as_json: bool) -> None:
    if as_json:
        print_json(booked)
        return
    done = "was booked before" if booked["booked_before"] else "booked"
    click.echo(f"{booked['amount']} {booked['currency']} {done}; the balance is {booked['balance']} {booked['currency']}")
    if not booked["in_force"]:
        click.echo("Redis does not know it yet; the settler brings it there")
