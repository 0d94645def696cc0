"""What the checks look at: settings, catalog, and Envoy's files taken apart into listeners, filters, routes and clusters.

Plain YAML with line numbers, found by ``@type`` wherever it stands: the files belong to the SRE, and may be cut as they like.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from decimal import Decimal

from extproc.catalog.model import Catalog
from extproc.checks.finding import Finding, Severity
from extproc.settings import Settings
from extproc.yamlfile import Node

MODEL_HEADER = "x-model"


@dataclass(frozen=True, slots=True, kw_only=True)
class Filter:
    """One entry of ``http_filters``; ``config`` is its ``typed_config``."""

    entry: Node
    config: Node


@dataclass(frozen=True, slots=True, kw_only=True)
class Route:
    """One route with what it inherits from. ``action`` is its ``route`` member: it proxies."""

    node: Node
    host: Node
    table: Node
    action: Node | None

    @property
    def models(self) -> tuple[Node, ...]:
        """The matchers of ``x-model``."""
        headers = self.node.get("match", "headers")
        found = headers.elements() if headers is not None else []
        return tuple(header for header in found if plain(header, "name") == MODEL_HEADER)


@dataclass(frozen=True, slots=True, kw_only=True)
class Cluster:
    """``static``: it stands in the bootstrap, so that no reload touches it."""

    node: Node
    name: str
    static: bool

    def endpoints(self) -> list[Node]:
        groups = self.node.get("load_assignment", "endpoints")
        return [endpoint for group in (groups.elements() if groups else []) for endpoint in _members(group, "lb_endpoints")]


@dataclass(frozen=True, slots=True, kw_only=True)
class World:
    """Everything at once. ``catalog`` is ``None`` if it does not load (that is a finding of its own)."""

    settings: Settings
    catalog: Catalog | None
    catalog_file: Node | None
    envoy: tuple[Node, ...]
    _by_type: dict[str, list[Node]] = field(init=False, repr=False, compare=False, default_factory=dict)

    def __post_init__(self) -> None:
        for node in (node for root in self.envoy for node in root.walk()):
            self._by_type.setdefault(type_name(node), []).append(node)

    def typed(self, name: str) -> list[Node]:
        """Every message of a type, by the last part of its ``@type``."""
        return self._by_type.get(name, [])

    def listeners(self) -> list[Node]:
        static = [node for root in self.envoy for node in _members(root, "static_resources", "listeners")]
        return static + self.typed("Listener")

    def managers(self) -> list[Node]:
        return self.typed("HttpConnectionManager")

    def filters(self, manager: Node, name: str) -> list[Filter]:
        """Filters of a manager by type."""
        found = [Filter(entry=entry, config=entry.get("typed_config") or entry) for entry in _members(manager, "http_filters")]
        return [item for item in found if str(plain(item.config, "@type", default="")).endswith(f".{name}")]

    def ext_procs(self) -> list[Node]:
        return [item.config for manager in self.managers() for item in self.filters(manager, "ExternalProcessor")]

    def tables(self) -> list[Node]:
        """Route configurations: inline ones and those of RDS files."""
        inline = [manager.get("route_config") for manager in self.managers()]
        return [node for node in inline if node is not None] + self.typed("RouteConfiguration")

    def hosts(self) -> list[tuple[Node, Node]]:
        """(table, virtual host)."""
        return [(table, host) for table in self.tables() for host in _members(table, "virtual_hosts")]

    def routes(self) -> list[Route]:
        return [
            Route(node=node, host=host, table=table, action=node.get("route"))
            for table, host in self.hosts()
            for node in _members(host, "routes")
        ]

    def proxying(self) -> list[Route]:
        return [route for route in self.routes() if route.action is not None]

    def clusters(self) -> list[Cluster]:
        static = [node for root in self.envoy for node in _members(root, "static_resources", "clusters")]
        found = [(node, True) for node in static] + [(node, False) for node in self.typed("Cluster")]
        return [Cluster(node=node, name=str(plain(node, "name", default="")), static=is_static) for node, is_static in found]

    def sidecar_names(self) -> dict[str, Node]:
        """Clusters that ext_proc filters call, and where they are named."""
        named = [config.get("grpc_service", "envoy_grpc", "cluster_name") for config in self.ext_procs()]
        return {str(node.value): node for node in named if node is not None}

    def backends(self) -> list[Cluster]:
        """Clusters that are not the sidecar."""
        return [cluster for cluster in self.clusters() if cluster.name not in self.sidecar_names()]


def _members(node: Node, *path: str) -> list[Node]:
    found = node.get(*path)
    return found.elements() if found is not None else []


def members(node: Node, *path: str) -> list[Node]:
    """Elements of the list at ``path``; none if there is none."""
    return _members(node, *path)


def plain(node: Node, *path: str, default: object = None) -> object:
    """The plain value at ``path``, or ``default``."""
    found = node.get(*path)
    return default if found is None else found.plain()


def type_name(config: Node | None) -> str:
    """The last part of ``@type``; empty if there is none."""
    return str(plain(config, "@type", default="")).rpartition(".")[2] if config is not None else ""


def whole(node: Node, *path: str) -> int | None:
    """The whole number at ``path``; ``None`` if there is none."""
    value = plain(node, *path)
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def duration_ms(node: Node, *path: str) -> int | None:
    """A duration such as ``3s`` or ``0.25s`` in ms; ``None`` if there is none."""
    value = plain(node, *path)
    if not isinstance(value, str) or not re.fullmatch(r"[0-9]{1,9}(\.[0-9]{1,9})?s", value):
        return None
    return int(Decimal(value[:-1]) * 1_000)


def at(node: Node, *path: str) -> Node:
    """The deepest node of ``path`` that exists: where a missing key ought to stand."""
    for end in range(len(path), 0, -1):
        found = node.get(*path[:end])
        if found is not None:
            return found
    return node


def error(check: str, node: Node, what: str, todo: str) -> Finding:
    """Money or answers are lost with this."""
    return Finding(severity=Severity.ERROR, check=check, file=node.file, line=node.line, what=what, todo=todo)


def warning(check: str, node: Node, what: str, todo: str) -> Finding:
    """It works, but not as it should."""
    return Finding(severity=Severity.WARNING, check=check, file=node.file, line=node.line, what=what, todo=todo)


Findings = Iterator[Finding]
