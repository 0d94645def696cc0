"""Faults of routes and virtual hosts: who is reached without being metered, or twice."""

from __future__ import annotations

import re

from extproc.checks.static.world import MODEL_HEADER, Findings, Route, World, at, duration_ms, error, members, plain, warning
from extproc.exchange.endpoints import ENDPOINTS
from extproc.yamlfile import Node

EXT_PROC = "ext_proc"
# Anything else may repeat a request that a GPU has begun to work on, and the operator pays twice
SAFE_RETRIES = frozenset({"connect-failure", "refused-stream", "reset-before-request"})
IDLE_MS_MIN = 600_000  # a long JSON answer is silent for minutes; Envoy's default of 300 s kills it
CATCH_ALL = {"prefix": "/"}


def model_without_route(world: World) -> Findings:
    """A model with a price that Envoy sends nowhere: each request is held, then 404."""
    if world.catalog is None or not world.routes():
        return
    lines = _model_lines(world)
    for name in sorted({model.name for model in world.catalog.models.values()}):
        if not any(_reaches(route, name, world) for route in world.proxying()):
            node = lines.get(name)
            place = node or Node(value=None, file=str(world.settings.catalog.file), line=0)
            yield error(
                "model_without_route",
                place,
                f"model {name} has a price and no route",
                f"add a route on {MODEL_HEADER}: {name}, or take it out",
            )


def path_without_route(world: World) -> Findings:
    """A model that is sold on a path which its routes do not take: each such request is held, then 404."""
    if world.catalog is None:
        return
    for model in {model.name: model for model in world.catalog.models.values()}.values():
        routes = [route for route in world.proxying() if _reaches(route, model.name, world)]
        paths = [path for endpoint in ENDPOINTS if endpoint.name in model.endpoints for path in endpoint.paths]
        missing = [path for path in paths if not any(_takes(route, path) for route in routes)]
        if routes and missing:
            place = at(routes[0].node, "match")
            yield error("path_without_route", place, f"model {model.name} has no route for {', '.join(missing)}", "match: {prefix: /, …}")


def route_without_model(world: World) -> Findings:
    """A route for a model that nobody can buy."""
    if world.catalog is None:
        return
    names = {model.name for model in world.catalog.models.values()}
    for route in world.proxying():
        for matcher in route.models:
            exact = matcher.get("string_match", "exact")
            if exact is None or exact.value in names:
                continue
            other = world.catalog.models.get(str(exact.value))
            hint = f"{exact.value} is an alias: route on {other.name}" if other else "add it to the catalog, or take the route out"
            yield error("route_without_model", exact, f"there is a route for model {exact.value}, and no price", hint)


def route_without_ext_proc(world: World) -> Findings:
    """ext_proc switched off or overridden where requests are proxied: unbilled traffic."""
    hosts = {id(host.value): host for _, host in world.hosts()}
    tables = {id(table.value): table for table in world.tables()}
    actions = [weighted for route in world.proxying() for weighted in members(route.node, "route", "weighted_clusters", "clusters")]
    ours = {plain(item.entry, "name") for manager in world.managers() for item in world.filters(manager, "ExternalProcessor")}
    for node in (*tables.values(), *hosts.values(), *(route.node for route in world.proxying()), *actions):
        overrides = node.get("typed_per_filter_config")
        for name, config in overrides.items() if overrides else []:
            if name in ours or EXT_PROC in name or EXT_PROC in str(plain(config, "@type", default="")):
                yield error(
                    "route_without_ext_proc", config, f"{name} is overridden here", "take the override out: what passes here is not billed"
                )


def route_without_match_on_model(world: World) -> Findings:
    """A proxying route that any request takes: whatever the sidecar decided does not count."""
    for route in world.proxying():
        if not route.models:
            what = f"proxies without a match on {MODEL_HEADER}"
            yield error(
                "route_without_match_on_model",
                at(route.node, "match"),
                what,
                f"match on header {MODEL_HEADER}, or answer with a direct_response",
            )


def last_route_not_404(world: World) -> Findings:
    """Whatever no route wants must end in a plain 404 of ours."""
    for _, host in world.hosts():
        routes = members(host, "routes")
        last = routes[-1] if routes else host
        match = plain(last, "match")
        if last.get("direct_response") is None and last.get("route") is not None and match == CATCH_ALL:
            yield error("last_route_not_404", last, "the last route proxies everything", "make it a direct_response 404")
        elif last.get("direct_response") is None or match != CATCH_ALL:
            yield error(
                "last_route_not_404",
                last,
                "the last route is no catch-all 404",
                "add {match: {prefix: /}, direct_response: {status: 404}} at the end",
            )


