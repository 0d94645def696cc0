"""``extproc up``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from extproc.cli.deployment import as_json
from extproc.cli.output import print_json, say


@click.command()
@click.option("--data", type=click.Path(path_type=Path, file_okay=False), default=Path("data"), show_default=True, help="Where it lives.")
@click.option("--port", type=click.IntRange(0, 65535), default=0, help="Of Envoy, on 127.0.0.1; 0, the default, is a free one.")
@click.option("--detach", is_flag=True, help="Return when it is ready; `extproc down` ends it.")
@click.option("--workers", type=click.IntRange(1, 64), default=2, show_default=True, help="Gate workers.")
@click.option("--catalog", type=click.Path(path_type=Path, dir_okay=False, exists=True), help="Your models.yaml; a copy of it is used.")
@click.option(
    "--backend", "backends", multiple=True, metavar="MODEL=HOST:PORT", help="A vLLM of yours in place of a simulator; repeatable."
)
@as_json
def up(*, data: Path, port: int, detach: bool, workers: int, catalog: Path | None, backends: tuple[str, ...], as_json: bool) -> None:
    """Run a whole stack on this machine.

    Valkey, PostgreSQL, a simulated vLLM for each model, the sidecar, and Envoy with TLS; an account with money and a key. How to reach
    all of it stands in DIR/up.json. Started again on the same directory, it has the same accounts, balances and keys.
    """
    from extproc.local import up as local
    from extproc.local.stack import Plan

    plan = Plan(port=port, workers=workers, catalog=catalog, backends=_backends(backends))

    def ready(facts: dict[str, Any]) -> None:
        if as_json:
            print_json(facts)
        else:
            _show(facts, detach=detach)

    if detach:
        ready(local.detach(data, plan, say=say))
    else:
        local.run(data, plan, say=say, ready=ready)


def _backends(words: tuple[str, ...]) -> dict[str, list[str]]:
    backends: dict[str, list[str]] = {}
    for word in words:
        model, _, address = word.partition("=")
        host, _, port = address.rpartition(":")
        if not (model and host and port.isdigit()):
            raise click.BadParameter(f"{word!r} is not MODEL=HOST:PORT", param_hint="--backend")
        backends.setdefault(model, []).append(address)
    return backends


def _show(facts: dict[str, Any], *, detach: bool) -> None:
    data = facts["data"]
    click.echo(f"ready: {facts['base_url']}")
    click.echo(f"  everything about it   {data}/up.json")
    click.echo(f"  try it                curl --cacert {facts['ca_file']} {facts['base_url']}/chat/completions \\")
    click.echo(f"                          -H 'Authorization: Bearer {facts['api_key']}' \\")
    body = json.dumps({"model": _model(facts), "messages": [{"role": "user", "content": "Hello"}]})
    click.echo(f"                          -d '{body}'")
    click.echo(f"  what it cost          extproc requests --data {data}")
    click.echo(f"  end it                {f'extproc down --data {data}' if detach else 'Ctrl-C'}")


def _model(facts: dict[str, Any]) -> str:
    return str([*facts["simulator_urls"], *facts["backends"]][0])
