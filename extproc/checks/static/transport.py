"""Not a fault: what workers do with these settings, so that nobody has to guess."""

from __future__ import annotations

from collections.abc import Iterator

from extproc.checks.finding import Finding, Severity
from extproc.checks.static.modes import place_of
from extproc.settings import Settings


def transport(settings: Settings) -> Iterator[Finding]:
    """Which transport serves Envoy, and why."""
    name, why = settings.listen.chosen_transport
    place = place_of(settings, "listen", "transport")
    yield Finding(
        severity=Severity.INFO,
        check="transport",
        file=place.file,
        line=place.line,
        what=f"workers use the {name} transport: {why}",
        todo="nothing; listen.transport: lean or grpcio chooses one",
    )
