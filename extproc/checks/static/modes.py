"""Settings that are valid, and not what somebody who sells tokens wants."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

from extproc.checks.finding import Finding, Severity
from extproc.settings import Settings
from extproc.yamlfile import Node, read


class Unheeded(NamedTuple):
    """A key that the files may have and this version does not act upon; ``used_as`` is what code that does would say (a test looks)."""

    section: str
    key: str
    severity: Severity
    is_set: Callable[[Settings], bool]
    used_as: str


# Whoever builds one of these takes its row out: a test fails until then. Errors: an operator would believe that money behaves otherwise.
UNHEEDED = (
    Unheeded("policy", "shadow", Severity.ERROR, lambda given: given.policy.shadow, "policy.shadow"),
    Unheeded("policy", "trust_factor", Severity.ERROR, lambda given: given.policy.trust_factor is not None, ".trust_factor"),
    Unheeded("policy", "stores_away", Severity.ERROR, lambda given: bool(given.policy.stores_away_credit_nanos), "stores_away_credit"),
    Unheeded("identity", "client_ip", Severity.ERROR, lambda given: given.identity.client_ip != "source", "identity.client_ip"),
    Unheeded("identity", "key_header", Severity.ERROR, lambda given: given.identity.key_header != "authorization", ".key_header"),
    Unheeded("access_log", "file", Severity.WARNING, lambda given: given.access_log.file is not None, "access_log.file"),
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


def place_of(settings: Settings, section: str, key: str) -> Node:
    """Where the key stands; the file as a whole if it came from the environment."""
    nothing = Node(value=None, file=str(settings.file) if settings.file else f"{section}.{key}", line=0)
    found = read(settings.file).get(section, key) if settings.file else None
    return found or nothing
