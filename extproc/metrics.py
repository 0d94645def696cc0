"""Every series that we export, declared once, on a registry that the caller brings.

Names and labels follow OpenTelemetry's gen_ai conventions in Prometheus form, and our own prefix ``extproc_``. Labels come from closed
sets only: configured models, statuses, reasons of ours. A user, a key or a request is never a label, and a model that the catalog does not
name is ``unknown`` (a client could invent a million). A series comes with what feeds it: without a label it is on the page from the start,
and a 0 that nobody has counted says that all is well.

One :class:`Metrics` belongs to one process. Workers run prometheus_client in multiprocess mode (``PROMETHEUS_MULTIPROC_DIR`` in their
environment before this module is imported); the supervisor wipes that directory at start, reaps what a dead worker left, and renders the
merged view. A write to a mapped file costs ten times what an addition does, so counts are kept in plain numbers and handed over once a
second (:meth:`Metrics.flush`): a worker that is killed takes the last second of its counts along. Money never depends on them.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, disable_created_metrics, generate_latest
from prometheus_client.mmap_dict import MmapedDict
from prometheus_client.multiprocess import MultiProcessCollector, mark_process_dead

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
UNKNOWN = "unknown"
DEAD = "dead"  # stands in file names where a process id does

TTFT_BUCKETS = (0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10, 15, 20, 30, 45, 60)
PER_TOKEN_BUCKETS = (0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1, 2.5)
DURATION_BUCKETS = tuple(0.01 * 2**n for n in range(17))  # 10 ms … 655 s: the longest stream that a drain waits for
TOKEN_BUCKETS = tuple(4**n for n in range(1, 11))  # 4 … 1,048,576
TOKENIZE_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5)  # nobody waits for longer
PHASE_BUCKETS = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1)

PHASES = ("headers", "key", "admit", "body", "count", "amend", "first_chunk", "chunk", "settle")
OPERATIONS = {
    "chat.completions": "chat",
    "responses": "chat",
    "messages": "chat",
    "completions": "text_completion",
    "embeddings": "embeddings",
}  # names of OpenTelemetry
# Distinct values of one label that is not a model: reasons, codes and sources are closed sets of ours, far smaller. Whatever comes
# after so many is "other", so that no caller can grow a label set by mistake.
VALUES_MAX = 64
HASHES_MAX = 256  # reloads of a catalog in the life of a process; multiprocess mode cannot take a label back

Tally = TypeVar("Tally")
Labels = TypeVar("Labels", bound=Hashable)


class Outcome(Protocol):
    """What :meth:`Metrics.request_done` reads of a request's record (``exchange.record.Record`` has it all)."""

    @property
    def model(self) -> str: ...
    @property
    def endpoint(self) -> str: ...
    @property
    def stream(self) -> bool: ...
    @property
    def status(self) -> int: ...
    @property
    def error_code(self) -> str: ...
    @property
    def input_tokens(self) -> int: ...
    @property
    def cached_tokens(self) -> int: ...
    @property
    def output_tokens(self) -> int: ...
    @property
    def reasoning_tokens(self) -> int: ...
    @property
    def usage_source(self) -> str: ...
    @property
    def end_reason(self) -> str: ...
    @property
    def cost_nanos(self) -> int: ...
    @property
    def overage_nanos(self) -> int: ...
    @property
    def would_deny(self) -> str: ...
    @property
    def policies(self) -> Sequence[str]: ...
    @property
    def duration_ms(self) -> int: ...
    @property
    def ttft_ms(self) -> int: ...


class _Count:
    """What a counter has risen by since the last flush."""

    __slots__ = ("_child", "_since")

    def __init__(self, child: Counter) -> None:
        self._child = child
        self._since: float = 0

    def inc(self, amount: float = 1) -> None:
        self._since += amount

    def flush(self) -> None:
        if self._since:
            self._child.inc(self._since)
            self._since = 0


