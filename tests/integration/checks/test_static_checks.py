"""Every check against the shipped files: broken in that one way, exactly that is found, on its line."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from extproc.checks.finding import Finding, Severity
from extproc.checks.render import render_text
from extproc.checks.static import CHECKS, run_static
from extproc.checks.static.modes import UNHEEDED
from extproc.settings import load_settings

ROOT = Path(__file__).resolve().parents[3]
FILES = {
    "envoy": ROOT / "envoy/envoy.yaml", "routes": ROOT / "envoy/routes.yaml", "clusters": ROOT / "envoy/clusters.yaml",
    "models": ROOT / "examples/models.yaml",
}  # fmt: skip


class Shipped:
    """A copy of the shipped files, to be broken."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        for source in FILES.values():
            shutil.copy(source, directory)
        (directory / "extproc.yaml").write_text("catalog: {envoy_files: [envoy.yaml, routes.yaml, clusters.yaml]}\n")
        self.before: set[Finding] = set()

    def found(self) -> list[Finding]:
        return run_static(load_settings(self.directory / "extproc.yaml", {}))

    def replace(self, name: str, old: str, new: str) -> None:
        path = FILES[name].name if name in FILES else name
        text = (self.directory / path).read_text()
        assert old in text, f"{path} has no {old!r} any more: correct this test"
        (self.directory / path).write_text(text.replace(old, new, 1))

    def line(self, name: str, marker: str) -> int:
        lines = (self.directory / FILES[name].name).read_text().splitlines()
        return next(number for number, line in enumerate(lines, 1) if marker in line)

    def new_findings(self) -> list[Finding]:
        """What the change brought, without what only moved by some lines."""
        known = {(finding.check, finding.what) for finding in self.before}
        return [finding for finding in self.found() if (finding.check, finding.what) not in known]


@pytest.fixture(scope="module")
def before(tmp_path_factory) -> frozenset[Finding]:
    return frozenset(Shipped(tmp_path_factory.mktemp("shipped")).found())


@pytest.fixture
def shipped(tmp_path, before) -> Shipped:
    copy = Shipped(tmp_path)
    copy.before = set(before)
    return copy


def test_the_shipped_files_have_no_findings(shipped):
    assert not shipped.before, render_text(sorted(shipped.before, key=str))


def test_the_example_finds_its_files():
    assert run_static(load_settings(ROOT / "examples/extproc.yaml", {})) == []


