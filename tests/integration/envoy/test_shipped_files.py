"""The files that run here are the shipped ones, but for a fixed list of nodes; and they keep their rules."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from extproc.errors import UsageError
from extproc.local import envoy_files
from extproc.local.envoy_files import Site

LISTENER = r"static_resources\.listeners\.0"
MANAGER = LISTENER + r"\.filter_chains\.0\.filters\.0\.typed_config"
REPLACED = {
    "envoy.yaml": [
        r"admin\.address\.socket_address\.port_value",
        r"dynamic_resources\.cds_config\.path_config_source\.path",
        LISTENER + r"\.address\.socket_address\.(address|port_value)",
        LISTENER + r".*\.tls_certificate_sds_secret_configs\.0\.sds_config\.path_config_source\.path",
        MANAGER + r"\.rds\.config_source\.path_config_source\.path",
        MANAGER + r"\.access_log\.0\.typed_config\.path",
        r"static_resources\.clusters\.0\.load_assignment\.endpoints\.0\.lb_endpoints\.\d+\..*",
    ],
    "routes.yaml": [],
    "clusters.yaml": [
        r"resources\.\d+\.load_assignment\.endpoints\.0\.lb_endpoints\.\d+\..*",
        r"resources\.\d+\.health_checks\.0\.(no_traffic_)?interval",
    ],
    "certificate.yaml": [
        r"resources\.0\.tls_certificate\.certificate_chain\.filename",
        r"resources\.0\.tls_certificate\.private_key\.filename",
        r"resources\.0\.tls_certificate\.watched_directory\.path",
    ],
}
SHIPPED_MODELS = (
    *("qwen3-72b", "qwen2.5-14b", "qwen2.5-14b-spot", "qwen2.5-7b"),
    *("qwen-coder-7b", "deepseek-coder-lite", "qwen2-vl-7b", "bge-m3", "bge-reranker-v2-m3", "whisper-large-v3"),
)


def leaves(node: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    pairs = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else None
    if pairs is None or not node:
        yield path, node
        return
    for key, value in pairs:
        yield from leaves(value, f"{path}.{key}".lstrip("."))


def site(**changes: Any) -> Site:
    values: dict[str, Any] = {
        "gates": ["/r/0.sock", "/r/1.sock"],
        "backends": {name: ["127.0.0.1:1"] for name in SHIPPED_MODELS},
        "cert_file": Path("/t/server.pem"),
        "key_file": Path("/t/server.key"),
        "health_interval_s": 1.0,
    }
    return Site(**(values | changes))


@pytest.mark.parametrize("name", envoy_files.FILES)
def test_the_difference_is_only_the_fixed_list(name: str) -> None:
    shipped = dict(leaves(yaml.safe_load((envoy_files.shipped() / name).read_text())))
    rendered = dict(leaves(yaml.safe_load(envoy_files.render(site(), Path("/d"))[name])))
    changed = {path for path in shipped.keys() | rendered.keys() if shipped.get(path) != rendered.get(path)}
    unexpected = {path for path in changed if not any(re.fullmatch(pattern, path) for pattern in REPLACED[name])}
    assert not unexpected
    unused = [pattern for pattern in REPLACED[name] if not any(re.fullmatch(pattern, path) for path in changed)]
    assert not unused, "the list has rotted"


def test_comments_stay() -> None:
    shipped, rendered = (envoy_files.shipped() / "envoy.yaml").read_text(), envoy_files.render(site(), Path("/d"))["envoy.yaml"]
    assert shipped.count("#") == rendered.count("#") > 50


def test_other_models_and_more_workers() -> None:
    gates = [f"/r/{number}.sock" for number in range(5)]
    files = envoy_files.render(site(gates=gates, backends={"Org/My.Model-1": ["h:1", "[::1]:2"], "7": ["h:3"]}), Path("/d"))
    clusters = {cluster["name"]: cluster for cluster in yaml.safe_load(files["clusters.yaml"])["resources"]}
    assert set(clusters) == {"Org/My.Model-1", "7"}
    assert clusters["7"]["load_assignment"]["cluster_name"] == "7"
    endpoints = clusters["Org/My.Model-1"]["load_assignment"]["endpoints"][0]["lb_endpoints"]
    addresses = [endpoint["endpoint"]["address"]["socket_address"] for endpoint in endpoints]
    assert addresses == [{"address": "h", "port_value": 1}, {"address": "::1", "port_value": 2}]
    routes = yaml.safe_load(files["routes.yaml"])["resources"][0]["virtual_hosts"][0]["routes"]
    assert [route["name"] for route in routes] == ["Org/My.Model-1", "7", "none"]
    assert [route["route"]["cluster"] for route in routes[:-1]] == ["Org/My.Model-1", "7"]
    workers = yaml.safe_load(files["envoy.yaml"])["static_resources"]["clusters"][0]["load_assignment"]["endpoints"][0]["lb_endpoints"]
    assert [worker["endpoint"]["address"]["pipe"]["path"] for worker in workers] == gates


@pytest.mark.parametrize(
    "changes",
    [{"backends": {"a b": ["h:1"]}}, {"backends": {'x"}}': ["h:1"]}}, {"backends": {"m": ["h"]}}, {"backends": {"m": []}}, {"gates": []}],
)
def test_what_cannot_be_is_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        envoy_files.render(site(**changes), Path("/d"))


def test_every_route_that_forwards_needs_a_model_and_the_last_forwards_nothing() -> None:
    (config,) = yaml.safe_load((envoy_files.shipped() / "routes.yaml").read_text())["resources"]
    (host,) = config["virtual_hosts"]
    *forwarding, last = host["routes"]
    for route in forwarding:
        names = [header["name"] for header in route["match"]["headers"] if "exact" in header["string_match"]]
        assert "x-model" in names
        assert route["route"]["timeout"] == "0s"
        assert not {"typed_per_filter_config", "retry_policy"} & set(route)
    assert set(last) == {"name", "match", "direct_response"}
    assert "typed_per_filter_config" not in host


def test_every_cluster_has_a_route_and_every_route_a_cluster() -> None:
    clusters = {cluster["name"] for cluster in yaml.safe_load((envoy_files.shipped() / "clusters.yaml").read_text())["resources"]}
    routes = yaml.safe_load((envoy_files.shipped() / "routes.yaml").read_text())["resources"][0]["virtual_hosts"][0]["routes"]
    assert clusters == {route["route"]["cluster"] for route in routes if "route" in route} == set(SHIPPED_MODELS)
