"""An Envoy for the bench: the shipped files, with a listener for each target in place of one, in plain text.

``ours`` asks the gate workers, as shipped; ``empty_lean`` and ``empty_grpcio`` ask an empty server instead; ``direct`` is Envoy without us: no
ext_proc filter, and ``x-model`` is believed, so that the same route is chosen. All else is equal, routes, clusters, access log and breakers included.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping, Sequence
from enum import StrEnum
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import yaml

from extproc.local import envoy, envoy_files
from extproc.local.engine import Engine
from extproc.local.envoy_files import Site

EXT_PROC = "envoy.filters.http.ext_proc"
READY_S = 30.0


class Target(StrEnum):
    """What stands between client and backend."""

    OURS = "ours"
    EMPTY_LEAN = "empty_lean"
    EMPTY_GRPCIO = "empty_grpcio"
    DIRECT = "direct"


EMPTY = (Target.EMPTY_LEAN, Target.EMPTY_GRPCIO)


class Edge:
    """Running Envoy; ``ports`` by target. ``concurrency`` 1: with two cores for everything, a second thread of it only adds noise."""

    def __init__(
        self,
        directory: Path,
        *,
        gates: Sequence[Path],
        empty: Mapping[Target, Path],
        backends: Mapping[str, str],
        certificate: tuple[Path, Path],
    ) -> None:
        directory.mkdir()
        cert_file, key_file = certificate
        site = Site(
            gates=[str(gate) for gate in gates],
            backends={name: [address] for name, address in backends.items()},
            cert_file=cert_file,
            key_file=key_file,
            health_interval_s=1,
        )
        files = envoy_files.render(site, directory)
        files["envoy.yaml"] = json.dumps(with_targets(yaml.safe_load(files["envoy.yaml"]), empty))
        for name, text in files.items():
            (directory / name).write_text(text)
        self._admin_file = directory / "admin.address"
        words = [str(envoy.program()), "-c", str(directory / "envoy.yaml"), "--admin-address-path", str(self._admin_file)]
        words += ["--concurrency", "1", "--log-level", "warning", "--disable-hot-restart"]
        words += ["--file-flush-interval-msec", str(envoy.LOG_FLUSH_MS)]
        self.engine = Engine.start("bench envoy", words, log_file=directory / "envoy.log")
        wanted = {"extproc": len(gates), **dict.fromkeys([*empty, *backends], 1)}
        self.engine.wait_ready(lambda: self._is_ready(wanted), deadline_s=READY_S)
        statuses = json.loads(self._ask("/listeners?format=json"))["listener_statuses"]
        self.ports = {Target(one["name"]): int(one["local_address"]["socket_address"]["port_value"]) for one in statuses}

    @property
    def pid(self) -> int:
        return self.engine.pid

    def stop(self) -> None:
        self.engine.stop()

    def messages(self, target: Target) -> int:
        """How many messages Envoy has sent to the ext_proc server of a listener so far."""
        stats = json.loads(self._ask(f"/stats?format=json&filter=^http.{target}.ext_proc.stream_msgs_sent$"))["stats"]
        return sum(int(stat["value"]) for stat in stats if "name" in stat)

    def _ask(self, path: str) -> bytes:
        with urlopen(f"http://{self._admin_file.read_text()}{path}", timeout=10) as page:
            return page.read()

    def _is_ready(self, wanted: Mapping[str, int]) -> bool:
        try:
            stats = json.loads(self._ask("/stats?format=json&filter=membership_healthy$"))["stats"]
        except OSError:
            return False
        healthy = {
            stat["name"].removeprefix("cluster.").removesuffix(".membership_healthy"): stat["value"] for stat in stats if "name" in stat
        }
        return all(healthy.get(name, 0) >= count for name, count in wanted.items())


def with_targets(bootstrap: dict[str, Any], empty: Mapping[Target, Path]) -> dict[str, Any]:
    """The shipped bootstrap, changed as the module says and in nothing else."""
    static = bootstrap["static_resources"]
    (shipped,) = static["listeners"]
    static["listeners"] = [_listener(copy.deepcopy(shipped), target) for target in Target]
    (gates,) = [cluster for cluster in static["clusters"] if cluster["name"] == "extproc"]
    static["clusters"] += [_empty_cluster(copy.deepcopy(gates), target, path) for target, path in empty.items()]
    return bootstrap


def _listener(listener: dict[str, Any], target: Target) -> dict[str, Any]:
    listener["name"] = target.value
    del listener["listener_filters"]
    (chain,) = listener["filter_chains"]
    del chain["transport_socket"]
    manager = chain["filters"][0]["typed_config"]
    manager["stat_prefix"] = target.value
    (ext_proc,) = [one for one in manager["http_filters"] if one["name"] == EXT_PROC]
    if target in EMPTY:
        ext_proc["typed_config"]["grpc_service"]["envoy_grpc"]["cluster_name"] = target.value
    if target is Target.DIRECT:
        manager["http_filters"].remove(ext_proc)
        manager["early_header_mutation_extensions"][0]["typed_config"]["mutations"].remove({"remove": "x-model"})
    return listener


def _empty_cluster(cluster: dict[str, Any], target: Target, path: Path) -> dict[str, Any]:
    cluster["name"] = cluster["load_assignment"]["cluster_name"] = target.value
    endpoint = {"endpoint": {"address": {"pipe": {"path": str(path)}}}}
    cluster["load_assignment"]["endpoints"] = [{"lb_endpoints": [endpoint]}]
    return cluster
