"""Every check against the shipped files: broken in that one way, exactly that is found, on its line."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest

from extproc.checks.finding import Finding, Severity, worst
from extproc.checks.render import render_text
from extproc.checks.static import CHECKS, run_static
from extproc.checks.static.modes import UNHEEDED
from extproc.checks.static.targets import TO_BACKENDS_NEVER
from extproc.settings import load_settings

ROOT = Path(__file__).resolve().parents[3]
FILES = {
    "envoy": ROOT / "envoy/envoy.yaml", "routes": ROOT / "envoy/routes.yaml", "clusters": ROOT / "envoy/clusters.yaml",
    "models": ROOT / "examples/models.yaml",
}  # fmt: skip

SALTED = {"EXTPROC_IDENTITY__CACHE_SALT_KEY": "x" * 32}


class Shipped:
    """A copy of the shipped files, to be broken."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        for source in FILES.values():
            shutil.copy(source, directory)
        (directory / "extproc.yaml").write_text("catalog: {envoy_files: [envoy.yaml, routes.yaml, clusters.yaml]}\n")
        self.before: set[Finding] = set()

    def found(self) -> list[Finding]:
        return run_static(load_settings(self.directory / "extproc.yaml", SALTED))

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
    assert {finding.check for finding in shipped.before} == {"transport"}, render_text(sorted(shipped.before, key=str))


def test_the_example_finds_its_files():
    findings = run_static(load_settings(ROOT / "examples/extproc.yaml", SALTED))
    assert [finding.check for finding in findings] == ["transport"], render_text(findings)


def test_shared_caches_are_told():
    findings = [finding for finding in run_static(load_settings(ROOT / "examples/extproc.yaml", {})) if finding.check == "shared_caches"]
    assert [(finding.severity, Path(finding.file).name) for finding in findings] == [(Severity.WARNING, "extproc.yaml")]


@pytest.mark.parametrize(
    ("settings", "what", "line"),
    [
        ("", "workers use the lean transport: workers listen on this machine only", 0),
        ("listen:\n  transport: grpcio\n", "workers use the grpcio transport: listen.transport says so", 3),
    ],
)
def test_which_transport_is_said_and_is_no_fault(shipped, settings, what, line):
    with (shipped.directory / "extproc.yaml").open("a") as file:
        file.write(settings)
    [finding] = shipped.found()
    assert (finding.severity, finding.what, Path(finding.file).name, finding.line) == (Severity.INFO, what, "extproc.yaml", line)
    assert render_text([finding]).endswith("\nno faults")
    assert worst([finding]) is not Severity.ERROR


def test_the_transport_stands_behind_every_fault(shipped):
    shipped.replace("models", "  qwen3-72b:", "  qwen3-73b:")
    assert [finding.check for finding in shipped.found()] == ["model_without_route", "route_without_model", "transport"]