class _Spread:
    """What a histogram has observed since the last flush."""

    __slots__ = ("_bounds", "_child", "_counts", "_sum")

    def __init__(self, child: Histogram, bounds: Sequence[float]) -> None:
        self._child = child
        self._bounds = bounds
        self._counts = [0] * (len(bounds) + 1)  # each bucket without those below it, the last one up to infinity
        self._sum: float = 0

    def observe(self, value: float) -> None:
        self._counts[bisect_left(self._bounds, value)] += 1
        self._sum += value

    def flush(self) -> None:
        if not any(self._counts):
            return
        # The library can add one observation at a time only; these are the fields that its own `observe` adds to.
        for bucket, count in zip(self._child._buckets, self._counts, strict=True):  # noqa: SLF001
            if count:
                bucket.inc(count)
        self._child._sum.inc(self._sum)  # noqa: SLF001
        self._counts = [0] * len(self._counts)
        self._sum = 0


class _Tallies:
    """Everything that this process counts between two flushes."""

    def __init__(self) -> None:
        self._all: list[_Count | _Spread] = []

    def count(self, child: Counter) -> _Count:
        """A counter's child, counted here."""
        tally = _Count(child)
        self._all.append(tally)
        return tally

    def spread(self, child: Histogram, bounds: Sequence[float]) -> _Spread:
        """A histogram's child, observed here."""
        tally = _Spread(child, bounds)
        self._all.append(tally)
        return tally

    def flush(self) -> None:
        for tally in self._all:
            tally.flush()


class _Bound(Generic[Labels, Tally]):
    """Tallies (or gauges) by label values, bound on first use, at most ``most`` of them; then ``other`` serves."""

    def __init__(self, bind: Callable[[Labels], Tally], other: Labels, most: int = VALUES_MAX) -> None:
        self._bind = bind
        self._bound: dict[Labels, Tally] = {}
        self._other = other
        self._most = most

    def __getitem__(self, values: Labels) -> Tally:
        tally = self._bound.get(values)
        if tally is None:
            if len(self._bound) >= self._most and values != self._other:
                return self[self._other]
            tally = self._bound[values] = self._bind(values)
        return tally


class _OfModel:
    """The tallies of one model and endpoint."""

    def __init__(self, series: _RequestSeries, tallies: _Tallies, model: str, operation: str) -> None:
        names = (operation, model, model)
        count, spread = tallies.count, tallies.spread
        self.requests = _Bound[int, _Count](lambda status: count(series.requests.labels(model, str(status))), 0)
        self.duration = _Bound[str, _Spread](lambda error: spread(series.duration.labels(*names, error), DURATION_BUCKETS), "other")
        self.ttft = spread(series.ttft.labels(*names), TTFT_BUCKETS)
        self.per_token = spread(series.per_token.labels(*names), PER_TOKEN_BUCKETS)
        self.usage_input = spread(series.usage.labels(*names, "input"), TOKEN_BUCKETS)
        self.usage_output = spread(series.usage.labels(*names, "output"), TOKEN_BUCKETS)
        self.input = count(series.tokens.labels(model, "input"))
        self.cached = count(series.tokens.labels(model, "cached_input"))
        self.output = count(series.tokens.labels(model, "output"))
        self.reasoning = count(series.tokens.labels(model, "reasoning"))
        self.revenue = count(series.revenue.labels(model))
        self.overage = count(series.overage.labels(model))


class _RequestSeries:
    """What is counted of every request that ends."""

    def __init__(self, registry: CollectorRegistry) -> None:
        names = ("gen_ai_operation_name", "gen_ai_request_model", "gen_ai_response_model")
        self.duration = Histogram(
            "gen_ai_server_request_duration_seconds", "Time from the request headers to the end of the answer.",
            (*names, "error_type"), registry=registry, buckets=DURATION_BUCKETS,
        )  # fmt: skip
        self.ttft = Histogram(
            "gen_ai_server_time_to_first_token_seconds", "Time from the request headers to the first event with output.",
            names, registry=registry, buckets=TTFT_BUCKETS,
        )  # fmt: skip
        self.per_token = Histogram(
            "gen_ai_server_time_per_output_token_seconds", "Mean time of a token after the first, per request.",
            names, registry=registry, buckets=PER_TOKEN_BUCKETS,
        )  # fmt: skip
        self.usage = Histogram(
            "gen_ai_client_token_usage", "Tokens of a request.", (*names, "gen_ai_token_type"), registry=registry, buckets=TOKEN_BUCKETS
        )
        self.requests = Counter(
            "extproc_requests_total", "Requests by model and status as the client saw it.", ("model", "code"), registry=registry
        )
        self.tokens = Counter(
            "extproc_tokens_total",
            "Tokens billed; cached_input is part of input, reasoning of output.",
            ("model", "type"),
            registry=registry,
        )
        self.revenue = Counter("extproc_revenue_nanos_total", "Charged, in nanos of the currency.", ("model",), registry=registry)
        self.overage = Counter(
            "extproc_overage_nanos_total", "Used beyond the cap of a hold, at the operator's expense.", ("model",), registry=registry
        )


