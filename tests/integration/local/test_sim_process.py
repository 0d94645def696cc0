"""The simulator as a process: options, defaults, SIGTERM, its log, a real vocabulary in another coat."""

from __future__ import annotations

import base64
import gzip
import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from extproc.errors import UsageError
from extproc.local import simulator as simulator_engine

MESSAGES = [{"role": "user", "content": "hello"}]
MERGES = [b" t", b" o", b" ok", b"he", b" the", b"ll", b"hell", b"hello", b"\xe4\xbb", b"\xe4\xbb\x8a", b"\xf0\x9f"]


@pytest.fixture
def vocabulary(tmp_path: Path) -> Path:
    """All bytes and a few merges, compressed."""
    tokens = [*(bytes([byte]) for byte in range(256)), *MERGES]
    lines = b"".join(b"%b %d\n" % (base64.b64encode(token), rank) for rank, token in enumerate(tokens))
    file = tmp_path / "small.tiktoken.gz"
    file.write_bytes(gzip.compress(lines))
    return file


@pytest.fixture
def start(tmp_path: Path):
    started = []

    def start(**arguments):
        started.append(simulator_engine.start(tmp_path / f"sim{len(started)}", models=["m"], **arguments))
        return started[-1]

    yield start
    for server in started:
        server.stop()


def test_text_is_as_long_in_the_vocabulary_as_it_says(start, connect, vocabulary):
    server = start(vocabulary=vocabulary, options=["--force-include-usage", "--set", "language=zh"])
    client = connect(server.port)
    client.send("/v1/chat/completions", {"messages": MESSAGES, "max_tokens": 57, "ignore_eos": True, "stream": True})
    answer = client.answer()
    assert answer.chunks[-1]["usage"] == {"prompt_tokens": 1 + 5 + 3, "total_tokens": 66, "completion_tokens": 57}
    assert answer.text.startswith("今天")
    client.send("/tokenize", {"prompt": answer.text})
    assert client.answer().json["count"] == 57


def test_defaults_of_the_process(start, connect):
    server = start()
    client = connect(server.port)
    server.configure(tokens=3, fault="no_usage", health=503)
    client.send("/v1/chat/completions", {"messages": MESSAGES})
    answer = client.answer().json
    assert len(answer["choices"][0]["message"]["content"].split()) == 3
    assert "usage" not in answer
    client.send("/v1/chat/completions", {"messages": MESSAGES}, x_sim_fault="none")
    assert client.answer().json["usage"]["completion_tokens"] == 3
    client.send("/health", method="GET")
    assert client.answer().status == 503
    with pytest.raises(UsageError, match="x-sim-colour"):
        server.configure(colour="red")


def test_sigterm_ends_streams_with_abort(start, connect):
    server = start()
    client, idle = connect(server.port), connect(server.port)
    fields = {"messages": MESSAGES, "max_tokens": 500, "ignore_eos": True, "stream": True}
    client.send("/v1/chat/completions", fields, x_sim_delay_ms="10")
    while client._buffer.count(b'"content":" ') < 3:
        client._more()
    server.engine.signal(signal.SIGTERM)
    answer = client.answer()
    assert answer.chunks[-1]["choices"][0]["finish_reason"] == "abort"
    assert answer.events[-1] == "[DONE]"
    assert server.engine.wait(5) == 0
    assert idle.socket.recv(1) == b""


def test_started_again_on_the_same_port(start, connect):
    server = start()
    port, pid = server.port, server.pid
    server.kill()
    server.start_again()
    assert (server.port, server.pid != pid) == (port, True)
    assert server.log() == ([], 0)


def test_the_log_file_has_a_line_per_request_and_nothing_that_people_wrote(start, connect, tmp_path, until):
    log = tmp_path / "log.jsonl"
    server = start(options=["--log", str(log)])
    client = connect(server.port)
    client.send("/v1/completions", {"prompt": "a secret", "max_tokens": 2}, x_request_id="r-1")
    client.answer()
    (line,) = until(lambda: log.read_text().splitlines())
    assert "secret" not in line
    record = json.loads(line)
    assert (record["request_id"], record["generated_tokens"], record["end"]) == ("r-1", 2, "finished")


def test_on_a_unix_socket(tmp_path, until):
    path, told = tmp_path / "s", tmp_path / "told"
    root = Path(simulator_engine.__file__).parents[2]
    argv = [sys.executable, "-m", "extproc.local.sim", "--model", "m", "--unix", str(path), "--port-file", str(told)]
    with subprocess.Popen(argv, cwd=root, stdout=subprocess.DEVNULL) as process:
        try:
            until(told.exists)
            with socket.socket(socket.AF_UNIX) as connection:
                connection.connect(str(path))
                connection.sendall(b"GET /health HTTP/1.1\r\nhost: sim\r\n\r\n")
                assert connection.recv(100).startswith(b"HTTP/1.1 200 OK")
        finally:
            os.kill(process.pid, signal.SIGTERM)
