"""``extproc down``."""

from __future__ import annotations

from pathlib import Path

import click

from extproc.cli.deployment import as_json
from extproc.cli.output import print_json, say


@click.command()
@click.option("--data", type=click.Path(path_type=Path, file_okay=False), default=Path("data"), show_default=True, help="Of the `up`.")
@as_json
def down(*, data: Path, as_json: bool) -> None:
    """End the stack that runs on a directory, and wait until it has ended. Live streams may finish first."""
    from extproc.local import up as local

    pid = local.down(data.absolute(), say=say)
    if as_json:
        print_json({"data": str(data.absolute()), "pid": pid, "ended": True})
