"""``extproc demo``."""

from __future__ import annotations

import click

from extproc.cli.deployment import as_json


@click.command()
@as_json
def demo(*, as_json: bool) -> None:
    """X"""
