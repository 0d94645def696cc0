"""The instrument works: everything is measured once, little of it, and what was served was billed."""

from __future__ import annotations

import asyncio
import json
import os
import time
from xml.etree import ElementTree as ET

import pytest

from .bounds import BOUNDS, FIXED, absent, verdicts
from .chart import chart
from .cpu import Accounts, cpu_ns, thread_names_ns, ticks_ns
from .edge import Target
from .figures import figures, percentile, result, write
from .open_streams import Crowd, open_streams
from .plan import FULL, JSON, QUICK, SMOKE, STREAM100_JOINED, Load
from .readme import BEGIN, END, README, with_section
from .run import Measured, measure
from .stage import stage
from .tables import whole

CROWD = Crowd(count=30, first=10, seen=3, rate=300, delay_ms=50, hold_s=0.2, slack_s=0.5)


@pytest.fixture(scope="module")
def measured() -> Measured:
    with stage(SMOKE) as running:
        crowd = asyncio.run(open_streams(running, CROWD))
        made = measure(running, SMOKE, lambda words: None)
        made.crowds.append(crowd)
        warm = JSON.clients + STREAM100_JOINED.clients
        paced = SMOKE.rounds * (SMOKE.first.count * SMOKE.first.slices + SMOKE.stamped.count * SMOKE.stamped.slices)
        whole_answers = sum(load.count * load.rounds for load in SMOKE.loads if not load.workload.leave_after)
        assert running.sent == CROWD.count + warm + whole_answers + paced  # all of it billed: measure has compared
        assert len(running.left) == next(load.count for load in SMOKE.loads if load.workload.leave_after)
    return made


def test_every_figure_is_there(measured: Measured):
    told = json.loads(json.dumps(result(measured)))
    assert absent(told) == []
    may_be_nothing = ("added", "delay", "billed_off", "kb_per_open_stream")  # differences; of so few streams memory need not grow
    assert [name for name in FIXED if not told[name] > 0 and not any(part in name for part in may_be_nothing)] == []
    assert set(told["spread"]) | {"about", "spread"} == set(told)
    assert {load.workload.name for load in SMOKE.loads} == set(told["about"]["rounds_of"])
    assert told["about"]["transport"] == "lean"


def test_targets_take_turns(measured: Measured):
    order = {place: [one.target for one in measured.samples if one.workload == JSON and one.round == place] for place in range(2)}
    assert order == {0: [*Target], 1: [*Target][1:] + [*Target][:1]}
    assert {one.target for one in measured.first} == set(Target)
    assert {one.target for one in measured.stamped} == {Target.OURS, Target.DIRECT}
    tokens = SMOKE.stamped.workload.tokens * SMOKE.stamped.count * SMOKE.stamped.slices
    assert all(len(one.times_ms) == tokens and one.times_ms[0] > 0 for one in measured.stamped)


def test_every_message_is_seen(measured: Measured):
    made = figures(measured)
    for server in ("", "_empty_lean", "_empty_grpcio"):
        assert made[f"messages_json{server}"] == pytest.approx([4, 4])  # headers, body, headers, body
        assert min(made[f"messages_stream100{server}"]) > 90


def test_who_leaves_pays_for_what_was_read(measured: Measured):
    (off,) = figures(measured)["billed_off_events"]
    assert off <= 1


def test_the_result_is_told(measured: Measured, tmp_path):
    told = result(measured)
    write(told, tmp_path / "result.json")
    assert json.loads((tmp_path / "result.json").read_text()) == json.loads(json.dumps(told))
    assert all(bound.what in whole(told) for bound in BOUNDS)
    assert all(f"`{load.workload.name}`" in whole(told) for load in SMOKE.loads)
    assert len(ET.fromstring(chart(told)).findall("{http://www.w3.org/2000/svg}rect")) == 1 + 2 * 6
    readme = README.read_text()
    renewed = with_section(readme, told)
    assert renewed.partition(BEGIN)[0] == readme.partition(BEGIN)[0]
    assert renewed.partition(END)[2] == readme.partition(END)[2]
    assert with_section(renewed, told) == renewed


def test_a_missing_figure_is_a_failure(measured: Measured):
    told = result(measured)
    assert absent({**told, "rps_json": None}) == ["rps_json"]
    assert absent({name: value for name, value in told.items() if name != "pg_rows_per_s"}) == ["pg_rows_per_s"]
    assert absent({**told, "spread": {**told["spread"], "rps_json": [float("nan"), 1.0]}}) == ["rps_json"]


def test_a_bound_is_met_or_not(measured: Measured):
    told = result(measured) | {"worker_cpu_ms_json": 0.3, "rps_json": 40.0, "rps_json_empty_lean": 100.0, "open_streams": 9.0}
    said = {name: verdict for *_, verdict, name in verdicts(told)}
    assert said["worker_cpu_ms_json"] == "**not met**"
    assert said["rps_json ÷ rps_json_empty_lean"] == "met"
    assert said["open_streams"] == "not tried"


def test_smoke_has_every_kind_of_workload():
    def kinds(loads: tuple[Load, ...]) -> set[tuple[object, ...]]:
        return {
            (one.stream, one.delay_ms == 0, one.clients > 16, one.prompt_bytes, bool(one.leave_after))
            for one in (load.workload for load in loads)
        }

    assert {kind for kind in kinds(FULL.loads) if not (kind[0] and kind[2])} <= kinds(
        SMOKE.loads
    )  # many clients: one kind of request is enough
    assert kinds(QUICK.loads) <= kinds(SMOKE.loads)


def test_cpu_clocks_agree_with_proc_stat():
    end = time.thread_time_ns() + 60_000_000
    while time.thread_time_ns() < end:
        pass
    own, _ = ticks_ns(os.getpid())
    assert cpu_ns(os.getpid()) == pytest.approx(own, abs=40_000_000)
    assert sum(thread_names_ns(os.getpid()).values()) <= cpu_ns(os.getpid())
    assert Accounts({"me": [os.getpid()]}, trees=("me",)).read()["me"] >= own


def test_a_percentile_is_a_value_that_was_measured():
    assert [percentile([1.0, 2.0, 3.0, 4.0], share) for share in (0.5, 0.99, 0.01)] == [2.0, 4.0, 1.0]