SPOT = "headers: [{name: x-model, string_match: {exact: qwen3-72b}}]"
ROUTE = "route: {cluster: qwen3-72b, timeout: 0s, idle_timeout: 600s}"
FILTER = "- name: envoy.filters.http.ext_proc"
FILE_LOG = "- name: envoy.access_loggers.file"
MANAGER = "http_connection_manager.v3.HttpConnectionManager"
FAILS = "failure_mode_allow: false"
HOST = 'domains: ["*"]'
TCP = (
    "filters: [{name: raw, typed_config: {'@type': type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy, "
    "stat_prefix: raw, cluster: qwen3-72b}}]"
)
LUA = "- {name: lua, typed_config: {'@type': type.googleapis.com/envoy.extensions.filters.http.lua.v3.Lua}}\n                  "
ROUTER = "- name: envoy.filters.http.router"
REMOVED = "request_headers_to_remove: ["
TLS = (
    "transport_socket: {{name: envoy.transport_sockets.tls, typed_config: {{"
    "'@type': type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext, common_tls_context: {{{}}}}}}}"
)
# check, file, what is replaced, by what, and a text on the line that must be named
BREAKS = [
    ("model_without_route", "routes", SPOT, SPOT.replace("exact: qwen3-72b", "exact: qwen3"), ("models", "  qwen3-72b:")),
    ("path_without_route", "routes", "prefix: /, headers: [{name: x-model, string_match: {exact: bge-reranker", "prefix: /v1, headers: [{name: x-model, string_match: {exact: bge-reranker", "prefix: /v1,"),
    ("path_without_route", "routes", "prefix: /, headers: [{name: x-model, string_match: {exact: whisper", "path: /v1/audio/transcriptions, headers: [{name: x-model, string_match: {exact: whisper", "path: /v1/a"),
    ("path_without_route", "routes", "prefix: /, headers: [{name: x-model, string_match: {exact: bge-m3", "safe_regex: {regex: /v1/chat/.*}, headers: [{name: x-model, string_match: {exact: bge-m3", "safe_regex: {"),
    ("path_without_route", "routes", "prefix: /, headers: [{name: x-model, string_match: {exact: bge-m3", "path_separated_prefix: /v1/embed, headers: [{name: x-model, string_match: {exact: bge-m3", "path_separated"),
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
    ("sidecar_tls", "envoy", "lb_policy: LEAST_REQUEST\n      load", f"lb_policy: LEAST_REQUEST\n      {TLS.format('')}\n      load", "transport_socket: {"),
    ("sidecar_frames", "envoy", "max_outbound_control_frames: 100000", "max_outbound_control_frames: 1000", "max_outbound_control_frames: 1000"),
    ("sidecar_breakers", "envoy", "max_requests: 100000", "max_requests: 1024", "max_requests: 1024"),
    ("sidecar_breakers", "envoy", "max_retries: 10000", "max_retries: 3", "max_retries: 3"),
    ("sidecar_breakers", "envoy", "max_pending_requests: 100000, ", "", "        thresholds:"),
    ("sidecar_health", "envoy", "grpc_health_check: {}", "tcp_health_check: {}", "health_checks:"),
    ("sidecar_health", "envoy", "healthy_panic_threshold: {value: 0}", "healthy_panic_threshold: {value: 50}", "{value: 50}"),
    ("backend_breakers", "clusters", "max_requests: 100000", "max_requests: 1024", "max_requests: 1024"),
    ("backend_breakers", "clusters", "max_connections: 100000", "max_connections: 1000", "max_connections: 1000"),
    ("backend_breakers", "clusters", "max_pending_requests: 100000, ", "", "circuit_breakers: {thresholds"),
    ("lonely_outlier", "clusters", "    lb_policy: LEAST_REQUEST", "    outlier_detection: {}\n    lb_policy: LEAST_REQUEST", "outlier_detection: {}"),
    ("network_filters", "envoy", "\n  clusters:\n", f"\n    - name: raw\n      filter_chains: [{{{TCP}}}]\n  clusters:\n", "tcp_proxy"),
    ("network_filters", "envoy", "      filter_chains:\n", f"      default_filter_chain: {{{TCP}}}\n      filter_chains:\n", "tcp_proxy"),
    ("network_filters", "envoy", "          filters:\n", "          filters:\n            - {name: elsewhere, config_discovery: {}}\n", "name: elsewhere"),
    ("listeners_elsewhere", "envoy", "dynamic_resources:\n", "dynamic_resources:\n  lds_config: {path_config_source: {path: envoy/listeners.yaml}}\n", "lds_config"),
    ("listeners_elsewhere", "envoy", "dynamic_resources:\n", "dynamic_resources:\n  lds_config: {ads: {}}\n", "lds_config"),
    ("routes_elsewhere", "envoy", "path: envoy/routes.yaml", "path: envoy/others.yaml", "config_source: {path_config_source: {path: envoy/others"),
    ("routes_elsewhere", "envoy", "config_source: {path_config_source: {path: envoy/routes.yaml}, resource_api_version: V3}", "config_source: {ads: {}}", "config_source: {ads"),
    ("routes_elsewhere", "routes", HOST, HOST + "\n        matcher: {matcher_list: {}}", "matcher: {matcher_list"),
    ("routes_elsewhere", "routes", "    virtual_hosts:", "    vhds: {config_source: {ads: {}}}\n    virtual_hosts:", "vhds:"),
    *(("admin_address", "envoy", "address: 127.0.0.1, port_value: 9901", f"address: {other}, port_value: 9901", "port_value: 9901") for other in ("0.0.0.0", "10.0.0.1", "'::'")),
    ("other_spelling", "routes", HOST, HOST + "\n        typedPerFilterConfig: {envoy.filters.http.ext_proc: {disabled: true}}", "typedPerFilterConfig"),
    ("internal_addresses", "envoy", "[{address_prefix: 192.0.2.0, prefix_len: 32}]", "[]", "cidr_ranges: []"),
    ("internal_addresses", "envoy", "cidr_ranges: [{address_prefix: 192.0.2.0, prefix_len: 32}]", "", "internal_address_config:"),
    ("request_id", "envoy", "generate_request_id: true", "generate_request_id: false", "generate_request_id: false"),
    ("early_headers", "envoy", "- remove: x-request-id", "- remove: x-nothing", "early_header_mutation_extensions:"),
    ("early_headers", "envoy", "- remove: x-hold-id", "- remove: x-hold-id\n                        - append: {header: {key: x-model, value: a}}", "append:"),
    ("trusted_hops", "envoy", "xff_num_trusted_hops: 0", "xff_num_trusted_hops: 3", "xff_num_trusted_hops: 3"),
    ("unknown_filters", "envoy", FILTER, LUA + FILTER, "name: lua"),
    ("unknown_filters", "envoy", ROUTER, LUA + ROUTER, "name: lua"),
    ("stream_duration", "envoy", "max_headers_count: 100", "max_stream_duration: 5s", "max_stream_duration: 5s"),
    ("stream_duration", "routes", ROUTE, ROUTE.replace("timeout: 0s", "max_stream_duration: {max_stream_duration: 5s}, timeout: 0s"), "max_stream_duration"),
    *(
        ("ext_proc_members", "envoy", FAILS, f"{FAILS}\n                      {member}", member)
        for member in (
            "observability_mode: true", "disable_clear_route_cache: true", "route_cache_action: RETAIN", "disable_immediate_response: true",
            "mutation_rules: {disallow_all: true}", "forward_rules: {allowed_headers: {patterns: [{exact: x}]}}", "async_mode: true",
            "send_body_without_waiting_for_header_response: true", "http_service: {}", "filter_metadata: {}",
            "allowed_override_modes: [{}]", "never_heard_of: true",
        )
    ),
    ("attributes", "envoy", "request_attributes: [source.address, request.id]", "request_attributes: [source.address]", "request_attributes: [source"),
    ("attributes", "envoy", "request_attributes: [source.address, request.id]", "request_attributes: [request.id]", "request_attributes: [request"),
    ("trailers", "envoy", "response_trailer_mode: SKIP", "response_trailer_mode: SEND", "response_trailer_mode: SEND"),
    *(
        ("model_matcher", "routes", "{name: x-model, string_match: {exact: qwen3-72b}}", f"{{name: x-model, {matcher}}}", matcher)
        for matcher in (
            "present_match: true", "string_match: {exact: qwen3-72b}, invert_match: true", "string_match: {prefix: qwen3}",
            "string_match: {suffix: 3-72b}", "string_match: {safe_regex: {regex: 'qwen3-.*'}}", "string_match: {safe_regex: {regex: '(?P<bad'}}",
            "string_match: {exact: qwen3-72b}, treat_missing_header_as_empty: true", "exact_match: qwen3-72b",
            "string_match: {exact: qwen3-72b, ignore_case: true}",
        )
    ),
    ("other_target", "routes", "{cluster: qwen3-72b,", "{weighted_clusters: {clusters: [{name: qwen3-72b, weight: 1}, {name: qwen2.5-7b, weight: 99}]},", "weighted"),
    ("other_target", "routes", "{cluster: qwen3-72b,", "{cluster_header: x-pool,", "cluster_header"),
    ("other_target", "routes", "{cluster: qwen3-72b,", "{inline_cluster_specifier_plugin: {},", "cluster_specifier_plugin"),
    ("other_model", "routes", "{cluster: qwen2.5-7b,", "{cluster: qwen3-72b,", ("routes", "exact: qwen2.5-7b", 1)),
    ("other_model", "routes", "{cluster: qwen3-72b,", "{cluster: qwen2.5-14b-spot,", "cluster: qwen2.5-14b-spot"),
    ("client_chosen_backend", "clusters", "type: STRICT_DNS", "type: ORIGINAL_DST", "type: ORIGINAL_DST"),
    *(
        ("credentials", "routes", REMOVED + "authorization, x-api-key, api-key, cookie, proxy-authorization, accept-encoding]", f"{REMOVED}{', '.join(left)}]", REMOVED)
        for left in (TO_BACKENDS_NEVER[:number] + TO_BACKENDS_NEVER[number + 1:] for number in range(len(TO_BACKENDS_NEVER)))
    ),
    ("credentials", "routes", "request_headers_to_remove:", "response_headers_to_remove:", "- name: models"),
    *(
        ("path_rewrite", "routes", ROUTE, ROUTE.replace("timeout: 0s", f"{rewrite}, timeout: 0s"), rewrite)
        for rewrite in ("prefix_rewrite: /metrics/", "regex_rewrite: {pattern: {regex: ^/v1}, substitution: /v2}")
    ),
    ("cheap_priority", "routes", "{name: x-priority, string_match: {exact: spot}}", "{name: x-priority, string_match: {exact: gold}}", ("models", 'spot: "0.5"')),
    ("cheap_priority", "models", "    output_tokens_max: 16_384\n", '    output_tokens_max: 16_384\n    priority_factor: {standard: "1", spot: "0.5"}\n', 'spot: "0.5"'),
]  # fmt: skip
WARNINGS = frozenset({
    "route_to_nowhere", "sidecar_health", "backend_breakers", "lonely_outlier", "trusted_hops", "unknown_filters", "stream_duration",
    "trailers", "path_rewrite", "cheap_priority",
})  # fmt: skip


