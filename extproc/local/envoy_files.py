"""The shipped files of ``envoy/``, made fit for one machine by a fixed list of replaced nodes. Everything else stays, comments included.

Text, not YAML in and out: what runs here is, letter by letter, what an operator reads. A pattern that does not stand in its file exactly
as often as it should is an error, so that the list cannot rot. The list:

* envoy.yaml: admin and listener address, the paths of the other files and of the access log, the endpoints of the cluster ``extproc``
* routes.yaml, clusters.yaml: the set of models, the addresses of their backends, the interval of their health checks
* certificate.yaml: the paths of the PEM files
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from extproc.errors import UsageError

FILES: Final = ("envoy.yaml", "routes.yaml", "clusters.yaml", "certificate.yaml")

_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._/-]*")
_CLUSTER_START: Final = re.compile(r'^(?=  - "@type": )', re.MULTILINE)
_ROUTE_START: Final = re.compile(r"^(?=          - name: )", re.MULTILINE)
_ENDPOINTS: Final = re.compile(r"(?:^ +- endpoint: .*\n)+", re.MULTILINE)
_MODEL: Final = "qwen3-72b"
"""The first route and the first cluster of the shipped files: what a backend without a block of its own is made of."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Site:
    """What differs from machine to machine.

    ``gates``: sockets of the workers. ``backends``: cluster to ``host:port``s; the name is the model's, or that of a pool in the shipped
    files (``qwen2.5-14b-spot``). Paths are absolute.
    """

    gates: Sequence[str]
    backends: Mapping[str, Sequence[str]]
    cert_file: Path
    key_file: Path
    address: str = "127.0.0.1"
    port: int = 0
    admin_port: int = 0
    health_interval_s: float = 10.0


def shipped() -> Path:
    """The directory of the shipped files: inside of the package in a wheel, at the top of a checkout."""
    inside = Path(__file__).parent / "envoy"
    return inside if inside.is_dir() else Path(__file__).parents[2] / "envoy"


def render(site: Site, directory: Path) -> dict[str, str]:
    """File name to content. ``directory``: where they will be, absolute. Raises UsageError for names and addresses that cannot be."""
    texts = {name: (shipped() / name).read_text() for name in FILES}
    return {
        "envoy.yaml": _envoy(texts["envoy.yaml"], site, directory),
        "routes.yaml": routes(texts["routes.yaml"], tuple(site.backends)),
        "clusters.yaml": clusters(texts["clusters.yaml"], site.backends, health_interval_s=site.health_interval_s),
        "certificate.yaml": _certificate(texts["certificate.yaml"], site),
    }


def _envoy(text: str, site: Site, directory: Path) -> str:
    address = "{{address: {}, port_value: {}}}".format
    text = _swap(text, address("127.0.0.1", 9901), address("127.0.0.1", site.admin_port))
    text = _swap(text, address("0.0.0.0", 8443), address(json.dumps(site.address), site.port))  # noqa: S104 - what is replaced
    for name in FILES[1:]:
        text = _swap(text, f"path: envoy/{name}", f"path: {_quoted(directory / name)}")
    text = _swap(text, "path: data/access.jsonl", f"path: {_quoted(directory / 'access.jsonl')}")
    lines = [f"- endpoint: {{address: {{pipe: {{path: {json.dumps(gate)}}}}}}}" for gate in site.gates]
    return _endpoints(text, lines)


def _certificate(text: str, site: Site) -> str:
    text = _swap(text, "filename: data/tls/server.pem", f"filename: {_quoted(site.cert_file)}")
    text = _swap(text, "filename: data/tls/server.key", f"filename: {_quoted(site.key_file)}")
    return _swap(text, "path: data/tls}", f"path: {_quoted(site.cert_file.parent)}}}")


def clusters(text: str, backends: Mapping[str, Sequence[str]], *, health_interval_s: float) -> str:
    """One block for each backend: its own, if the shipped file has one, else the first one under its name."""
    head, *blocks = _CLUSTER_START.split(text)
    own = {_only(r"^    name: (\S+)$", block): block for block in blocks}
    interval = f"interval: {health_interval_s:g}s, no_traffic_interval: {health_interval_s:g}s"
    parts = [head]
    for name, addresses in backends.items():
        block = _swap(own.get(name, own[_MODEL]), "interval: 10s, no_traffic_interval: 10s", interval)
        block = _endpoints(block, [_endpoint(address) for address in addresses])
        block = block if name in own else _renamed(block, name, times=2)
        parts.append(block.rstrip("\n") + "\n")
    return "\n".join(parts)


def routes(text: str, names: Sequence[str]) -> str:
    """The routes to these clusters, each as shipped or made of the first one, and the last route, which forwards nothing."""
    head, *blocks = _ROUTE_START.split(text)
    *forwarding, last = blocks
    own = {_only(r"cluster: ([^,}]+)[,}]", block): block for block in forwarding}
    kept = [block for name, block in own.items() if name in names]
    made = [_renamed(own[_MODEL], name, times=3) for name in names if name not in own]
    return "".join((head, *kept, *made, last))


def _renamed(block: str, name: str, *, times: int) -> str:
    if not _NAME.fullmatch(name):
        raise UsageError(f"{name!r} cannot name a model: letters, digits and . _ / - are possible")
    return _swap(block, _MODEL, json.dumps(name), times=times)


def _endpoints(text: str, lines: Sequence[str]) -> str:
    if not lines:
        raise UsageError("a cluster without an address: name at least one")
    found = _ENDPOINTS.findall(text)
    assert len(found) == 1, found
    indent = " " * (len(found[0]) - len(found[0].lstrip()))
    return text.replace(found[0], "".join(f"{indent}{line}\n" for line in lines))


def _endpoint(address: str) -> str:
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit():
        raise UsageError(f"{address!r} is no backend: expected host:port")
    host = json.dumps(host.strip("[]"))
    return f"- endpoint: {{address: {{socket_address: {{address: {host}, port_value: {port}}}}}}}"


def _only(pattern: str, text: str) -> str:
    found: list[str] = re.findall(pattern, text, re.MULTILINE)
    assert len(found) == 1, (pattern, found)
    return found[0]


def _swap(text: str, old: str, new: str, *, times: int = 1) -> str:
    assert text.count(old) == times, f"{old!r} stands {text.count(old)} times in a shipped file of envoy/, not {times}"
    return text.replace(old, new)


def _quoted(path: Path) -> str:
    assert path.is_absolute(), path
    return json.dumps(str(path))
