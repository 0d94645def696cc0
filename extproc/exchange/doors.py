"""Who may come in at all: method, path, credentials and size, from the request headers alone (ENVOY.md, "Doors that must be shut").

Everything not listed is refused. Each function returns a value or raises :class:`~extproc.errors.ClientError`.
"""

from __future__ import annotations

from typing import NamedTuple

from extproc.errors import ClientError
from extproc.exchange.answers import Question, question_of, topic_of
from extproc.exchange.ask import Endpoint
from extproc.exchange.endpoints import BY_PATH
from extproc.exchange.events import Headers
from extproc.exchange.policy import Bounds
from extproc.exchange.replies import unauthorized

SECRET_CHARS_MAX = 256  # ours have 50; whatever is longer is nobody's key

# Nothing of these reaches a backend: credentials, what chooses queue or rank in vLLM (VLLM.md), and what would make its answer unreadable.
FORBIDDEN_HEADERS = (
    *("authorization", "x-api-key", "api-key", "cookie", "proxy-authorization", "accept-encoding"),
    *("x-vllm-priority", "x-data-parallel-rank", "x-session-id", "endpoint-load-metrics-format"),
)


class Door(NamedTuple):
    """Where a request wants to go: to an endpoint of a backend, or nowhere, with a question that we answer ourselves.

    ``body_fault``: why its body will not be read, as far as headers tell. That is said when the key has been read: refusals of known keys
    leave rows.
    """

    endpoint: Endpoint | None
    path: str
    query: bool
    question: Question | None = None
    body_fault: ClientError | None = None


NO_DOOR = Door(None, "", query=False)
"""Before it is known."""


def door_of(headers: Headers, bounds: Bounds) -> Door:
    """Method + exact path against the allow-list, and the shape of the request line."""
    path, mark, query = headers.path.partition("?")
    if mark and _may_hold_a_key(query):
        raise unauthorized("An API key must not be in the URL, where logs keep it. Revoke it, and send it as `Authorization: Bearer`.")
    if "upgrade" in headers.headers or headers.method == "CONNECT" or _is_grpc(headers):
        raise ClientError("Only plain HTTP requests are served here.", code="unsupported_protocol")
    endpoint = BY_PATH.get(path)
    topic = topic_of(path) if endpoint is None else None
    if endpoint is None and topic is None:
        raise ClientError(f"Unknown request URL: {headers.method[:16]} {path[:128]}.", status=404, code="unknown_url")
    if headers.method != ("POST" if endpoint else "GET"):
        allowed = "POST" if endpoint else "GET"
        raise ClientError(f"{path} takes {allowed} only.", status=405, code="method_not_allowed")
    if topic is not None:
        if not headers.end_of_stream:
            raise ClientError("A GET has no body.", code="unexpected_body")
        return Door(None, path, bool(mark), question_of(topic, path, query))
    assert endpoint is not None, "what has no endpoint has a topic"
    return Door(endpoint, path, bool(mark), body_fault=_body_fault(headers, bounds.bytes_max(is_form=endpoint.is_form)))


def secret_of(headers: Headers) -> str:
    """The one API key of a request: ``Authorization: Bearer`` (any case) or ``x-api-key``; two that differ, or two values, are none."""
    found = set()
    authorization = headers.headers.get("authorization")
    if authorization is not None:
        scheme, _, value = authorization.partition(" ")
        if scheme.lower() != "bearer":
            raise unauthorized("Send the API key as `Authorization: Bearer sk-…`.")
        found.add(value.strip())
    if "x-api-key" in headers.headers:
        found.add(headers.headers["x-api-key"].strip())
    if not found:
        raise unauthorized("You did not send an API key. Send it as `Authorization: Bearer sk-…`.")
    if len(found) > 1:
        raise unauthorized("The request has two different API keys. Send one.")
    secret = found.pop()
    if not secret or len(secret) > SECRET_CHARS_MAX or "," in secret or not secret.isascii():
        raise unauthorized("The API key is not valid.")
    return secret


def too_large(bytes_max: int) -> ClientError:
    """413."""
    return ClientError(f"The request body is larger than {bytes_max} bytes.", status=413, code="request_too_large")


def _body_fault(headers: Headers, bytes_max: int) -> ClientError | None:
    if headers.end_of_stream:
        return ClientError("The request has no body.", code="missing_body")
    length = headers.headers.get("content-length", "")
    if length and (not length.isascii() or not length.isdigit() or len(length) > 18):
        return ClientError("`content-length` is not a number.", code="bad_header")
    if length and int(length) > bytes_max:
        return too_large(bytes_max)
    if headers.headers.get("content-encoding", "identity").lower() != "identity":
        return ClientError("Compressed request bodies are not read here; send it plain.", status=415, code="unsupported_encoding")
    return None


def _is_grpc(headers: Headers) -> bool:
    return headers.headers.get("content-type", "").lower().startswith("application/grpc")


def _may_hold_a_key(query: str) -> bool:
    lowered = query.lower()
    return "sk-" in lowered or "key=" in lowered or "token=" in lowered or "authorization" in lowered