# These two say more than one thing by their nature: a renamed model has neither a route nor does its route have a model
COMPANIONS = {
    ("model_without_route", "routes"): {"route_without_model"},
    ("route_without_model", "models"): {"model_without_route"},
    ("last_route_not_404", "routes"): {"route_without_match_on_model"},
    ("route_without_match_on_model", "routes"): {"model_without_route"},
    ("sidecar_cluster", "envoy"): {"backend_breakers"},
    ("ext_proc_missing", "envoy"): {"unknown_filters"},  # another one stands in its place
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
    assert finding.severity is (Severity.WARNING if check in WARNINGS or marker == "InternalServerError" else Severity.ERROR)


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
    ("check", "old", "new", "marker"),
    [
        ("witness_log", "path: data/access.jsonl", "path: data/other.jsonl", "access_log:"),
        ("witness_log", "path: data/access.jsonl", "path: /elsewhere/access.jsonl", "access_log:"),
        ("witness_log", "access_loggers.file.v3.FileAccessLog", "access_loggers.stream.v3.StdoutAccessLog", "access_log:"),
        ("witness_log", 'details: "%RESPONSE_CODE_DETAILS%"', 'details: "%RESPONSE_CODE%"', "details:"),
        ("witness_log", 'billing: "%DYNAMIC_METADATA(extproc.billing)%"', "", "json_format:"),
        ("witness_log", FILE_LOG, f"{FILE_LOG}\n                    filter: {{runtime_filter: {{runtime_key: x}}}}", "runtime_filter"),
        ("witness_metadata", "[extproc.billing]", "[other]", "metadata_options:"),
        ("witness_metadata", "metadata_options: {receiving_namespaces: {untyped: [extproc.billing]}}", "", "typed_config:"),
    ],
)
def test_an_access_log_that_no_witness_can_read(shipped, check, old, new, marker):
    with (shipped.directory / "extproc.yaml").open("a") as file:
        file.write("access_log: {file: ../data/access.jsonl}\n")
    assert shipped.new_findings() == []
    shipped.replace("envoy", old, new)
    [finding] = shipped.new_findings()
    assert (finding.check, finding.severity) == (check, Severity.ERROR)
    assert Path(finding.file).name == "envoy.yaml"
    text = (shipped.directory / "envoy.yaml").read_text().splitlines()
    assert any(marker in line for line in text[finding.line - 2 : finding.line])


