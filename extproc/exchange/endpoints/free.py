"""What endpoints have in common that no GPU works for: nothing is held, and nothing charged. They go with every model."""

from __future__ import annotations

from typing import Any

from extproc.exchange.meter import Expected
from extproc.money.usage import Usage, UsageSource


class Free:
    """To be named before the class that says the rest."""

    is_listed = False
    output_default: int | None = 0

    def usage(self, raw: Any, source: UsageSource, expected: Expected, output_tokens: int | None = None) -> Usage | None:
        """Nothing."""
        del raw, expected, output_tokens
        return Usage(source=source)
