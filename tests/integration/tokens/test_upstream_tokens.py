"""POST /tokenize of servers that answer, refuse, are silent, or are none."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest
from prometheus_client.parser import text_string_to_metric_families

from extproc.edge import upstream_tokens as module
from extproc.edge.upstream_tokens import BACK_OFF_S, FAILURES_MAX, QUESTIONS_EACH_MAX, UpstreamTokens, count_of
from extproc.metrics import Metrics, registry

QUESTION = b'{"model":"m","prompt":"hello"}'


class Server:
    """Answers every question with the same bytes; ``None``: never."""

    def __init__(self, answer: bytes | None) -> None:
        self.answer = answer
        self.questions: list[bytes] = []
        self.url = ""

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        length = int(head.lower().split(b"content-length:")[1].split(b"\r\n")[0])
        self.questions.append(head + await reader.readexactly(length))
        if self.answer is None:
            await reader.read()
        else:
            writer.write(self.answer)
        writer.close()


@asynccontextmanager
async def running(answer: bytes | None) -> AsyncIterator[Server]:
    server = Server(answer)
    listener = await asyncio.start_server(server.serve, "127.0.0.1", 0)
    server.url = f"http://127.0.0.1:{listener.sockets[0].getsockname()[1]}/tokenize"
    try:
        yield server
    finally:
        listener.close()
        await listener.wait_closed()


def ok(count: int, tokens: int = 3) -> bytes:
    content = json.dumps({"count": count, "max_model_len": 4_096, "tokens": list(range(tokens)), "token_strs": None}).encode()
    return b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%b" % (len(content), content)


class Clock:
    now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


def tokens(*urls: str, clock: Callable[[], float] | None = None, metrics: Metrics | None = None) -> UpstreamTokens:
    return UpstreamTokens({"m": urls}, monotonic_s=clock or Clock(), metrics=metrics or Metrics(registry()))


def told(metrics: Metrics) -> dict[str, float]:
    """How often each result, and how many were timed."""
    families = {family.name: family.samples for family in text_string_to_metric_families(metrics.render().decode())}
    found = {sample.labels["result"]: sample.value for sample in families["extproc_tokenize"]}
    timed = [sample.value for sample in families["extproc_tokenize_seconds"] if sample.name.endswith("_count")]
    return found | {"timed": sum(timed)}


async def asked(upstream: UpstreamTokens, payer_id: str = "anna") -> int | None:
    answer = upstream.ask(payer_id, "m", QUESTION)
    return None if answer is None else await asyncio.wait_for(answer, 5)


async def test_a_count_comes_back() -> None:
    async with running(ok(42)) as server:
        assert await asked(tokens(server.url)) == 42
        [question] = server.questions
        assert question.startswith(b"POST /tokenize HTTP/1.1\r\nHost: 127.0.0.1:")
        assert question.endswith(b"\r\n\r\n" + QUESTION)


async def test_only_the_head_of_an_answer_is_read() -> None:
    """A prompt of 128,000 tokens is answered with 700 KB of them."""
    async with running(ok(128_000, tokens=128_000)) as server:
        assert await asked(tokens(server.url)) == 128_000


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 200 OK\r\n\r\n{}",
        b"HTTP/1.1 200 OK\r\n\r\n" + b" " * 20_000 + b'{"count": 1}',
        b"HTTP/1.1 200 OK\r\n" + b"x: y\r\n" * 5_000 + b"\r\n",
        b"HTTP/1.1 404 Not Found\r\n\r\n",
        b"HTTP/1.1 503 Service Unavailable\r\n\r\n" + b'{"count": 1}',
        b"SSH-2.0-OpenSSH\r\n\r\n",
        b"HTTP/1.1 200",
        b"",
    ],
)
async def test_what_is_no_answer_counts_as_a_failure(answer: bytes, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger=module.__name__)
    clock = Clock()
    async with running(answer) as server:
        metrics = Metrics(registry())
        upstream = tokens(server.url, clock=clock, metrics=metrics)
        for _ in range(FAILURES_MAX + 3):
            assert await asked(upstream) is None
        assert len(server.questions) == FAILURES_MAX, "then it is left alone"
        assert told(metrics) == {"failed": FAILURES_MAX, "not_asked": 3, "timed": FAILURES_MAX}
        assert [record.levelname for record in caplog.records] == ["WARNING"]
        clock.now_s += BACK_OFF_S
        assert await asked(upstream) is None
        assert await asked(upstream) is None
        assert len(server.questions) == FAILURES_MAX + 1, "one question a pause"
        server.answer = ok(7)
        clock.now_s += BACK_OFF_S
        assert [await asked(upstream) for _ in range(3)] == [7, 7, 7]
        assert [record.levelname for record in caplog.records] == ["WARNING", "INFO"]


async def test_a_refused_prompt_is_no_failure_of_the_server() -> None:
    async with running(b"HTTP/1.1 400 Bad Request\r\n\r\n{}") as server:
        metrics = Metrics(registry())
        upstream = tokens(server.url, metrics=metrics)
        for _ in range(FAILURES_MAX + 2):
            assert await asked(upstream) is None
        assert len(server.questions) == FAILURES_MAX + 2
        server.answer = ok(7)
        assert await asked(upstream) == 7
        assert told(metrics) == {"refused": FAILURES_MAX + 2, "counted": 1, "timed": FAILURES_MAX + 3}


async def test_a_silent_server_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "ANSWER_S", 0.02)
    async with running(None) as server:
        upstream = tokens(server.url)
        assert [await asked(upstream) for _ in range(FAILURES_MAX)] == [None] * FAILURES_MAX
        assert upstream.ask("anna", "m", QUESTION) is None


async def test_servers_take_turns_and_the_living_answer_for_the_dead() -> None:
    async with running(ok(1)) as first, running(ok(2)) as second:
        upstream = tokens(first.url, second.url, "http://127.0.0.1:1/tokenize")
        found = [await asked(upstream) for _ in range(30)]
        assert found.count(None) == FAILURES_MAX
        assert min(found.count(1), found.count(2)) >= 10


async def test_one_account_cannot_ask_everything() -> None:
    async with running(None) as server:
        upstream = tokens(server.url)
        answers = [upstream.ask("mallory", "m", QUESTION) for _ in range(QUESTIONS_EACH_MAX + 1)]
        assert [answer is None for answer in answers] == [False] * QUESTIONS_EACH_MAX + [True]
        other = upstream.ask("anna", "m", QUESTION)
        assert other is not None
        under_way = [answer for answer in (*answers, other) if answer is not None]
        for answer in under_way:
            answer.cancel()
        await asyncio.wait(under_way)
        await asyncio.sleep(0)
        again = upstream.ask("mallory", "m", QUESTION)
        assert again is not None, "a cancelled question gives its place back"
        again.cancel()


async def test_a_model_without_servers_is_not_asked_for() -> None:
    assert UpstreamTokens({}, monotonic_s=Clock(), metrics=Metrics(registry())).ask("anna", "m", QUESTION) is None


@pytest.mark.parametrize(
    ("content", "count"),
    [
        (b'{"count":5,"max_model_len":10,"tokens":[1', 5),
        (b'{"count": 0 }', 0),
        (b'{"count":12', None),
        (b'{"count":-1}', None),
        (b'{"count":1.5}', None),
        (b'{"count":99999999999}', None),
        (b'1f\r\n{"count":5,"max', 5),
    ],
)
def test_counts_of_answers(content: bytes, count: int | None) -> None:
    assert count_of(content) == count
