"""Not a fault: what workers do with these settings, so that nobody has to guess."""

from __future__ import annotations

from collections.abc import Iterator

from extproc.checks.finding import Finding, Severity
from extproc.checks.static.modes import place_of
from extproc.settings import Settings

ADVICE = {
    "lean": "nothing; it takes over the supervisor's sockets, so that workers are replaced (SIGUSR2) without a failed request",
    "grpcio": "nothing; but each worker binds by itself: only with lean are workers replaced (SIGUSR2) without a failed request",
}


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
        todo=ADVICE[name],
    )
