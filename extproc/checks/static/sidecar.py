"""Faults of the ext_proc filter, of its cluster, and of the clusters behind the routes."""

from __future__ import annotations

from extproc.checks.static.world import Cluster, Findings, World, at, duration_ms, error, members, plain, warning, whole
from extproc.yamlfile import Node

MODES = {
    "request_header_mode": ("SEND", "DEFAULT", None),
    "response_header_mode": ("SEND", "DEFAULT", None),
    "request_body_mode": ("BUFFERED",),
    "response_body_mode": ("STREAMED",),
}
MESSAGE_TIMEOUT_MS_DEFAULT = 200
SAFE_MS = 2_000  # so long the end of an answer may wait for its charge to be safe; our own 503 comes sooner
STORE_CALLS_A_PHASE = 2  # the longest phase waits for the store twice: amend, then a lower amend of the clamp
REQUESTS_DEFAULT = 1_024  # of every breaker
HTTP2_OPTIONS = (
    "typed_extension_protocol_options",
    "envoy.extensions.upstreams.http.v3.HttpProtocolOptions",
    "explicit_http_config",
    "http2_protocol_options",
)
FRAMES_MIN = 100_000  # forty clients with 250 resets each stay far below it
RETRIES_DEFAULT = 3
HUNG_MS_MAX = 5_000  # then the supervisor kills it: a check that is slower finds nothing
UNSEEN_MS_DEFAULT = 60_000  # no_traffic_interval: how late Envoy looks again for a worker that was not there when it started


def processing_mode(world: World) -> Findings:
    """Without the whole request no price, without the chunks no count."""
    for config in world.ext_procs():
        for key, allowed in MODES.items():
            value = plain(config, "processing_mode", key)
            if value not in allowed:
                place = at(config, "processing_mode", key)
                yield error("processing_mode", place, f"{key} is {value or 'not set'}", f"{key}: {allowed[0]}")
        if plain(config, "allow_mode_override") is not True:
            place = at(config, "allow_mode_override")
            yield error(
                "processing_mode",
                place,
                "the sidecar may not override modes: GET waits for a body, JSON has no cost",
                "allow_mode_override: true",
            )


def fails_open(world: World) -> Findings:
    """Sidecar down = everything free."""
    for config in world.ext_procs():
        if plain(config, "failure_mode_allow", default=False) is not False:
            yield error(
                "fails_open",
                at(config, "failure_mode_allow"),
                "without the sidecar all traffic passes unbilled",
                "failure_mode_allow: false",
            )
        if plain(config, "status_on_error", "code") not in (503, "ServiceUnavailable"):
            place = at(config, "status_on_error", "code")
            yield warning(
                "fails_open", place, "without the sidecar clients get 500, which SDKs do not expect", "status_on_error: {code: 503}"
            )


def deadlines(world: World) -> Findings:
    """In order: a call of the store, our own patience, Envoy's 504."""
    store_ms = world.settings.redis.timeout_ms
    least = max(SAFE_MS, STORE_CALLS_A_PHASE * store_ms)
    for config in world.ext_procs():
        message_ms = duration_ms(config, "message_timeout")
        if (MESSAGE_TIMEOUT_MS_DEFAULT if message_ms is None else message_ms) <= least:
            what = f"message_timeout is not above {least} ms: an end may wait, or {STORE_CALLS_A_PHASE} × redis.timeout_ms ({store_ms} ms)"
            yield error("deadlines", at(config, "message_timeout"), what, "message_timeout: 3s, or a shorter redis.timeout_ms")


def sidecar_cluster(world: World) -> Findings:
    """Editing a CDS file that has it cuts every live stream."""
    clusters = {cluster.name: cluster for cluster in world.clusters()}
    for name, named in world.sidecar_names().items():
        cluster = clusters.get(name)
        if cluster is None:
            yield error("sidecar_cluster", named, f"there is no cluster {name}", "add it to static_resources")
        elif not cluster.static:
            yield error(
                "sidecar_cluster", cluster.node, f"cluster {name} of ext_proc is not static", "move it to static_resources of the bootstrap"
            )


def sidecar_breakers(world: World) -> Findings:
    """Each live request holds a stream of this cluster: the default of 1024 is the number of customers."""
    most = world.settings.listen.max_open_exchanges
    for cluster in _sidecars(world):
        for key in ("max_requests", "max_pending_requests"):
            value = _breaker(cluster, key)
            if value is None or value < most:
                place = at(cluster.node, "circuit_breakers", "thresholds")
                yield error(
                    "sidecar_breakers",
                    _threshold(cluster, key) or place,
                    f"{key} is below listen.max_open_exchanges ({most})",
                    f"{key}: {most}",
                )
        retries = _breaker(cluster, "max_retries")
        if retries is None or retries <= RETRIES_DEFAULT:
            place = _threshold(cluster, "max_retries") or at(cluster.node, "circuit_breakers", "thresholds")
            yield error("sidecar_breakers", place, "max_retries is so low that a worker's restart fails requests", "max_retries: 1024")


def sidecar_frames(world: World) -> Findings:
    """A client that gives up is a frame that waits for us; above its limit Envoy closes the connection, with everybody's streams."""
    for cluster in _sidecars(world):
        for key, least in (("max_outbound_control_frames", FRAMES_MIN), ("max_outbound_frames", FRAMES_MIN)):
            node = at(cluster.node, *HTTP2_OPTIONS, key)
            value = whole(node) if cluster.node.get(*HTTP2_OPTIONS, key) is not None else None
            if value is None or value < least:
                what = f"{key} is so low that clients who reset fast close the connection to a worker for everybody"
                yield error("sidecar_frames", node, what, f"{key}: {2 * least if key == 'max_outbound_frames' else least}")