LISTEN_TLS = "listen: {tls: {cert_file: a.pem, key_file: a.key, client_ca_file: ca.pem}}"


@pytest.mark.parametrize(
    ("settings", "check", "part"),
    [
        ("body: {bytes_max: 3_000_000}", "buffer_limit", "body.bytes_max (3000000)"),
        ("redis: {timeout_ms: 2_000}", "deadlines", "4000 ms"),
        ("listen: {max_open_exchanges: 200_000}", "sidecar_breakers", "listen.max_open_exchanges (200000)"),
        (LISTEN_TLS, "sidecar_tls", "insist on ALPN h2"),
        ("listen: {workers: 3}", "sidecar_workers", "2 endpoints for listen.workers: 3"),
    ],
)
def test_settings_that_do_not_fit_envoy(shipped, settings, check, part):
    with (shipped.directory / "extproc.yaml").open("a") as file:
        file.write(settings + "\n")
    findings = [finding for finding in shipped.new_findings() if finding.severity is not Severity.INFO]
    assert {finding.check for finding in findings} == {check}
    assert all(part in finding.what for finding in findings)


@pytest.mark.parametrize(
    ("offered", "found"), [("alpn_protocols: [h2]", set()), ("alpn_protocols: [http/1.1]", {"sidecar_tls"}), ("", {"sidecar_tls"})]
)
def test_tls_to_the_workers(shipped, offered, found):
    with (shipped.directory / "extproc.yaml").open("a") as file:
        file.write(LISTEN_TLS + "\n")
    shipped.replace("envoy", "lb_policy: LEAST_REQUEST\n      load", f"lb_policy: LEAST_REQUEST\n      {TLS.format(offered)}\n      load")
    findings = shipped.new_findings()
    assert {finding.check for finding in findings} == {"transport"} | found
    assert "lean transport: it asks for a client certificate" in next(one.what for one in findings if one.check == "transport")
    assert {finding.line for finding in findings if finding.check == "sidecar_tls"} <= {shipped.line("envoy", "transport_socket: {")}


