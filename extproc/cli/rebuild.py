"""``extproc rebuild``."""

from __future__ import annotations

from pathlib import Path

import click

from extproc.cli.deployment import of_deployment, settings_of
from extproc.cli.output import print_json, say


@click.command()
@click.option("--shard", "shards", type=int, multiple=True, metavar="N", help="This shard, open or not; may be repeated.")
@click.option("--all", "everything", is_flag=True, help="All shards, open or not.")
@of_deployment
def rebuild(*, shards: tuple[int, ...], everything: bool, config: Path | None, data: Path | None, as_json: bool) -> None:
    """Build shards of Redis again from the ledger and what gate workers hold open: those that are closed, or those that you name.

    A settler does this by itself as soon as it sees that Redis has lost something. Requests of a shard get 503 while it is built.
    """
    import asyncio
    import logging

    from extproc.app.rebuilding import rebuild as run

    if shards and everything:
        raise click.UsageError("--shard and --all are two ways to say which; give one of them")
    logging.getLogger().addHandler(logging.NullHandler())  # what went wrong is told once, by the error
    done = asyncio.run(run(settings_of(config, data), shards, everything=everything, say=say))
    if as_json:
        print_json(done)
    elif done["shards"]:
        click.echo(f"{len(done['shards'])} shards are open again, after {done['took_ms']} ms")
    else:
        click.echo("no shard is closed")
