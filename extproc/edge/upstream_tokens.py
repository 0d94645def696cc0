"""Prompts of models that have no vocabulary here, counted by a server of theirs: ``POST /tokenize`` of vLLM (8 ms).

Asked before anything is held, so it must cost little when nobody answers: few questions at once, a share of them for each account, a
short wait, and a server that fails three times in a row is left alone for a while, then tried with a single question. Whoever is
not told holds by the prompt's size. Only the head of an answer is read: the count stands in front of the tokens themselves.
"""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Final
from urllib.parse import urlsplit

from extproc.edge.threads import Share
from extproc.metrics import Metrics

log = logging.getLogger(__name__)

QUESTIONS_MAX: Final = 64  # at once, of a worker
QUESTIONS_EACH_MAX: Final = 4  # of one account, so that nobody keeps everybody else from being counted
ANSWER_S: Final = 0.4  # the driver waits 0.5: a server that is silent must be told from a client that has left
HEAD_BYTES_MAX: Final = 16_384  # of an answer: vLLM's has 200
CONTENT_BYTES_MAX: Final = 4_096  # within which the count stands
FAILURES_MAX: Final = 3
BACK_OFF_S: Final = 10.0

_STATUS: Final = re.compile(rb"HTTP/1\.[01] ([1-5][0-9][0-9])[ \r]")
_COUNT: Final = re.compile(rb'"count"\s*:\s*([0-9]{1,9})\s*[,}]')
_REFUSED: Final = frozenset({400, 413, 422})  # this prompt, by a server that is well


def count_of(content: bytes) -> int | None:
    """Out of the beginning of an answer: ``{"count": 5, "max_model_len": 4096, "tokens": [1, …``."""
    found = _COUNT.search(content)
    return int(found[1]) if found else None


class _Server:
    """One address, and whether it answers."""

    __slots__ = ("_failures", "_resumes_s", "host", "is_tls", "port", "request", "url")

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        self.url = url
        self.is_tls = parts.scheme == "https"
        self.host = parts.hostname or ""
        self.port = parts.port or (443 if self.is_tls else 80)
        self.request = (
            f"POST {parts.path or '/'} HTTP/1.1\r\nHost: {parts.netloc}\r\nContent-Type: application/json\r\n"
            "Accept-Encoding: identity\r\nConnection: close\r\nContent-Length: "
        ).encode()
        self._failures = 0
        self._resumes_s = 0.0

    def is_ready(self, now_s: float) -> bool:
        """``True`` once only in each pause."""
        if self._failures < FAILURES_MAX:
            return True
        if now_s < self._resumes_s:
            return False
        self._resumes_s = now_s + BACK_OFF_S
        return True

    def answered(self) -> None:
        if self._failures >= FAILURES_MAX:
            log.info("%s counts tokens again", self.url)
        self._failures = 0

    def failed(self, now_s: float, why: str) -> None:
        self._failures += 1
        if self._failures == FAILURES_MAX:
            self._resumes_s = now_s + BACK_OFF_S
            log.warning("%s does not count tokens (%s): prompts are held for by their size", self.url, why)


class UpstreamTokens:
    """``urls``: by model, each the ``/tokenize`` of one of its servers; they are asked in turn."""

    def __init__(self, urls: Mapping[str, Sequence[str]], *, monotonic_s: Callable[[], float], metrics: Metrics) -> None:
        self._servers = {model: tuple(map(_Server, of_model)) for model, of_model in urls.items()}
        self._monotonic_s = monotonic_s
        self._metrics = metrics
        self._share = Share(places=QUESTIONS_MAX, places_each=QUESTIONS_EACH_MAX)
        self._turn = 0

    def ask(self, payer_id: str, model: str, question: bytes) -> asyncio.Future[int | None] | None:
        """Tokens of the prompt in ``question`` (the body to be posted). ``None``, now or as the answer: nobody tells."""
        server = self._next(model)
        if server is None or not self._share.take(payer_id):
            self._metrics.tokenize(model, "not_asked")
            return None
        answer = asyncio.ensure_future(self._ask(model, server, question))
        answer.add_done_callback(partial(self._done, payer_id))
        return answer

    def _next(self, model: str) -> _Server | None:
        servers = self._servers.get(model, ())
        self._turn += 1
        now_s = self._monotonic_s()
        order = (servers[(self._turn + place) % len(servers)] for place in range(len(servers)))
        return next((server for server in order if server.is_ready(now_s)), None)

    def _done(self, payer_id: str, _answer: asyncio.Future[int | None]) -> None:
        self._share.give_back(payer_id)

    async def _ask(self, model: str, server: _Server, question: bytes) -> int | None:
        asked_s = self._monotonic_s()
        count: int | None = None
        try:
            async with asyncio.timeout(ANSWER_S):
                status, count = await _post(server, question)
            why = _fault(status, count)
        except (OSError, EOFError, asyncio.LimitOverrunError) as error:  # TimeoutError is an OSError
            why = type(error).__name__
        now_s = self._monotonic_s()
        if why:
            server.failed(now_s, why)
        else:
            server.answered()
        self._metrics.tokenize(model, "failed" if why else "refused" if count is None else "counted", now_s - asked_s)
        return count


def _fault(status: int, count: int | None) -> str:
    """Why no server that is well answers like this; "": it may."""
    if status == 200:
        return "" if count is not None else "no count in its answer"
    return "" if status in _REFUSED else f"status {status}"


async def _post(server: _Server, question: bytes) -> tuple[int, int | None]:
    """Status (0: what answers does not speak HTTP) and count."""
    reader, writer = await asyncio.open_connection(server.host, server.port, ssl=server.is_tls or None, limit=HEAD_BYTES_MAX)
    try:
        writer.write(b"%b%d\r\n\r\n%b" % (server.request, len(question), question))
        await writer.drain()
        found = _STATUS.match(await reader.readuntil(b"\r\n\r\n"))
        status = int(found[1]) if found else 0
        content, count = b"", None
        while status == 200 and count is None and len(content) < CONTENT_BYTES_MAX and (more := await reader.read(CONTENT_BYTES_MAX)):
            content += more
            count = count_of(content)
        return status, count
    finally:
        writer.close()
