"""A load generator that costs little: HTTP/1.1 in plain text on a bare ``asyncio.Protocol``, uvloop, requests written once and sent often.

Plain text, on listeners that only the bench's Envoy has: TLS would cost the same with us and without us, and twice (here and in Envoy),
so it would only blur what is to be seen. Connections are kept and used for one request at a time.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from time import perf_counter

HEADER_END = b"\r\n\r\n"
CHUNKED_END = b"\r\n0\r\n\r\n"
CONNECTIONS_MAX = 512  # of one run: more would be another bench
RUN_S_MAX = 180.0  # a run that takes longer hangs


class RequestFailed(Exception):
    """An answer that no measured request may have."""


@dataclass(slots=True, kw_only=True)
class Answer:
    """Times are ``perf_counter`` seconds (CLOCK_MONOTONIC); ``first_s`` is when the first byte of the body came.

    ``raw`` is the answer as it was read; ``reads`` tells when it was so long. ``done_s`` stays 0 when the client left.
    """

    sent_s: float
    first_s: float = 0.0
    done_s: float = 0.0
    status: int = 0
    raw: bytes = b""
    body_at: int = 0
    chunked: bool = False
    reads: list[tuple[float, int]] = field(default_factory=list)

    @property
    def ttft_ms(self) -> float:
        return (self.first_s - self.sent_s) * 1e3

    @property
    def latency_ms(self) -> float:
        return (self.done_s - self.sent_s) * 1e3

    @property
    def request_id(self) -> str:
        return self.raw[: self.body_at].lower().partition(b"\r\nx-request-id: ")[2].partition(b"\r\n")[0].decode()

    @property
    def body(self) -> bytes:
        """Without the framing of chunks; of an answer that broke off, what is whole."""
        return b"".join(_chunks(self.raw, self.body_at)) if self.chunked else self.raw[self.body_at :]

    @property
    def tokens(self) -> int:
        """Events with text: as many as tokens."""
        body = self.body
        return body.count(b'"delta":{"content":"') - body.count(b'"delta":{"content":""')


class Connection(asyncio.Protocol):
    """One connection, one request at a time."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport
        self._buffer = bytearray()
        self._length: int | None = None
        self._leave_after = 0
        self._answer: Answer
        self._future: asyncio.Future[Answer] | None = None
        self.left = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport  # type: ignore[assignment]

    def connection_lost(self, exc: Exception | None) -> None:
        if self._future is not None and not self._future.done():
            self._future.set_exception(RequestFailed(f"the connection broke: {exc}, after {bytes(self._buffer[:300])!r}"))

    def request(self, data: bytes, *, leave_after: int = 0) -> asyncio.Future[Answer]:
        """``leave_after``: hang up as soon as so many events with text were read."""
        assert self._future is None, "one at a time"
        assert not self.left
        self._buffer.clear()
        self._leave_after = leave_after
        self._future = self._loop.create_future()
        self._answer = Answer(sent_s=perf_counter())
        self._transport.write(data)
        return self._future

    def close(self) -> None:
        self._transport.close()

    def data_received(self, data: bytes) -> None:
        if self.left:
            return
        answer, buffer = self._answer, self._buffer
        buffer += data
        if not answer.body_at and not self._head():
            return
        if not answer.first_s and len(buffer) > answer.body_at:
            answer.first_s = perf_counter()
        answer.reads.append((perf_counter(), len(buffer)))
        if buffer.endswith(CHUNKED_END) if self._length is None else len(buffer) >= answer.body_at + self._length:
            answer.done_s = perf_counter()
            self._done()
        elif self._leave_after and len(answer.reads) >= self._leave_after:
            self._perhaps_leave()

    def _head(self) -> bool:
        end = self._buffer.find(HEADER_END)
        if end < 0:
            return False
        head, answer = bytes(self._buffer[:end]).lower(), self._answer
        answer.status = int(head[9:12])
        _, found, length = head.partition(b"\r\ncontent-length: ")
        self._length = int(length.partition(b"\r\n")[0]) if found else None
        answer.chunked = self._length is None
        answer.body_at = end + len(HEADER_END)
        return True

    def _perhaps_leave(self) -> None:
        self._answer.raw = bytes(self._buffer)
        if self._answer.tokens >= self._leave_after:
            self.left = True
            self._transport.abort()
            self._done()

    def _done(self) -> None:
        answer, future, self._future = self._answer, self._future, None
        assert future is not None
        answer.raw = bytes(self._buffer)
        if answer.status == 200:
            future.set_result(answer)
        else:
            future.set_exception(RequestFailed(f"status {answer.status}: {answer.body[:300]!r}"))


def _chunks(raw: bytes, at: int) -> Iterator[bytes]:
    while (line_end := raw.find(b"\r\n", at)) > 0:
        size = int(raw[at:line_end], 16)
        data, at = line_end + 2, line_end + 4 + size
        if not size or at > len(raw):
            return
        yield raw[data : data + size]


def request_bytes(*, secret: str, body: dict[str, object], headers: dict[str, str]) -> bytes:
    """One request as it goes over the wire."""
    content = json.dumps(body).encode()
    lines = {
        "host": "bench",
        "authorization": f"Bearer {secret}",
        "content-type": "application/json",
        "content-length": str(len(content)),
        **headers,
    }
    head = "".join(f"{name}: {value}\r\n" for name, value in lines.items())
    return f"POST /v1/chat/completions HTTP/1.1\r\n{head}\r\n".encode() + content


async def closed_loop(port: int, requests: Sequence[bytes], *, clients: int, leave_after: int = 0) -> list[Answer]:
    """Every request once; ``clients`` of them at any time, each as soon as the one before was answered."""
    assert clients <= CONNECTIONS_MAX
    waiting = iter(requests)
    answers: list[Answer] = []

    async def client() -> None:
        connection = await _connect(port)
        try:
            for data in waiting:
                if connection.left:
                    connection = await _connect(port)
                answers.append(await connection.request(data, leave_after=leave_after))
        finally:
            connection.close()

    async with asyncio.timeout(RUN_S_MAX):
        await asyncio.gather(*(client() for _ in range(clients)))
    return answers


async def open_loop(port: int, requests: Sequence[bytes], *, rate: float) -> list[Answer]:
    """Every request once, ``rate`` a second whether earlier ones are answered or not."""
    loop = asyncio.get_running_loop()
    idle = await asyncio.gather(*(_connect(port) for _ in range(16)))
    opened = list(idle)
    start = loop.time()

    async def one(data: bytes) -> Answer:
        if not idle:
            assert len(opened) < CONNECTIONS_MAX, "the answers do not keep up with the rate"
            opened.append(await _connect(port))
            idle.append(opened[-1])
        connection = idle.pop()
        answer = await connection.request(data)
        idle.append(connection)
        return answer

    async with asyncio.timeout(RUN_S_MAX):
        tasks: list[asyncio.Task[Answer]] = []
        for place, data in enumerate(requests):
            await asyncio.sleep(start + place / rate - loop.time())
            tasks.append(asyncio.create_task(one(data)))
        answers = await asyncio.gather(*tasks)
    for connection in opened:
        connection.close()
    return answers


async def _connect(port: int) -> Connection:
    _, connection = await asyncio.get_running_loop().create_connection(Connection, "127.0.0.1", port)
    return connection
