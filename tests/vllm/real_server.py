"""A real vLLM as a process of its own on 127.0.0.1, and its token counters."""

from __future__ import annotations

import os
import re
import signal
import socket
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import httpx

from extproc.local.engine import Engine, EngineFailed

READY_S = 600.0
"""50 s on two idle cores; the first start of all compiles bytecode, and somebody else may be using the cores."""
STOP_S = 60.0
QUIET_S = 60.0
LOOK_S = 0.02
LOOKS = 5  # equal ones: the counters move with every token, and a token takes 4 ms

# One thread a core and no compiler: what is computed is tiny. Nobody is asked over a network, nobody told.
ENVIRON = {
    "TORCHDYNAMO_DISABLE": "1",
    "VLLM_CPU_KVCACHE_SPACE": "1",  # GiB
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_DO_NOT_TRACK": "1",
    "PYTHONPATH": "",
}
OPTIONS = ("--load-format", "dummy", "--enforce-eager", "--max-num-seqs", "32", "--disable-uvicorn-access-log", "--seed", "0")

FIGURES = ("prompt_tokens_total", "prompt_tokens_cached_total", "generation_tokens_total", "num_requests_running", "num_requests_waiting")
_COUNTERS = re.compile(r"vllm:(\w+)\{([^}]*)\} ([0-9.eE+]+)")


class Tokens(NamedTuple):
    """What vLLM's own counters say since it started, or how they have grown."""

    prompt: int
    generated: int

    def since(self, before: Tokens) -> Tokens:
        return Tokens(self.prompt - before.prompt, self.generated - before.generated)


class RealVllm:
    """One server. ``names``: what it serves the model as; the first is that of its metrics."""

    def __init__(self, python: Path, model: Path, directory: Path, *, names: Sequence[str], options: Sequence[str]) -> None:
        self.names = tuple(names)
        self.log_file = directory / "vllm.log"
        self.port = _free_port()
        # Not the command `vllm`: it looks for a distribution of that name, and finds vllm-cpu.
        argv = [str(python), "-m", "vllm.entrypoints.openai.api_server", "--model", str(model)]
        self._argv = [*argv, "--host", "127.0.0.1", "--port", str(self.port), "--served-model-name", *names, *OPTIONS, *options]
        # Compiled kernels and the like; near its wheel, so that the next start finds them.
        self._environ = {**ENVIRON, "VLLM_CACHE_ROOT": str(python.parents[1] / "cache")}
        self.http = httpx.Client(base_url=self.url, timeout=60)
        self.start()

    def start(self) -> None:
        begun = time.monotonic()
        self.engine = Engine.start("vLLM", self._argv, log_file=self.log_file, environ=self._environ)
        try:
            self.engine.wait_ready(self._healthy, deadline_s=READY_S)
        except EngineFailed:
            self.stop()
            raise
        self.ready_s = time.monotonic() - begun

    @property
    def url(self) -> str:
        return f"http://{self.address}"

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    def post(self, path: str, **body: Any) -> httpx.Response:
        """Straight to it, past Envoy."""
        return self.http.post(path, json=body)

    def page(self) -> str:
        return self.http.get("/metrics").text

    def tokens(self) -> Tokens:
        """Of all requests so far, at this moment."""
        sums = self._sums()
        return Tokens(sums["prompt_tokens_total"], sums["generation_tokens_total"])

    def cached(self) -> int:
        """Tokens of prompts that it found in its cache, so far."""
        return self._sums()["prompt_tokens_cached_total"]

    def rest(self) -> Tokens:
        """Likewise, once nothing runs or waits and nothing moves any more."""
        end = time.monotonic() + QUIET_S
        same, last = 0, self._sums()
        while same < LOOKS:
            assert time.monotonic() < end, f"vLLM does not come to rest: {last}"
            time.sleep(LOOK_S)
            now = self._sums()
            at_rest = now == last and now["num_requests_running"] == now["num_requests_waiting"] == 0
            same, last = same + 1 if at_rest else 0, now
        return Tokens(last["prompt_tokens_total"], last["generation_tokens_total"])

    def engine_pids(self) -> list[int]:
        """Its children that compute, and theirs."""
        return _descendants(self.engine.pid)

    def terminate(self) -> None:
        self.engine.signal(signal.SIGTERM)

    def stop(self) -> None:
        """SIGTERM, then whatever is left of its family."""
        family = self.engine_pids()
        self.engine.stop(STOP_S)
        for pid in family:
            _kill(pid)

    def close(self) -> None:
        self.http.close()
        self.stop()

    def _sums(self) -> dict[str, int]:
        """Of all labels: one server, one model."""
        sums = dict.fromkeys(FIGURES, 0)
        for name, _, value in _COUNTERS.findall(self.page()):
            if name in sums:
                sums[name] += int(float(value))
        return sums

    def _healthy(self) -> bool:
        try:
            return self.http.get("/health").status_code == 200
        except httpx.TransportError:
            return False


def _descendants(pid: int) -> list[int]:
    try:
        threads = [Path(thread, "children") for thread in Path(f"/proc/{pid}/task").iterdir()]
        children = [int(word) for file in threads for word in file.read_text().split()]
    except OSError:
        return []
    return [one for child in children for one in (child, *_descendants(child))]


def _kill(pid: int) -> None:
    try:
        if b"vllm" in Path(f"/proc/{pid}/cmdline").read_bytes().lower():  # the number may be somebody else's by now
            os.kill(pid, signal.SIGKILL)
    except OSError:
        return


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
