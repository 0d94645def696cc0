"""The reconciler's wiring: for the settler, which looks all the time, and for an operator, who asks."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Mapping
from typing import Any, Final

from extproc.app.backends import HttpBackends, Leak, LedgerBills
from extproc.app.compose import Stores, unix_ms
from extproc.catalog.load import load_catalog
from extproc.errors import ConfigError
from extproc.holds.fact_reader import RedisFacts
from extproc.ledger.fact_reader import PostgresFacts
from extproc.ledger.leadership import PostgresLeadership
from extproc.ledger.outboxes import PostgresOutboxes
from extproc.metrics import Metrics
from extproc.money.amount import format_amount
from extproc.money.hold import uuid7
from extproc.settings import Settings
from extproc.settlement.invariants import INVARIANTS, Finding, drift_nanos
from extproc.settlement.meter import Meter
from extproc.settlement.pace import Pace
from extproc.settlement.reconcile_outboxes import confirmed_rows
from extproc.settlement.reconcile_unbilled import Unbilled
from extproc.settlement.reconciler import Auditor, Reconciler, Step, moment_of
from extproc.stores.shards import SHARDS, shard_of

log = logging.getLogger(__name__)

LOCK: Final = SHARDS  # the reconciler's among the advisory locks of the shards' posters
DAY_MS: Final = 24 * 3_600_000

Facts = dict[str, Any]


class Siren:
    """The port Alarm: series of Prometheus, and the log."""

    def __init__(self, series: Metrics) -> None:
        self._series = series

    def found(self, finding: Finding) -> None:
        """No amount of it is secret, and no prompt is in it."""
        log.error(
            "alarm: invariant %d is broken: %s of %s is %s, expected %s (drift %d nanos, account %s). %s",
            finding.invariant, finding.what, finding.subject, finding.found, finding.expected, finding.drift_nanos,
            finding.account or "-", finding.advice,
        )  # fmt: skip

    def standing(self, findings: Mapping[int, tuple[int, int]]) -> None:
        """Every invariant has a series, so that one which is whole again falls to 0."""
        counts = {number: findings.get(number, (0, 0))[0] for number in INVARIANTS}
        self._series.money.broken(counts, drift_nanos=sum(drift for _, drift in findings.values()))

    def reconciled(self, finished_ms: int) -> None:
        """A full run was finished then."""
        self._series.money.reconciled(finished_ms / 1_000)

    def holds(self, count: int, oldest_age_ms: int) -> None:
        """Open holds of all shards."""
        self._series.money.holds(count, oldest_age_ms / 1_000)


def auditor(settings: Settings, stores: Stores, rest: Callable[[float], Awaitable[None]]) -> Auditor:
    """Over both stores."""
    return Auditor(
        ledger=PostgresFacts(stores.database),
        holds=RedisFacts(stores.pipeline),
        shard_of=shard_of,
        grace_ms=settings.holds.grace_s * 1_000,
        rest=rest,
        outboxes=lambda: confirmed_rows(settings.outbox.dir, PostgresOutboxes(stores.database)),
    )


def loops(settings: Settings, stores: Stores, series: Metrics, *, meter: Meter, pace: Pace) -> list[Coroutine[None, None, None]]:
    """The settler's: the reconciler, and beside it the tokens of the backends."""
    facts, leadership = PostgresFacts(stores.database), PostgresLeadership(stores.database, [LOCK])
    reconciler = Reconciler(
        auditor=auditor(settings, stores, pace.rest),
        ledger=facts,
        holds=RedisFacts(stores.pipeline),
        findings=facts,
        leadership=leadership,
        shard_of=shard_of,
        shards=SHARDS,
        alarm=Siren(series),
        meter=meter,
        pace=pace,
        full_at=settings.settler.reconcile_full_at,
        time_zone=settings.settler.time_zone,
    )
    unbilled = Unbilled(
        models=_watched(settings),
        backends=HttpBackends(),
        bills=LedgerBills(facts),
        leads=lambda: bool(leadership.current),
        tell=Leak(series).tell,
        meter=meter,
        pace=pace,
    )
    return [reconciler.run(), unbilled.run()]


def _watched(settings: Settings) -> dict[str, tuple[str, tuple[str, ...]]]:
    """Model → its name at the backends, and their addresses. A catalog that is bad just now must not keep a settler from its money."""
    watched = dict(settings.settler.backend_metrics)
    if not watched:
        return {}
    try:
        models = load_catalog(settings.catalog.file).models
    except ConfigError as error:
        log.error("tokens of backends are not compared: %s", error)
        return {}
    unknown = watched.keys() - models.keys()
    if unknown:
        log.error("settler.backend_metrics names models that the catalog does not have: %s", ", ".join(sorted(unknown)))
    return {name: (models[name].served_name, urls) for name, urls in watched.items() if name in models}


def steps_of(looking: Auditor, account_id: str | None, *, full: bool) -> AsyncIterator[Step]:
    """All of one account; or all accounts with every event ever (``full``), or with those of holds that began within a day."""
    if account_id is not None:
        return looking.account(account_id)
    now_ms = unix_ms()
    after = "" if full else uuid7(unix_ms=now_ms - DAY_MS, random_bits=0)
    return looking.everything(after=after, since=moment_of(now_ms - DAY_MS))


def told(finding: Finding) -> Facts:
    """As the other answers of the desk."""
    return {
        "invariant": finding.invariant,
        "sentence": INVARIANTS[finding.invariant].sentence,
        "account": finding.account,
        "what": finding.what,
        "subject": finding.subject,
        "expected": finding.expected,
        "found": finding.found,
        "drift": format_amount(finding.drift_nanos),
        "drift_nanos": finding.drift_nanos,
        "advice": finding.advice,
    }


def summary(looked_at: Mapping[str, int], findings: list[Finding]) -> Facts:
    """What was looked at by phase, what was found."""
    return {
        "looked_at": dict(looked_at),
        "drift_nanos": drift_nanos(findings),
        "findings": [told(finding) for finding in findings],
    }
