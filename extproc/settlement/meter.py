"""What the settler counts. ``metrics`` binds it to Prometheus; here only the names are known."""

from __future__ import annotations

from enum import StrEnum
from typing import Final, Protocol


class Series(StrEnum):
    """Counters, except those that end in ``_ms``, ``_shards`` or ``_bytes``, which are gauges."""

    POSTED_ENDINGS = "posted_endings"
    POSTED_NOTES = "posted_notes"
    REPEATED_EVENTS = "repeated_events"
    ADJUSTS = "adjusts"
    CONFLICTS = "conflicts"
    QUARANTINED = "quarantined"
    FENCE_VIOLATIONS = "fence_violations"
    OVERAGE_NANOS = "overage_nanos"
    LATE_LOSS_NANOS = "late_loss_nanos"
    POST_FAILURES = "post_failures"
    TRIM_FAILURES = "trim_failures"
    REAP_FAILURES = "reap_failures"
    SWEEP_FAILURES = "sweep_failures"
    RECONCILE_FAILURES = "reconcile_failures"
    BACKENDS_AWAY = "backends_away"  # looks at the metrics of a model's backends, of which one did not answer
    EXPIRED_HOLDS = "expired_holds"
    DELIVERED_BALANCES = "delivered_balances"
    DELIVERED_KEYS = "delivered_keys"
    MISSING_PAYERS = "missing_payers"  # PostgreSQL says installed, Redis lacks it
    POSTER_LAG_MS = "poster_lag_ms"
    LED_SHARDS = "led_shards"
    REBUILDS = "rebuilds"  # of shards
    REBUILD_FAILURES = "rebuild_failures"
    REBUILD_MS = "rebuild_ms"  # of the last one
    SILENT_WORKERS = "silent_workers"  # gate workers that a rebuild did not hear
    OLD_MASTERS = "old_masters"  # shards that a server served beside its successor: closed
    OUTBOX_CONFIRMED = "outbox_confirmed"  # rows that were read back from the ledger
    OUTBOX_POSTED = "outbox_posted"  # endings that only an outbox had: Redis has lost them, or was away
    OUTBOX_AGE_MS = "outbox_age_ms"  # of the oldest row that is not confirmed
    UNREADABLE_OUTBOXES = "unreadable_outboxes"
    OUTBOX_RESTARTS = "outbox_restarts"  # the ledger (or the outbox) is older than what was confirmed; it is gone through again
    REPLAY_FAILURES = "replay_failures"
    WITNESSED_HOLDS = "witnessed_holds"  # open after the end of their request: their worker is gone
    WITNESS_LINES = "witness_lines"
    UNREADABLE_LINES = "unreadable_lines"  # of the access log
    WITNESSED_ENDINGS = "witnessed_endings"  # that only the access log knew: Redis and a worker were lost together
    TOLD_REASONS = "told_reasons"  # rows whose end the access log explained
    WITNESS_FAILURES = "witness_failures"
    WITNESS_LAG_BYTES = "witness_lag_bytes"


# A rise of one of these is looked into by somebody: money is not where it should be, or something that ought to know of it is silent.
ALARMS: Final = frozenset(
    {
        Series.CONFLICTS,
        Series.QUARANTINED,
        Series.FENCE_VIOLATIONS,
        Series.MISSING_PAYERS,
        Series.OVERAGE_NANOS,
        Series.LATE_LOSS_NANOS,
        Series.SILENT_WORKERS,
        Series.OLD_MASTERS,
        Series.OUTBOX_RESTARTS,
        Series.UNREADABLE_OUTBOXES,
    }
)


class Meter(Protocol):
    """Where figures go."""

    def add(self, series: Series, amount: int = 1) -> None:
        """A counter rises."""

    def set(self, series: Series, value: int) -> None:
        """A gauge stands at."""


class Unmetered:
    """For a command of an operator, which nobody scrapes: its answer says what happened."""

    def add(self, series: Series, amount: int = 1) -> None:
        """Nothing."""

    def set(self, series: Series, value: int) -> None:
        """Nothing."""


UNMETERED = Unmetered()
