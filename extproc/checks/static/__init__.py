"""Faults that files alone show: ``extproc.yaml``, ``models.yaml`` and Envoy's files, read together."""

from __future__ import annotations

from collections.abc import Callable, Collection
from pathlib import Path

from extproc.catalog.load import load_catalog
from extproc.catalog.model import Catalog
from extproc.checks.finding import Finding, Severity, findings_of
from extproc.checks.static import doors, managers, processor, routes, sidecar, targets, witness
from extproc.checks.static.modes import generous, shared_caches, unheeded, unknown_backends
from extproc.checks.static.prices import flat_prices
from extproc.checks.static.transport import transport
from extproc.checks.static.world import Findings, World
from extproc.errors import ConfigError
from extproc.settings import Settings
from extproc.yamlfile import Node, read

CHECKS: tuple[Callable[[World], Findings], ...] = (
    doors.network_filters,
    doors.listeners_elsewhere,
    doors.routes_elsewhere,
    doors.admin_address,
    doors.other_spelling,
    managers.ext_proc_missing,
    managers.path_flags,
    managers.client_address,
    managers.request_id,
    managers.internal_addresses,
    managers.trusted_hops,
    managers.early_headers,
    managers.upload_timeout,
    managers.buffer_limit,
    managers.local_replies,
    managers.decompressor,
    managers.unknown_filters,
    managers.stream_duration,
    managers.key_in_log,
    witness.witness_log,
    witness.witness_metadata,
    processor.ext_proc_members,
    processor.attributes,
    processor.trailers,
    sidecar.processing_mode,
    sidecar.fails_open,
    sidecar.deadlines,
    sidecar.sidecar_cluster,
    sidecar.sidecar_breakers,
    sidecar.sidecar_frames,
    sidecar.sidecar_health,
    sidecar.sidecar_workers,
    sidecar.sidecar_tls,
    sidecar.backend_breakers,
    sidecar.lonely_outlier,
    routes.model_without_route,
    routes.path_without_route,
    routes.route_without_model,
    routes.route_without_ext_proc,
    routes.route_without_match_on_model,
    routes.last_route_not_404,
    routes.unsafe_retry,
    routes.mirror_or_hedge,
    routes.upgrade_or_redirect,
    routes.route_timeout,
    routes.idle_timeout,
    routes.route_to_nowhere,
    targets.model_matcher,
    targets.other_target,
    targets.other_model,
    targets.client_chosen_backend,
    targets.credentials,
    targets.path_rewrite,
    targets.cheap_priority,
)


def run_static(settings: Settings, *, vocabularies: Collection[str] | None = None) -> list[Finding]:
    """Every finding, in the order of files and lines; what is no fault comes last.

    ``vocabularies`` as in :func:`~extproc.catalog.load.load_catalog`.
    """
    findings: list[Finding] = []
    catalog, catalog_file = _catalog(settings.catalog.file, vocabularies, findings)
    envoy = tuple(node for path in settings.catalog.envoy_files for node in _envoy_file(path, findings))
    world = World(settings=settings, catalog=catalog, catalog_file=catalog_file, envoy=envoy)
    findings += [*unheeded(settings), *generous(settings), *shared_caches(settings), *transport(settings)]
    findings += [*unknown_backends(settings, catalog), *flat_prices(catalog, catalog_file)]
    if envoy:
        findings += [finding for check in CHECKS for finding in check(world)]
    return sorted(findings, key=lambda finding: (finding.severity is Severity.INFO, finding.file, finding.line))


def _catalog(path: Path, vocabularies: Collection[str] | None, findings: list[Finding]) -> tuple[Catalog | None, Node | None]:
    try:
        return load_catalog(path, vocabularies=vocabularies), read(path)
    except ConfigError as error:
        findings += findings_of(error, check="catalog")
        return None, None


def _envoy_file(path: Path, findings: list[Finding]) -> list[Node]:
    try:
        return [read(path)]
    except ConfigError as error:
        findings += findings_of(error, check="envoy_files")
        return []