@pytest.mark.parametrize(
    ("settings", "key", "severity"),
    [
        ("identity: {client_ip: xff:1}", "identity.client_ip", Severity.ERROR),
        ("identity: {key_header: x-key}", "identity.key_header", Severity.ERROR),
    ],
)
def test_settings_without_effect_are_said_to_be(shipped, settings, key, severity):
    with (shipped.directory / "extproc.yaml").open("a") as file:
        file.write(settings + "\n")
    [finding] = shipped.new_findings()
    assert (finding.check, finding.what, finding.severity) == ("unheeded", f"{key} has no effect in this version", severity)
    assert (Path(finding.file).name, finding.line) == ("extproc.yaml", 2)


@pytest.mark.parametrize(
    ("policy", "said"),
    [
        ("shadow: true", ["nothing is refused and nothing is charged"]),
        ("stores_away: {credit: '5'}", ["may use 5.00 that it may not have"]),
        ("trust_factor: 99", ["99 requests at once"]),
        ("trust_factor: 100", []),
    ],
)
def test_policies_that_give_something_away_are_named(shipped, policy, said):
    with (shipped.directory / "extproc.yaml").open("a") as file:
        file.write(f"policy: {{{policy}}}\n")
    findings = shipped.new_findings()
    assert [(finding.check, finding.severity, finding.line) for finding in findings] == [("generous", Severity.WARNING, 2)] * len(said)
    assert all(words in finding.what for finding, words in zip(findings, said, strict=True))


@pytest.mark.parametrize("key", ["settler: {backend_metrics", "body: {tokenize_urls"])
def test_backends_of_a_model_that_is_none(shipped, key):
    with (shipped.directory / "extproc.yaml").open("a") as file:
        file.write(f"{key}: {{no-such-model: ['http://127.0.0.1:8000/']}}}}\n")
    [finding] = shipped.new_findings()
    assert (finding.check, finding.severity, finding.line) == ("unknown_backends", Severity.ERROR, 2)
    assert "no-such-model" in finding.what


@pytest.mark.parametrize(
    ("price", "said"),
    [
        ('method: per_call\n    price: {call: "0.01"}', ["up to 32768 tokens", "1024 of 8192 tokens"]),
        ('method: per_word\n    price: {input: "1", output: "2"}', ["a prompt costs", "answers cost"]),
        ('method: hybrid\n    price: {per_call: {call: "1"}, per_token: {input: "1", output: "0"}}', ["answers cost"]),
        ('method: per_character\n    price: {input: "1", output: "2"}', []),
        ("free: true", []),
    ],
)
def test_prices_that_do_not_grow_with_the_work_are_named(shipped, price, said):
    shipped.replace("models", 'price: {input: "0.50", cached_input: "0.125", output: "1.00"}', price)
    findings = [finding for finding in shipped.new_findings() if finding.check == "flat_prices"]
    place = (Severity.WARNING, "models.yaml", shipped.line("models", price.partition("\n")[2].strip() or price))
    assert [(finding.severity, Path(finding.file).name, finding.line) for finding in findings] == [place] * len(said)
    assert all(words in finding.what for finding, words in zip(findings, said, strict=True))


@pytest.mark.parametrize("row", UNHEEDED, ids=[f"{row.section}.{row.key}" for row in UNHEEDED])
def test_settings_without_effect_are_really_used_nowhere(row):
    """If this fails, the feature has come: take its row out of UNHEEDED."""
    not_users = {"settings.py", "policy.py", "modes.py"}
    users = [path for path in (ROOT / "extproc").rglob("*.py") if path.name not in not_users and row.used_as in path.read_text()]
    assert users == []


