"""The commands as an operator types them, against one stack of `extproc up --detach`."""

from __future__ import annotations

import io
import json
import os
import pty
import shutil
import signal
import ssl
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import redirect_stderr, redirect_stdout
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import openai
import psycopg
import pytest

from extproc.cli import main

COMMAND = [sys.executable, "-m", "extproc.cli"]
ENVIRON = {name: value for name, value in os.environ.items() if not name.startswith("EXTPROC_")}
TIMEOUT_S = 60
MODEL = "qwen2.5-7b"


def run(*words: str, cwd: Path | None = None, **environ: str) -> subprocess.CompletedProcess[str]:
    env = {**ENVIRON, "PYTHONPATH": str(Path.cwd()), **environ}
    return subprocess.run([*COMMAND, *words], capture_output=True, text=True, timeout=TIMEOUT_S, check=False, cwd=cwd, env=env)


def type_in(*words: str) -> subprocess.CompletedProcess[str]:
    """The same within this process: half a second of imports less."""
    out, err = io.StringIO(), io.StringIO()
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(out), redirect_stderr(err):
        patch.setattr(sys, "argv", ["extproc", *words])
        with pytest.raises(SystemExit) as left:
            main()
    return subprocess.CompletedProcess(words, left.value.code, out.getvalue(), err.getvalue())


def until(condition: Callable[[], Any], what: str, deadline_s: float = 20) -> Any:
    end = time.monotonic() + deadline_s
    while not (answer := condition()):
        assert time.monotonic() < end, what
        time.sleep(0.02)
    return answer


