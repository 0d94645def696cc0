"""Everything that is measured, running: the end-to-end tests' house, the bench's Envoy in front of it, and the empty server beside it."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).parents[1] / "e2e"))
from house import NANOS_IN, NANOS_OUT, ROOT, SMALL, UNLIMITED, House, until

from extproc.local.engine import Engine
from extproc.settings import load_settings
from extproc.stores.shards import tag_of

from .client import Answer, request_bytes
from .cpu import Accounts, thread_names_ns
from .edge import EMPTY, Edge
from .plan import STAMPING, Plan, Workload, prompt

SETTLED_S = 60.0  # for the settler to post what a run left behind
LOAD, GATE, STAMPER = "load", "gate", "stamper"
THREADS = "gate_threads"  # of the gate workers, beside their loops: the outbox, and prompts that take long to count


class Stage:
    """One house for the whole bench. ``sent`` and ``tokens`` are what was asked through ``ours``: all of it must be billed in the end.

    ``left``: tokens that were read of each request whose client hung up, by request id.
    """

    def __init__(self, directory: Path, plan: Plan) -> None:
        with contextlib.ExitStack() as stack:
            log = (
                f"access_log.file={json.dumps(str(directory / 'edge/access.jsonl'))}"  # of the Envoy that is measured: the witness reads it
            )
            self.house = House(directory, workers=plan.workers, durable=True, models=catalog(), settings=log)
            stack.callback(self.house.stop)
            self.empty = {target: directory / f"{target}.sock" for target in EMPTY}
            words = {target.value: ["empty", target.removeprefix("empty_"), str(path)] for target, path in self.empty.items()}
            ready = {target.value: path for target, path in self.empty.items()}
            words[STAMPER], ready[STAMPER] = ["stamping", str(directory / "stamping.port")], directory / "stamping.port"
            self._started = {name: _start(name, argv, directory, ready[name]) for name, argv in words.items()}
            for engine in self._started.values():
                stack.callback(engine.stop)
            simulators = {name: one.url.removeprefix("http://") for name, one in self.house.simulators.items()}
            self.edge = Edge(
                directory / "edge",
                gates=[directory / f"run/gate-{slot}.sock" for slot in range(plan.workers)],
                empty=self.empty,
                backends=simulators | {STAMPING: f"127.0.0.1:{ready[STAMPER].read_text()}"},
                certificate=(self.house.certificates.cert_file, self.house.certificates.key_file),
            )
            stack.callback(self.edge.stop)
            self.guests = [self.house.guest(deposit="1000000") for _ in range(plan.payers)]
            self.accounts = Accounts(self._groups(), trees=("postgres",))
            self.sent = 0
            self.tokens = 0
            self.left: dict[str, int] = {}
            self._redis = self.house.redis()
            stack.callback(self._redis.close)
            self._stack = stack.pop_all()

    def stop(self) -> None:
        self._stack.close()

    @property
    def transport(self) -> str:
        """Of the gate workers."""
        return load_settings(self.house.settings_file, {}).listen.chosen_transport[0]

    def cpu_ns(self) -> dict[str, int]:
        """So far, by group."""
        threads = [thread_names_ns(pid) for pid in self.accounts.pids(GATE)]
        return {**self.accounts.read(), THREADS: sum(sum(names.values()) - names["main"] for names in threads)}

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
            LOAD: [os.getpid()],
            **{name: [engine.pid] for name, engine in self._started.items()},
        }

    def requests(self, workload: Workload, count: int) -> list[bytes]:
        """Payers take turns."""
        content = prompt(workload.prompt_bytes)
        body: dict[str, Any] = {
            "model": workload.model,
            "messages": [{"role": "user", "content": content}],
            "max_tokens": 2 * workload.tokens,
        }
        headers = {"x-model": workload.model, "x-sim-tokens": str(workload.tokens)}
        if workload.stream:
            body["stream"] = True
            headers["x-sim-delay-ms"] = str(workload.delay_ms)
        made = [request_bytes(secret=guest.secret, body=body, headers=headers) for guest in self.guests]
        return [made[place % len(made)] for place in range(count)]

    def served(self, workload: Workload, answers: list[Answer]) -> None:
        """Remember what has to be billed. Called for what went through ``ours``."""
        if workload.leave_after:
            self.left |= {answer.request_id: answer.tokens for answer in answers}
        else:
            self.sent += len(answers)
            self.tokens += workload.tokens * len(answers)

    def wait_settled(self) -> None:
        """Until every event of our payers is in PostgreSQL (the poster trims what it has committed)."""
        streams = {f"{tag_of(guest.id)}:events" for guest in self.guests}
        until(lambda: not any(self._redis.xlen(stream) for stream in streams), "everything posted", SETTLED_S)

    def billed_tokens(self, answers: list[Answer]) -> list[int]:
        """What was billed of each of them, in their order; waits for the rows."""
        ids = [answer.request_id for answer in answers]

        def look() -> dict[str, int]:
            rows = self.house.rows("SELECT request_id, output_tokens FROM requests WHERE request_id = ANY(%s)", ids)
            return {row["request_id"]: row["output_tokens"] for row in rows}

        until(lambda: len(look()) == len(ids), f"{len(ids)} rows", SETTLED_S)
        billed = look()
        return [billed[one] for one in ids]

    def check_billed(self) -> None:
        """What was served is what was billed: a bench of a gate that forgets to charge would be fast."""
        until(lambda: self._billed()["requests"] >= self.sent, f"{self.sent} rows", SETTLED_S)
        row = self._billed()
        assert (row["requests"], row["guessed"], row["tokens"]) == (self.sent, 0, self.tokens), (row, self.sent, self.tokens)
        assert row["cost"] == row["worth"] > 0, row

    def _billed(self) -> dict[str, Any]:
        (row,) = self.house.rows(
            """SELECT count(*) AS requests, count(*) FILTER (WHERE usage_source <> 'upstream') AS guessed, sum(output_tokens) AS tokens,
                      sum(cost) AS cost, sum(input_tokens) * %s + sum(output_tokens) * %s AS worth
               FROM requests WHERE NOT request_id = ANY(%s)""",
            NANOS_IN,
            NANOS_OUT,
            list(self.left),
        )
        return row


def catalog() -> str:
    """The shipped one, with a tier that has no limits, and a window that a prompt of a megabyte fits in: the simulator's."""
    shipped = (ROOT / "examples/models.yaml").read_text()
    _, found, rest = shipped.partition(f"\n  {SMALL}:\n")
    wider = rest.replace("context_tokens: 32_768", "context_tokens: 131_072", 1)
    assert found
    assert wider != rest
    return shipped.replace(found + rest, found + wider).replace("\n  business:", UNLIMITED + "\n  business:", 1)


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


def _start(name: str, words: list[str], directory: Path, ready: Path) -> Engine:
    """``python -m tests.bench.…``, until its file is there."""
    argv = [sys.executable, "-m", f"tests.bench.{words[0]}", *words[1:]]
    engine = Engine.start(name, argv, log_file=directory / f"{name}.log", cwd=ROOT)
    engine.wait_ready(ready.exists, deadline_s=30)
    return engine