SPOT = "headers: [{name: x-model, string_match: {exact: qwen3-72b}}]"
ROUTE = "route: {cluster: qwen3-72b, timeout: 0s, idle_timeout: 600s}"
FILTER = "- name: envoy.filters.http.ext_proc"
MANAGER = "http_connection_manager.v3.HttpConnectionManager"
BREAKERS = "{max_connections: 1024, max_pending_requests: 100000, max_requests: 100000, max_retries: 10000}"
# check, file, what is replaced, by what, and a text on the line that must be named
BREAKS = [
    ("model_without_route", "routes", SPOT, SPOT.replace("exact: qwen3-72b", "exact: qwen3"), ("models", "  qwen3-72b:")),
    ("route_without_model", "models", "  qwen3-72b:", "  qwen3-73b:", ("routes", "{exact: qwen3-72b}")),
    ("route_without_ext_proc", "routes", ROUTE, ROUTE + "\n            typed_per_filter_config:\n              envoy.filters.http.ext_proc: {disabled: true}", "http.ext_proc: {"),
    ("route_without_ext_proc", "routes", 'domains: ["*"]', 'domains: ["*"]\n        typed_per_filter_config: {envoy.filters.http.ext_proc: {}}', "typed_per_filter_config: {"),
    ("route_without_ext_proc", "routes", "name: models\n    virtual_hosts", "name: models\n    typed_per_filter_config: {x: {'@type': a.v3.ExtProcPerRoute, disabled: ext_proc, b: ext_proc}, ext_proc: {}}\n    virtual_hosts", "typed_per_filter_config: {x"),
    ("route_without_match_on_model", "routes", SPOT, "headers: [{name: x-priority, present_match: true}]", "x-priority, present_match"),
    ("last_route_not_404", "routes", "direct_response: {status: 404}", "route: {cluster: qwen3-72b, timeout: 0s}", "- name: none"),
    ("last_route_not_404", "routes", "direct_response: {status: 404}", "redirect: {host_redirect: elsewhere}", "- name: none"),
    ("last_route_not_404", "routes", "match: {prefix: /}\n", "match: {prefix: /v1}\n", "- name: none"),
    ("unsafe_retry", "routes", "reset-before-request\n", "reset-before-request,5xx\n", "5xx"),
    ("unsafe_retry", "routes", ROUTE, ROUTE.replace("timeout: 0s", "retry_policy: {retry_on: reset}, timeout: 0s"), "retry_on: reset}"),
    ("mirror_or_hedge", "routes", ROUTE, ROUTE.replace("timeout: 0s", "request_mirror_policies: [{cluster: x}], timeout: 0s"), "mirror_policies"),
    ("mirror_or_hedge", "routes", 'domains: ["*"]', 'domains: ["*"]\n        hedge_policy: {hedge_on_per_try_timeout: true}', "hedge_policy: {"),
    ("upgrade_or_redirect", "routes", ROUTE, ROUTE.replace("timeout: 0s", "upgrade_configs: [{upgrade_type: websocket}], timeout: 0s"), "upgrade_configs: ["),
    ("upgrade_or_redirect", "routes", ROUTE, ROUTE.replace("timeout: 0s", "internal_redirect_policy: {}, timeout: 0s"), "internal_redirect_policy"),
    ("upgrade_or_redirect", "envoy", "stat_prefix: edge", "stat_prefix: edge\n                upgrade_configs: [{upgrade_type: CONNECT}]", "upgrade_configs: ["),
    ("route_timeout", "routes", ROUTE, ROUTE.replace("timeout: 0s", "timeout: 60s"), "timeout: 60s"),
    ("route_timeout", "routes", ROUTE, ROUTE.replace("timeout: 0s, ", ""), "route: {cluster: qwen3-72b, idle"),
    ("idle_timeout", "routes", ROUTE, ROUTE.replace("600s", "60s"), "idle_timeout: 60s"),
    ("idle_timeout", "envoy", "stream_idle_timeout: 600s", "stream_idle_timeout: 300s", "stream_idle_timeout: 300s"),
    ("idle_timeout", "envoy", "stream_idle_timeout: 600s", "", "typed_config:\n"),
    ("route_to_nowhere", "routes", "{cluster: qwen3-72b,", "{cluster: qwen3-27b,", "qwen3-27b"),
    ("ext_proc_missing", "envoy", FILTER, FILTER + "\n                    disabled: true", "disabled: true"),
    ("ext_proc_missing", "envoy", "http.ext_proc.v3.ExternalProcessor", "http.rbac.v3.RBAC", "http_filters:"),
    ("path_flags", "envoy", "normalize_path: true", "normalize_path: false", "normalize_path: false"),
    ("path_flags", "envoy", "merge_slashes: true", "merge_slashes: false", "merge_slashes: false"),
    ("path_flags", "envoy", "path_with_escaped_slashes_action: REJECT_REQUEST", "path_with_escaped_slashes_action: KEEP_UNCHANGED", "KEEP_UNCHANGED"),
    ("path_flags", "envoy", "headers_with_underscores_action: REJECT_REQUEST", "", "common_http_protocol_options:"),
    ("client_address", "envoy", "use_remote_address: true", "use_remote_address: false", "use_remote_address: false"),
    ("client_address", "envoy", "preserve_external_request_id: false", "preserve_external_request_id: true", "preserve_external_request_id: true"),
    ("early_headers", "envoy", "- remove: x-model", "- remove: x-moddel", "early_header_mutation_extensions:"),
    ("upload_timeout", "envoy", "request_timeout: 60s", "request_timeout: 0s", "request_timeout: 0s"),
    ("upload_timeout", "envoy", "request_headers_timeout: 10s", "request_headers_timeout: 0s", "request_headers_timeout: 0s"),
    ("buffer_limit", "envoy", "per_connection_buffer_limit_bytes: 2097152", "per_connection_buffer_limit_bytes: 1000000", "per_connection_buffer_limit_bytes: 1000000"),
    ("buffer_limit", "envoy", "initial_stream_window_size: 2097152", "initial_stream_window_size: 65535", "initial_stream_window_size: 65535"),
    ("local_replies", "envoy", "local_reply_config:", "local_reply_config:\n                  body_format: {text_format: x}", "body_format: {"),
    ("decompressor", "envoy", FILTER, "- {name: d, typed_config: {'@type': type.googleapis.com/envoy.extensions.filters.http.decompressor.v3.Decompressor}}\n                  " + FILTER, "{name: d"),
    ("key_in_log", "envoy", "%PATH(NQ)%", "%REQ(:PATH)%", "%REQ(:PATH)%"),
    ("key_in_log", "envoy", "%PATH(NQ)%", "%REQ(Authorization)%", "%REQ(Authorization)%"),
    ("processing_mode", "envoy", "request_body_mode: BUFFERED", "request_body_mode: STREAMED", "request_body_mode: STREAMED"),
    ("processing_mode", "envoy", "response_body_mode: STREAMED", "response_body_mode: NONE", "response_body_mode: NONE"),
    ("processing_mode", "envoy", "request_header_mode: SEND", "request_header_mode: SKIP", "request_header_mode: SKIP"),
    ("processing_mode", "envoy", "allow_mode_override: true", "allow_mode_override: false", "allow_mode_override: false"),
    ("fails_open", "envoy", "failure_mode_allow: false", "failure_mode_allow: true ", "failure_mode_allow: true "),
    ("fails_open", "envoy", "status_on_error: {code: ServiceUnavailable}", "status_on_error: {code: InternalServerError}", "InternalServerError"),
    ("deadlines", "envoy", "message_timeout: 3s", "message_timeout: 1s", "message_timeout: 1s"),
    ("deadlines", "envoy", "message_timeout: 3s", "stat_prefix: a", ("envoy", "filters.http.ext_proc", 1)),
    ("sidecar_cluster", "envoy", "envoy_grpc: {cluster_name: extproc}", "envoy_grpc: {cluster_name: other}", "cluster_name: other"),
    ("sidecar_breakers", "envoy", "max_requests: 100000", "max_requests: 1024", "max_requests: 1024"),
    ("sidecar_breakers", "envoy", "max_retries: 10000", "max_retries: 3", "max_retries: 3"),
    ("sidecar_breakers", "envoy", "max_pending_requests: 100000, ", "", "        thresholds:"),
    ("sidecar_health", "envoy", "grpc_health_check: {}", "tcp_health_check: {}", "health_checks:"),
    ("sidecar_health", "envoy", "healthy_panic_threshold: {value: 0}", "healthy_panic_threshold: {value: 50}", "{value: 50}"),
    ("backend_breakers", "clusters", "max_requests: 10000", "max_requests: 1024", "max_requests: 1024"),
    ("lonely_outlier", "clusters", "    lb_policy: LEAST_REQUEST", "    outlier_detection: {}\n    lb_policy: LEAST_REQUEST", "outlier_detection: {}"),
]  # fmt: skip


