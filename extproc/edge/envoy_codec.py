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
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Final

from google.protobuf.message import DecodeError

from extproc.edge.wire import ext_proc_pb2 as wire
from extproc.edge.wire_format import SIZES, body_of, number, record, tag, text
from extproc.errors import ExchangeError
from extproc.exchange import actions, events
from extproc.exchange.actions import Pairs

FILTER: Final = "envoy.filters.http.ext_proc"
"""The key of our attributes: the canonical name of the filter, not the name that a listener gives to it."""

NAMESPACE: Final = "extproc.billing"
"""Of the dynamic metadata; ``metadata_options.receiving_namespaces`` in envoy.yaml lets it in, the access log prints it."""

HOSTS_REMEMBERED: Final = 4_096
"""Clients come again; parsing an address costs 4 µs."""

DENIED: Final = "extproc_denied"
"""``%RESPONSE_CODE_DETAILS%`` of our own denials: the mappers of envoy.yaml leave replies with it alone."""

REMOVALS_REMEMBERED: Final = 64
"""The sets of headers that are removed are constants of the exchange."""

_REQUEST_BODY_CAME, _RESPONSE_BODY_CAME = ord(tag(4)), ord(tag(5))
"""Phases of ProcessingRequest that are read by tag: the second one comes a hundred times a stream."""

_PSEUDO: Final = (":authority", ":scheme", ":protocol")
"""What HTTP knows beside ``:method``, ``:path`` and ``:status``."""


class MalformedMessage(ExchangeError):
    """What came is not a ProcessingRequest that Envoy would send. The stream ends with an error close, never with OK."""


def decode(data: bytes, *, at_ns: int = 0, unix_ms: int = 0, hold_id: str = "") -> events.Event:
    """One serialized ProcessingRequest as an event.

    ``at_ns`` (monotonic) goes into every event, ``unix_ms`` and ``hold_id`` (one for each gRPC stream) only into the request headers.
    Raises MalformedMessage.
    """
    if (body := body_of(data, _RESPONSE_BODY_CAME)) is not None:
        return events.Chunk(at_ns=at_ns, data=body[0], end_of_stream=body[1])
    if (body := body_of(data, _REQUEST_BODY_CAME)) is not None:
        return events.Body(at_ns=at_ns, data=body[0])
    return _decode_any(data, at_ns=at_ns, unix_ms=unix_ms, hold_id=hold_id)


def _decode_any(data: bytes, *, at_ns: int, unix_ms: int, hold_id: str) -> events.Event:
    """Whatever it is, through the protobuf classes. Headers too: reading a dozen by tag in Python takes as long."""
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
    found = message.request_headers
    headers = _headers(found.headers.headers)
    method, path = headers.pop(":method", ""), headers.pop(":path", "")  # CONNECT has no path
    if not method:
        raise MalformedMessage("request headers without :method")
    attributes = message.attributes[FILTER].fields  # what is not there is "" or 0
    return events.Headers(
        at_ns=at_ns,
        method=method,
        path=path,
        headers=headers,
        client_ip=client_ip(attributes["source.address"].string_value),
        request_id=attributes["request.id"].string_value,
        hold_id=hold_id,
        unix_ms=unix_ms,
        end_of_stream=found.end_of_stream,
    )


def _response_headers(message: wire.ProcessingRequest, *, at_ns: int) -> events.ResponseHeaders:
    found = message.response_headers
    headers = _headers(found.headers.headers)
    status = headers.pop(":status", "")
    attributes = message.attributes[FILTER].fields
    attempts = attributes["upstream.request_attempt_count"].number_value
    if not (len(status) == 3 and status.isascii() and status.isdigit() and attempts.is_integer()):
        raise MalformedMessage(f"response headers with :status {status!r} after {attempts} attempts")
    return events.ResponseHeaders(
        at_ns=at_ns,
        status=int(status),
        headers=headers,
        end_of_stream=found.end_of_stream,
        upstream=attributes["upstream.address"].string_value,
        attempts=int(attempts),
        code_details=attributes["response.code_details"].string_value,
    )


