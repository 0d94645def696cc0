"""`extproc up` where it is not easy: deep and closed directories, a catalog and a backend of one's own. And the demo."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import openai
import pytest

from extproc.local import simulator

TIMEOUT_S = 90

CATALOG = """
version: 1
currency: EUR
tiers:
  only: {limits: {requests_per_minute: 1000}}
defaults: {endpoints: [chat.completions]}
models:
  own/model: {tokenizer: upstream, chat_template: none, context_tokens: 4096, output_tokens_max: 100, price: {input: "1", output: "2"}}
  vllm: {served_name: theirs, tokenizer: qwen2, chat_template: chatml, context_tokens: 4096, output_tokens_max: 100, price: {input: "1", output: "2"}}
"""


def run(*words: str) -> subprocess.CompletedProcess[str]:
    environ = {name: value for name, value in os.environ.items() if not name.startswith("EXTPROC_")}
    command = [sys.executable, "-m", "extproc.cli", *words]
    return subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S, check=False, env=environ)


@contextmanager
def running(data: Path, *words: str) -> Iterator[dict[str, Any]]:
    done = run("up", "--data", str(data), "--detach", "--json", *words)
    assert done.returncode == 0, done.stderr
    try:
        yield json.loads(done.stdout)
    finally:
        done = run("down", "--data", str(data))
        assert done.returncode == 0, done.stderr


def answer(facts: dict[str, Any], model: str) -> str:
    """The request's id."""
    trust = ssl.create_default_context(cafile=facts["ca_file"])
    with openai.OpenAI(
        base_url=facts["base_url"], api_key=facts["api_key"], http_client=openai.DefaultHttpxClient(verify=trust), max_retries=0
    ) as client:
        raw = client.chat.completions.with_raw_response.create(model=model, messages=[{"role": "user", "content": "Hello"}])
        assert raw.parse().model == model
        return raw.headers["x-request-id"]


@pytest.fixture
def folder() -> Iterator[Path]:
    made = Path(tempfile.mkdtemp(prefix="xu-", dir="/tmp"))
    made.chmod(0o711)
    elsewhere = set(Path("/var/tmp").glob("extproc-[0-9]*"))
    yield made
    for left in (made, *(set(Path("/var/tmp").glob("extproc-[0-9]*")) - elsewhere)):
        shutil.rmtree(left)


@pytest.mark.long
def test_a_directory_too_deep_for_sockets_and_closed_to_others_will_do(folder):
    """As root, PostgreSQL is another user, who cannot enter this one; a plain user's own engines can."""
    closed = folder / "closed"
    closed.mkdir(mode=0o700)
    data = closed / ("deep-" * 20) / "data with blanks"
    before = set(Path("/tmp").glob("extproc-[0-9]*"))
    with running(data) as facts:
        answer(facts, "qwen2.5-7b")
        first = facts
    with running(data) as facts:
        assert facts["api_key"] == first["api_key"]
        answer(facts, "qwen3-72b")
        assert run("check", "--data", str(data)).returncode == 0
    assert set(Path("/tmp").glob("extproc-[0-9]*")) <= before, "the short name is gone with the stack"


def test_a_catalog_and_a_backend_of_ones_own(folder):
    catalog = folder / "models.yaml"
    catalog.write_text(CATALOG)
    theirs = simulator.start(folder / "theirs", models=["theirs"])
    try:
        backend = f"vllm=127.0.0.1:{theirs.port}"
        with running(folder / "data", "--catalog", str(catalog), "--backend", backend, "--workers", "1") as facts:
            assert set(facts["simulator_urls"]) == {"own/model"}
            assert facts["backends"] == {"vllm": [f"127.0.0.1:{theirs.port}"]}
            assert "gate-0" in facts["pids"]
            assert "gate-1" not in facts["pids"]
            answer(facts, "own/model")
            request_id = answer(facts, "vllm")
            assert theirs.requests(request_id), "the named server served it"
            shown = json.loads(run("account", "show", "local", "--data", str(folder / "data"), "--json").stdout)
            assert (shown["tier"], shown["currency"]) == ("only", "EUR")
    finally:
        theirs.stop()


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (["--backend", "nobody=127.0.0.1:1"], "--backend nobody: the catalog has qwen3-72b, qwen2.5-7b"),
        (["--catalog", __file__], "test_cli_up.py"),
    ],
)
@pytest.mark.parametrize("detach", [["--detach"], []])
def test_up_refuses_what_cannot_be_and_leaves_nothing_running(folder, words, why, detach):
    done = run("up", "--data", str(folder / "data"), *detach, *words)
    assert done.returncode == 1
    assert why in done.stderr
    assert "Traceback" not in done.stderr
    assert run("down", "--data", str(folder / "data")).returncode == 1


def processes_of(data: Path) -> list[str]:
    """Command lines that name the directory."""
    found = []
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        with suppress(OSError):
            words = entry.read_bytes().decode(errors="replace").split("\0")
            found += [" ".join(words)] if any(str(data) in word for word in words) else []
    return found


def nothing_is_left_of(data: Path) -> None:
    end = time.monotonic() + TIMEOUT_S
    while left := processes_of(data):
        assert time.monotonic() < end, left
        time.sleep(0.02)


@pytest.mark.long
def test_a_start_that_is_interrupted_and_a_kill_leave_nothing_that_stands_in_the_way(folder):
    data = folder / "data"
    for stage in ("starting PostgreSQL", "starting a simulator", "starting the sidecar", "starting Envoy"):
        command = [sys.executable, "-m", "extproc.cli", "up", "--data", str(data)]
        with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as up:
            assert any(line.startswith(stage) for line in up.stderr), stage
            up.terminate()
            assert up.wait(TIMEOUT_S) == 0, stage
        nothing_is_left_of(data)  # a child that was being started ends with its parent, a moment later
        assert not (data / "up.json").exists()
    done = run("up", "--data", str(data), "--detach", "--json")
    assert done.returncode == 0, done.stderr
    os.kill(json.loads(done.stdout)["pids"]["up"], signal.SIGKILL)
    nothing_is_left_of(data)
    with running(data) as facts:
        answer(facts, "qwen2.5-7b")


def test_a_port_that_is_taken_is_told_before_anything_starts(folder):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        done = run("up", "--data", str(folder / "data"), "--detach", "--port", str(taken.getsockname()[1]))
    assert done.returncode == 1
    assert "is in use" in done.stderr
    assert "starting" not in done.stderr


def test_the_demo_proves_every_figure():
    done = run("demo", "--json")
    assert done.returncode == 0, done.stdout + done.stderr
    told = json.loads(done.stdout)
    assert [one["name"] for one in told["requests"]] == ["streamed", "JSON", "aborted", "refused"]
    assert told["holds"]
    assert len(told["proofs"]) >= 15
    assert [proof["what"] for proof in told["proofs"] if not proof["holds"]] == []