# These two say more than one thing by their nature: a renamed model has neither a route nor does its route have a model
COMPANIONS = {
    ("model_without_route", "routes"): {"route_without_model"},
    ("route_without_model", "models"): {"model_without_route"},
    ("last_route_not_404", "routes"): {"route_without_match_on_model"},
    ("route_without_match_on_model", "routes"): {"model_without_route"},
    ("sidecar_cluster", "envoy"): {"backend_breakers"},
}


@pytest.mark.parametrize(("check", "file", "old", "new", "marker"), BREAKS, ids=[f"{row[0]}-{number}" for number, row in enumerate(BREAKS)])
def test_each_fault_is_found_and_nothing_else(shipped, check, file, old, new, marker):  # noqa: PLR0917 - one row of the table
    shipped.replace(file, old, new)
    findings = shipped.new_findings()
    assert {finding.check for finding in findings} - COMPANIONS.get((check, file), set()) == {check}, render_text(findings)
    [finding] = [finding for finding in findings if finding.check == check]
    named, text, offset = (file, marker, 0) if isinstance(marker, str) else (*marker, 0)[:3]
    if text.endswith("\n"):  # the manager's own typed_config
        text, offset = MANAGER, -1
    assert Path(finding.file).name == FILES[named].name
    assert finding.line == shipped.line(named, text) + offset, f"{finding}\n{shipped.line(named, text)}"
    assert finding.what
    assert finding.todo


def test_the_sidecar_in_a_cds_file(shipped):
    text = (shipped.directory / "envoy.yaml").read_text()
    start, end = text.index("    - name: extproc\n"), text.index("\noverload_manager")
    cluster = text[start:end].replace(
        "    - name: extproc", '  - "@type": type.googleapis.com/envoy.config.cluster.v3.Cluster\n      name: extproc', 1
    )
    (shipped.directory / "envoy.yaml").write_text(text[:start].rstrip().removesuffix("clusters:") + text[end:])
    moved = "\n".join(line.removeprefix("  ") if number else line for number, line in enumerate(cluster.splitlines()))
    with (shipped.directory / "clusters.yaml").open("a") as file:
        file.write("\n" + moved + "\n")
    [finding] = shipped.new_findings()
    assert (finding.check, Path(finding.file).name) == ("sidecar_cluster", "clusters.yaml")
    assert "not static" in finding.what