class MoneySeries:
    """What the reconciler says; one settler of a deployment does."""

    def __init__(self, registry: CollectorRegistry) -> None:
        def gauge(name: str, text: str, *labels: str) -> Gauge:
            return Gauge(name, text, labels, registry=registry, multiprocess_mode="livemax")

        self._drift = gauge("extproc_ledger_drift_nanos", "By how much the stores differ from the invariants of the money, signs left out.")
        self._broken = gauge("extproc_broken_invariants", "Findings that stand, by the number of the invariant.", "invariant")
        self._reconciled = gauge("extproc_reconciled_timestamp_seconds", "When the last full reconciliation was finished.")
        self._holds = gauge("extproc_holds_open", "Holds that have not ended.")
        self._oldest = gauge("extproc_hold_oldest_age_seconds", "Age of the oldest open hold.")
        self._unbilled = gauge(
            "extproc_unbilled_tokens_ratio",
            "Tokens that a model's backends counted and nobody was billed for, of all in ten minutes.",
            "model",
        )

    def broken(self, counts: Mapping[int, int], *, drift_nanos: int) -> None:
        """``counts`` by invariant: a closed list of numbers."""
        for number, count in counts.items():
            self._broken.labels(str(number)).set(count)
        self._drift.set(drift_nanos)

    def reconciled(self, at_s: float) -> None:
        """A full run was finished, unix time."""
        self._reconciled.set(at_s)

    def holds(self, count: int, oldest_age_s: float) -> None:
        """Of all shards."""
        self._holds.set(count)
        self._oldest.set(oldest_age_s)

    def unbilled(self, model: str, ratio: float) -> None:
        """``model`` is one of the settings: a closed list."""
        self._unbilled.labels(model).set(ratio)


class OutboxSeries:
    """What a gate worker says of its outbox, once a second."""

    def __init__(self, registry: CollectorRegistry) -> None:
        def gauge(name: str, text: str, mode: Any) -> Gauge:
            return Gauge(name, text, registry=registry, multiprocess_mode=mode)

        self._rows = gauge("extproc_outbox_rows", "Endings in the outboxes of gate workers that the ledger has not confirmed.", "livesum")
        self._bytes = gauge("extproc_outbox_bytes", "What they take on the disk.", "livesum")
        self._full = gauge("extproc_outbox_full", "1 = a worker lets nobody in: its outbox cannot be written, or is full.", "livemax")
        self._broken = gauge("extproc_outbox_broken_files", "Outboxes that were put aside because they could not be read.", "livemax")
        self._failures = Counter("extproc_outbox_commit_failures_total", "Commits of an outbox that were tried in vain.", registry=registry)
        self._failed = 0

    def told(self, *, rows: int, used_bytes: int, failures: int, broken: int, is_full: bool) -> None:
        """``failures`` since the worker began."""
        self._rows.set(rows)
        self._bytes.set(used_bytes)
        self._full.set(is_full)
        self._broken.set(broken)
        self._failures.inc(failures - self._failed)
        self._failed = failures


