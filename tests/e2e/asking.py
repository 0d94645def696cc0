"""How the end-to-end tests ask: bytes as they are over HTTP/1.1, streams read event by event, and what every refusal must look like."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import h2.config
import h2.connection
import h2.events
import httpx
from house import SMALL, House

CHAT = "/v1/chat/completions"
PROMPT = "zyzzyva quokka"  # in every prompt of these tests: neither log may ever contain it
ANSWER_BYTES_MAX = 65_536


def body(**more: Any) -> dict[str, Any]:
    """A small request; ``None`` removes a member."""
    whole = {"model": SMALL, "messages": [{"role": "user", "content": PROMPT}], "max_tokens": 5} | more
    return {name: value for name, value in whole.items() if value is not None}


def error_of(answer: httpx.Response, status: int, code: str) -> dict[str, Any]:
    """The error object of a refusal, in OpenAI's shape."""
    assert answer.status_code == status, (answer.status_code, answer.text)
    assert answer.headers["content-type"] == "application/json"
    assert len(answer.headers["x-request-id"]) == 36
    (error,) = answer.json().values()
    assert error["code"] == code, error
    assert set(error) - {"metadata"} == {"message", "type", "param", "code"}
    assert isinstance(error["message"], str)
    assert error["message"]
    assert isinstance(error["type"], str)
    return error


def raw(house: House, request: bytes, *, wait_s: float = 10.0) -> bytes:
    """Bytes as they are over TLS and HTTP/1.1 → everything that comes back until the server closes or says no more.

    Ask with ``connection: close`` where a connection would stay open, else this waits.
    """
    context = house.context()
    context.set_alpn_protocols(["http/1.1"])
    with (
        socket.create_connection(("localhost", house.envoy.port), timeout=wait_s) as plain,
        context.wrap_socket(plain, server_hostname="localhost") as connection,
    ):
        connection.sendall(request)
        answer = b""
        while len(answer) < ANSWER_BYTES_MAX and (piece := connection.recv(ANSWER_BYTES_MAX)):
            answer += piece
    return answer


def post(guest_headers: dict[str, str], content: bytes, *, path: str = CHAT, line: str = "POST {} HTTP/1.1", **more: str) -> bytes:
    """A request as bytes, closing the connection. ``more``: further headers, ``_`` for ``-``."""
    headers = {"host": "localhost", "content-type": "application/json", "content-length": str(len(content)), "connection": "close"}
    headers |= guest_headers | {name.replace("_", "-"): value for name, value in more.items()}
    lines = [line.format(path), *(f"{name}: {value}" for name, value in headers.items()), "", ""]
    return "\r\n".join(lines).encode("latin-1") + content


def status_of(answer: bytes) -> int:
    """0: the connection was closed without a word."""
    return int(answer.split(b" ", 2)[1]) if answer.startswith(b"HTTP/1.1 ") else 0


def h2_post(
    house: House,
    more: dict[str, str] | list[tuple[str, str]],
    content: bytes,
    *,
    announced: bool = True,
    pseudo: dict[str, str | None] | None = None,
    trailers: dict[str, str] | None = None,
) -> httpx.Response:
    """One request over HTTP/2, however odd. Its answer may come while the body is still on its way (httpx waits for ever then).

    ``pseudo``: other pseudo headers, ``None`` removes one. ``NO_ANSWER``: the stream or the connection was reset.
    """
    context = house.context()
    context.set_alpn_protocols(["h2"])
    config = h2.config.H2Configuration(
        header_encoding="utf-8", validate_outbound_headers=False, normalize_outbound_headers=False, validate_inbound_headers=False
    )
    machine = h2.connection.H2Connection(config)
    usual = {":method": "POST", ":path": CHAT, ":scheme": "https", ":authority": "localhost"}
    headers = [(name, value) for name, value in (usual | (pseudo or {})).items() if value is not None]
    headers += [("content-type", "application/json"), *([("content-length", str(len(content)))] if announced else [])]
    headers += list(more.items() if isinstance(more, dict) else more)
    answer, data, sent, ended = {}, b"", 0, False
    with (
        socket.create_connection(("localhost", house.envoy.port), timeout=10) as plain,
        context.wrap_socket(plain, server_hostname="localhost") as connection,
    ):
        machine.initiate_connection()
        machine.send_headers(1, headers)
        connection.sendall(machine.data_to_send())
        while not ended and (read := connection.recv(ANSWER_BYTES_MAX)):
            for event in machine.receive_data(read):
                if isinstance(event, h2.events.ResponseReceived):
                    answer = dict(event.headers)
                elif isinstance(event, h2.events.DataReceived):
                    data += event.data
                ended = ended or isinstance(event, h2.events.StreamEnded | h2.events.StreamReset | h2.events.ConnectionTerminated)
            while not (answer or ended) and sent < len(content) and (room := min(machine.local_flow_control_window(1), 16_384)):
                last = sent + room >= len(content)
                machine.send_data(1, content[sent : sent + room], end_stream=last and not trailers)
                sent += min(room, len(content) - sent)
                if last and trailers:
                    machine.send_headers(1, list(trailers.items()), end_stream=True)
            connection.sendall(machine.data_to_send())
    return httpx.Response(int(answer.pop(":status")), headers=answer, content=data) if answer else NO_ANSWER


NO_ANSWER = httpx.Response(599)  # reset without a word; 599 is nobody's status


@contextmanager
def streaming(client: httpx.Client, headers: dict[str, str], **more: Any) -> Iterator[httpx.Response]:
    """A streamed request whose headers have come."""
    sim = {name: value for name, value in more.items() if name.startswith("x-")}
    asked = body(stream=True, **{name: value for name, value in more.items() if name not in sim})
    with client.stream("POST", CHAT, headers=headers | sim, json=asked) as answer:
        yield answer


def events_of(data: bytes) -> list[Any]:
    """What an SSE client understands: the decoded ``data:`` of every event; ``"[DONE]"`` as it is."""
    lines = data.replace(b"\r\n", b"\n").split(b"\n\n")
    datas = [line.removeprefix(b"data: ") for event in lines for line in event.split(b"\n") if line.startswith(b"data: ")]
    return [json.loads(found) if found != b"[DONE]" else "[DONE]" for found in datas]


def tokens_read(events: list[Any]) -> int:
    """Events with content: one token each in the simulator's default language."""
    return sum(1 for event in events if event != "[DONE]" and event.get("choices") and event["choices"][0]["delta"].get("content"))
