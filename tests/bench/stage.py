"""Everything that is measured, running: the end-to-end tests' house, the bench's Envoy in front of it, and the empty server beside it."""

from __future__ import annotations

import contextlib
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).parents[1] / "e2e"))
from house import NANOS_IN, NANOS_OUT, ROOT, SMALL, House

from extproc.local.engine import Engine
from extproc.stores.shards import tag_of

from .client import request_bytes
from .cpu import Accounts
from .edge import Edge
from .plan import DELAY_MS, FIRST_TOKENS, JSON_TOKENS, STREAM_TOKENS, Plan, Workload, prompt

SETTLED_S = 30.0  # for the settler to post what a run left behind
LOAD, GATE = "load", "gate"


class Stage:
    """One house for the whole bench. ``sent`` and ``tokens`` are what was asked through ``ours``: all of it must be billed in the end."""

    def __init__(self, directory: Path, plan: Plan) -> None:
        with contextlib.ExitStack() as stack:
            self.house = House(directory, workers=plan.workers, durable=True)
            stack.callback(self.house.stop)
            self.empty = _start_empty(directory)
            stack.callback(self.empty.stop)
            self.edge = Edge(
                directory / "edge",
                gates=[directory / f"run/gate-{slot}.sock" for slot in range(plan.workers)],
                empty=directory / "empty.sock",
                backends={name: one.url.removeprefix("http://") for name, one in self.house.simulators.items()},
                certificate=(self.house.certificates.cert_file, self.house.certificates.key_file),
            )
            stack.callback(self.edge.stop)
            self.guests = [self.house.guest(deposit="1000000") for _ in range(plan.payers)]
            self.accounts = Accounts(self._groups(), trees=("postgres",))
            self.sent = 0
            self.tokens = 0
            self._redis = self.house.redis()
            stack.callback(self._redis.close)
            self._stack = stack.pop_all()

    def stop(self) -> None:
        self._stack.close()

    def _groups(self) -> dict[str, list[int]]:
        pids = self.house.pids()
        return {
            GATE: [pid for name, pid in pids.items() if name.startswith("gate-")],
            "settler": [pids["settler"]],
            "supervisor": [self.house.sidecar.pid],
            "envoy": [self.edge.pid],
            "valkey": [self.house.valkey.pid],
            "postgres": [self.house.postgres.pid],
            "simulator": [one.pid for one in self.house.simulators.values()],
            "empty": [self.empty.pid],
            LOAD: [os.getpid()],
        }

    def requests(self, workload: Workload | None, count: int) -> list[bytes]:
        """Payers take turns. ``None``: short streams whose first token is timed."""
        body: dict[str, Any] = {"model": SMALL, "messages": [{"role": "user", "content": prompt()}], "max_tokens": 2 * STREAM_TOKENS}
        if workload is not Workload.JSON:
            body["stream"] = True
        tokens = FIRST_TOKENS if workload is None else JSON_TOKENS if workload is Workload.JSON else STREAM_TOKENS
        headers = {"x-model": SMALL, "x-sim-tokens": str(tokens)}
        if workload is not Workload.JSON:
            headers["x-sim-delay-ms"] = str(5 if workload is None else DELAY_MS[workload])
        made = [request_bytes(secret=guest.secret, body=body, headers=headers) for guest in self.guests]
        return [made[place % len(made)] for place in range(count)]

    def wait_settled(self) -> None:
        """Until every event of our payers is in PostgreSQL (the poster trims what it has committed)."""
        streams = {f"{tag_of(guest.id)}:events" for guest in self.guests}
        end = time.monotonic() + SETTLED_S
        while any(self._redis.xlen(stream) for stream in streams):
            assert time.monotonic() < end, "the settler does not keep up"
            time.sleep(0.02)

    def check_billed(self) -> None:
        """What was served is what was billed: a bench of a gate that forgets to charge would be fast."""
        self.wait_settled()
        (row,) = self.house.rows(
            """SELECT count(*) AS requests, count(*) FILTER (WHERE usage_source <> 'upstream') AS guessed, sum(output_tokens) AS tokens,
                      sum(cost) AS cost, sum(input_tokens) * %s + sum(output_tokens) * %s AS worth FROM requests""",
            NANOS_IN,
            NANOS_OUT,
        )
        assert (row["requests"], row["guessed"], row["tokens"]) == (self.sent, 0, self.tokens), (row, self.sent, self.tokens)
        assert row["cost"] == row["worth"] > 0, row


@contextlib.contextmanager
def stage(plan: Plan) -> Iterator[Stage]:
    """In a directory of its own, short enough for sockets, gone afterwards."""
    directory = Path(tempfile.mkdtemp(prefix="xb-", dir="/tmp"))
    directory.chmod(0o711)
    try:
        running = Stage(directory, plan)
        try:
            yield running
        finally:
            running.stop()
    finally:
        shutil.rmtree(directory, ignore_errors=True)


def _start_empty(directory: Path) -> Engine:
    path = directory / "empty.sock"
    argv = [sys.executable, "-m", "tests.bench.empty", str(path)]
    engine = Engine.start("empty server", argv, log_file=directory / "empty.log", cwd=ROOT)
    engine.wait_ready(path.exists, deadline_s=30)
    return engine
