"""The token counters of the backends, and what was billed, for the check of unbilled traffic."""

from __future__ import annotations

import asyncio
import http.client
import logging
import urllib.request
from typing import Final

from extproc.ledger.fact_reader import PostgresFacts
from extproc.metrics import Metrics
from extproc.settlement.reconcile_unbilled import TOLERANCE, Billed

log = logging.getLogger(__name__)

TIMEOUT_S: Final = 5.0
PAGE_BYTES_MAX: Final = 4_194_304  # vLLM's page has 50 KB; one that is longer is not it


class HttpBackends:
    """The port Backends. Once a minute and a few addresses: a thread of the loop's own is good enough."""

    async def page(self, url: str) -> str | None:
        """``None`` for whatever is no answer with status 200."""
        return await asyncio.to_thread(_get, url)


def _get(url: str) -> str | None:
    try:
        with urllib.request.urlopen(url, timeout=TIMEOUT_S) as answer:  # noqa: S310 - the settings let http and https through
            page: bytes = answer.read(PAGE_BYTES_MAX + 1)
    except (OSError, http.client.HTTPException, ValueError) as error:
        log.warning("the metrics of a backend could not be read: %s: %s", url, error)
        return None
    return page.decode("utf-8", "replace") if len(page) <= PAGE_BYTES_MAX else None


class LedgerBills:
    """The port Bills, over the rows of the ledger: they outlive every process of ours."""

    def __init__(self, facts: PostgresFacts) -> None:
        self._facts = facts
        self._since = ""

    async def billed(self) -> dict[str, Billed]:
        """By model, since the last call."""
        until = await self._facts.billed_until()
        rows = await self._facts.billed_between(self._since, until) if self._since else []
        self._since = until
        return {row["model"]: Billed(tokens=row["tokens"], requests=row["requests"]) for row in rows}


class Leak:
    """What is told of each model's unbilled tokens: a series, and an alarm in the log."""

    def __init__(self, series: Metrics) -> None:
        self._series = series

    def tell(self, model: str, ratio: float) -> None:
        """At every look."""
        self._series.money.unbilled(model, ratio)
        if ratio > TOLERANCE:
            log.error("alarm: %.1f %% of the tokens that the backends of %s made in ten minutes were billed to nobody", 100 * ratio, model)
