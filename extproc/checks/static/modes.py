"""Settings that are valid, and not what somebody who sells tokens wants."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

from extproc.catalog.model import Catalog
from extproc.checks.finding import Finding, Severity
from extproc.money.amount import format_amount
from extproc.settings import SECTIONS, Settings
from extproc.yamlfile import Node, read

TRUST_FACTOR_MIN = 100  # what Envoy may hold open of one account in the millisecond until its hold is answered


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


def generous(settings: Settings) -> Iterator[Finding]:
    """Policies that give something away. Each may be meant, and nobody should have to find it out from the bills."""
    policy, workers = settings.policy, settings.listen.worker_count
    given: list[tuple[str, str, str]] = []
    if policy.shadow:
        given.append(("shadow", "nothing is refused and nothing is charged", "shadow: false, once you have seen what it would refuse"))
    if policy.stores_away_credit_nanos is not None:
        credit = format_amount(policy.stores_away_credit_nanos)
        what = f"while Redis is away each account that had money may use {credit} that it may not have; {workers} workers lend a share each"
        given.append(("stores_away", what, "stores_away: closed, unless outages are worth that much for each account"))
    if policy.trust_factor is not None and policy.trust_factor < TRUST_FACTOR_MIN:
        what = f"{policy.trust_factor} requests at once can spend all that an account has before the first of them is held"
        given.append(("trust_factor", what, f"trust_factor: {TRUST_FACTOR_MIN} or more, or null"))
    for key, what, todo in given:
        place = place_of(settings, "policy", key)
        yield Finding(severity=Severity.WARNING, check="generous", file=place.file, line=place.line, what=what, todo=todo)


def shared_caches(settings: Settings) -> Iterator[Finding]:
    """Nothing is lost with it but privacy: which prompts others have sent shows in how fast they are answered."""
    if settings.identity.cache_salt_key is None:
        place = place_of(settings, "identity", "cache_salt_key_file")
        yield Finding(
            severity=Severity.WARNING,
            check="shared_caches",
            file=place.file,
            line=place.line,
            what="payers share the prefix caches of the backends: who guesses another's prompt sees it answered faster",
            todo="identity.cache_salt_key_file: a file with a random secret, the same on every host",
        )


def unknown_backends(settings: Settings, catalog: Catalog | None) -> Iterator[Finding]:
    """Backends are watched or asked for a model that is none: nobody compares their tokens with anything, nobody asks."""
    for section, key, named in (
        ("settler", "backend_metrics", settings.settler.backend_metrics),
        ("body", "tokenize_urls", settings.body.tokenize_urls),
    ):
        for name in (name for name, _ in named if catalog and name not in {model.name for model in catalog.models.values()}):
            place = place_of(settings, section, key)
            yield Finding(
                severity=Severity.ERROR,
                check="unknown_backends",
                file=place.file,
                line=place.line,
                what=f"{section}.{key} names {name!r}, and the catalog has no such model",
                todo="name a model of the catalog, not its alias nor what the backend calls it",
            )


def place_of(settings: Settings, section: str, key: str) -> Node:
    """Where the key stands; the file as a whole if it came from the environment."""
    nothing = Node(value=None, file=str(settings.file) if settings.file else f"{section}.{key}", line=0)
    found = read(settings.file).get(section, key) if settings.file else None
    return found or nothing
