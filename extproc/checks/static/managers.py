"""Faults of listeners and of the HTTP connection manager: the doors at the front that must be shut."""

from __future__ import annotations

import re

from extproc.checks.static.world import Findings, World, at, duration_ms, error, members, plain, type_name, warning, whole

# x-priority is not among them: it is how a client asks for one. It chooses no route, since every proxying route also wants x-model
# (`route_without_match_on_model`), and the sidecar sets it anew together with that.
FROM_CLIENTS_NEVER = ("x-model", "x-sticky", "x-account", "x-account-id", "x-hold-id", "x-request-id")
# Key of the manager → what it must be. Each was seen open with the default: another path reaches vLLM than the one that we looked at.
PATH_FLAGS = {
    ("normalize_path",): True,
    ("merge_slashes",): True,
    ("path_with_escaped_slashes_action",): "REJECT_REQUEST",
    ("common_http_protocol_options", "headers_with_underscores_action"): "REJECT_REQUEST",
}
PROXIES_MAX = 2  # Cloudflare and Nginx; whoever has more in front counts again
FILTERS_KNOWN = frozenset({"ExternalProcessor", "Cors", "Router", "Decompressor"})  # the last one has a check of its own
BUFFER_BYTES_DEFAULT = 1_048_576
WINDOW_BYTES_DEFAULT = 16_777_216
REQUEST_TIMEOUT_MS_MAX = 300_000
# What may carry a key: headers, and the query of a path (%PATH(NQ)% leaves it out)
SECRET_IN_LOG = re.compile(
    r"REQ\((authorization|x-api-key|api-key|cookie|proxy-authorization|:path|x-envoy-original-path)\b|PATH\(WQ", re.IGNORECASE
)


def ext_proc_missing(world: World) -> Findings:
    """A listener without the filter, or with it switched off: nothing on it is billed."""
    for manager in world.managers():
        found = world.filters(manager, "ExternalProcessor")
        if not found:
            yield error("ext_proc_missing", at(manager, "http_filters"), "there is no ext_proc filter", "add it before the router")
        for item in found:
            if plain(item.entry, "disabled") is True:
                yield error("ext_proc_missing", at(item.entry, "disabled"), "the ext_proc filter is disabled", "take `disabled` out")
        names = [type_name(entry.get("typed_config")) for entry in members(manager, "http_filters")]
        if found and "Router" in names and names.index("Router") < names.index("ExternalProcessor"):
            yield error("ext_proc_missing", found[0].entry, "ext_proc stands behind the router", "put it before the router")


def path_flags(world: World) -> Findings:
    """Path tricks: `//v1`, `/v1/../`, `%2F`, `x_model`."""
    for manager in world.managers():
        for path, wanted in PATH_FLAGS.items():
            if plain(manager, *path) != wanted:
                value = str(wanted).lower() if isinstance(wanted, bool) else wanted
                yield error("path_flags", at(manager, *path), f"{'.'.join(path)} is not {value}", f"{path[-1]}: {value}")


def client_address(world: World) -> Findings:
    """Without it a client's own X-Forwarded-For becomes its address, and its request id ours."""
    for manager in world.managers():
        if plain(manager, "use_remote_address") is not True:
            todo = "use_remote_address: true, and xff_num_trusted_hops = proxies in front"
            yield error("client_address", at(manager, "use_remote_address"), "use_remote_address is not true", todo)
        if plain(manager, "preserve_external_request_id") is True:
            place = at(manager, "preserve_external_request_id")
            yield error(
                "client_address",
                place,
                "a client may choose its request id, which holds are deduplicated by",
                "preserve_external_request_id: false",
            )


def request_id(world: World) -> Findings:
    """Without one, a retry of Envoy is a second hold."""
    for manager in world.managers():
        if plain(manager, "generate_request_id") is False:
            place = at(manager, "generate_request_id")
            yield error("request_id", place, "requests have no id, which holds are deduplicated by", "generate_request_id: true")


def internal_addresses(world: World) -> Findings:
    """An empty list means RFC 1918 and the loopback: a neighbour's x-envoy-… would be obeyed."""
    for manager in world.managers():
        if not members(manager, "internal_address_config", "cidr_ranges"):
            place = at(manager, "internal_address_config", "cidr_ranges")
            todo = "cidr_ranges: [{address_prefix: 192.0.2.0, prefix_len: 32}], a network that is nobody's"
            yield error("internal_addresses", place, "without cidr_ranges Envoy may take private networks for internal", todo)


def trusted_hops(world: World) -> Findings:
    """One too many, and a client writes its own address."""
    for manager in world.managers():
        hops = whole(manager, "xff_num_trusted_hops")
        if hops is not None and hops > PROXIES_MAX:
            what = f"{hops} proxies in front are trusted: if there are fewer, clients choose their address"
            yield warning("trusted_hops", at(manager, "xff_num_trusted_hops"), what, "exactly the number of proxies in front")