def unsafe_retry(world: World) -> Findings:
    """A retry after the backend has begun pays for the GPU twice."""
    policies = [node.get("retry_policy") for table, host in world.hosts() for node in (table, host)]
    policies += [route.node.get("route", "retry_policy") for route in world.proxying()]
    for policy in {id(node.value): node for node in policies if node is not None}.values():
        wanted = {word.strip() for word in str(plain(policy, "retry_on", default="")).split(",")} - {""}
        unsafe = sorted(wanted - SAFE_RETRIES)
        if unsafe:
            allowed = ",".join(sorted(SAFE_RETRIES))
            yield error("unsafe_retry", at(policy, "retry_on"), f"retries on {', '.join(unsafe)}", f"retry_on: {allowed} and nothing else")


def mirror_or_hedge(world: World) -> Findings:
    """A second copy of a request reaches a GPU that nobody is charged for."""
    actions = [route.action for route in world.proxying() if route.action is not None]
    places = [*actions, *(node for pair in world.hosts() for node in pair)]
    for key in ("request_mirror_policies", "hedge_policy"):
        for found in {id(node.value): node.get(key) for node in places}.values():
            if found is not None:
                yield error("mirror_or_hedge", found, f"{key} on a metered route", "take it out")


def upgrade_or_redirect(world: World) -> Findings:
    """An upgraded connection or an internal redirect leaves the metered way."""
    for route in world.proxying():
        for key in ("upgrade_configs", "internal_redirect_policy", "internal_redirect_action"):
            found = route.node.get("route", key)
            if found is not None:
                yield error("upgrade_or_redirect", found, f"{key} on a metered route", "take it out")
    for manager in world.managers():
        found = manager.get("upgrade_configs")
        if found is not None:
            yield error("upgrade_or_redirect", found, "upgrade_configs on the listener of metered routes", "take it out")


def route_timeout(world: World) -> Findings:
    """Envoy's default of 15 s cuts nearly every stream."""
    for route in world.proxying():
        if duration_ms(route.node, "route", "timeout") != 0:
            yield error("route_timeout", at(route.node, "route", "timeout"), "the route has a timeout", "timeout: 0s")


def idle_timeout(world: World) -> Findings:
    """Silence is normal: a JSON answer comes at its end."""
    defaults = [duration_ms(manager, "stream_idle_timeout") for manager in world.managers()]
    for manager, set_ms in zip(world.managers(), defaults, strict=True):
        if set_ms is None or 0 < set_ms < IDLE_MS_MIN:
            place = at(manager, "stream_idle_timeout")
            yield error("idle_timeout", place, "stream_idle_timeout is below 600 s (default: 300 s)", "stream_idle_timeout: 600s")
    for route in world.proxying():
        own = duration_ms(route.node, "route", "idle_timeout")
        if own is not None and 0 < own < IDLE_MS_MIN:
            yield error(
                "idle_timeout", at(route.node, "route", "idle_timeout"), "the route's idle_timeout is below 600 s", "idle_timeout: 600s"
            )


def route_to_nowhere(world: World) -> Findings:
    """A cluster that no file has: 503 for everybody who paid a hold."""
    known = {cluster.name for cluster in world.clusters()}
    for route in world.proxying():
        for node in (
            route.node.get("route", "cluster"),
            *(one.get("name") for one in members(route.node, "route", "weighted_clusters", "clusters")),
        ):
            if node is not None and node.value not in known:
                yield warning(
                    "route_to_nowhere",
                    node,
                    f"there is no cluster {node.value} in the files",
                    "add it, or list its file in catalog.envoy_files",
                )


def _model_lines(world: World) -> dict[str, Node]:
    models = world.catalog_file.get("models") if world.catalog_file is not None else None
    return dict(models.items()) if models is not None else {}


def _reaches(route: Route, name: str, world: World) -> bool:
    """Would a request for this model take this route? Other conditions of the match are the SRE's affair."""
    if plain(route.node, "route", "cluster_header") == MODEL_HEADER and not any(cluster.name == name for cluster in world.clusters()):
        return False
    return any(_matches(matcher, name) for matcher in route.models)


def _takes(route: Route, path: str) -> bool:
    """Would a request with this path take this route?"""
    match = route.node.get("match")
    if match is None:
        return False
    prefix, separated = plain(match, "prefix"), plain(match, "path_separated_prefix")
    regex, exact = plain(match, "safe_regex", "regex"), plain(match, "path")
    if prefix is not None:
        return path.startswith(str(prefix))
    if separated is not None:
        return f"{path}/".startswith(f"{separated}/")
    return _full_match(str(regex), path) if regex is not None else exact == path


def _matches(matcher: Node, name: str) -> bool:
    wanted = matcher.get("string_match")
    if wanted is None:
        return plain(matcher, "present_match") is True or plain(matcher, "exact_match") == name
    regex = plain(wanted, "safe_regex", "regex")
    if regex is not None:
        return _full_match(str(regex), name)
    exact = plain(wanted, "exact")
    if exact is not None:
        return exact == name
    return name.startswith(str(plain(wanted, "prefix", default=""))) and name.endswith(str(plain(wanted, "suffix", default="")))


def _full_match(regex: str, name: str) -> bool:
    """Envoy's RE2 and Python agree on what people write for model names; what Python cannot read is taken to match."""
    try:
        return re.fullmatch(regex, name) is not None
    except re.error:
        return True
