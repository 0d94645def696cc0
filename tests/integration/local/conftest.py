"""A client that shows bytes as they came, and a way to wait for what must happen."""

from __future__ import annotations

import json
import re
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest

from extproc.local.simulator import Simulator

DEADLINE_S = 5.0


@dataclass
class Answer:
    """A response: what arrived before the connection ended, broke or fell silent."""

    head: str
    body: bytes
    broken: str | None = None
    writes: list[bytes] = field(default_factory=list)

    @property
    def status(self) -> int:
        return int(self.head.split(" ")[1])

    @property
    def events(self) -> list[str]:
        """The data of each SSE event, ``[DONE]`` included."""
        blocks = re.split(r"\r?\n\r?\n", self.body.decode())
        lines = (line for block in blocks for line in re.split(r"\r?\n", block))
        return [line.removeprefix("data: ") for line in lines if line.startswith("data: ")]

    @property
    def chunks(self) -> list[Any]:
        return [json.loads(event) for event in self.events if event != "[DONE]"]

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def text(self) -> str:
        choices = (choice for chunk in self.chunks for choice in chunk.get("choices", ()))
        return "".join(choice["delta"].get("content") or "" if "delta" in choice else choice["text"] for choice in choices)


class Client:
    """One TCP connection, one request at a time."""

    def __init__(self, port: int) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port), timeout=DEADLINE_S)
        self._buffer = b""

    def send(self, path: str, body: dict[str, Any] | bytes | None = None, method: str = "POST", **headers: str) -> None:
        content = body if isinstance(body, bytes) else b"" if body is None else json.dumps(body).encode()
        lines = [f"{method} {path} HTTP/1.1", "host: sim", f"content-length: {len(content)}"]
        lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
        self.socket.sendall("\r\n".join(lines).encode() + b"\r\n\r\n" + content)

    def answer(self, silence_s: float = DEADLINE_S) -> Answer:
        """All of the response, or what came before ``silence_s`` without a byte."""
        answer = Answer(head="", body=b"")
        self.socket.settimeout(silence_s)
        try:
            answer.head = self._until(b"\r\n\r\n").decode()
            length = re.search(r"content-length: (\d+)", answer.head, re.IGNORECASE)
            if length:
                self._exactly(int(length[1]), answer)
            else:
                self._chunks(answer)
        except (TimeoutError, ConnectionError, EOFError) as error:
            answer.broken = type(error).__name__
        return answer

    def close(self) -> None:
        self.socket.close()

    def _chunks(self, answer: Answer) -> None:
        while size := int(self._until(b"\r\n"), 16):
            self._exactly(size, answer)
            answer.writes.append(answer.body[-size:])
            self._until(b"\r\n")
        self._until(b"\r\n")

    def _exactly(self, size: int, answer: Answer) -> None:
        while len(self._buffer) < size:
            self._more()
        answer.body += self._buffer[:size]
        self._buffer = self._buffer[size:]

    def _until(self, end: bytes) -> bytes:
        while end not in self._buffer:
            self._more()
        line, _, self._buffer = self._buffer.partition(end)
        return line

    def _more(self) -> None:
        data = self.socket.recv(65_536)
        if not data:
            raise EOFError
        self._buffer += data


@pytest.fixture
def client(simulator: Simulator):
    one = Client(simulator.port)
    yield one
    one.close()


@pytest.fixture
def connect(simulator: Simulator):
    """More connections: ``connect()``, or ``connect(port)``."""
    opened: list[Client] = []

    def connect(port: int | None = None) -> Client:
        opened.append(Client(port or simulator.port))
        return opened[-1]

    yield connect
    for one in opened:
        one.close()


@pytest.fixture
def until():
    def until(condition: Callable[[], Any], deadline_s: float = DEADLINE_S) -> Any:
        """The first true value of ``condition``."""
        end = time.monotonic() + deadline_s
        while not (value := condition()):
            assert time.monotonic() < end, "waited in vain"
            time.sleep(0.002)
        return value

    return until
