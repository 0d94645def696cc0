"""ext_proc is overridden by the name that the filter has in this file, whatever that is."""

from __future__ import annotations

from pathlib import Path

import pytest

from extproc.checks.static.routes import route_without_ext_proc
from extproc.checks.static.world import World
from extproc.settings import load_settings
from extproc.yamlfile import read

ENVOY = Path(__file__).resolve().parents[3] / "envoy"
OFF = "typed_per_filter_config: {%s: {'@type': type.googleapis.com/envoy.config.route.v3.FilterConfig, disabled: true}}"


@pytest.mark.parametrize(("overridden", "found"), [("meter", True), ("somebody.elses", False)])
def test_a_filter_of_another_name_is_switched_off(tmp_path: Path, overridden: str, found: bool) -> None:
    (tmp_path / "extproc.yaml").write_text("version: 1\n")
    bootstrap = (ENVOY / "envoy.yaml").read_text().replace("- name: envoy.filters.http.ext_proc", "- name: meter")
    routes = (ENVOY / "routes.yaml").read_text().replace('domains: ["*"]', 'domains: ["*"]\n        ' + OFF % overridden)
    (tmp_path / "envoy.yaml").write_text(bootstrap)
    (tmp_path / "routes.yaml").write_text(routes)
    files = tuple(read(tmp_path / name) for name in ("envoy.yaml", "routes.yaml"))
    world = World(settings=load_settings(tmp_path / "extproc.yaml", {}), catalog=None, catalog_file=None, envoy=files)
    assert [finding.what for finding in route_without_ext_proc(world)] == ([f"{overridden} is overridden here"] if found else [])