def sidecar_health(world: World) -> Findings:
    """A hung worker otherwise gets its share of all requests, each a 504."""
    for cluster in _sidecars(world):
        checks = members(cluster.node, "health_checks")
        if not any(check.get("grpc_health_check") is not None for check in checks):
            place = at(cluster.node, "health_checks")
            yield warning("sidecar_health", place, "workers are not health checked", "health_checks with grpc_health_check, interval 0.3s")
        for check in checks:
            yield from _slow(check)
        if plain(cluster.node, "common_lb_config", "healthy_panic_threshold", "value") not in (0, 0.0):
            place = at(cluster.node, "common_lb_config", "healthy_panic_threshold")
            yield warning("sidecar_health", place, "in panic Envoy sends to hung workers too", "healthy_panic_threshold: {value: 0}")


def _slow(check: Node) -> Findings:
    once_ms = (duration_ms(check, "timeout") or 0) + (duration_ms(check, "interval") or 0)
    hung_ms = once_ms * (whole(check, "unhealthy_threshold") or 1)
    if hung_ms > HUNG_MS_MAX:
        what = f"a hung worker gets requests for up to {hung_ms} ms: unhealthy_threshold × (timeout + interval)"
        yield warning("sidecar_health", at(check, "interval"), what, "interval: 0.3s, timeout: 1s, unhealthy_threshold: 2")
    unseen_ms = duration_ms(check, "no_traffic_interval")
    if (UNSEEN_MS_DEFAULT if unseen_ms is None else unseen_ms) > HUNG_MS_MAX:
        what = "a worker that starts after Envoy gets nothing until no_traffic_interval (default: 60 s) is over"
        yield warning("sidecar_health", at(check, "no_traffic_interval"), what, "no_traffic_interval: 0.3s")


def sidecar_workers(world: World) -> Findings:
    """One endpoint per worker, else some of them have nothing to do."""
    workers = world.settings.listen.workers
    for cluster in _sidecars(world):
        count = len(cluster.endpoints())
        if workers and count != workers:
            place = at(cluster.node, "load_assignment", "endpoints")
            what = f"{count} endpoints for listen.workers: {workers}"
            yield error("sidecar_workers", place, what, "one endpoint for each worker's address")


def sidecar_tls(world: World) -> Findings:
    """Both speak it, or none; and Envoy offers no ALPN by itself where the protocol is explicit: every connection is refused (seen)."""
    wanted = world.settings.listen.tls is not None
    for cluster in _sidecars(world):
        context = cluster.node.get("transport_socket", "typed_config")
        if wanted and (context is None or "h2" not in _alpn(context)):
            what = "workers speak TLS (listen.tls) and insist on ALPN h2; this cluster does not offer it"
            todo = "UpstreamTlsContext with common_tls_context: {alpn_protocols: [h2], tls_certificates: […]}"
            yield error("sidecar_tls", at(cluster.node, "transport_socket", "typed_config", "common_tls_context"), what, todo)
        elif context is not None and not wanted:
            what = "Envoy speaks TLS to the workers, and they do not"
            yield error("sidecar_tls", at(cluster.node, "transport_socket"), what, "set listen.tls in extproc.yaml, or take it out here")


def backend_breakers(world: World) -> Findings:
    """1024 is Envoy's default, not a decision. Over HTTP/1.1, which vLLM speaks, each open stream is a connection too."""
    for cluster in world.backends():
        multiplexed = cluster.node.get(*HTTP2_OPTIONS) is not None
        keys = ("max_requests", "max_pending_requests", *(() if multiplexed else ("max_connections",)))
        for key in keys:
            value = _breaker(cluster, key)
            if value is None or value <= REQUESTS_DEFAULT:
                place = _threshold(cluster, key) or at(cluster.node, "circuit_breakers", "thresholds")
                what = f"cluster {cluster.name}: {key} is not above Envoy's default of {REQUESTS_DEFAULT}"
                yield warning("backend_breakers", place, what, "say how many requests its backends may hold; vLLM queues")


def lonely_outlier(world: World) -> Findings:
    """With one host, ejecting it takes the model away."""
    for cluster in world.backends():
        found = cluster.node.get("outlier_detection")
        if found is not None and len(cluster.endpoints()) == 1:
            what = f"cluster {cluster.name}: outlier detection over a single host"
            yield warning("lonely_outlier", found, what, "take it out, or add hosts")


def _sidecars(world: World) -> list[Cluster]:
    return [cluster for cluster in world.clusters() if cluster.name in world.sidecar_names()]


def _alpn(context: Node) -> list[object]:
    return [node.value for node in members(context, "common_tls_context", "alpn_protocols")]


def _threshold(cluster: Cluster, key: str) -> Node | None:
    """Where a breaker of default priority is set."""
    for threshold in members(cluster.node, "circuit_breakers", "thresholds"):
        if plain(threshold, "priority", default="DEFAULT") == "DEFAULT" and threshold.get(key) is not None:
            return threshold.get(key)
    return None


def _breaker(cluster: Cluster, key: str) -> int | None:
    node = _threshold(cluster, key)
    return whole(node) if node is not None else None
