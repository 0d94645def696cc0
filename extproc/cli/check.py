"""``extproc check``."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from extproc.cli.deployment import of_deployment, settings_of


@click.command()
@of_deployment
def check(*, config: Path | None, data: Path | None, as_json: bool) -> None:
    """Read extproc.yaml, models.yaml and Envoy's files together, and name every fault with file and line.

    Nothing has to run. Exit code 1 if there are errors; warnings alone leave it 0.
    """
    from extproc.checks.disk import outbox_disk, outbox_reader, witness_file
    from extproc.checks.finding import Severity, worst
    from extproc.checks.render import render_json, render_text
    from extproc.checks.static import run_static

    settings = settings_of(config, data)
    findings = [*run_static(settings), *outbox_disk(settings), *outbox_reader(settings), *witness_file(settings)]
    click.echo(render_json(findings) if as_json else render_text(findings))
    sys.exit(1 if worst(findings) is Severity.ERROR else 0)
