"""The page of metrics: what is on it, what must never be, and that Prometheus' own linter accepts it."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry, Histogram, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from extproc import metrics
from extproc.exchange.record import Record
from extproc.settlement.meter import ALARMS, Series

ROOT = Path(__file__).resolve().parents[2]

MODELS = ("qwen", "bge")
ALLOWED_LABELS = {
    "model", "code", "reason", "type", "source", "phase", "hash", "result", "store", "le", "error_type",
    "gen_ai_operation_name", "gen_ai_request_model", "gen_ai_response_model", "gen_ai_token_type",
}  # fmt: skip


def record(**changes) -> Record:
    values = {
        "id": "0190-hold", "request_id": "req-secret", "user_id": "user-secret", "creds_id": "key-secret", "model": "qwen",
        "endpoint": "chat.completions", "stream": True, "input_tokens": 100, "cached_tokens": 40, "output_tokens": 21, "reasoning_tokens": 3,
        "usage_source": "upstream", "end_reason": "stop", "cost_nanos": 1_500, "overage_nanos": 2, "status": 200, "duration_ms": 2_100, "ttft_ms": 100,
    }  # fmt: skip
    return Record(**(values | changes))


@dataclass
class Page:
    """Samples by name and labels."""

    text: bytes

    def value(self, name: str, **labels: str) -> float | None:
        for family in text_string_to_metric_families(self.text.decode()):
            for sample in family.samples:
                if sample.name == name and sample.labels == labels:
                    return sample.value
        return None

    def labels(self) -> set[tuple[str, str]]:
        families = text_string_to_metric_families(self.text.decode())
        return {label for family in families for sample in family.samples for label in sample.labels.items()}


def everything(made: metrics.Metrics) -> None:
    made.request_done(record())
    made.request_done(record(model="invented-by-a-client", status=404, error_code="model_not_found", usage_source="none", cost_nanos=0))
    made.rejected("insufficient_quota")
    for phase in metrics.PHASES:
        made.phase(phase, 0.0003)
    made.exchange_opened()
    made.exchange_opened()
    made.exchange_closed()
    made.hold_ended("ended")
    made.holds_expired(3)
    made.store_failed("redis")
    made.tokenize("qwen", "counted", 0.008)
    made.tokenize("qwen", "not_asked")
    made.illegal_event()
    made.settlement_lag(0.25)
    made.catalog_in_force("aa")
    made.catalog_in_force("bb")
    made.catalog_refused()


@pytest.fixture
def made() -> metrics.Metrics:
    return metrics.Metrics(metrics.registry(), models=MODELS)


@pytest.fixture
def page(made) -> Page:
    everything(made)
    return Page(made.render())


@pytest.mark.parametrize(
    ("name", "labels", "value"),
    [
        ("extproc_requests_total", {"model": "qwen", "code": "200"}, 1),
        ("extproc_requests_total", {"model": "unknown", "code": "404"}, 1),
        ("extproc_rejected_total", {"reason": "insufficient_quota"}, 1),
        ("extproc_tokens_total", {"model": "qwen", "type": "input"}, 100),
        ("extproc_tokens_total", {"model": "qwen", "type": "cached_input"}, 40),
        ("extproc_tokens_total", {"model": "qwen", "type": "output"}, 21),
        ("extproc_tokens_total", {"model": "qwen", "type": "reasoning"}, 3),
        ("extproc_revenue_nanos_total", {"model": "qwen"}, 1_500),
        ("extproc_overage_nanos_total", {"model": "qwen"}, 2),
        ("extproc_usage_source_total", {"source": "upstream"}, 1),
        ("extproc_end_reason_total", {"reason": "stop"}, 2),
        ("extproc_phase_seconds_count", {"phase": "admit"}, 1),
        ("extproc_exchanges_open", {}, 1),
        ("extproc_holds_expired_total", {}, 3),
        ("extproc_settlement_lag_seconds", {}, 0.25),
        ("extproc_illegal_events_total", {}, 1),
        ("extproc_hold_endings_total", {"result": "ended"}, 1),
        ("extproc_store_failures_total", {"store": "redis"}, 1),
        ("extproc_tokenize_total", {"model": "qwen", "result": "counted"}, 1),
        ("extproc_tokenize_total", {"model": "qwen", "result": "not_asked"}, 1),
        ("extproc_tokenize_seconds_count", {"model": "qwen"}, 1),
        ("extproc_config_reload_success", {}, 0),
        ("extproc_config_hash_info", {"hash": "aa"}, 0),
        ("extproc_config_hash_info", {"hash": "bb"}, 1),
    ],
)
def test_what_happened_is_on_the_page(page, name, labels, value):
    assert page.value(name, **labels) == value


def test_the_reference_names_every_series():
    """And no other; and of what the settler counts, every event, with its alarms."""
    text = (ROOT / "docs" / "reference" / "metrics.md").read_text()
    rows = dict(re.findall(r"^\| `(\w+)[^`]*` \| (\*\*alarm\*\*)? ?", text, re.MULTILINE))
    series = {name for name in rows if name.startswith(("gen_ai_", "extproc_"))}
    pages = metrics.Metrics(metrics.registry()).render() + metrics.Processes().render()
    assert series == set(re.findall(r"^# TYPE (\w+)", pages.decode(), re.MULTILINE))
    counted = {one.value: "**alarm**" * (one in ALARMS) for one in Series if not one.value.endswith(("_ms", "_shards", "_bytes"))}
    assert {name: alarm for name, alarm in rows.items() if name not in series} == counted


def test_gen_ai_histograms(page):
    of_chat = {"gen_ai_operation_name": "chat", "gen_ai_request_model": "qwen", "gen_ai_response_model": "qwen"}
    assert page.value("gen_ai_server_time_to_first_token_seconds_sum", **of_chat) == 0.1
    assert page.value("gen_ai_server_time_per_output_token_seconds_sum", **of_chat) == 0.1
    assert page.value("gen_ai_server_request_duration_seconds_sum", **of_chat, error_type="") == 2.1
    assert page.value("gen_ai_client_token_usage_sum", **of_chat, gen_ai_token_type="input") == 100
    assert page.value("gen_ai_client_token_usage_sum", **of_chat, gen_ai_token_type="output") == 21


def test_no_label_names_a_user_a_key_or_a_request(page):
    labels = page.labels()
    assert {name for name, _ in labels} <= ALLOWED_LABELS
    assert not [value for _, value in labels if "secret" in value or "hold" in value]
    assert b"secret" not in page.text
    assert b"invented" not in page.text


def test_no_caller_can_grow_a_label_set(made):
    for n in range(10 * metrics.VALUES_MAX):
        made.rejected(f"reason-{n}")
        made.phase(f"phase-{n}", 0.001)
        made.request_done(record(model=f"model-{n}", endpoint=f"endpoint-{n}", error_code=f"error-{n}", status=n))
    for n in range(2 * metrics.HASHES_MAX):
        made.catalog_in_force(f"{n:064x}")
    page = Page(made.render())
    by_name: dict[str, set[str]] = {}
    for name, value in page.labels():
        by_name.setdefault(name, set()).add(value)
    assert (
        max(len(values) for name, values in by_name.items() if name != "hash") <= metrics.VALUES_MAX + 2
    )  # "other", and "stop" of the ends
    assert len(by_name["hash"]) <= metrics.HASHES_MAX + 1
    assert by_name["model"] == {"unknown"}
    assert page.value("extproc_rejected_total", reason="other") == 9 * metrics.VALUES_MAX


def test_models_of_a_reload_count_under_their_names(made):
    made.request_done(record(model="new"))
    made.known_models(["new"])
    made.request_done(record(model="new"))
    made.request_done(record(model="qwen"))
    page = Page(made.render())
    assert page.value("extproc_requests_total", model="new", code="200") == 1
    assert page.value("extproc_requests_total", model="unknown", code="200") == 2


def phases(page: bytes) -> dict[str, float]:
    lines = (line.rsplit(" ", 1) for line in page.decode().splitlines() if line.startswith("extproc_phase_seconds_"))
    return {series: float(value) for series, value in lines}


def test_a_flush_adds_what_the_library_would_have_observed(made):
    """Bounds belong to their bucket; what was flushed once is not flushed again."""
    registry = CollectorRegistry()
    theirs = Histogram("extproc_phase_seconds", "", ("phase",), registry=registry, buckets=metrics.PHASE_BUCKETS)
    for _ in range(2):
        for seconds in (0.0, *metrics.PHASE_BUCKETS, *(bound * 1.5 for bound in metrics.PHASE_BUCKETS), 99.0):
            made.phase("admit", seconds)
            theirs.labels("admit").observe(seconds)
        made.flush()
        assert phases(made.render()) == pytest.approx(phases(generate_latest(registry)))


def test_promtool_accepts_the_page(page):
    promtool = shutil.which("promtool")
    if promtool is None:
        pytest.skip("promtool is not installed (Debian package: prometheus)")
    done = subprocess.run([promtool, "check", "metrics"], input=page.text, capture_output=True, check=False, timeout=60)
    assert (done.returncode, done.stdout + done.stderr) == (0, b"")


def test_a_request_is_cheap_to_count(made):
    """CPU of one process: the budget of a whole JSON request is 220 µs. The bound is loose, for slow machines."""
    done = record()
    made.request_done(done)
    start = time.process_time()
    for _ in range(2_000):
        made.request_done(done)
    assert (time.process_time() - start) / 2_000 < 100e-6


WORKER = """
import os, sys
from extproc import metrics
made = metrics.Metrics(metrics.registry(), models=["qwen"])
for _ in range(int(sys.argv[1])):
    made.rejected("x")
    made.exchange_opened()
    made.phase("admit", 0.0003)
