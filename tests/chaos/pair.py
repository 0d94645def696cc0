"""Two sidecars behind one Envoy, as a site has them that restarts one at a time; and a second Envoy to take over from the first."""

from __future__ import annotations

import json
import signal
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from breakable import DRAIN_S, BreakableHouse
from house import LARGE, SMALL, reserved_port, until

from extproc.local import envoy
from extproc.local.engine import Engine

LEAVE_S = DRAIN_S + 30.0


class Pair(BreakableHouse):
    """``sidecar`` and ``other``, with two workers each."""

    def __init__(self, directory: Path, *, settings: str = "", of_other: Mapping[str, Mapping[str, Any]] | None = None) -> None:
        """``of_other``: members of sections that the other one has otherwise."""
        super().__init__(directory, settings=settings)
        self.first_settings, self.first_ops = self.settings_file, self._ops
        theirs = json.loads(self.settings_file.read_text())
        self.second_ops = f"127.0.0.1:{reserved_port(self._stack)}"
        theirs["listen"] |= {"address": f"unix:{directory}/run-b/gate-{{worker}}.sock", "ops_address": self.second_ops}
        for section, members in (of_other or {}).items():
            theirs[section] = {**theirs.get(section, {}), **members}
        self.second_settings = directory / "extproc-b.yaml"
        self.second_settings.write_text(json.dumps(theirs))
        self.other = self._start(first=False)
        self._stack.callback(lambda: self.other.stop(30))
        self.envoy.stop()
        self.envoy = self.another_envoy("envoy-0")

    def another_envoy(self, name: str) -> envoy.Envoy:
        """In front of both sidecars, on a port of its own."""
        started = envoy.start(
            self.directory / name,
            gates=[self.directory / f"{run}/gate-{slot}.sock" for run in ("run", "run-b") for slot in range(self.workers)],
            backends={model: [one.url.removeprefix("http://")] for model, one in self.simulators.items()},
            cert_file=self.certificates.cert_file,
            key_file=self.certificates.key_file,
            health_interval_s=1,
        )
        self._stack.callback(started.stop)
        started.wait_healthy({"extproc": 2 * self.workers, SMALL: 1, LARGE: 1})
        return started

    def restart(self, *, first: bool) -> None:
        """SIGTERM, patience, and the same again; the other one serves meanwhile. Returns when both serve."""
        old = self.sidecar if first else self.other
        old.signal(signal.SIGTERM)
        assert old.wait(LEAVE_S) == 0
        started = self._start(first=first)
        if first:
            self.sidecar = started
        else:
            self.other = started
        until(lambda: self.envoy.healthy("extproc") == 2 * self.workers, "Envoy has all workers again")

    def wait_serving(self) -> None:
        for ops in (self.first_ops, self.second_ops):
            until(lambda ops=ops: _is_ready(ops), "a sidecar is ready")
        self.envoy.wait_healthy({"extproc": 2 * self.workers})

    def _start(self, *, first: bool) -> Engine:
        self.settings_file, self._ops = (self.first_settings, self.first_ops) if first else (self.second_settings, self.second_ops)
        return self.start_sidecar()


def _is_ready(ops: str) -> bool:
    try:
        return urllib.request.urlopen(f"http://{ops}/readyz", timeout=5).status == 200
    except OSError:
        return False
