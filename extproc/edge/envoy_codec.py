"""Envoy's messages ⇄ our events and actions. Bytes in, a frozen event out; an action in, bytes out. No state, no clock, no IO.

``decode`` knows what every message of Envoy means to an exchange, ``encode`` how every reply action looks on the wire. Nothing here
decides anything. Facts about Envoy that shape it:

* Header values arrive in ``raw_value`` and may be any bytes; replies set ``raw_value`` too.
* ``mode_override`` replaces every body and trailer mode, so it names all of them, as ``envoy/envoy.yaml`` configures them.
* A replaced body needs ``content-length`` corrected in the same reply, else Envoy answers 500.
* Attributes come once, with the headers of each direction, as a Struct under the filter's name.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Callable, Iterable, Mapping
from functools import lru_cache
from typing import Final

from google.protobuf.message import DecodeError

from extproc.edge.wire import ext_proc_pb2 as wire
from extproc.errors import ExchangeError
from extproc.exchange import actions, events

FILTER: Final = "envoy.filters.http.ext_proc"
"""The key of our attributes: the canonical name of the filter, not the name that a listener gives to it."""

NAMESPACE: Final = "extproc.billing"
"""Of the dynamic metadata; ``metadata_options.receiving_namespaces`` in envoy.yaml lets it in, the access log prints it."""

HOSTS_REMEMBERED: Final = 4_096
"""Clients come again; parsing an address costs 4 µs."""

DENIED: Final = "extproc_denied"
"""``%RESPONSE_CODE_DETAILS%`` of our own denials: the mappers of envoy.yaml leave replies with it alone."""


class MalformedMessage(ExchangeError):
    """What came is not a ProcessingRequest that Envoy would send. The stream ends with an error close, never with OK."""


def decode(data: bytes, *, at_ns: int = 0, unix_ms: int = 0, hold_id: str = "") -> events.Event:
    """One serialized ProcessingRequest as an event.

    ``at_ns`` (monotonic) goes into every event, ``unix_ms`` and ``hold_id`` (one for each gRPC stream) only into the request headers.
    Raises MalformedMessage.
    """
    try:
        message = wire.ProcessingRequest.FromString(data)
    except DecodeError as error:
        raise MalformedMessage(f"{len(data)} bytes are no ProcessingRequest: {error}") from error
    match message.WhichOneof("request"):
        case "response_body":
            body = message.response_body
            return events.Chunk(at_ns=at_ns, data=body.body, end_of_stream=body.end_of_stream)
        case "request_headers":
            return _request_headers(message, at_ns=at_ns, unix_ms=unix_ms, hold_id=hold_id)
        case "request_body":
            return events.Body(at_ns=at_ns, data=message.request_body.body)
        case "response_headers":
            return _response_headers(message, at_ns=at_ns)
        case "request_trailers":
            return events.Trailers(at_ns=at_ns, response=False)
        case "response_trailers":
            return events.Trailers(at_ns=at_ns, response=True)
        case _:
            raise MalformedMessage("a ProcessingRequest without a phase that we know")


def _request_headers(message: wire.ProcessingRequest, *, at_ns: int, unix_ms: int, hold_id: str) -> events.Headers:
    headers = _headers(message.request_headers.headers.headers)
    method, path = headers.pop(":method", ""), headers.pop(":path", "")  # CONNECT has no path
    if not method:
        raise MalformedMessage("request headers without :method")
    attributes = message.attributes[FILTER].fields if FILTER in message.attributes else {}
    return events.Headers(
        at_ns=at_ns,
        method=method,
        path=path,
        headers=_without_pseudo(headers),
        client_ip=client_ip(_text(attributes, "source.address")),
        request_id=_text(attributes, "request.id"),
        hold_id=hold_id,
        unix_ms=unix_ms,
        end_of_stream=message.request_headers.end_of_stream,
    )


def _response_headers(message: wire.ProcessingRequest, *, at_ns: int) -> events.ResponseHeaders:
    headers = _headers(message.response_headers.headers.headers)
    status = headers.pop(":status", "")
    if not (status.isascii() and status.isdigit()):
        raise MalformedMessage(f"response headers with :status {status!r}")
    attributes = message.attributes[FILTER].fields if FILTER in message.attributes else {}
    attempts = "upstream.request_attempt_count"
    return events.ResponseHeaders(
        at_ns=at_ns,
        status=int(status),
        headers=_without_pseudo(headers),
        end_of_stream=message.response_headers.end_of_stream,
        upstream=_text(attributes, "upstream.address"),
        attempts=int(attributes[attempts].number_value) if attempts in attributes else 0,
        code_details=_text(attributes, "response.code_details"),
    )


def _headers(pairs: Iterable[wire.HeaderValue]) -> dict[str, str]:
    """Lower-case names; values of one name joined by ``,`` as Envoy joins them. Bytes that are no UTF-8 are read as latin-1."""
    headers: dict[str, str] = {}
    for pair in pairs:
        raw = pair.raw_value
        try:
            value = raw.decode() if raw else pair.value
        except UnicodeDecodeError:
            value = raw.decode("latin-1")
        name = pair.key.lower()
        headers[name] = f"{headers[name]},{value}" if name in headers else value
    return headers


def _without_pseudo(headers: dict[str, str]) -> dict[str, str]:
    for name in [name for name in headers if name.startswith(":")]:
        del headers[name]
    return headers


def _text(attributes: Mapping[str, wire.Value], name: str) -> str:
    return attributes[name].string_value if name in attributes else ""


def client_ip(address: str) -> str:
    """The address without its port: ``1.2.3.4:5``, ``[v6]:5`` or a bare address; v4-mapped as v4; "" for anything else (a Unix socket).

    The port is 0 when Envoy took the address from ``x-forwarded-for``.
    """
    host, _, port = address.rpartition(":")
    if not port.isdigit() or (":" in host and not host.startswith("[")):
        host = address
    return _plain_ip(host)


@lru_cache(maxsize=HOSTS_REMEMBERED)
def _plain_ip(host: str) -> str:
    try:
        ip = ipaddress.ip_address(host.strip("[]"))
    except ValueError:
        return ""
    mapped = ip.ipv4_mapped if isinstance(ip, ipaddress.IPv6Address) else None
    return str(mapped or ip)


# ---- replies


def encode(action: actions.Action) -> bytes:
    """A reply action as one serialized ProcessingResponse. Raises KeyError for an action that is no reply: a bug of the driver."""
    return _ENCODERS[type(action)](action)


def is_reply(action: actions.Action) -> bool:
    """Whether ``encode`` knows it: the other actions are work for the driver."""
    return type(action) in _ENCODERS


def _pass_headers(action: actions.PassHeaders) -> bytes:
    if not action.set_headers and not action.remove_headers:
        return _PASS_HEADERS
    reply = wire.ProcessingResponse()
    _mutate(reply.request_headers.response.header_mutation, action.set_headers, action.remove_headers)
    return reply.SerializeToString()


def _pass_body(action: actions.PassBody) -> bytes:
    reply = wire.ProcessingResponse()
    response = reply.request_body.response
    response.body_mutation.body = action.data
    response.clear_route_cache = True
    _mutate(response.header_mutation, action.set_headers, action.remove_headers)
    _set(response.header_mutation, "content-length", str(len(action.data)))
    _annotate(reply, action.metadata)
    return reply.SerializeToString()


def _pass_response_headers(action: actions.PassResponseHeaders) -> bytes:
    constant = _PASS_RESPONSE_HEADERS_BUFFERED if action.buffer else _PASS_RESPONSE_HEADERS
    if not action.set_headers and not action.remove_headers:
        return constant
    reply = wire.ProcessingResponse.FromString(constant)
    _mutate(reply.response_headers.response.header_mutation, action.set_headers, action.remove_headers)
    return reply.SerializeToString()


def _pass_chunk(action: actions.PassChunk) -> bytes:
    if action.data is None and not action.set_headers and not action.metadata:
        return _PASS_CHUNK
    reply = wire.ProcessingResponse()
    response = reply.response_body.response
    response.SetInParent()  # metadata alone is a reply too: without this it would be none
    if action.set_headers:
        _mutate(response.header_mutation, action.set_headers, ())
    if action.data is not None:
        _replace(response, action.data)
    _annotate(reply, action.metadata)
    return reply.SerializeToString()


def _replace(response: wire.CommonResponse, data: bytes) -> None:
    """Another chunk in its place. An empty one is a body that is cleared: Envoy takes empty ``body`` bytes for "no change".

    ``content-length`` matters to a buffered body only; the headers of a streamed one are gone, and Envoy ignores it there.
    """
    if data:
        response.body_mutation.body = data
    else:
        response.body_mutation.clear_body = True
    _set(response.header_mutation, "content-length", str(len(data)))


def _pass_trailers(action: actions.PassTrailers) -> bytes:
    return _PASS_RESPONSE_TRAILERS if action.response else _PASS_REQUEST_TRAILERS


def _deny(action: actions.Deny) -> bytes:
    reply = wire.ProcessingResponse()
    immediate = reply.immediate_response
    immediate.status.code = action.status  # type: ignore[assignment]  # an open enum: any number is kept
    immediate.body = action.body
    immediate.details = DENIED
    if action.body and all(name.lower() != "content-type" for name, _ in action.headers):
        _set(immediate.headers, "content-type", "application/json")
    _mutate(immediate.headers, action.headers, ())
    return reply.SerializeToString()


def _mutate(mutation: wire.HeaderMutation, set_headers: tuple[tuple[str, str], ...], remove_headers: tuple[str, ...]) -> None:
    for name, value in set_headers:
        _set(mutation, name, value)
    mutation.remove_headers.extend(remove_headers)


def _set(mutation: wire.HeaderMutation, name: str, value: str) -> None:
    option = mutation.set_headers.add()
    option.append_action = wire.HeaderValueOption.OVERWRITE_IF_EXISTS_OR_ADD
    option.header.key = name
    option.header.raw_value = value.encode("utf-8", "surrogateescape")


def _annotate(reply: wire.ProcessingResponse, metadata: tuple[tuple[str, str], ...]) -> None:
    if not metadata:
        return
    fields = reply.dynamic_metadata.fields[NAMESPACE].struct_value.fields
    for name, value in metadata:
        fields[name].string_value = value


def _modes(response_body: wire.ProcessingMode.BodySendMode) -> wire.ProcessingMode:
    """All modes of envoy.yaml, but for the response's body: an override replaces, it does not merge."""
    return wire.ProcessingMode(
        request_header_mode=wire.ProcessingMode.SEND,
        response_header_mode=wire.ProcessingMode.SEND,
        request_body_mode=wire.ProcessingMode.BUFFERED,
        response_body_mode=response_body,
        request_trailer_mode=wire.ProcessingMode.SKIP,
        response_trailer_mode=wire.ProcessingMode.SKIP,
    )


