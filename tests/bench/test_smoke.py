"""The instrument works: everything is measured once, little of it, and what was served was billed."""

from __future__ import annotations

import json
import os
import time

import pytest

from .cpu import Accounts, cpu_ns, thread_names_ns, ticks_ns
from .edge import Target
from .figures import FIXED, Figure, figures, percentile, result, table
from .plan import SMOKE, Workload
from .run import measure
from .stage import stage


def test_everything_is_measured_and_billed():
    with stage(SMOKE) as running:
        measured = measure(running, SMOKE, lambda words: None)
        assert running.sent == 40 + 4 + 20 + 2 * SMOKE.clients
    made = figures(measured)
    told = json.loads(json.dumps(result(measured, made)))
    assert all(told[name] > 0 for name in FIXED if "ttft_added" not in name)
    assert set(told["spread"]) == set(made)
    assert made["messages_json"].median == pytest.approx(4)  # headers, body, headers, body
    assert made["messages_stream100"].median > 90
    assert told["worker_cpu_ms_stream100"] > told["worker_cpu_ms_json"]
    assert all(sample.count == len(sample.ttft_ms) for sample in measured.first)
    assert {sample.target for sample in measured.loads[Workload.JSON]} == set(Target)
    assert "gate workers" in table(measured, made)


def test_cpu_clocks_agree_with_proc_stat():
    end = time.thread_time_ns() + 60_000_000
    while time.thread_time_ns() < end:
        pass
    own, _ = ticks_ns(os.getpid())
    assert cpu_ns(os.getpid()) == pytest.approx(own, abs=40_000_000)
    assert sum(thread_names_ns(os.getpid()).values()) <= cpu_ns(os.getpid())
    assert Accounts({"me": [os.getpid()]}, trees=("me",)).read()["me"] >= own


def test_figures_have_a_median_and_a_spread():
    assert str(Figure(values=(3.0, 1.0, 2.0))) == "2.00 (1.00 – 3.00)"
    assert [percentile([1.0, 2.0, 3.0, 4.0], share) for share in (0.5, 0.99, 0.01)] == [2.0, 4.0, 1.0]
