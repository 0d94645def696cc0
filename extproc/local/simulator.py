"""A simulated vLLM as a process of its own, and what tests ask of it."""

from __future__ import annotations

import http.client
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from extproc.local.engine import Engine, EngineFailed, Server

READY_S = 30.0
"""0.15 s, and up to 1.6 s more for a vocabulary; a loaded machine takes longer."""

CONTROL_TIMEOUT_S = 10.0
"""Of a question to the simulator: it answers in its own loop, among the streams."""


class Simulator(Server):
    """A running simulator on 127.0.0.1. Stopped, its streams end with ``abort``; it starts again on the same port, with an empty memory."""

    def __init__(self, directory: Path, *, models: Sequence[str], vocabulary: Path | None, options: Sequence[str]) -> None:
        assert models
        self.directory = directory.absolute()
        self.models = tuple(models)
        self.log_file = self.directory / "simulator.log"
        self._vocabulary = vocabulary
        self._options = tuple(options)
        self.port = 0
        self.engine = self._start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def log(self, since: int = 0) -> tuple[list[dict[str, Any]], int]:
        """Requests after number ``since``, and the number to go on from."""
        told = self._ask("GET", f"/sim/log?since={since}")
        return told["requests"], told["next"]

    def requests(self, request_id: str) -> list[dict[str, Any]]:
        """All attempts of one ``x-request-id``, bodies in full; empty when none came."""
        try:
            told: list[dict[str, Any]] = self._ask("GET", f"/sim/requests/{request_id}")["requests"]
        except LookupError:
            return []
        return told

    def configure(self, **values: str | float) -> None:
        """Process-wide defaults of the ``x-sim-…`` headers: ``tokens=5, delay_ms=20, fault="no_usage"``; ``health=503``."""
        self._ask("POST", "/sim/config", json.dumps(values))

    def metrics(self) -> dict[str, float]:
        """Series by name, labels left out; the last of equal names."""
        lines = self._fetch("GET", "/metrics").decode().splitlines()
        samples = (line.rpartition(" ") for line in lines if line and not line.startswith("#"))
        return {series.partition("{")[0]: float(value) for series, _, value in samples}

    def _start(self) -> Engine:
        self.directory.mkdir(parents=True, exist_ok=True)
        port_file = self.directory / "port"
        port_file.unlink(missing_ok=True)
        names = [word for model in self.models for word in ("--model", model)]
        vocabulary = ["--vocab", str(self._vocabulary.absolute())] if self._vocabulary else []
        argv = [
            sys.executable,
            "-m",
            "extproc.local.sim",
            *names,
            *vocabulary,
            "--port",
            str(self.port),
            "--port-file",
            str(port_file),
            *self._options,
        ]
        # The package may stand in a checkout that is not installed: the child finds it where we did.
        environ = {"PYTHONPATH": ":".join(path for path in sys.path if path)}
        engine = Engine.start(f"simulator of {', '.join(self.models)}", argv, log_file=self.log_file, environ=environ)
        engine.wait_ready(port_file.exists, deadline_s=READY_S)
        self.port = int(port_file.read_text())
        return engine

    def _ask(self, method: str, path: str, body: str | None = None) -> Any:
        return json.loads(self._fetch(method, path, body))

    def _fetch(self, method: str, path: str, body: str | None = None) -> bytes:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=CONTROL_TIMEOUT_S)
        try:
            connection.request(method, path, body)
            response = connection.getresponse()
            content = response.read()
        finally:
            connection.close()
        if response.status == http.HTTPStatus.NOT_FOUND:
            raise LookupError(path)
        if response.status != http.HTTPStatus.OK:
            raise EngineFailed(f"the simulator refused {method} {path}: {content.decode(errors='replace')}")
        return content


def start(directory: Path, *, models: Sequence[str], vocabulary: Path | None = None, options: Sequence[str] = ()) -> Simulator:
    """A simulator that serves ``models`` on a free port of 127.0.0.1. ``options``: more of its command line."""
    return Simulator(directory, models=models, vocabulary=vocabulary, options=options)