_GO_ON: Final = wire.CommonResponse()
_PASS_HEADERS: Final = wire.ProcessingResponse(request_headers=wire.HeadersResponse(response=_GO_ON)).SerializeToString()
_PASS_RESPONSE_HEADERS: Final = wire.ProcessingResponse(response_headers=wire.HeadersResponse(response=_GO_ON)).SerializeToString()
_PASS_RESPONSE_HEADERS_BUFFERED: Final = wire.ProcessingResponse(
    response_headers=wire.HeadersResponse(response=_GO_ON), mode_override=_modes(wire.ProcessingMode.BUFFERED)
).SerializeToString()
_PASS_CHUNK: Final = wire.ProcessingResponse(response_body=wire.BodyResponse(response=_GO_ON)).SerializeToString()
_PASS_REQUEST_TRAILERS: Final = wire.ProcessingResponse(request_trailers=wire.TrailersResponse()).SerializeToString()
_PASS_RESPONSE_TRAILERS: Final = wire.ProcessingResponse(response_trailers=wire.TrailersResponse()).SerializeToString()

_ENCODERS: Final[dict[type[actions.Action], Callable[..., bytes]]] = {
    actions.PassHeaders: _pass_headers,
    actions.PassBody: _pass_body,
    actions.PassResponseHeaders: _pass_response_headers,
    actions.PassChunk: _pass_chunk,
    actions.PassTrailers: _pass_trailers,
    actions.Deny: _deny,
}