class Metrics:
    """Declared once per process. Methods are named by what happened; none raises, none waits."""

    def __init__(self, registry: CollectorRegistry, *, models: Iterable[str] = ()) -> None:
        disable_created_metrics()  # type: ignore[no-untyped-call]  # `…_created` gauges double the page and mean nothing to Prometheus
        self.registry = registry
        self._models: frozenset[str] = frozenset(models)
        self._series = _RequestSeries(registry)
        self._of_model: dict[tuple[str, str], _OfModel] = {}
        self._tallies = _Tallies()
        self._open = 0
        self._declare_counters(registry)
        self._declare_gauges(registry)
        self.money = MoneySeries(registry)
        self.outbox = OutboxSeries(registry)

    def _declare_counters(self, registry: CollectorRegistry) -> None:
        count, spread = self._tallies.count, self._tallies.spread

        def counter(name: str, text: str, label: str) -> _Bound[str, _Count]:
            declared = Counter(name, text, (label,), registry=registry)
            return _Bound[str, _Count](lambda value: count(declared.labels(value)), "other")

        def single(name: str, text: str) -> _Count:
            return count(Counter(name, text, registry=registry))

        self._rejected = counter("extproc_rejected_total", "Requests that we answered ourselves, by reason.", "reason")
        self._sources = counter("extproc_usage_source_total", "Charged requests, by who said how many tokens they used.", "source")
        self._ends = counter("extproc_end_reason_total", "Exchanges by the reason of their end.", "reason")
        self._ending = counter("extproc_hold_endings_total", "Endings sent to the store, by what they found.", "result")
        self._would_deny = counter("extproc_would_deny_total", "Shadow requests that would have been refused, by reason.", "reason")
        self._policies = counter("extproc_policy_total", "Requests that a policy let in or made the figure of.", "policy")
        self._fail_open = single("extproc_fail_open_total", "Requests served on credit while the hold store was away.")
        self._turned_away = counter("extproc_turned_away_total", "Requests that were not looked at: no room for their ending.", "reason")
        self._untaken = counter(
            "extproc_trusted_untaken_total", "Holds of trusted accounts that were not granted after all, by reason.", "reason"
        )
        self._faults = counter("extproc_store_failures_total", "Calls of a store that failed or whose outcome is unknown.", "store")
        self._settlement = counter("extproc_settlement_events_total", "What the settler did, by what it was.", "event")
        self._expired = single("extproc_holds_expired_total", "Holds that the reaper ended.")
        asked = Counter(
            "extproc_tokenize_total", "Prompts that a backend was to count, by what came of it.", ("model", "result"), registry=registry
        )
        self._tokenize = _Bound[tuple[str, str], _Count](lambda labels: count(asked.labels(*labels)), ("other", "other"))
        took = Histogram(
            "extproc_tokenize_seconds", "Time of a backend that counts a prompt.", ("model",), registry=registry, buckets=TOKENIZE_BUCKETS
        )
        self._tokenize_s = _Bound[str, _Spread](lambda model: spread(took.labels(model), TOKENIZE_BUCKETS), "other")
        self._unsafe = single("extproc_unsafe_ends_total", "Answers whose end was let go before their charge was safe.")
        self._illegal = single("extproc_illegal_events_total", "Events that the table of the exchange has no row for.")
        phase = Histogram(
            "extproc_phase_seconds", "Our own time in a phase of a request.", ("phase",), registry=registry, buckets=PHASE_BUCKETS
        )
        self._phases = _Bound[str, _Spread](lambda name: spread(phase.labels(name), PHASE_BUCKETS), "other")

    def _declare_gauges(self, registry: CollectorRegistry) -> None:
        def gauge(name: str, text: str, mode: Any = "livesum") -> Gauge:
            return Gauge(name, text, registry=registry, multiprocess_mode=mode)

        self._open_exchanges = gauge("extproc_exchanges_open", "Exchanges open in the gate workers.")
        self._lag = gauge("extproc_settlement_lag_seconds", "Age of the oldest ending that the ledger does not have.", "livemax")
        self._led = gauge("extproc_settlement_shards_led", "Shards that settlers post.")
        self._outbox_age = gauge("extproc_outbox_age_seconds", "Age of the oldest ending that the ledger is not known to have.", "livemax")
        self._closed = gauge("extproc_shards_closed", "Shards of the hold store that a process does not call: they are rebuilt.", "livemax")
        self._used = gauge("extproc_store_memory_used_ratio", "Of its maxmemory, the fullest server of Redis; from 0.7 on: 503.", "livemax")
        self._rebuild = gauge("extproc_rebuild_seconds", "What the last rebuild of shards took.", "livemax")
        self._witness = gauge("extproc_witness_lag_bytes", "Of Envoy's access log, not read by the second witness yet.", "livemax")
        self._reloaded = gauge(
            "extproc_config_reload_success", "1 = the catalog file is in force; 0 = it is bad, the last good one serves.", "livemin"
        )
        self._reloaded.set(1)  # the least of all processes counts, and the settler never reads a catalog
        hashes = Gauge(
            "extproc_config_hash_info", "Hash of the catalog in force.", ("hash",), registry=registry, multiprocess_mode="livemax"
        )
        self._hashes = _Bound[str, Gauge](hashes.labels, "other", most=HASHES_MAX)
        self._hash = ""

    def known_models(self, models: Iterable[str]) -> None:
        """The catalog's models after a reload. Series of models that it no longer has stay until a restart: counters never vanish."""
        self._models = frozenset(models)

    def flush(self) -> None:
        """Hand over what has been counted: once a second, and before the process ends."""
        self._tallies.flush()
        self._open_exchanges.set(self._open)

    def render(self) -> bytes:
        """The page of this process."""
        self.flush()
        return generate_latest(self.registry)

    def request_done(self, outcome: Outcome) -> None:
        """An exchange is over, however it ended."""
        of_model = self._of(outcome.model, outcome.endpoint)
        of_model.requests[outcome.status].inc()
        of_model.duration[outcome.error_code].observe(outcome.duration_ms / 1e3)
        if outcome.end_reason:
            self._ends[outcome.end_reason].inc()
        if outcome.would_deny:
            self._would_deny[outcome.would_deny].inc()
        for policy in outcome.policies:
            self._policies[policy].inc()
        if outcome.usage_source == "none":
            return
        self._sources[outcome.usage_source].inc()
        self._tokens(of_model, outcome)
        if outcome.cost_nanos:
            of_model.revenue.inc(outcome.cost_nanos)
        if outcome.overage_nanos:
            of_model.overage.inc(outcome.overage_nanos)

    def _tokens(self, of_model: _OfModel, outcome: Outcome) -> None:
        of_model.usage_input.observe(outcome.input_tokens)
        of_model.usage_output.observe(outcome.output_tokens)
        of_model.input.inc(outcome.input_tokens)
        of_model.output.inc(outcome.output_tokens)
        if outcome.cached_tokens:
            of_model.cached.inc(outcome.cached_tokens)
        if outcome.reasoning_tokens:
            of_model.reasoning.inc(outcome.reasoning_tokens)
        if outcome.stream and outcome.ttft_ms:
            of_model.ttft.observe(outcome.ttft_ms / 1e3)
            if outcome.output_tokens > 1:
                of_model.per_token.observe((outcome.duration_ms - outcome.ttft_ms) / 1e3 / (outcome.output_tokens - 1))

    def _of(self, model: str, endpoint: str) -> _OfModel:
        key = (model if model in self._models else UNKNOWN, OPERATIONS.get(endpoint, UNKNOWN))
        found = self._of_model.get(key)
        if found is None:
            found = self._of_model[key] = _OfModel(self._series, self._tallies, *key)
        return found

    def rejected(self, reason: str) -> None:
        """We answered the client ourselves. ``reason``: the ``code`` of the answer."""
        self._rejected[reason].inc()

    def failed_open(self) -> None:
        """The hold store is away, and a request was served on credit."""
        self._fail_open.inc()

    def turned_away(self, reason: str) -> None:
        """Nobody new is let in: ``outbox`` or ``endings`` have no room, or ``store_memory`` has little."""
        self._turned_away[reason].inc()

    def trusted_untaken(self, reason: str) -> None:
        """The hold that nobody waited for was denied (a ``DenyReason``), or its outcome is ``unknown``."""
        self._untaken[reason].inc()

    def tokenize(self, model: str, result: str, seconds: float | None = None) -> None:
        """A backend was to count a prompt of a model of the catalog: ``counted``, ``refused``, ``failed``, ``not_asked``."""
        self._tokenize[model, result].inc()
        if seconds is not None:
            self._tokenize_s[model].observe(seconds)

    def phase(self, name: str, seconds: float) -> None:
        """Our own time in one phase (one of :data:`PHASES`)."""
        self._phases[name if name in PHASES else "other"].observe(seconds)

    def exchange_opened(self) -> None:
        self._open += 1

    def exchange_closed(self) -> None:
        self._open -= 1

    def hold_ended(self, result: str) -> None:
        """An ending was acknowledged; ``result`` is a ``money.hold.EndResult``."""
        self._ending[result].inc()

    def holds_expired(self, count: int = 1) -> None:
        self._expired.inc(count)

    def store_failed(self, store: str) -> None:
        """A call failed, or nobody knows whether it was executed.

        ``store``: ``redis``, ``redis_note`` (the row of a refusal), ``redis_missing`` (it has lost a payer, a key or a hold).
        """
        self._faults[store].inc()

    def illegal_event(self) -> None:
        self._illegal.inc()

    def left_unsafe(self) -> None:
        """The end of an answer has waited for its charge to be safe for as long as it may, and goes."""
        self._unsafe.inc()

    def settlement_lag(self, lag_s: float) -> None:
        """The oldest ending that the ledger did not have a moment ago is ``lag_s`` old."""
        self._lag.set(lag_s)

    def outbox_age(self, age_s: float) -> None:
        """The oldest row of an outbox that is not confirmed is ``age_s`` old; some seconds, when all is well."""
        self._outbox_age.set(age_s)

    def store_used(self, ratio: float) -> None:
        """The fullest server of the hold store has used so much of what it may; 0: it has no limit."""
        self._used.set(ratio)

    def shards_led(self, count: int) -> None:
        """So many shards are posted by this settler."""
        self._led.set(count)

    def shards_closed(self, count: int) -> None:
        """So many shards are not called by this process."""
        self._closed.set(count)

    def rebuilt(self, seconds: float) -> None:
        """A rebuild has ended, and its shards serve."""
        self._rebuild.set(seconds)

    def witness_lag(self, lag_bytes: int) -> None:
        """The access log goes on for ``lag_bytes`` beyond what was read."""
        self._witness.set(lag_bytes)

    def settlement(self, what: str, count: int = 1) -> None:
        """Something that the settler counts (``settlement.meter.Series``)."""
        self._settlement[what].inc(count)

    def catalog_in_force(self, version: str) -> None:
        """A reload succeeded (or the first load)."""
        self._reloaded.set(1)
        if version != self._hash:
            if self._hash:
                self._hashes[self._hash].set(0)
            self._hashes[version].set(1)
            self._hash = version

    def catalog_refused(self) -> None:
        """A reload failed: the last good catalog serves."""
        self._reloaded.set(0)


