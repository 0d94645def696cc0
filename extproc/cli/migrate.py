"""``extproc migrate``."""

from __future__ import annotations

from pathlib import Path

import click

from extproc.cli.deployment import of_deployment, settings_of
from extproc.cli.output import print_json, say


@click.command()
@of_deployment
def migrate(*, config: Path | None, data: Path | None, as_json: bool) -> None:
    """Bring the schema in PostgreSQL up to date. Safe to repeat, and while the version before still runs."""
    from extproc.app.launch import migrate as run

    applied = run(settings_of(config, data), progress=lambda label: say(f"applying {label}"))
    if as_json:
        print_json({"applied": list(applied)})
    else:
        click.echo(f"applied {len(applied)} migrations" if applied else "the schema is up to date")
