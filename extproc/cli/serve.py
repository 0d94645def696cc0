"""``extproc serve``."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from extproc.cli.deployment import of_deployment, settings_of


@click.command()
@of_deployment
def serve(*, config: Path | None, data: Path | None, as_json: bool) -> None:
    """The sidecar, against your Redis, PostgreSQL and Envoy, until SIGTERM.

    SIGTERM lets live streams finish (drain.grace_s); SIGHUP reads catalog and policy again; SIGUSR2 replaces one process
    after the other, without a failed request. Its log is on stderr, as JSON by default.
    """
    from extproc.app.launch import serve as run

    del as_json  # there is no answer: it runs
    sys.exit(run(settings_of(config, data)))
