"""Which deployment a command speaks to, and who is asking."""

from __future__ import annotations

import getpass
import os
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from extproc.errors import UsageError

if TYPE_CHECKING:
    from extproc.app.desk import Desk
    from extproc.settings import Settings

Result = TypeVar("Result")
Command = Callable[..., Any]


def of_deployment(command: Command) -> Command:
    """Options ``--config``, ``--data`` and ``--json``."""
    config = click.option("--config", type=click.Path(path_type=Path, dir_okay=False), help="extproc.yaml of the deployment.")
    data = click.option("--data", type=click.Path(path_type=Path, file_okay=False), help="Directory of `extproc up`.")
    return config(data(as_json(command)))


def as_json(command: Command) -> Command:
    """Option ``--json``."""
    return click.option("--json", "as_json", is_flag=True, help="One JSON document on stdout, nothing else.")(command)


def settings_of(config: Path | None, data: Path | None) -> Settings:
    """Read the settings of the deployment that was named, or of the one that is here."""
    from extproc.settings import load_settings

    return load_settings(_file(config, data), os.environ)


def at_desk(config: Path | None, data: Path | None, work: Callable[[Desk], Awaitable[Result]], *, patience_s: int | None = None) -> Result:
    """Open the desk of the deployment, do one thing, close it. ``patience_s``: a statement may take so long."""
    import asyncio
    import logging

    from extproc.app.desk import desk

    logging.getLogger().addHandler(logging.NullHandler())  # what went wrong is told once, by the error
    settings = settings_of(config, data)

    async def there() -> Result:
        async with desk(settings, actor=f"cli:{_user()}", patience_s=patience_s) as opened:
            return await work(opened)

    return asyncio.run(there())


def _file(config: Path | None, data: Path | None) -> Path:
    if config is not None and data is not None:
        raise click.UsageError("--config and --data are two ways to say the same; give one of them")
    if config is not None:
        return config
    if data is not None:
        return data / "extproc.yaml"
    named = os.environ.get("EXTPROC_CONFIG")
    if named:
        return Path(named)
    found = next((path for path in (Path("extproc.yaml"), Path("data/extproc.yaml")) if path.exists()), None)
    if found is None:
        raise UsageError("which deployment? Give --config FILE or --data DIR, or set EXTPROC_CONFIG; there is no extproc.yaml here")
    return found


def _user() -> str:
    """Who typed it: behind sudo, the one who called sudo."""
    try:
        return os.environ.get("SUDO_USER") or getpass.getuser()
    except (OSError, KeyError):
        return str(os.getuid())
