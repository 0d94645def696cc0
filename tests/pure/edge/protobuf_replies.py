"""Replies as protobuf's own classes write them: what the codec writes by tag must mean the same."""

from __future__ import annotations

from extproc.edge.envoy_codec import DENIED, NAMESPACE
from extproc.edge.wire import ext_proc_pb2 as wire
from extproc.exchange import actions

MODES = wire.ProcessingMode(
    request_header_mode=wire.ProcessingMode.SEND,
    response_header_mode=wire.ProcessingMode.SEND,
    request_body_mode=wire.ProcessingMode.BUFFERED,
    response_body_mode=wire.ProcessingMode.BUFFERED,
    request_trailer_mode=wire.ProcessingMode.SKIP,
    response_trailer_mode=wire.ProcessingMode.SKIP,
)


def reply_of(action: actions.Action) -> wire.ProcessingResponse:
    reply = wire.ProcessingResponse()
    match action:
        case actions.PassHeaders():
            common = reply.request_headers.response
            mutate(common, action.set_headers, action.remove_headers)
        case actions.PassBody():
            common = reply.request_body.response
            common.clear_route_cache = True
            replace(common, action.set_headers, action.data)
            mutate(common, (), action.remove_headers)
        case actions.PassResponseHeaders():
            common = reply.response_headers.response
            mutate(common, action.set_headers, action.remove_headers)
            if action.buffer:
                reply.mode_override.CopyFrom(MODES)
        case actions.PassChunk(data=None):
            common = reply.response_body.response
            mutate(common, action.set_headers)
        case actions.PassChunk():
            common = reply.response_body.response
            replace(common, action.set_headers, action.data or b"")
        case actions.PassTrailers():
            (reply.response_trailers if action.response else reply.request_trailers).SetInParent()
            return reply
        case actions.Answer():
            return denial(action)
    common.SetInParent()
    for name, value in getattr(action, "metadata", ()):
        reply.dynamic_metadata.fields[NAMESPACE].struct_value.fields[name].string_value = value
    return reply


def denial(action: actions.Answer) -> wire.ProcessingResponse:
    reply = wire.ProcessingResponse()
    immediate = reply.immediate_response
    immediate.status.code = action.status  # type: ignore[assignment]
    immediate.body, immediate.details = action.body, DENIED
    if action.body and "content-type" not in {name.lower() for name, _ in action.headers}:
        put(immediate.headers, "content-type", "application/json")
    for name, value in action.headers:
        put(immediate.headers, name, value)
    return reply


def replace(common: wire.CommonResponse, set_headers: tuple[tuple[str, str], ...], data: bytes) -> None:
    if data:
        common.body_mutation.body = data
    else:
        common.body_mutation.clear_body = True
    mutate(common, (*set_headers, ("content-length", str(len(data)))))


def mutate(common: wire.CommonResponse, set_headers: tuple[tuple[str, str], ...], remove_headers: tuple[str, ...] = ()) -> None:
    for name, value in set_headers:
        put(common.header_mutation, name, value)
    if remove_headers:
        common.header_mutation.remove_headers.extend(remove_headers)


def put(mutation: wire.HeaderMutation, name: str, value: str) -> None:
    option = mutation.set_headers.add(append_action=wire.HeaderValueOption.OVERWRITE_IF_EXISTS_OR_ADD)
    option.header.key, option.header.raw_value = name, value.encode("utf-8", "surrogateescape")