def test_settings_without_effect_are_said_to_be_in_the_reference():
    page = (ROOT / "docs/reference/configuration.md").read_text()
    said = re.findall(r"^\| `(\w+\.\w+)` .*\*no effect in this version\*", page, re.MULTILINE)
    assert set(said) == {f"{row.section}.{row.key}" for row in UNHEEDED}


def test_a_route_on_an_alias_says_so(shipped):
    shipped.replace("routes", "{exact: qwen2.5-7b}", "{exact: gpt-3.5-turbo}")
    [finding] = [finding for finding in shipped.new_findings() if finding.check == "route_without_model"]
    assert finding.todo == "gpt-3.5-turbo is an alias: route on qwen2.5-7b"


# What is no fault, though it is written in another way than in the shipped files
OTHERWISE = [
    ("envoy", "address: 127.0.0.1, port_value: 9901", "address: '::1', port_value: 9901"),
    ("envoy", "{socket_address: {address: 127.0.0.1, port_value: 9901}}", "{pipe: {path: run/admin.sock}}"),
    ("envoy", "xff_num_trusted_hops: 0", "xff_num_trusted_hops: 2"),
    ("envoy", "dynamic_resources:\n", "dynamic_resources:\n  lds_config: {path_config_source: {path: /etc/envoy/envoy.yaml}}\n"),
    ("envoy", FAILS, FAILS + "\n                      observability_mode: false"),
    ("envoy", FILTER, LUA.replace("lua.v3.Lua", "cors.v3.Cors") + FILTER),
    ("envoy", 'request_id: "%REQ(X-REQUEST-ID)%"', 'requestId: "%REQ(X-REQUEST-ID)%"'),
    ("routes", REMOVED, "request_headers_to_remove: [X-Api-Key, "),
    ("routes", "{cluster: qwen3-72b,", "{cluster_header: x-model,"),
    ("models", '  priority_factor: {standard: "1"}', '  priority_factor: {standard: "1", spot: "1"}'),
]  # fmt: skip


@pytest.mark.parametrize(("file", "old", "new"), OTHERWISE)
def test_what_is_only_written_otherwise_is_no_fault(shipped, file, old, new):
    shipped.replace(file, old, new)
    assert shipped.new_findings() == []


def test_a_cheap_priority_that_is_a_default_is_named_at_each_model(shipped):
    shipped.replace("models", '  priority_factor: {standard: "1"}', '  priority_factor: {standard: "2", spot: "1"}')
    findings = shipped.new_findings()
    assert {finding.check for finding in findings} == {"cheap_priority"}
    names = (
        "qwen3-72b",
        "qwen2.5-7b",
        "qwen-coder-7b",
        "deepseek-coder-lite",
        "qwen2-vl-7b",
        "bge-m3",
        "bge-reranker-v2-m3",
        "whisper-large-v3",
    )  # qwen2.5-14b has its own, and a route
    assert [finding.line for finding in findings] == [shipped.line("models", f"  {name}:") for name in names]


def test_a_cheap_priority_behind_the_standard_one_has_no_route(shipped):
    text = (shipped.directory / "routes.yaml").read_text()
    spot, standard, behind = (text.index(f"          - name: {name}\n") for name in ("qwen2.5-14b-spot", "qwen2.5-14b", "qwen2.5-7b"))
    (shipped.directory / "routes.yaml").write_text(text[:spot] + text[standard:behind] + text[spot:standard] + text[behind:])
    [finding] = shipped.new_findings()
    assert (finding.check, finding.line) == ("cheap_priority", shipped.line("models", 'spot: "0.5"'))


def test_headers_may_be_removed_by_the_route_table(shipped):
    shipped.replace("routes", "        request_headers_to_remove:", "        response_headers_to_remove:")
    shipped.replace("routes", "    virtual_hosts:", f"    {REMOVED}{', '.join(TO_BACKENDS_NEVER)}]\n    virtual_hosts:")
    assert shipped.new_findings() == []


def test_a_pool_of_several_models_has_a_name_of_its_own(shipped):
    for name in ("qwen2.5-7b", "qwen-coder-7b"):
        shipped.replace("routes", f"{{cluster: {name},", "{cluster: small,")
    shipped.replace("clusters", "    name: qwen2.5-7b\n", "    name: small\n")
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
    tested = {row[0] for row in BREAKS} | {"sidecar_workers", "witness_log", "witness_metadata"}
    assert {check.__name__ for check in CHECKS} == tested
