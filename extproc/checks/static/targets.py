"""Faults of where a route leads: to another model, by another way, with more than the backend may see."""

from __future__ import annotations

from collections.abc import Iterator

from extproc.catalog.model import Catalog, Model
from extproc.checks.static.world import MODEL_HEADER, Findings, Route, World, at, error, members, plain, warning
from extproc.money.price import FACTOR_ONE
from extproc.yamlfile import Node

PRIORITY_HEADER = "x-priority"
STANDARD = "standard"
# Credentials belong to us; a compressed answer cannot be counted
TO_BACKENDS_NEVER = ("authorization", "x-api-key", "api-key", "cookie", "proxy-authorization", "accept-encoding")
# Ways of naming clusters that nothing here can follow
OTHER_TARGETS = ("weighted_clusters", "cluster_specifier_plugin", "inline_cluster_specifier_plugin")
REWRITES = ("prefix_rewrite", "regex_rewrite", "path_rewrite_policy", "path_rewrite")
NAME_JOINTS = "-_"  # qwen2.5-14b-spot is a pool of qwen2.5-14b; qwen2.5-14bit is none, nor is qwen2.5 one of qwen2


def model_matcher(world: World) -> Findings:
    """What is not an exact match takes requests for other models, or ones that the sidecar has not spoken about yet."""
    for matcher in (matcher for route in world.proxying() for matcher in route.models):
        exact = plain(matcher, "string_match", "exact")
        allowed = {"name": MODEL_HEADER, "string_match": {"exact": exact}}
        if matcher.plain() != allowed or not isinstance(exact, str) or not exact:
            what = f"{MODEL_HEADER} is not matched exactly: others pass than the model that was paid for"
            yield error("model_matcher", matcher, what, f"{{name: {MODEL_HEADER}, string_match: {{exact: MODEL}}}} and nothing else")


def other_target(world: World) -> Findings:
    """The cluster of a route is one, and named."""
    for route in world.proxying():
        for key in OTHER_TARGETS:
            found = route.node.get("route", key)
            if found is not None:
                yield error("other_target", found, f"{key}: what was paid for one model may be served by another", "route: {cluster: NAME}")
        header = route.node.get("route", "cluster_header")
        if header is not None and header.value != MODEL_HEADER:
            yield error("other_target", header, f"the header {header.value} chooses the cluster", "route: {cluster: NAME}")


def other_model(world: World) -> Findings:
    """Paid for the small model, served by the large one."""
    if world.catalog is None:
        return
    for route in world.proxying():
        cluster = route.node.get("route", "cluster")
        owner = _owner(world.catalog, str(cluster.value)) if cluster is not None else None
        sold = {str(plain(matcher, "string_match", "exact")) for matcher in route.models} & world.catalog.models.keys()
        for name in sorted(sold) if owner is not None else ():
            if cluster is not None and owner is not world.catalog.models[name]:
                todo = f"cluster: {name}; a cluster that serves several models has a name of its own, which is none of theirs"
                yield error("other_model", cluster, f"model {name} is sent to cluster {cluster.value}, which is another model's", todo)


def client_chosen_backend(world: World) -> Findings:
    """A cluster that takes its address from the request: a client may name any, of another model too."""
    for cluster in world.backends():
        if plain(cluster.node, "type") == "ORIGINAL_DST":
            what = f"cluster {cluster.name} is where the request says that it is"
            yield error("client_chosen_backend", at(cluster.node, "type"), what, "endpoints with addresses of their own")


def credentials(world: World) -> Findings:
    """A key that reaches a backend stands in its logs; an encoded answer has no tokens that we can count."""
    leading = {id(route.host.value) for route in world.proxying()}
    for table, host in ((table, host) for table, host in world.hosts() if id(host.value) in leading):
        removed = {str(node.value).lower() for place in (table, host) for node in members(place, "request_headers_to_remove")}
        missing = [name for name in TO_BACKENDS_NEVER if name not in removed]
        if missing:
            place = at(host, "request_headers_to_remove")
            todo = f"request_headers_to_remove: [{', '.join(TO_BACKENDS_NEVER)}]"
            yield error("credentials", place, f"{', '.join(missing)} of a client goes to the backend", todo)


def path_rewrite(world: World) -> Findings:
    """The path that the sidecar priced is not the one that the backend gets."""
    for route in world.proxying():
        for key in REWRITES:
            found = route.node.get("route", key)
            if found is not None:
                yield warning("path_rewrite", found, f"{key}: the backend gets another path than the one that was priced", "take it out")


def cheap_priority(world: World) -> Findings:
    """Two prices, one service: everybody takes the lower one."""
    if world.catalog is None or not world.proxying():
        return
    for model, priority in _cheaper(world.catalog):
        if not any(_is_of(route, model.name, priority) and not _is_behind(world, route, model.name) for route in world.proxying()):
            what = f"model {model.name} is cheaper in priority {priority}, which has no route of its own: the same service for less"
            pair = f"{MODEL_HEADER}: {model.name} and {PRIORITY_HEADER}: {priority}"
            todo = f"a route on {pair} to a pool of its own, before the model's others, or the standard factor"
            yield warning("cheap_priority", _sold_at(world, model.name, priority), what, todo)


def _owner(catalog: Catalog, cluster: str) -> Model | None:
    """Whose cluster it is, by its name: the model's, or a pool's named after it. The longest name counts."""
    names = [name for name in catalog.models if cluster == name or (cluster.startswith(name) and cluster[len(name)] in NAME_JOINTS)]
    return catalog.models[max(names, key=len)] if names else None


def _cheaper(catalog: Catalog) -> Iterator[tuple[Model, str]]:
    for name, model in catalog.models.items():
        standard = model.priority_factors.get(STANDARD, FACTOR_ONE)
        if name == model.name and not model.free:
            yield from ((model, priority) for priority, factor in sorted(model.priority_factors.items()) if factor < standard)


def _is_of(route: Route, model: str, priority: str) -> bool:
    matched = {(plain(item, "name"), plain(item, "string_match", "exact")) for item in members(route.node, "match", "headers")}
    return {(MODEL_HEADER, model), (PRIORITY_HEADER, priority)} <= matched


def _is_behind(world: World, route: Route, model: str) -> bool:
    """Of routes the first counts that takes a request: whether another one takes all that this one could."""
    own = _but_headers(route)
    for other in world.proxying():
        if other.node.value is route.node.value:
            return False
        if other.host.value is not route.host.value or _but_headers(other) not in (own, {"prefix": "/"}):
            continue
        if [(plain(item, "name"), plain(item, "string_match", "exact")) for item in members(other.node, "match", "headers")] == [
            (MODEL_HEADER, model)
        ]:
            return True
    return False


def _but_headers(route: Route) -> dict[str, object]:
    match = plain(route.node, "match")
    return {key: value for key, value in match.items() if key != "headers"} if isinstance(match, dict) else {}


def _sold_at(world: World, model: str, priority: str) -> Node:
    """Where the factor stands, else the model: it may be a default."""
    nothing = Node(value=None, file=str(world.settings.catalog.file), line=0)
    found = world.catalog_file.get("models", model) if world.catalog_file is not None else None
    return at(found, "priority_factor", priority) if found is not None else nothing
