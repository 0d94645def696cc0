"""Faults of the access log as far as the second witness reads it."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product
from pathlib import Path

from extproc.checks.static.world import Findings, World, at, error, members, plain, type_name
from extproc.yamlfile import Node

NAMESPACE = "extproc.billing"
MEMBERS = {"details": "%RESPONSE_CODE_DETAILS%", "billing": f"%DYNAMIC_METADATA({NAMESPACE})%"}
"""What the witness looks for in a line."""


def witness_log(world: World) -> Findings:
    """Every request on a metered listener leaves a line that the witness understands, in the file that it reads."""
    file = world.settings.access_log.file
    if file is None:
        return
    for manager in world.managers():
        logs = [log for log in _file_logs(manager) if _is(file, str(plain(log, "path", default="")))]
        if not logs:
            what = f"access_log.file names {file.name}, and no access log of this listener is written there"
            yield error("witness_log", at(manager, "access_log"), what, "name the same file in both")
        for entry in members(manager, "access_log"):
            found, config = entry.get("filter"), entry.get("typed_config")
            if found is not None and config in logs:
                yield error("witness_log", found, "not every request leaves a line in the log of the witness", "take the filter out")
        for log, name in product(logs, MEMBERS):
            path = ("log_format", "json_format", name)
            if plain(log, *path) != MEMBERS[name]:
                what = f"lines of the access log have no {name} that a witness can read"
                yield error("witness_log", at(log, *path), what, f'{name}: "{MEMBERS[name]}"')


def witness_metadata(world: World) -> Findings:
    """What the sidecar tells of a request gets into the log."""
    if world.settings.access_log.file is None:
        return
    for config in world.ext_procs():
        path = ("metadata_options", "receiving_namespaces", "untyped")
        if NAMESPACE not in [node.value for node in members(config, *path)]:
            what = f"dynamic metadata of {NAMESPACE} is dropped: the access log will not say whose hold a request was"
            yield error(
                "witness_metadata", at(config, *path), what, f"metadata_options: {{receiving_namespaces: {{untyped: [{NAMESPACE}]}}}}"
            )


def _file_logs(manager: Node) -> Iterator[Node]:
    for log in members(manager, "access_log"):
        config = log.get("typed_config")
        if config is not None and type_name(config) == "FileAccessLog":
            yield config


def _is(file: Path, path: str) -> bool:
    """A relative path starts in Envoy's working directory, which these files do not tell: then its name must do."""
    return Path(path) == file if path.startswith("/") else Path(path).name == file.name
