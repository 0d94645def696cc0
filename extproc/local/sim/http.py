"""HTTP/1.1 without IO: bytes in, requests out. Enough for Envoy, SDKs and hand-written sockets; strict where laxness would hide a fault."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

HEAD_BYTES_MAX = 262_144
"""Of request line and headers: above anything that Envoy forwards (60 KiB by default), so that the simulator never is the one to refuse."""

BODY_BYTES_MAX = 64 * 1024 * 1024
"""Of a body: above the limits of the sidecar and of Envoy, which are the ones to be tested."""

CHUNK_LINE_BYTES_MAX = 256
"""Of a chunk's size line with its extensions."""


class BrokenRequest(Exception):
    """The bytes are no HTTP/1.1 request; the connection cannot go on."""


@dataclass(frozen=True, slots=True)
class Request:
    """One request. ``head`` is kept as it came, so that the witness can show every header."""

    method: str
    path: str
    query: str
    head: bytes
    headers: dict[str, str]
    body: bytes
    keep_alive: bool


class RequestReader:
    """Bytes of one connection → requests, in order."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> Iterator[Request]:
        """All requests that are whole with these bytes. Raises :class:`BrokenRequest`."""
        self._buffer += data
        while (request := self._next()) is not None:
            yield request

    def _next(self) -> Request | None:
        end = self._buffer.find(b"\r\n\r\n")
        if end < 0:
            if len(self._buffer) > HEAD_BYTES_MAX:
                raise BrokenRequest("headers too large")
            return None
        head = bytes(self._buffer[:end])
        method, target, version, headers = _parse_head(head)
        body = self._body(end + 4, headers)
        if body is None:
            return None
        content, used = body
        del self._buffer[:used]
        path, _, query = target.partition("?")
        connection = headers.get("connection", "").lower()
        keep_alive = connection != "close" if version == "HTTP/1.1" else connection == "keep-alive"
        return Request(method, path, query, head, headers, content, keep_alive)

    def _body(self, start: int, headers: dict[str, str]) -> tuple[bytes, int] | None:
        """The body and where it ends in the buffer, or ``None`` while it is not whole."""
        if headers.get("transfer-encoding", "").lower() == "chunked":
            return self._chunked(start)
        try:
            length = int(headers.get("content-length", "0"))
        except ValueError:
            raise BrokenRequest("content-length is no number") from None
        if not 0 <= length <= BODY_BYTES_MAX:
            raise BrokenRequest("body too large")
        if len(self._buffer) < start + length:
            return None
        return bytes(self._buffer[start : start + length]), start + length

    def _chunked(self, start: int) -> tuple[bytes, int] | None:
        parts: list[bytes] = []
        total = 0
        while True:
            line_end = self._buffer.find(b"\r\n", start, start + CHUNK_LINE_BYTES_MAX)
            if line_end < 0:
                if len(self._buffer) - start >= CHUNK_LINE_BYTES_MAX:
                    raise BrokenRequest("chunk without a size line")
                return None
            size = _chunk_size(bytes(self._buffer[start:line_end]))
            total += size
            if total > BODY_BYTES_MAX:
                raise BrokenRequest("body too large")
            data = line_end + 2
            if len(self._buffer) < data + size + 2:
                return None
            if size == 0:
                return self._after_trailers(b"".join(parts), data)
            parts.append(bytes(self._buffer[data : data + size]))
            start = data + size + 2

    def _after_trailers(self, body: bytes, start: int) -> tuple[bytes, int] | None:
        if self._buffer.startswith(b"\r\n", start):
            return body, start + 2
        end = self._buffer.find(b"\r\n\r\n", start)
        return (body, end + 4) if end >= 0 else None


def _chunk_size(line: bytes) -> int:
    try:
        return int(line.partition(b";")[0].strip(), 16)
    except ValueError:
        raise BrokenRequest("chunk size is no number") from None


def _parse_head(head: bytes) -> tuple[str, str, str, dict[str, str]]:
    request_line, _, rest = head.decode("latin-1").partition("\r\n")
    words = request_line.split(" ")
    if len(words) != 3 or words[2] not in ("HTTP/1.1", "HTTP/1.0"):
        raise BrokenRequest("no HTTP/1.1 request line")
    headers: dict[str, str] = {}
    for line in rest.split("\r\n") if rest else ():
        name, colon, value = line.partition(":")
        if not colon or not name or name[-1] in " \t":
            raise BrokenRequest("broken header line")
        headers[name.lower()] = value.strip(" \t")
    return words[0], words[1], words[2], headers


def header_pairs(head: bytes) -> list[tuple[str, str]]:
    """Every header of a request as it came: names in their case, doubled ones too."""
    lines = head.decode("latin-1").split("\r\n")[1:]
    return [(name, value.strip(" \t")) for name, _, value in (line.partition(":") for line in lines)]


REASONS = {
    200: "OK",
    400: "Bad Request",
    404: "Not Found",
    405: "Method Not Allowed",
    408: "Request Timeout",
    413: "Content Too Large",
    422: "Unprocessable Content",
    429: "Too Many Requests",
    500: "Internal Server Error",
    502: "Bad Gateway",
    503: "Service Unavailable",
    504: "Gateway Timeout",
}

STREAM_HEAD = b"HTTP/1.1 200 OK\r\nserver: uvicorn\r\ncontent-type: text/event-stream; charset=utf-8\r\ntransfer-encoding: chunked\r\n\r\n"

END_OF_CHUNKS = b"0\r\n\r\n"


def json_bytes(value: Any) -> bytes:
    """Compact JSON, characters as they are, as vLLM writes it; halves of characters, which UTF-8 does not know, as escapes."""
    try:
        return json.dumps(value, separators=(",", ":"), ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return json.dumps(value, separators=(",", ":")).encode()


def chunk(payload: bytes) -> bytes:
    """One piece of a chunked body."""
    return b"%x\r\n%b\r\n" % (len(payload), payload)


def response(status: int, body: bytes, *, content_type: bytes = b"application/json", keep_alive: bool = True) -> bytes:
    """A whole response with a Content-Length."""
    return b"HTTP/1.1 %d %b\r\nserver: uvicorn\r\ncontent-length: %d\r\ncontent-type: %b\r\n%b\r\n%b" % (
        status,
        REASONS.get(status, "Unknown").encode(),
        len(body),
        content_type,
        b"" if keep_alive else b"connection: close\r\n",
        body,
    )
