"""The long-running verb and the one that comes before it: ``serve`` and ``migrate``."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from extproc.app.logs import set_up
from extproc.app.supervisor import Supervisor
from extproc.settings import Settings
from extproc.stores import migrations


def serve(settings: Settings) -> int:
    """The sidecar, until SIGTERM or SIGINT; its exit code."""
    set_up(level=settings.log.level, form=settings.log.format, process="supervisor")

    async def supervise() -> int:
        return await Supervisor(settings).run()

    return asyncio.run(supervise())


def migrate(settings: Settings, *, progress: Callable[[str], None]) -> tuple[str, ...]:
    """Bring the schema up to date; what was applied."""
    return migrations.migrate(settings.postgres.dsn, password=settings.postgres.password, progress=progress)
