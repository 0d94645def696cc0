"""A real vLLM that is ended while it answers. Last of all (files run by name): it is started again once, and killed in the end."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import httpx
import pytest
from house import until
from real_books import tell
from real_server import RealVllm
from upstack import Up

pytestmark = pytest.mark.vllm

BODY: dict[str, Any] = {"model": "tiny", "messages": [{"role": "user", "content": "How far?"}], "max_tokens": 2_000, "stream": True}


class Stream(threading.Thread):
    """Reads to the end, whatever that is."""

    def __init__(self, up: Up, body: dict[str, Any]) -> None:
        super().__init__(daemon=True)
        self._up, self._body = up, body
        self.lines: list[str] = []
        self.request_id, self.broken = "", ""
        self.start()

    def run(self) -> None:
        try:
            with self._up.http.stream("POST", "/v1/chat/completions", json=self._body) as answer:
                self.request_id = answer.headers["x-request-id"]
                self.lines.extend(line for line in answer.iter_lines() if line)
        except httpx.HTTPError as error:
            self.broken = repr(error)


@contextmanager
def streaming(up: Up, words: list[int]) -> Iterator[Stream]:
    stream = Stream(up, BODY | {"allowed_token_ids": words})
    yield stream
    stream.join(60)
    assert not stream.is_alive()


def ended(up: Up, vllm: RealVllm, words: list[int], end: Callable[[], None], what: str) -> tuple[Stream, dict[str, Any]]:
    before = vllm.tokens().generated
    with streaming(up, words) as stream:
        until(lambda: vllm.tokens().generated > before + 20, "it answers")
        end()
    row = up.row(stream.request_id)
    read = sum('"content":"' in line and '"content":""' not in line for line in stream.lines)
    ending = f"{stream.broken or 'a clean end'}, read {read}, billed {row['output_tokens']} ({row['usage_source']}, {row['end_reason']})"
    tell(f"{what}: {ending}", *stream.lines[-3:])
    return stream, row


def test_sigterm(up: Up, vllm: RealVllm, words: list[int]):
    stream, row = ended(up, vllm, words, vllm.terminate, "SIGTERM")
    assert row["end_reason"] in ("abort", "upstream_error", "cut")
    assert 0 < row["output_tokens"] < 2_000
    vllm.stop()
    vllm.start()
    assert up.stack.envoy is not None
    up.stack.envoy.wait_healthy({"tiny": 1}, deadline_s=60)
    assert stream.lines[-1] == "data: [DONE]" or row["end_reason"] == "cut"


def test_the_engine_dies(up: Up, vllm: RealVllm, words: list[int]):
    def kill() -> None:
        for pid in vllm.engine_pids():
            os.kill(pid, signal.SIGKILL)

    stream, row = ended(up, vllm, words, kill, "the engine is killed")
    assert row["end_reason"] == "upstream_error"
    assert 0 < row["output_tokens"] < 2_000
    assert any('"error"' in line for line in stream.lines)
