"""The tree of commands, and what becomes of an error: one clear line on stderr, exit code 1 (2 for wrong usage, by click)."""

from __future__ import annotations

import os
import sys
from typing import Any

import click

from extproc import __version__
from extproc.cli import (
    account,
    audit,
    balance,
    check,
    demo,
    down,
    explain,
    holds,
    import_prices,
    key,
    migrate,
    period,
    rebuild,
    reconcile,
    requests,
    serve,
    up,
)
from extproc.errors import ExtprocError

INTERRUPTED = 130  # 128 + SIGINT, as shells have it


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 120})
@click.version_option(__version__, prog_name="extproc")
def extproc() -> None:
    """Prepaid billing for LLM traffic inside Envoy.

    Commands that speak to a deployment find it by --config FILE (extproc.yaml) or --data DIR (of `extproc up`), else by $EXTPROC_CONFIG,
    else ./extproc.yaml, else ./data/extproc.yaml.
    """


for command in (
    up.up, down.down, demo.demo, serve.serve, migrate.migrate, check.check,
    account.account, key.key, balance.balance, requests.requests, explain.explain, holds.holds, reconcile.reconcile,
    period.period, audit.audit, import_prices.import_prices,
    rebuild.rebuild,
):  # fmt: skip
    extproc.add_command(command)


def main() -> None:
    """The console script."""
    try:
        code = extproc.main(prog_name="extproc", standalone_mode=False)
        sys.exit(code if isinstance(code, int) else 0)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except (click.Abort, KeyboardInterrupt):
        sys.exit(INTERRUPTED)
    except ExtprocError as error:
        _fail(str(error))
    except BrokenPipeError:
        # `extproc requests | head`: nobody reads any more. Point stdout elsewhere, so that the interpreter's last flush does not complain.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except Exception as error:
        if os.environ.get("EXTPROC_DEBUG"):
            raise
        _fail(f"{_described(error)} (EXTPROC_DEBUG=1 shows where)")


def _described(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    return f"a bug of ours, {type(error).__name__}: {error}"


def _fail(message: Any) -> None:
    click.echo(f"extproc: {message}", err=True)
    sys.exit(1)
