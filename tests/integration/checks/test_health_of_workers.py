"""A health check that is there, and too slow to be of use."""

from __future__ import annotations

from pathlib import Path

import pytest

from extproc.checks.static.sidecar import sidecar_health
from extproc.checks.static.world import World
from extproc.settings import load_settings
from extproc.yamlfile import read

ENVOY = Path(__file__).resolve().parents[3] / "envoy/envoy.yaml"


@pytest.mark.parametrize(
    ("old", "new", "found"),
    [
        ("", "", []),
        ("          interval: 0.3s\n", "          interval: 30s\n", ["a hung worker gets requests for up to 62000 ms"]),
        ("- timeout: 1s ", "- timeout: 3s ", ["a hung worker gets requests for up to 6600 ms"]),
        ("unhealthy_threshold: 2", "unhealthy_threshold: 20", ["a hung worker gets requests for up to 26000 ms"]),
        ("          no_traffic_interval: 0.3s ", "          reuse_connection: true ", ["a worker that starts after Envoy gets nothing"]),
        ("no_traffic_interval: 0.3s", "no_traffic_interval: 60s", ["a worker that starts after Envoy gets nothing"]),
    ],
)
def test_slow_checks_are_found(tmp_path: Path, old: str, new: str, found: list[str]) -> None:
    text = ENVOY.read_text()
    assert old in text
    (tmp_path / "envoy.yaml").write_text(text.replace(old, new, 1))
    (tmp_path / "extproc.yaml").write_text("version: 1\n")
    world = World(
        settings=load_settings(tmp_path / "extproc.yaml", {}), catalog=None, catalog_file=None, envoy=(read(tmp_path / "envoy.yaml"),)
    )
    whats = [finding.what for finding in sidecar_health(world)]
    assert len(whats) == len(found)
    assert all(what.startswith(part) for what, part in zip(whats, found, strict=True)), whats
