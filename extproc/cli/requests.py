"""``extproc requests``."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from extproc.cli.deployment import at_desk, of_deployment
from extproc.cli.output import print_json, print_table

if TYPE_CHECKING:
    from extproc.app.desk import Desk

FOLLOW_S = 0.5  # between two looks: settlements are posted within a tenth of that
PAGE = 1_000
COLUMNS = {
    "created_at": "time", "id": "request", "model": "model", "status": "status", "input_tokens": "in", "output_tokens": "out",
    "usage_source": "source", "hold": "hold", "cost": "cost", "given_back": "given back", "ending": "ending", "end_reason": "reason",
}  # fmt: skip


@click.command()
@click.option("--account", help="Of this account only.")
@click.option("--limit", type=click.IntRange(1, PAGE), default=20, show_default=True, help="So many of the newest.")
@click.option("--follow", is_flag=True, help="Go on with what comes, until Ctrl-C; with --json: one object a line.")
@of_deployment
def requests(*, account: str | None, limit: int, follow: bool, config: Path | None, data: Path | None, as_json: bool) -> None:
    """Requests as they stand in the ledger, the newest last."""

    async def work(desk: Desk) -> None:
        rows = (await desk.requests(account, limit=limit))[::-1]
        if not follow:
            print_json(rows) if as_json else print_table(rows, COLUMNS, empty="no requests")
            return
        _append(rows, as_json=as_json)
        await _follow(desk, account, rows, as_json=as_json)

    at_desk(config, data, work)


async def _follow(desk: Desk, account: str | None, rows: Sequence[dict[str, Any]], *, as_json: bool) -> None:
    import asyncio

    cursor = max((row["cursor"] for row in rows), default=None)
    while True:
        await asyncio.sleep(FOLLOW_S)
        fresh = await desk.requests(account, limit=PAGE, after=cursor) if cursor else (await desk.requests(account, limit=PAGE))[::-1]
        _append(fresh, as_json=as_json)
        cursor = max((row["cursor"] for row in fresh), default=cursor)


def _append(rows: Sequence[dict[str, Any]], *, as_json: bool) -> None:
    for row in rows:
        if as_json:
            click.echo(json.dumps(row, ensure_ascii=False))
        else:
            tokens = f"{row['input_tokens']} + {row['output_tokens']} tokens ({row['usage_source']})"
            money = f"hold {row['hold']}  cost {row['cost']}  given back {row['given_back']}"
            click.echo(f"{row['created_at']}  {row['id']}  {row['model'] or '-'}  {row['status']}  {tokens}  {money}  {row['end_reason']}")