def lives(pid: int) -> bool:
    """Not gone, and not a zombie that waits for an init which does not look."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


class Operator:
    """Types commands against one directory."""

    def __init__(self, data: Path) -> None:
        self.data = data

    @property
    def facts(self) -> dict[str, Any]:
        return json.loads((self.data / "up.json").read_text())

    def ask(self, *words: str) -> Any:
        """The JSON document on stdout, which is all that may be there."""
        done = type_in(*words, "--data", str(self.data), "--json")
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    def says(self, *words: str) -> str:
        done = type_in(*words, "--data", str(self.data))
        assert done.returncode == 0, done.stderr
        return done.stdout

    def refuses(self, *words: str) -> str:
        """One line on stderr, nothing on stdout, exit code 1."""
        done = type_in(*words, "--data", str(self.data))
        assert (done.returncode, done.stdout) == (1, ""), done
        assert done.stderr.startswith("extproc: ")
        assert done.stderr.count("\n") == 1, done.stderr
        return done.stderr

    def client(self, api_key: str | None = None) -> openai.OpenAI:
        facts = self.facts
        trust = ssl.create_default_context(cafile=facts["ca_file"])
        http = openai.DefaultHttpxClient(verify=trust)
        return openai.OpenAI(base_url=facts["base_url"], api_key=api_key or facts["api_key"], http_client=http, max_retries=0)

    def request(self, api_key: str | None = None, **fields: Any) -> str:
        """One answered request, and the id that the client was told."""
        with self.client(api_key) as client:
            fields = {"model": MODEL, "messages": [{"role": "user", "content": "Hello"}], **fields}
            return client.chat.completions.with_raw_response.create(**fields).headers["x-request-id"]

    def explained(self, request_id: str) -> dict[str, Any]:
        """As soon as it is posted."""

        def ask() -> dict[str, Any] | None:
            done = type_in("explain", request_id, "--data", str(self.data), "--json")
            return json.loads(done.stdout) if done.returncode == 0 else None

        return until(ask, f"{request_id} in the ledger")


@pytest.fixture(scope="module")
def operator() -> Iterator[Operator]:
    """Below /tmp: as root, PostgreSQL must be able to come in."""
    data = Path(tempfile.mkdtemp(prefix="xc-", dir="/tmp"))
    data.chmod(0o711)
    done = run("up", "--data", str(data), "--detach", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == json.loads((data / "up.json").read_text())
    yield Operator(data)
    if (data / "up.json").exists():
        assert run("down", "--data", str(data)).returncode == 0
    shutil.rmtree(data)


def test_up_json_says_everything_and_to_nobody_else(operator):
    facts = operator.facts
    assert stat.S_IMODE((operator.data / "up.json").stat().st_mode) == 0o600
    assert stat.S_IMODE((operator.data / "state.json").stat().st_mode) == 0o600
    assert facts["base_url"].startswith("https://localhost:")
    assert facts["base_url"].endswith("/v1")
    assert set(facts["simulator_urls"]) == {"qwen2.5-7b", "qwen3-72b", "qwen2.5-vl-7b", "bge-m3", "whisper-large-v3"}
    parts = {"up", "envoy", "valkey", "postgres", "extproc", "gate-0", "gate-1", "settler"} | {
        f"simulator-{model}" for model in facts["simulator_urls"]
    }
    assert set(facts["pids"]) == parts
    assert all(lives(pid) for pid in facts["pids"].values())
    wanted = {"ca_file", "api_key", "account", "metrics_url", "redis_url", "postgres_dsn", "envoy_admin_url", "data"}
    assert wanted < set(facts)


def test_a_second_up_on_the_same_directory_is_refused(operator):
    for words in (("up",), ("up", "--detach")):
        assert "is running on" in operator.refuses(*words)


def test_the_life_of_an_account(operator):
    made = operator.ask("account", "create", "--name", "Ada", "--email", "ada@example.com", "--tier", "unlimited")
    assert (made["name"], made["email"], made["tier"], made["frozen"]) == ("Ada", "ada@example.com", "unlimited", False)
    booked = operator.ask("account", "deposit", "ada@example.com", "12.5", "--method", "bank", "--reference", "R-1")
    assert (booked["amount_nanos"], booked["balance"], booked["booked_before"], booked["in_force"]) == (
        12_500_000_000,
        "12.50",
        False,
        True,
    )
    again = operator.ask("account", "deposit", made["id"], "12.5", "--method", "bank", "--reference", "R-1")
    assert (again["booked_before"], again["balance"]) == (True, "12.50")
    shown = operator.ask("account", "show", "Ada")
    assert (shown["id"], shown["balance"], shown["currency"]) == (made["id"], "12.50", "CNY")
    redis = operator.ask("balance", made["id"])["redis"]
    assert (redis["available"], redis["held"], redis["entry_held"], redis["open_holds"]) == ("12.50", "0.00", "0.00", 0)
    assert made["id"] in [one["id"] for one in operator.ask("account", "list")]
    assert "12.50 CNY" in operator.says("balance", "Ada")


def test_a_frozen_account_is_refused_until_it_is_thawed(operator):
    account = operator.ask("account", "create", "--name", "Frost", "--tier", "unlimited")["id"]
    operator.ask("account", "deposit", "Frost", "1")
    key = operator.ask("key", "create", "Frost")["key"]
    with operator.client(key) as client:
        headers = {"x-sim-tokens": "40", "x-sim-delay-ms": "20"}
        asked = [{"role": "user", "content": "Hello"}]
        stream = client.chat.completions.create(model=MODEL, messages=asked, stream=True, extra_headers=headers)
        next(iter(stream))
        assert operator.ask("account", "freeze", "Frost", "--reason", "unpaid")["frozen"]
        with pytest.raises(openai.PermissionDeniedError) as refused:
            operator.request(key)
        assert list(stream)[-1].choices[0].finish_reason == "stop", "what was running finishes"
    assert refused.value.code == "account_frozen"
    assert operator.ask("account", "show", "Frost")["frozen"]
    row = operator.explained(refused.value.response.headers["x-request-id"])["request"]
    assert (row["error_code"], row["status"], row["cost_nanos"]) == ("account_frozen", 403, 0)
    counted = 'extproc_rejected_total{reason="account_frozen"} 1.0'
    until(lambda: counted in httpx.get(operator.facts["metrics_url"]).text, "counted")
    assert not operator.ask("account", "freeze", "Frost", "--thaw", "--reason", "paid")["frozen"]
    assert operator.request(key)
    told = operator.ask("audit", "--subject", "Frost")
    assert [(one["action"], one["reason"]) for one in told if one["subject"] == account][:2] == [("thaw", "paid"), ("freeze", "unpaid")]


def test_a_price_of_an_accounts_own_is_for_requests_that_begin_after_it(operator):
    operator.ask("account", "create", "--name", "Grace", "--tier", "unlimited")
    operator.ask("account", "deposit", "Grace", "1")
    known, unknown = (operator.ask("key", "create", "Grace")["key"] for _ in range(2))
    with operator.client(known) as client:
        answer = client.chat.completions.with_raw_response.create(
            model=MODEL,
            messages=[{"role": "user", "content": "Hello"}],
            stream=True,
            extra_headers={"x-sim-tokens": "40", "x-sim-delay-ms": "40"},
        )
        chunks = iter(answer.parse())
        next(chunks)
        done = operator.ask("account", "set-price-factor", "Grace", "0.5", "--reason", "a contract")
        assert (done["price_factor"], done["in_force"]) == ("0.5", True)
        assert len(list(chunks)) > 1, "it runs on"
    before = operator.explained(answer.headers["x-request-id"])
    after = operator.explained(operator.request(unknown, extra_headers={"x-sim-tokens": "40"}))
    assert (before["agrees"], before["price"]["factors"]) == (True, [])
    assert (after["agrees"], after["price"]["factors"]) == (True, [{"name": "account", "factor": "0.50"}])
    for facts, divisor in ((before, 1), (after, 2)):
        row = facts["request"]
        nanos = 500 * row["input_tokens"] - 375 * row["cached_tokens"] + 1_000 * 40
        assert row["cost_nanos"] == -(-nanos // divisor)
    assert "a contract" in operator.says("audit", "--subject", "Grace")
    begins = datetime.now(UTC) + timedelta(seconds=3)
    done = operator.ask("account", "set-tier", "Grace", "business", "--at", begins.isoformat(), "--reason", "an upgrade")
    assert (done["tier"], done["later"][0]["tier"], done["in_force"]) == ("unlimited", "business", True)
    assert "business from 20" in operator.says("account", "show", "Grace")
    fresh, tiers = operator.ask("key", "create", "Grace")["key"], []  # that no worker remembers
    while not tiers or tiers[-1] == "unlimited":
        row = operator.explained(operator.request(fresh))["request"]
        tiers.append(row["tier"])
        assert (row["tier"] == "business") == (datetime.fromisoformat(row["created_at"]) >= begins)
    assert set(tiers) == {"unlimited", "business"}
    shown = operator.ask("account", "show", "Grace")
    assert (shown["tier"], shown["price_factor"], shown["later"]) == ("business", "0.5", [])
    assert "has no tier 'gold'" in operator.refuses("account", "set-tier", "Grace", "gold", "--reason", "x")
    assert "is over already" in operator.refuses("account", "set-tier", "Grace", "default", "--reason", "x", "--at", "2020-01-01")
    assert "is not a decimal amount" in operator.refuses("account", "set-price-factor", "Grace", "1e3", "--reason", "x")


def test_what_was_charged_is_given_back_and_no_more(operator):
    operator.ask("account", "create", "--name", "Bea", "--tier", "unlimited")
    operator.ask("account", "deposit", "Bea", "1")
    key = operator.ask("key", "create", "Bea")["key"]
    request = operator.explained(operator.request(key))["request"]
    assert "is left" in operator.refuses("account", "refund", request["id"], "0.5", "--reason", "slow")
    words = ("account", "refund", request["request_id"], "0.000001", "--reason", "slow", "--reference", "T-1")
    first, again = operator.ask(*words), operator.ask(*words)
    assert (first["booked_before"], again["booked_before"]) == (False, True)
    assert (first["request"], first["refunded_nanos"], again["refunded_nanos"]) == (request["id"], 1_000, 1_000)
    assert "refunded    0.000001 CNY" in operator.says("explain", request["id"])
    rest = operator.ask("account", "refund", request["id"], "--all", "--reason", "slow")
    assert (rest["amount_nanos"], rest["balance"], rest["in_force"]) == (request["cost_nanos"] - 1_000, "1.00", True)
    facts = operator.explained(request["id"])
    assert facts["agrees"]
    assert (facts["request"]["cost"], facts["request"]["refunded"]) == (request["cost"], request["cost"])
    assert [event["event_type"] for event in facts["events"]] == ["settle", "usage_refund", "usage_refund"]
    assert operator.ask("balance", "Bea")["redis"]["available"] == "1.00"
    assert "was refunded already" in operator.refuses("account", "refund", request["id"], "--all", "--reason", "slow")


def test_free_tokens_are_given_once_and_used_before_money(operator):
    operator.ask("account", "create", "--name", "Eli", "--tier", "unlimited")
    assert "more than no tokens" in operator.refuses("account", "grant-quota", "Eli", "--reason", "spring")
    words = ("account", "grant-quota", "Eli", "--input", "1000", "--output", "500", "--reason", "spring", "--reference", "S-1")
    first, again = operator.ask(*words), operator.ask(*words)
    assert (first["free_input"], first["free_output"], first["in_force"], first["booked_before"]) == (1_000, 500, True, False)
    assert (again["free_output"], again["booked_before"]) == (500, True)
    request_id = operator.request(operator.ask("key", "create", "Eli")["key"])
    facts = operator.explained(request_id)
    row = facts["request"]
    assert facts["agrees"]
    assert (row["cost_nanos"], row["free_input"], row["free_output"]) == (0, row["input_tokens"], row["output_tokens"])
    assert {(entry["unit"], entry["kind"]) for entry in facts["entries"]} == {
        (unit, kind) for unit in ("free_input", "free_output") for kind in ("customer", "revenue")
    }
    told = operator.says("explain", request_id)
    assert f"paid for {row['input_tokens']} tokens of the input and {row['output_tokens']} of the output" in told
    money = operator.ask("balance", "Eli")
    left = 1_000 - row["input_tokens"], 500 - row["output_tokens"]
    assert (money["free_input"], money["free_output"]) == (money["redis"]["free_input"], money["redis"]["free_output"]) == left
    assert f"free quota  {left[0]} tokens of input, {left[1]} of output" in operator.says("balance", "Eli")


def test_corrections_debts_and_credit_lines(operator):
    account = operator.ask("account", "create", "--name", "Cid", "--tier", "unlimited")["id"]
    operator.ask("account", "deposit", "Cid", "2")
    assert operator.ask("account", "correct", "Cid", "-3.5", "--reason", "booked twice")["balance"] == "-1.50"
    assert "owes 1.50" in operator.refuses("account", "writeoff", "Cid", "2", "--reason", "gone")
    assert operator.ask("account", "writeoff", "Cid", "0.5", "--reason", "gone")["balance"] == "-1.00"
    assert operator.ask("account", "writeoff", "Cid", "--all", "--reason", "gone")["balance"] == "0.00"
    assert "owes nothing" in operator.refuses("account", "writeoff", "Cid", "--all", "--reason", "gone")
    lined = operator.ask("account", "credit", "Cid", "5", "--reason", "postpaid")
    assert (lined["credit"], lined["in_force"]) == ("5.00", True)
    assert operator.request(operator.ask("key", "create", "Cid")["key"]), "on credit"
    actions = ["create_key", "credit_line", "writeoff", "writeoff", "correction", "deposit", "create_account"]
    told = operator.ask("audit", "--limit", "8")
    assert [one["action"] for one in told[:7]] == actions
    assert all(one["actor"].startswith("cli:") and one["created_at"].endswith("Z") for one in told)
    assert account in operator.says("audit", "--subject", "Cid")


def test_a_hold_released_by_hand_goes_back_and_its_stream_is_charged_when_it_ends(operator):
    account = operator.ask("account", "create", "--name", "Dee", "--tier", "unlimited")["id"]
    operator.ask("account", "deposit", account, "1")
    key = operator.ask("key", "create", account)["key"]
    with operator.client(key) as client:
        asked = [{"role": "user", "content": "Hello"}]
        headers = {"x-sim-tokens": "60", "x-sim-delay-ms": "20"}
        stream = client.chat.completions.create(model=MODEL, messages=asked, stream=True, extra_headers=headers)
        next(iter(stream))
        (hold,) = operator.ask("holds", "list", "--account", account)
        released = operator.ask("holds", "release", hold["hold"], "--reason", "it hangs")
        assert (released["hold"], released["given_back"]) == (hold["hold"], hold["reserved"])
        redis = operator.ask("balance", account)["redis"]
        assert (redis["available"], redis["held"], redis["open_holds"]) == ("1.00", "0.00", 0)
        assert "no open hold" in operator.refuses("holds", "release", hold["hold"], "--reason", "again")
        assert list(stream)[-1].choices[0].finish_reason == "stop"

    def adjusted() -> dict[str, Any] | None:
        facts = operator.explained(hold["hold"])
        return facts if facts["request"]["cost_nanos"] else None

    facts = until(adjusted, "the settle came after the release")
    assert facts["agrees"]
    assert facts["request"]["output_tokens"] == 60
    assert [event["event_type"] for event in facts["events"]] == ["expire", "adjust"]
    left = 1_000_000_000 - facts["request"]["cost_nanos"]
    until(lambda: operator.ask("balance", account)["redis"]["available_nanos"] == left, "Redis was told")
    assert operator.ask("audit", "--subject", hold["hold"])[0]["reason"] == "it hangs"


def test_a_month_is_closed_once_and_stays_as_it_was(operator):
    this = datetime.now(UTC).date().replace(day=1)
    last = this - timedelta(days=1)
    assert "before the first account" in operator.refuses("period", "close", f"{last:%Y-%m}")
    with psycopg.connect(operator.facts["postgres_dsn"], autocommit=True) as connection:
        connection.execute("UPDATE users SET created_at = %s", (last,))
    assert f"close {last:%Y-%m} first" in operator.refuses("period", "close", f"{this:%Y-%m}")
    closed = operator.ask("period", "close", f"{last:%Y-%m}", "--reason", "month end")
    assert (closed["month"], closed["events"], closed["sums"]) == (f"{last:%Y-%m}", 0, [])
    assert "was closed at" in operator.refuses("period", "close", f"{last:%Y-%m}")
    assert "is not over" in operator.refuses("period", "close", f"{this:%Y-%m}")
    assert [one["month"] for one in operator.ask("period", "list")] == [f"{last:%Y-%m}"]
    assert operator.ask("period", "show", f"{last:%Y-%m}", "--recount")["agrees"]
    assert operator.ask("audit", "--subject", f"{last:%Y-%m}")[0]["action"] == "close_period"
    assert operator.explained(operator.request())["agrees"], "and the open month goes on"


def test_the_life_of_a_key(operator):
    operator.ask("account", "create", "--name", "Keys", "--tier", "unlimited")
    operator.ask("account", "deposit", "Keys", "1")
    options = ["--name", "app", "--model", MODEL, "--network", "127.0.0.0/8", "--expires", "30d"]
    options += ["--budget", "0.5", "--budget-period", "day", "--requests-per-minute", "60"]
    made = operator.ask("key", "create", "Keys", *options)
    assert operator.request(made["key"])
    with pytest.raises(openai.PermissionDeniedError):
        operator.request(made["key"], model="qwen3-72b")
    (listed,) = operator.ask("key", "list", "Keys")
    assert (listed["name"], listed["models"], listed["budget"], listed["budget_period"]) == ("app", [MODEL], "0.50", "day")
    assert listed["requests_per_minute"] == 60
    assert made["key"] not in json.dumps(listed), "a secret is shown once"
    rotated = operator.ask("key", "rotate", made["id"])
    assert rotated["replaces"] == made["id"]
    with pytest.raises(openai.AuthenticationError):
        operator.request(made["key"])
    assert operator.request(rotated["key"])
    assert operator.ask("key", "revoke", rotated["id"]) == {"id": rotated["id"], "revoked": True, "in_force": True}
    with pytest.raises(openai.AuthenticationError):
        operator.request(rotated["key"])
    assert [one["revoked"] for one in operator.ask("key", "list", "Keys")] == [True, True]


def test_a_sandbox_key_as_the_quickstart_makes_it(operator):
    operator.ask("account", "create", "--name", "Try")
    key = operator.ask("key", "create", "Try", "--name", "try", "--sandbox")["key"]
    request = operator.explained(operator.request(key))["request"]
    assert (request["sandbox"], request["cost_nanos"], request["list_nanos"] > 0) == (True, 0, True)
    with pytest.raises(openai.PermissionDeniedError):
        operator.request(key, model="qwen3-72b")


def test_explain_shows_every_line_of_the_sum(operator):
    operator.request()  # now the prompt is cached
    request_id = operator.request(model="gpt-3.5-turbo", extra_headers={"x-priority": "spot", "x-sim-tokens": "30"})
    facts = operator.explained(request_id)
    row, total = facts["request"], facts["sum"]
    assert facts["agrees"]
    assert (row["model"], row["priority"], row["usage_source"], row["ending"]) == (MODEL, "spot", "upstream", "settle")
    assert [(line["name"], line["price"]) for line in total["lines"]] == [
        ("input", "0.50"),
        ("cached_input", "0.125"),
        ("output", "1.00"),
    ]
    assert sum(line["quantity"] for line in total["lines"]) == row["input_tokens"] + 30
    assert total["factors"] == [{"name": "priority spot", "factor": "0.50"}]
    assert row["cost_nanos"] == -(-(500 * row["input_tokens"] - 375 * row["cached_tokens"] + 1_000 * 30) // 2)
    assert row["hold_nanos"] - row["cost_nanos"] == row["given_back_nanos"]
    assert sorted(entry["amount_nanos"] for entry in facts["entries"]) == [-row["cost_nanos"], row["cost_nanos"]]
    text = operator.says("explain", row["id"])
    shown = (
        "× 0.50 (priority spot)",
        facts["price"]["price_id"],
        f"charged     {row['cost']} CNY",
        "revenue:qwen2.5-7b",
        "upstream",
        "agrees",
    )
    assert [word for word in shown if word not in text] == []


def test_explain_notices_a_charge_that_does_not_follow_from_its_row(operator):

    facts = operator.explained(operator.request())
    with psycopg.connect(operator.facts["postgres_dsn"], autocommit=True) as connection:
        change = "UPDATE requests SET output_tokens = output_tokens + %s WHERE id = %s"
        connection.execute(change, (1, facts["request"]["id"]))
        done = run("explain", facts["request"]["id"], "--data", str(operator.data))
        connection.execute(change, (-1, facts["request"]["id"]))
    assert done.returncode == 1
    assert "DOES NOT AGREE: the usage costs" in done.stdout


def test_requests_lists_and_follows(operator):
    account = operator.ask("account", "create", "--name", "Reader", "--tier", "unlimited")["id"]
    operator.ask("account", "deposit", account, "1")
    key = operator.ask("key", "create", account)["key"]
    first = operator.explained(operator.request(key))["request"]["id"]
    assert [row["id"] for row in operator.ask("requests", "--account", account)] == [first]
    words = [*COMMAND, "requests", "--follow", "--json", "--account", account, "--data", str(operator.data)]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True, env={**ENVIRON, "PYTHONUNBUFFERED": "1"}) as follower:
        assert json.loads(follower.stdout.readline())["id"] == first
        second = operator.explained(operator.request(key))["request"]["id"]
        assert json.loads(follower.stdout.readline())["id"] == second
        follower.send_signal(signal.SIGINT)
        assert follower.wait(10) == 130
    table = operator.says("requests", "--account", account).splitlines()
    assert [line.split()[1] for line in table[1:]] == [first, second], "the newest last"


def test_holds_list_shows_a_running_request_and_nothing_afterwards(operator):
    with operator.client() as client:
        headers = {"x-sim-tokens": "1000", "x-sim-delay-ms": "50"}
        stream = client.chat.completions.create(
            model=MODEL, messages=[{"role": "user", "content": "Hello"}], stream=True, extra_headers=headers
        )
        next(iter(stream))
        (hold,) = operator.ask("holds", "list", "--account", operator.facts["account"])
        assert (hold["state"], hold["reserved_nanos"] > 0, hold["lease_left_ms"] > 0) == ("exact", True, True)
        assert hold["hold"] in operator.says("holds", "list")
        stream.close()
    until(lambda: operator.ask("holds", "list") == [], "the hold ended")


def test_check_finds_no_error_in_what_up_wrote_and_names_a_fault(operator):
    found = [(finding["check"], finding["severity"]) for finding in operator.ask("check")]
    assert found == [("cheap_priority", "warning"), ("transport", "info")]  # spot is sold at half price by the same simulator
    models = operator.data / "models.yaml"
    good = models.read_text()
    try:
        models.write_text(good.replace('input: "4.00"', "input: 4.00"))
        done = run("check", "--data", str(operator.data), "--json")
    finally:
        models.write_text(good)
    assert done.returncode == 1
    finding = json.loads(done.stdout)[0]
    assert (Path(finding["file"]).name, finding["line"] > 0, finding["severity"]) == ("models.yaml", True, "error")


def test_migrate_may_be_repeated(operator):
    assert operator.ask("migrate") == {"applied": []}


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (["account", "show", "nobody"], "there is no account"),
        (["account", "show", "01a20015-3162-737e-8c3d-f1830fecb46a"], "there is no account"),
        (["account", "create", "--name", "x", "--tier", "gold"], "the catalog has no tier 'gold'; it has default, business"),
        (["account", "deposit", "local", "1.2.3"], "is not a decimal amount"),
        (["account", "deposit", "local", "0"], "more than nothing"),
        (["key", "create", "local", "--model", "gpt-9"], "the catalog has no model 'gpt-9'"),
        (["key", "create", "local", "--expires", "2001-01-01"], "is over already"),
        (["key", "create", "local", "--expires", "soon"], "is no time"),
        (["key", "create", "local", "--network", "10.0.0.1/8"], "networks"),
        (["key", "revoke", "x"], "is not the id of a key"),
        (["key", "rotate", "01a20015-3162-737e-8c3d-f1830fecb46a"], "there is no key"),
        (["explain", "nothing"], "the ledger has no request nothing"),
        (["requests", "--account", "nobody"], "there is no account"),
        (["account", "refund", "nothing", "1", "--reason", "x"], "the ledger has no request nothing"),
        (["account", "refund", "nothing", "1", "--reason", " "], "the ledger has no request nothing"),
        (["account", "correct", "local", "0", "--reason", "x"], "other than nothing"),
        (["account", "correct", "local", "-1", "--reason", " "], "give a reason"),
        (["account", "correct", "local", "1", "--reason", "x", "--reference", ""], "a reference has 1 to 200"),
        (["account", "writeoff", "local", "--all", "--reason", "x"], "owes nothing"),
        (["account", "credit", "local", "much", "--reason", "x"], "is not a decimal amount"),
        (["holds", "release", "x", "--reason", "x"], "is not the id of a hold"),
        (["holds", "release", "01a20015-3162-737e-8c3d-f1830fecb46a", "--reason", "x"], "there is no open hold"),
        (["period", "close", "October"], "is not a month such as 2026-10"),
        (["period", "show", "2001-01"], "2001-01 is not closed"),
        (["audit", "--subject", "nobody"], "there is no account"),
    ],
)
def test_a_mistake_is_one_clear_line(operator, words, why):
    assert why in operator.refuses(*words)


@pytest.mark.parametrize(
    "words",
    [
        ["nonsense"],
        ["account"],
        ["account", "create"],
        ["key", "create", "a", "--budget-period", "year"],
        ["up", "--backend", "x"],
        ["balance"],
        ["account", "refund", "x", "--reason", "x"],
        ["account", "refund", "x", "1", "--all", "--reason", "x"],
        ["account", "writeoff", "x", "1"],
        ["account", "correct", "x", "1", "--reson", "x"],
        ["holds", "release", "x"],
        ["period"],
    ],
)
def test_wrong_usage_is_exit_code_2(words):
    done = type_in(*words)
    assert (done.returncode, done.stdout) == (2, "")
    assert "Usage: extproc" in done.stderr


def test_without_a_deployment_it_says_how_to_name_one(tmp_path):
    done = run("balance", "x", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (1, "")
    assert "--config FILE or --data DIR" in done.stderr
    done = run("balance", "x", "--config", "a", "--data", "b")
    assert done.returncode == 2


def test_a_deployment_is_found_by_the_environment_and_by_where_one_stands(operator):
    config = str(operator.data / "extproc.yaml")
    for done in (
        run("account", "show", "local", "--json", EXTPROC_CONFIG=config),
        run("account", "show", "local", "--json", cwd=operator.data),
        run("account", "show", "local", "--json", "--config", config),
    ):
        assert json.loads(done.stdout)["id"] == operator.facts["account"], done.stderr


def test_a_deployment_that_is_away_is_one_clear_line(tmp_path):
    (tmp_path / "extproc.yaml").write_text("version: 1\npostgres: {dsn: 'postgresql:///x?host=/nowhere'}\n")
    done = run("balance", "x", "--data", str(tmp_path))
    assert (done.returncode, done.stderr.count("\n")) == (1, 1), done.stderr
    assert "PostgreSQL is away" in done.stderr


def test_a_bad_settings_file_shows_every_fault_with_its_line(tmp_path):
    (tmp_path / "extproc.yaml").write_text("version: 1\nlisten: {workers: many}\nredis: {url: mysql://}\n")
    done = run("balance", "x", "--data", str(tmp_path))
    assert done.returncode == 1
    assert "extproc.yaml:2" in done.stderr
    assert "extproc.yaml:3" in done.stderr


def test_help_is_quick_and_loads_nothing_heavy():
    code = (
        "import sys; from extproc.cli import root; print([m for m in ('grpc', 'psycopg', 'redis', 'openai', 'yaml') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=TIMEOUT_S, check=True)
    assert done.stdout.strip() == "[]"
    assert "account" in run("--help").stdout


def test_up_in_the_foreground_ends_with_ctrl_c_and_keeps_money_and_keys(operator):
    """Last: it ends the stack of this module, and starts it again on the same directory as somebody at a terminal would."""
    before = operator.facts
    with operator.client() as client:
        asked, headers = [{"role": "user", "content": "Hello"}], {"x-sim-tokens": "100", "x-sim-delay-ms": "30"}
        stream = client.chat.completions.create(model=MODEL, messages=asked, stream=True, extra_headers=headers)
        next(iter(stream))
        request_id = stream.response.headers["x-request-id"]
        with subprocess.Popen([*COMMAND, "down", "--data", str(operator.data)], stderr=subprocess.PIPE, env=ENVIRON) as down:
            assert list(stream)[-1].choices[0].finish_reason == "stop", "what was running finishes"
            assert down.wait(TIMEOUT_S) == 0
    assert not (operator.data / "up.json").exists()
    assert not any(lives(pid) for pid in before["pids"].values())
    assert "no stack is running" in operator.refuses("down")
    terminal, tty = pty.openpty()
    with subprocess.Popen([*COMMAND, "up", "--data", str(operator.data)], stdin=tty, stdout=tty, stderr=tty, env=ENVIRON) as up:
        os.close(tty)
        until((operator.data / "up.json").exists, "ready", TIMEOUT_S)
        after = operator.facts
        assert (after["api_key"], after["account"], after["base_url"]) == (before["api_key"], before["account"], before["base_url"])
        told = operator.explained(request_id)
        assert (told["agrees"], told["request"]["output_tokens"]) == (True, 100), "posted before the stores stopped"
        assert operator.explained(operator.request())["agrees"]
        up.send_signal(signal.SIGINT)
        assert up.wait(TIMEOUT_S) == 0
    os.close(terminal)
    assert not any(lives(pid) for pid in after["pids"].values())
