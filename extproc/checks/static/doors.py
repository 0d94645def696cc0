"""Faults of listeners and of what opens them: ways to a backend, or into Envoy, that no HTTP filter stands in."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterator
from pathlib import Path

from extproc.checks.static.world import Findings, World, at, error, members, plain, type_name
from extproc.yamlfile import Node

HTTP_MANAGER = "HttpConnectionManager"
CAMEL = re.compile(r"[a-z][a-z0-9]*(?:[A-Z][a-z0-9]*)+")
FREE_NAMES = frozenset({"json_format", "typed_json_format", "metadata", "filter_metadata", "static_layer"})  # keys below are anybody's


def network_filters(world: World) -> Findings:
    """A tcp_proxy carries requests to a backend and no filter of ours sees them."""
    for listener in world.listeners():
        for item in (item for chain in _chains(listener) for item in members(chain, "filters")):
            kind = type_name(item.get("typed_config"))
            if kind != HTTP_MANAGER:
                what = f"network filter {kind or plain(item, 'name')}: what passes it is not billed"
                yield error("network_filters", item, what, "leave nothing but the HTTP connection manager in the filter chains")


def listeners_elsewhere(world: World) -> Findings:
    """A listener that stands in no file that we read may lead anywhere."""
    for root in world.envoy:
        found = root.get("dynamic_resources", "lds_config")
        if found is not None and not _is_read(world, found):
            todo = "put listeners into static_resources, or into a file listed in catalog.envoy_files"
            yield error("listeners_elsewhere", found, "listeners come from elsewhere, where nothing looks at them", todo)


def routes_elsewhere(world: World) -> Findings:
    """Routes that stand in no file that we read: every rule about routes goes unasked."""
    for manager in world.managers():
        found = manager.get("scoped_routes") or manager.get("rds", "config_source")
        if found is not None and not _is_read(world, found):
            todo = "rds with the path_config_source of a file listed in catalog.envoy_files"
            yield error("routes_elsewhere", found, "routes come from elsewhere, where nothing looks at them", todo)
    for key, node in (("vhds", table) for table in world.tables()):
        if node.get(key) is not None:
            yield error("routes_elsewhere", at(node, key), "virtual hosts come from elsewhere", "list them in virtual_hosts")
    for _, host in world.hosts():
        if host.get("matcher") is not None:
            yield error("routes_elsewhere", at(host, "matcher"), "a tree of matchers chooses the route, unseen by us", "use `routes`")


def admin_address(world: World) -> Findings:
    """Whoever reaches the admin port ends Envoy, and reads its configuration."""
    for root in world.envoy:
        address = plain(root, "admin", "address", "socket_address", "address")
        if address is not None and not _is_loopback(str(address)):
            place = at(root, "admin", "address", "socket_address", "address")
            yield error("admin_address", place, f"the admin port is reachable at {address}", "address: 127.0.0.1")


def other_spelling(world: World) -> Findings:
    """Envoy reads typedPerFilterConfig as it reads typed_per_filter_config; every check here looks for the latter."""
    for node in (node for root in world.envoy for node in _camels(root)):
        yield error("other_spelling", node, "a key in camelCase: Envoy heeds it, and no check here sees it", "spell it with underscores")


def _camels(node: Node) -> Iterator[Node]:
    for key, child in node.items():
        if CAMEL.fullmatch(key):
            yield child
        if key not in FREE_NAMES:
            yield from _camels(child)
    for child in node.elements():
        yield from _camels(child)


def _chains(listener: Node) -> Iterator[Node]:
    yield from members(listener, "filter_chains")
    default = listener.get("default_filter_chain")
    if default is not None:
        yield default


def _is_read(world: World, source: Node) -> bool:
    """Whether it is one of the files before us. By its name: Envoy's paths are relative to Envoy's own directory."""
    path = plain(source, "path_config_source", "path", default=plain(source, "path"))
    return isinstance(path, str) and Path(path).name in {Path(root.file).name for root in world.envoy}


def _is_loopback(address: str) -> bool:
    try:
        return ipaddress.ip_address(address).is_loopback
    except ValueError:
        return False