def unknown_filters(world: World) -> Findings:
    """A filter beside ours may change what we have priced, or what we count."""
    for manager in world.managers():
        for entry in members(manager, "http_filters"):
            kind = type_name(entry.get("typed_config"))
            if kind not in FILTERS_KNOWN:
                what = f"filter {kind or plain(entry, 'name')} beside ext_proc: it may change requests and answers unseen"
                yield warning("unknown_filters", entry, what, "take it out, or make sure that it changes nothing")


def stream_duration(world: World) -> Findings:
    """A bound on the whole stream cuts long answers that are well."""
    places = [(manager, ("common_http_protocol_options", "max_stream_duration")) for manager in world.managers()]
    places += [(route.node, ("route", "max_stream_duration")) for route in world.proxying()]
    for node, path in places:
        if node.get(*path) is not None:
            yield warning("stream_duration", at(node, *path), "max_stream_duration cuts answers in their middle", "take it out")


def early_headers(world: World) -> Findings:
    """A client's own routing and identity headers choose the route before we run."""
    for manager in world.managers():
        extensions = members(manager, "early_header_mutation_extensions")
        mutations = [mutation for extension in extensions for mutation in members(extension, "typed_config", "mutations")]
        removed = {str(plain(mutation, "remove")).lower() for mutation in mutations}
        missing = [name for name in FROM_CLIENTS_NEVER if name not in removed]
        if missing:
            place = at(manager, "early_header_mutation_extensions")
            todo = "early_header_mutation: " + ", ".join(f"{{remove: {name}}}" for name in missing)
            yield error("early_headers", place, f"a client may send {', '.join(missing)}", todo)
        for mutation in mutations:
            name = str(plain(mutation, "append", "header", "key", default="")).lower()
            if name in FROM_CLIENTS_NEVER:
                yield error("early_headers", at(mutation, "append"), f"{name} is set before the sidecar has spoken", "take it out")


def upload_timeout(world: World) -> Findings:
    """No message reaches us while a body is uploaded: only Envoy can bound it."""
    for manager in world.managers():
        request_ms = duration_ms(manager, "request_timeout")
        if not request_ms or request_ms > REQUEST_TIMEOUT_MS_MAX:
            yield error("upload_timeout", at(manager, "request_timeout"), "uploads are not bounded in time", "request_timeout: 60s")
        if not duration_ms(manager, "request_headers_timeout"):
            place = at(manager, "request_headers_timeout")
            yield error("upload_timeout", place, "request headers are not bounded in time", "request_headers_timeout: 10s")


def buffer_limit(world: World) -> Findings:
    """A body that fits our limit and not Envoy's gets Envoy's own 413, which no SDK understands."""
    most = world.settings.body.bytes_max
    for listener in world.listeners():
        limit = whole(listener, "per_connection_buffer_limit_bytes")
        if (BUFFER_BYTES_DEFAULT if limit is None else limit) < most:
            what = f"the buffer limit of the listener is below body.bytes_max ({most})"
            yield error(
                "buffer_limit", at(listener, "per_connection_buffer_limit_bytes"), what, f"per_connection_buffer_limit_bytes: {2 * most}"
            )
    for manager in world.managers():
        path = ("http2_protocol_options", "initial_stream_window_size")
        window = whole(manager, *path)
        if (WINDOW_BYTES_DEFAULT if window is None else window) < most:
            what = f"the HTTP/2 window of a stream is below body.bytes_max ({most})"
            yield error("buffer_limit", at(manager, *path), what, f"initial_stream_window_size: {2 * most}")


def local_replies(world: World) -> Findings:
    """A global format would rewrite our own denials too; mappers do not."""
    for manager in world.managers():
        found = manager.get("local_reply_config", "body_format")
        if found is not None:
            yield error("local_replies", found, "a global body_format rewrites our denials", "use local_reply_config.mappers")
        elif manager.get("local_reply_config", "mappers") is None:
            what = "Envoy's own answers (404, 413, 503, 504) have no OpenAI shape"
            yield warning("local_replies", at(manager, "local_reply_config"), what, "give them one with local_reply_config.mappers")


def decompressor(world: World) -> Findings:
    """Together with a streamed ext_proc it hangs."""
    for manager in world.managers():
        for item in world.filters(manager, "Decompressor"):
            yield error(
                "decompressor", item.entry, "a decompressor beside ext_proc hangs streams", "take it out; strip accept-encoding instead"
            )


def key_in_log(world: World) -> Findings:
    """Keys are shown once, and never to a log."""
    logs = [log for manager in world.managers() for log in members(manager, "access_log")]
    for node in (node for log in logs for node in log.walk()):
        if isinstance(node.value, str) and SECRET_IN_LOG.search(node.value):
            what = f"{node.value} may write a key into the access log"
            yield error("key_in_log", node, what, "take it out; %PATH(NQ)% for a path without query")