made.settlement_lag(int(sys.argv[1]))
made.flush()
print(os.getpid(), flush=True)
sys.stdin.read()
"""


@pytest.fixture
def workers(tmp_path):
    """Starts workers in multiprocess mode, over the directory of this test."""
    started: list[subprocess.Popen[bytes]] = []

    def start(count: int) -> subprocess.Popen[bytes]:
        environ = os.environ | {"PROMETHEUS_MULTIPROC_DIR": str(tmp_path / "metrics")}
        command = [sys.executable, "-c", WORKER, str(count)]
        process = subprocess.Popen(command, env=environ, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=Path(__file__).parents[2])
        started.append(process)
        assert process.stdout is not None
        assert int(process.stdout.readline()) == process.pid
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


def test_workers_are_merged_and_the_dead_reaped(tmp_path, workers):
    directory = tmp_path / "metrics"
    metrics.wipe(directory)
    first, _ = workers(3), workers(4)
    page = Page(metrics.render_merged(directory))
    assert page.value("extproc_rejected_total", reason="x") == 7
    assert page.value("extproc_exchanges_open") == 7
    assert page.value("extproc_settlement_lag_seconds") == 4, "the worst of them"
    first.kill()
    first.communicate()
    metrics.reap(directory, first.pid)
    page = Page(metrics.render_merged(directory))
    assert page.value("extproc_rejected_total", reason="x") == 7, "counters never fall"
    assert page.value("extproc_phase_seconds_count", phase="admit") == 7
    assert page.value("extproc_exchanges_open") == 4, "the dead have nothing open"
    third = workers(10)
    third.kill()
    third.communicate()
    metrics.reap(directory, third.pid)
    page = Page(metrics.render_merged(directory))
    assert page.value("extproc_rejected_total", reason="x") == 17
    assert page.value("extproc_phase_seconds_bucket", phase="admit", le="0.0005") == 17
    assert not [path for path in directory.iterdir() if str(first.pid) in path.name or str(third.pid) in path.name], (
        "one file for all the dead"
    )
    assert b"pid=" not in page.text


def test_a_start_wipes_what_an_earlier_run_left(tmp_path):
    directory = tmp_path / "metrics"
    metrics.wipe(directory)
    (directory / "counter_1.db").write_bytes(b"")
    (directory / "notes.txt").write_text("not ours")
    metrics.wipe(directory)
    assert [path.name for path in directory.iterdir()] == ["notes.txt"]
