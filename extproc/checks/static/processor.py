"""Faults of the ext_proc filter's own members: what it may do besides, and what it must tell us."""

from __future__ import annotations

from extproc.checks.static.world import Findings, World, at, error, members, plain, warning

# Those of the shipped file, and stat_prefix, which only names series. What is not here was seen to open a door (observability_mode and
# async_mode: answers are not waited for; mutation_rules, forward_rules, disable_immediate_response: headers or denials are dropped;
# disable_clear_route_cache, route_cache_action: our x-model chooses no route), or was never tried.
MEMBERS = frozenset({
    "@type", "grpc_service", "failure_mode_allow", "status_on_error", "message_timeout", "allow_mode_override", "processing_mode",
    "request_attributes", "response_attributes", "metadata_options", "stat_prefix",
})  # fmt: skip
ATTRIBUTES = {
    "request.id": "holds are deduplicated by it",
    "source.address": "networks of keys are held against it",
}
TRAILER_MODES = ("request_trailer_mode", "response_trailer_mode")


def ext_proc_members(world: World) -> Findings:
    """Members that the sidecar was never run with."""
    for config in world.ext_procs():
        for key, node in config.items():
            if key not in MEMBERS and node.value is not False:  # false is the default of each switch
                yield error("ext_proc_members", node, f"{key} of ext_proc changes what the sidecar can see or do", "take it out")


def attributes(world: World) -> Findings:
    """What the sidecar cannot know otherwise."""
    for config in world.ext_procs():
        given = {str(node.value) for node in members(config, "request_attributes")}
        for name, why in ATTRIBUTES.items():
            if name not in given:
                what = f"{name} is not among request_attributes: {why}"
                yield error("attributes", at(config, "request_attributes"), what, f"request_attributes: [{', '.join(sorted(ATTRIBUTES))}]")


def trailers(world: World) -> Findings:
    """One more message for each request, which the sidecar has no use for."""
    for config in world.ext_procs():
        for key in TRAILER_MODES:
            if plain(config, "processing_mode", key) == "SEND":
                yield warning("trailers", at(config, "processing_mode", key), f"{key} is SEND", f"{key}: SKIP")