@pytest.mark.parametrize(
    ("settings", "check", "part"),
    [
        ("body: {bytes_max: 3_000_000}", "buffer_limit", "body.bytes_max (3000000)"),
        ("redis: {timeout_ms: 2_000}", "deadlines", "4000 ms"),
        ("listen: {max_open_exchanges: 200_000}", "sidecar_breakers", "listen.max_open_exchanges (200000)"),
        ("listen: {workers: 3}", "sidecar_workers", "2 endpoints for listen.workers: 3"),
    ],
)
def test_settings_that_do_not_fit_envoy(shipped, settings, check, part):
    with (shipped.directory / "extproc.yaml").open("a") as file:
        file.write(settings + "\n")
    findings = shipped.new_findings()
    assert {finding.check for finding in findings} == {check}
    assert all(part in finding.what for finding in findings)


@pytest.mark.parametrize(
    ("settings", "key", "severity"),
    [
        ("policy: {shadow: true}", "policy.shadow", Severity.ERROR),
        ("policy: {trust_factor: 100}", "policy.trust_factor", Severity.ERROR),
        ("policy: {stores_away: {credit: '5'}}", "policy.stores_away", Severity.ERROR),
        ("identity: {client_ip: xff:1}", "identity.client_ip", Severity.ERROR),
        ("identity: {key_header: x-key}", "identity.key_header", Severity.ERROR),
        ("access_log: {file: access.jsonl}", "access_log.file", Severity.WARNING),
    ],
)
def test_settings_without_effect_are_said_to_be(shipped, settings, key, severity):
    with (shipped.directory / "extproc.yaml").open("a") as file:
        file.write(settings + "\n")
    [finding] = shipped.new_findings()
    assert (finding.check, finding.what, finding.severity) == ("unheeded", f"{key} has no effect in this version", severity)
    assert (Path(finding.file).name, finding.line) == ("extproc.yaml", 2)


@pytest.mark.parametrize("row", UNHEEDED, ids=[f"{row.section}.{row.key}" for row in UNHEEDED])
def test_settings_without_effect_are_really_used_nowhere(row):
    """If this fails, the feature has come: take its row out of UNHEEDED."""
    not_users = {"settings.py", "policy.py", "modes.py"}
    users = [path for path in (ROOT / "extproc").rglob("*.py") if path.name not in not_users and row.used_as in path.read_text()]
    assert users == []


def test_a_route_on_an_alias_says_so(shipped):
    shipped.replace("routes", "{exact: qwen2.5-7b}", "{exact: gpt-3.5-turbo}")
    [finding] = [finding for finding in shipped.new_findings() if finding.check == "route_without_model"]
    assert finding.todo == "gpt-3.5-turbo is an alias: route on qwen2.5-7b"


@pytest.mark.parametrize(
    "match",
    ["safe_regex: {regex: 'qwen3-.*'}", "prefix: qwen3", "suffix: 3-72b", "safe_regex: {regex: '(?P<bad'}"],
)
def test_routes_may_match_models_in_other_ways(shipped, match):
    shipped.replace("routes", "{exact: qwen3-72b}", f"{{{match}}}")
    assert shipped.new_findings() == []


def test_files_that_do_not_load_are_findings_with_their_lines(shipped):
    shipped.replace("models", 'input: "4.00"', "input: 4.00")
    shipped.replace("clusters", "resources:", "resources:\nresources:")
    (shipped.directory / "routes.yaml").unlink()
    found = [(finding.check, Path(finding.file).name, finding.line > 0) for finding in shipped.found()]
    assert ("catalog", "models.yaml", True) in found
    assert ("envoy_files", "clusters.yaml", True) in found
    assert ("envoy_files", "routes.yaml", False) in found


@pytest.mark.parametrize(
    "text", ["", "[]", "a", "static_resources: 5", "static_resources: {listeners: {}}", "resources: [5, {'@type': 7}]"]
)
def test_any_yaml_is_survived(shipped, text):
    for name in ("envoy.yaml", "routes.yaml", "clusters.yaml"):
        (shipped.directory / name).write_text(text)
    shipped.found()


def test_every_check_has_a_test():
    tested = {row[0] for row in BREAKS} | {"sidecar_workers"}
    assert {check.__name__ for check in CHECKS} == tested
