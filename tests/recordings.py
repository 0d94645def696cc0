"""The recorded answers of ``data/streams``: what was asked, what came, and what has to come of it.

``recorded.json`` was written by ``data/streams/record.py``: answers of the simulator, whose own books say what they used; ``real.json`` by
``vllm/test_real_recordings.py``: answers of a real vLLM, whose counters say it. ``made.json`` was written by hand from what is known of vLLM
and others. A row: ``file`` with the answer's bytes, ``origin``, ``path`` and ``request`` (for
a form: its members, and the length of a WAV), ``tokens`` (what a token is: a letter or a word), and the truth: ``usage``, ``cost_nanos``,
``end_reason``, ``end`` (the backend said that it was the end).
"""

from __future__ import annotations

import io
import json
import re
import wave
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fuzz.walk import Walk, pinned

from extproc.money.amount import format_amount
from extproc.tokens.counter import Counter, Running, Tools

STREAMS = Path(__file__).parent / "data" / "streams"
CATALOG = STREAMS / "models.yaml"
BOUNDARY = "a-boundary"
USAGE_FIELDS = (
    *("input_tokens", "cached_tokens", "cache_creation_tokens", "output_tokens"),
    *("reasoning_tokens", "image_tokens", "images", "audio_ms"),
)


class Plain:
    """A tokenizer for the head: a token a letter, or a word; ChatML is 5 a message and 3, in letters 3 a message and 3."""

    prints_tools = False

    def __init__(self, name: str) -> None:
        self.name = name
        self._each = 5 if name == "words" else 3

    def count(self, text: str) -> int:
        return len(text.split()) if self.name == "words" else len(text)

    def count_chat(self, messages: Sequence[tuple[str, str]], tools: Tools | None = None) -> int:
        del tools
        return sum(self._each + self.count(content) for _, content in messages) + 3

    def bound_chat(self, content_bytes: int, messages: int) -> int:
        return content_bytes + 5 * messages + 3

    def bound(self, content_bytes: int) -> int:
        return content_bytes

    def running(self) -> Running:
        return _Running(self)


class _Running:
    def __init__(self, counter: Plain) -> None:
        self._counter, self._texts = counter, [""]

    def feed(self, text: str) -> None:
        self._texts.append(text)

    def total(self) -> int:
        return self._counter.count("".join(self._texts))


@dataclass(frozen=True)
class PlainCounters:
    name: str

    def get(self, tokenizer: str, chat_template: str) -> Counter | None:
        return None if tokenizer == "upstream" else Plain(self.name)


class Recording:
    def __init__(self, row: dict[str, Any]) -> None:
        self.row = row
        self.name: str = row["file"]
        self.data = (STREAMS / self.name).read_bytes()
        self.is_stream = self.name.endswith(".sse")

    @property
    def content_type(self) -> str:
        return "text/event-stream; charset=utf-8" if self.is_stream else "application/json"

    def asked(self) -> Walk:
        """Forwarded, and not answered yet."""
        walk = Walk(pinned(CATALOG, PlainCounters(self.row["tokens"])))
        walk.ask(self.row["path"], *body_of(self.row["request"]))
        assert walk.passed is not None, walk.reply
        return walk

    def answered(self, walk: Walk, chunks: Iterable[bytes]) -> bytes:
        """In pieces; only a JSON answer of one piece has its length told."""
        pieces = list(chunks)
        is_whole = not self.is_stream and len(pieces) == 1
        return walk.answer(pieces, self.content_type, length=len(self.data) if is_whole else None)

    def for_client(self) -> bytes:
        """What a client has to get: its own name of the model, nothing that it has not asked for, and in a stream the cost where usage is told."""
        request, shown = self.row["request"], self.data
        if isinstance(request.get("model"), str):
            shown = shown.replace(b'"model":"Org/M"', b'"model":%b' % json.dumps(request["model"]).encode())
        if not self.is_stream:
            return shown
        tells = self.row["tells_cost"]
        if self.row["path"] not in ("/v1/responses", "/v1/messages"):
            options = request.get("stream_options", {})
            shown = _without(shown, final=not options.get("include_usage"), running=not options.get("continuous_usage_stats"))
            tells = tells and options.get("include_usage")
        return _with_cost(shown, self.row["cost_nanos"]) if tells else shown


def _without(stream: bytes, *, final: bool, running: bool) -> bytes:
    events = re.split(rb"(?<=\n\n)|(?<=\r\n\r\n)", stream)
    kept = [event for event in events if not (final and b'"choices":[],' in event)]
    return b"".join(
        event if b'"choices":[],' in event or not running else re.sub(rb',"usage":\{[^{}]*(\{[^{}]*\}[^{}]*)*\}(?=[,}])', b"", event)
        for event in kept
    )


def _with_cost(answer: bytes, nanos: int) -> bytes:
    """Behind the last member of the last usage object."""
    *_, last = re.finditer(rb'"usage":\{[^{}]*(?:\{[^{}]*\}[^{}]*)*', answer)
    return answer[: last.end()] + b',"cost":' + format_amount(nanos).encode() + answer[last.end() :]


def body_of(request: dict[str, Any]) -> tuple[bytes, str]:
    """Bytes and content type."""
    if "wav_ms" not in request:
        return json.dumps(request).encode(), "application/json"
    file = io.BytesIO()
    with wave.open(file, "wb") as written:
        written.setnchannels(1)
        written.setsampwidth(2)
        written.setframerate(1_000)
        written.writeframes(bytes(request["wav_ms"] * 2))
    parts = [f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n{value}\r\n' for name, value in request["form"].items()]
    head = f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="file"; filename="a.wav"\r\n\r\n'
    return "".join(
        [*parts, head]
    ).encode() + file.getvalue() + f"\r\n--{BOUNDARY}--\r\n".encode(), f"multipart/form-data; boundary={BOUNDARY}"


def recordings() -> list[Recording]:
    return [Recording(row) for index in ("recorded.json", "made.json", "real.json") for row in json.loads((STREAMS / index).read_text())]