def _headers(pairs: Sequence[wire.HeaderValue]) -> dict[str, str]:
    """Lower-case names; values of one name joined by ``,`` as Envoy joins them. Bytes that are no UTF-8 are read as latin-1."""
    headers: dict[str, str] = {}
    for pair in pairs:
        name, raw = pair.key.lower(), pair.raw_value
        try:
            value = raw.decode() if raw else pair.value
        except UnicodeDecodeError:
            value = raw.decode("latin-1")
        headers[name] = f"{headers[name]},{value}" if name in headers else value
    for name in _PSEUDO:
        headers.pop(name, None)
    return headers


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


# Tags of the fields of each message that a reply is made of, as proto/ names them; flags and choices are whole fields.
_REQUEST_HEADERS, _RESPONSE_HEADERS, _REQUEST_BODY, _RESPONSE_BODY = tag(1), tag(2), tag(3), tag(4)  # ProcessingResponse
_IMMEDIATE_RESPONSE, _DYNAMIC_METADATA = tag(7), tag(8)
_RESPONSE: Final = tag(1)  # HeadersResponse, BodyResponse
_HEADER_MUTATION, _BODY_MUTATION, _CLEAR_ROUTE_CACHE = tag(2), tag(3), number(5, 1)  # CommonResponse
_STATUS, _HEADERS, _CONTENT, _DETAILS = tag(1), tag(2), tag(3), tag(5)  # ImmediateResponse
_BODY, _CLEAR_BODY = tag(1), number(2, 1)  # BodyMutation
_SET_HEADERS, _REMOVE_HEADERS = tag(1), tag(2)  # HeaderMutation
_HEADER, _OVERWRITE = tag(1), number(3, wire.HeaderValueOption.OVERWRITE_IF_EXISTS_OR_ADD)  # HeaderValueOption
_KEY, _VALUE, _RAW_VALUE = tag(1), tag(2), tag(3)  # HeaderValue, entries of maps
_FIELDS, _STRING_VALUE, _STRUCT_VALUE = tag(1), tag(3), tag(5)  # Struct, Value


def _pass_headers(action: actions.PassHeaders) -> bytes:
    if not action.set_headers and not action.remove_headers:
        return _PASS_HEADERS
    return _reply(_REQUEST_HEADERS, _mutation(_HEADER_MUTATION, action.set_headers, action.remove_headers))


def _pass_body(action: actions.PassBody) -> bytes:
    mutation = _mutation(_HEADER_MUTATION, (*action.set_headers, ("content-length", str(len(action.data)))), action.remove_headers)
    return _reply(_REQUEST_BODY, mutation + _CLEAR_ROUTE_CACHE, action.metadata, action.data)


def _pass_response_headers(action: actions.PassResponseHeaders) -> bytes:
    if not action.set_headers and not action.remove_headers:
        return _PASS_RESPONSE_HEADERS_BUFFERED if action.buffer else _PASS_RESPONSE_HEADERS
    reply = _reply(_RESPONSE_HEADERS, _mutation(_HEADER_MUTATION, action.set_headers, action.remove_headers))
    return reply + _BUFFERED if action.buffer else reply


def _pass_chunk(action: actions.PassChunk) -> bytes:
    """A body needs ``content-length`` if it is a buffered one; the headers of a streamed one are gone, and Envoy ignores it there."""
    if action.data is None:
        if not action.set_headers:
            return (_told(action.metadata) + _PASS_CHUNK_TEXT).encode("latin-1") if action.metadata else _PASS_CHUNK
        return _reply(_RESPONSE_BODY, _mutation(_HEADER_MUTATION, action.set_headers), action.metadata)
    mutation = _mutation(_HEADER_MUTATION, (*action.set_headers, ("content-length", str(len(action.data)))))
    return _reply(_RESPONSE_BODY, mutation, action.metadata, action.data)


def _pass_trailers(action: actions.PassTrailers) -> bytes:
    return _PASS_RESPONSE_TRAILERS if action.response else _PASS_REQUEST_TRAILERS


