"""Settings that are valid, and not what somebody who sells tokens wants."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

from extproc.catalog.model import Catalog
from extproc.checks.finding import Finding, Severity
from extproc.settings import SECTIONS, Settings
from extproc.yamlfile import Node, read


class Unheeded(NamedTuple):
    """A key that the files may have and this version does not act upon; ``used_as`` is what code that does would say (a test looks)."""

    section: str
    key: str
    severity: Severity
    is_set: Callable[[Settings], bool]
    used_as: str


def _changed(section: str, key: str) -> Callable[[Settings], bool]:
    """Not at its default."""
    default = getattr(SECTIONS[section](), key)
    return lambda given: bool(getattr(getattr(given, section), key) != default)


# Whoever builds one of these takes its row out, and its words out of the reference: a test fails until then. Errors: an operator would
# believe that money behaves otherwise.
UNHEEDED = (
    Unheeded("policy", "shadow", Severity.ERROR, _changed("policy", "shadow"), "policy.shadow"),
    Unheeded("policy", "trust_factor", Severity.ERROR, _changed("policy", "trust_factor"), ".trust_factor"),
    Unheeded("policy", "stores_away", Severity.ERROR, lambda given: bool(given.policy.stores_away_credit_nanos), "stores_away_credit"),
    Unheeded("identity", "client_ip", Severity.ERROR, _changed("identity", "client_ip"), "identity.client_ip"),
    Unheeded("identity", "key_header", Severity.ERROR, _changed("identity", "key_header"), ".key_header"),
)  # fmt: skip


def unheeded(settings: Settings) -> Iterator[Finding]:
    """Keys that are set and have no effect in this version."""
    for row in UNHEEDED:
        if row.is_set(settings):
            place = place_of(settings, row.section, row.key)
            yield Finding(
                severity=row.severity,
                check="unheeded",
                file=place.file,
                line=place.line,
                what=f"{row.section}.{row.key} has no effect in this version",
                todo="leave it at its default",
            )


def unknown_backends(settings: Settings, catalog: Catalog | None) -> Iterator[Finding]:
    """Backends are watched for a model that is none: nobody compares their tokens with anything."""
    known = catalog.models if catalog else dict(settings.settler.backend_metrics)
    for name in (name for name, _ in settings.settler.backend_metrics if name not in known):
        place = place_of(settings, "settler", "backend_metrics")
        yield Finding(
            severity=Severity.ERROR,
            check="unknown_backends",
            file=place.file,
            line=place.line,
            what=f"settler.backend_metrics names {name!r}, and the catalog has no such model",
            todo="name a model of the catalog, not what the backend calls it",
        )


def place_of(settings: Settings, section: str, key: str) -> Node:
    """Where the key stands; the file as a whole if it came from the environment."""
    nothing = Node(value=None, file=str(settings.file) if settings.file else f"{section}.{key}", line=0)
    found = read(settings.file).get(section, key) if settings.file else None
    return found or nothing