class Processes:
    """What the supervisor counts of its children: it lives as long as they all, so its numbers need no file."""

    def __init__(self) -> None:
        disable_created_metrics()  # type: ignore[no-untyped-call]
        self._registry = registry()
        name = "extproc_processes_ended_total"
        self._ended = Counter(
            name, "Processes that ended, or were killed, though nobody asked them to.", ("process",), registry=self._registry
        )
        name = "extproc_replacements_failed_total"
        self._failed = Counter(name, "Rounds of replacements that were given up; the old processes serve.", registry=self._registry)

    def ended(self, process: str) -> None:
        """``process``: a name of the closed set gate-0 … settler."""
        self._ended.labels(process).inc()

    def replacement_failed(self) -> None:
        """Bad settings, or a process that did not become ready."""
        self._failed.inc()

    def render(self) -> bytes:
        """To stand below the page of all workers."""
        return generate_latest(self._registry)


def registry() -> CollectorRegistry:
    """A fresh registry, so that nobody else needs the library."""
    return CollectorRegistry()


def render_merged(directory: Path) -> bytes:
    """The page of all workers, from their files."""
    merged = CollectorRegistry()
    MultiProcessCollector(merged, str(directory))  # type: ignore[no-untyped-call]
    return generate_latest(merged)


def wipe(directory: Path) -> None:
    """Make the directory, or empty it of what an earlier run left. Before any worker starts."""
    directory.mkdir(parents=True, exist_ok=True)
    for path in directory.glob("*.db"):
        path.unlink()


def reap(directory: Path, pid: int) -> None:
    """Forget the gauges of a dead worker, and fold its counts into the file of all the dead: one file, however often workers die.

    For the process that also renders, so that no page is made half way.
    """
    mark_process_dead(pid, str(directory))  # type: ignore[no-untyped-call]
    for kind in ("counter", "histogram"):
        path = directory / f"{kind}_{pid}.db"
        if path.exists():
            _fold(path, directory / f"{kind}_{DEAD}.db")
            path.unlink()


def _fold(source: Path, target: Path) -> None:
    counts = MmapedDict(str(target))  # type: ignore[no-untyped-call]
    try:
        for key, value, stamp, _ in MmapedDict.read_all_values_from_file(str(source)):  # type: ignore[no-untyped-call]
            counts.write_value(key, counts.read_value(key)[0] + value, stamp)  # type: ignore[no-untyped-call]
    finally:
        counts.close()  # type: ignore[no-untyped-call]