def _answer(action: actions.Answer) -> bytes:
    headers = action.headers
    if action.body and all(name.lower() != "content-type" for name, _ in headers):
        headers = (("content-type", "application/json"), *headers)
    status, body = record(_STATUS, number(1, action.status)), record(_CONTENT, action.body.decode("latin-1"))
    return record(_IMMEDIATE_RESPONSE, status + _mutation(_HEADERS, headers) + body + record(_DETAILS, DENIED)).encode("latin-1")


def _reply(phase: str, response: str, metadata: Pairs = (), body: bytes | None = None) -> bytes:
    """A ProcessingResponse with this CommonResponse, and another body, if any.

    The body is the last field of all that is around it: so it is written once, behind the rest. An empty one is a body that is cleared:
    Envoy takes empty ``body`` bytes for "no change".
    """
    size = len(body) if body else 0
    if body is not None:
        response += record(_BODY_MUTATION, record(_BODY, "", size) if body else _CLEAR_BODY, size)
    reply = record(phase, record(_RESPONSE, response, size), size)
    if metadata:
        reply = _told(metadata) + reply
    return reply.encode("latin-1") + body if body else reply.encode("latin-1")


def _told(metadata: Pairs) -> str:
    ours = "".join([_field(text(name), _STRING_VALUE, text(value)) for name, value in metadata])
    return record(_DYNAMIC_METADATA, _field(NAMESPACE, _STRUCT_VALUE, ours))


def _mutation(field: str, set_headers: Pairs, remove_headers: tuple[str, ...] = ()) -> str:
    """A HeaderMutation, if there is anything to do. Headers are set whatever there was before."""
    mutation = "".join([_option(text(name), text(value, "surrogateescape")) for name, value in set_headers]) + _removals(remove_headers)
    return record(field, mutation) if mutation else ""


def _option(name: str, value: str) -> str:
    header = f"{_KEY}{SIZES[len(name)]}{name}{_RAW_VALUE}{SIZES[len(value)]}{value}"
    option = f"{_HEADER}{SIZES[len(header)]}{header}{_OVERWRITE}"
    return f"{_SET_HEADERS}{SIZES[len(option)]}{option}"


def _field(name: str, kind: str, value: str) -> str:
    """Of a Struct."""
    value = f"{kind}{SIZES[len(value)]}{value}"
    entry = f"{_KEY}{SIZES[len(name)]}{name}{_VALUE}{SIZES[len(value)]}{value}"
    return f"{_FIELDS}{SIZES[len(entry)]}{entry}"


@lru_cache(maxsize=REMOVALS_REMEMBERED)
def _removals(names: tuple[str, ...]) -> str:
    return "".join([record(_REMOVE_HEADERS, text(name)) for name in names])


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


_PASS_HEADERS: Final = _reply(_REQUEST_HEADERS, "")
_PASS_RESPONSE_HEADERS: Final = _reply(_RESPONSE_HEADERS, "")
_BUFFERED: Final = wire.ProcessingResponse(mode_override=_modes(wire.ProcessingMode.BUFFERED)).SerializeToString()
_PASS_RESPONSE_HEADERS_BUFFERED: Final = _PASS_RESPONSE_HEADERS + _BUFFERED
_PASS_CHUNK: Final = _reply(_RESPONSE_BODY, "")
_PASS_CHUNK_TEXT: Final = _PASS_CHUNK.decode("latin-1")
_PASS_REQUEST_TRAILERS: Final = wire.ProcessingResponse(request_trailers=wire.TrailersResponse()).SerializeToString()
_PASS_RESPONSE_TRAILERS: Final = wire.ProcessingResponse(response_trailers=wire.TrailersResponse()).SerializeToString()

_ENCODERS: Final[dict[type[actions.Action], Callable[..., bytes]]] = {
    actions.PassHeaders: _pass_headers,
    actions.PassBody: _pass_body,
    actions.PassResponseHeaders: _pass_response_headers,
    actions.PassChunk: _pass_chunk,
    actions.PassTrailers: _pass_trailers,
    actions.Answer: _answer,
}
