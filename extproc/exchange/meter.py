"""How much a backend has delivered: usage, text and the end, out of response bytes; and what of them the client gets to see.

Order of truth (VLLM.md): the final usage object; the last per-chunk usage, summed over choices; our own count of the delivered text;
events. Last one wins, nothing is ever summed over time. Figures that cannot be are clamped and flagged.

Meters of one shape: :class:`StreamMeter` for server-sent events, :class:`AnswerMeter` for a JSON answer, :class:`OpaqueMeter`
for what cannot be read.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from typing import Any, Protocol

import msgspec

from extproc.exchange.ask import Endpoint, Piece
from extproc.exchange.sse import SseDecoder, SseEvent
from extproc.money.hold import EndReason
from extproc.money.usage import Usage, UsageSource
from extproc.tokens.counter import Counter, Running

# A JSON answer larger than this is metered by the text of what arrived; none that a model writes is.
ANSWER_BYTES_MAX = 8 * 1_048_576
_DONE = b"[DONE]"
_REASONS = {"stop": EndReason.STOP, "tool_calls": EndReason.STOP, "function_call": EndReason.STOP, "length": EndReason.LENGTH}


class Expected(msgspec.Struct, frozen=True, kw_only=True):
    """What the ask says about its answer. ``prompt_tokens``: our own count, for when nobody else says.

    ``trust_usage`` False: the model's figures are not to be relied on (catalog, ``usage: counted``).
    ``hide_final``: withhold the usage event that we asked for and the client did not. ``hide_running``: likewise per-chunk usage.
    ``rename``: (name in the answer, name that the client asked for), both as JSON, or ``None``.
    """

    endpoint: Endpoint
    counter: Counter | None
    prompt_tokens: int
    prompt_estimated: bool
    input_tokens_max: int
    output_tokens_max: int
    choices: int
    trust_usage: bool = True
    hide_final: bool = False
    hide_running: bool = False
    rename: tuple[bytes, bytes] | None = None


class Meter(Protocol):
    """What the machine knows of either meter."""

    @property
    def started(self) -> bool:
        """Output has been seen."""

    @property
    def events(self) -> int:
        """Pieces with output that were delivered."""

    def plain(self, chunk: bytes) -> bool:
        """Whether a chunk may be passed on unchanged before it is looked at (:meth:`observe` must still see it)."""

    def observe(self, chunk: bytes) -> None:
        """Look at a chunk that was plain and has been passed: :meth:`feed` without a word to the client."""

    def feed(self, chunk: bytes, *, end_of_stream: bool) -> bytes:
        """What the client gets for this chunk."""

    @property
    def complete(self) -> bool:
        """Final usage or ``[DONE]`` has been seen: nothing that can follow changes the bill."""

    def usage(self, *, ended_early: bool) -> Usage:
        """The best figures so far."""

    def reason(self) -> EndReason | None:
        """Why the backend says that it ended; ``None`` = it did not say."""


class StreamMeter:
    """Server-sent events. Memory: one running count a choice, one unfinished event."""

    __slots__ = ("_done", "_error", "_expected", "_final", "_finish", "_running", "_sse", "_texts", "events")

    def __init__(self, expected: Expected) -> None:
        self._expected = expected
        self._sse = SseDecoder()
        self._texts: dict[int, Running] = {}
        self._running: dict[int, Any] = {}  # last per-chunk usage of each choice
        self._final: Any = None
        self._finish = ""
        self._error = False
        self._done = False
        self.events = 0

    @property
    def started(self) -> bool:
        return self.events > 0

    @property
    def complete(self) -> bool:
        return self._done or self._final is not None

    def plain(self, chunk: bytes) -> bool:
        """True for the chunks that streams are made of: whole events, none with usage, none the last."""
        return (
            self._expected.rename is None
            and self._sse.pending_bytes == 0
            and chunk.endswith(b"\n\n")
            and b'"usage"' not in chunk
            and _DONE not in chunk
        )

    def observe(self, chunk: bytes) -> None:
        """Nothing to hide in a plain chunk, so nothing is put together again."""
        for event in self._sse.feed(chunk):
            self._look(event)

    def feed(self, chunk: bytes, *, end_of_stream: bool) -> bytes:
        """Look at every event that this chunk completes. Without anything to hide, what goes out is what came in."""
        events = self._sse.feed(chunk)
        if end_of_stream:
            events += self._sse.flush()
        edits = self._expected.hide_final or self._expected.hide_running or self._expected.rename is not None
        if not edits:
            for event in events:
                self._look(event)
            return chunk
        return b"".join([self._edit(event, self._look(event)) for event in events])

    def usage(self, *, ended_early: bool) -> Usage:
        """See the order of truth above. An early end never waits for the rest: what was delivered is what counts."""
        del ended_early
        expected = self._expected
        if self._final is not None:
            usage = usage_of(self._final, UsageSource.UPSTREAM, expected)
            if usage is not None:
                return usage
        if self._running:
            usage = usage_of(_summed(self._running), UsageSource.CONTINUOUS, expected)
            if usage is not None:
                return usage
        if expected.counter is None:
            return counted(expected, self.events, UsageSource.CHUNKS)
        return counted(expected, sum(text.total() for text in self._texts.values()), UsageSource.COUNTED)

    def reason(self) -> EndReason | None:
        """An error event or ``abort`` wins over what else was said; ``[DONE]`` alone is no success (VLLM.md)."""
        if self._error:
            return EndReason.UPSTREAM_ERROR
        if self._finish == "abort":
            return EndReason.ABORT
        if self._finish:
            return _REASONS.get(self._finish, EndReason.STOP)
        return EndReason.UPSTREAM_ERROR if self._done else None

    def _look(self, event: SseEvent) -> Piece | None:
        data = event.data
        if not data:
            return None
        if data.strip() == _DONE:
            self._done = True
            return None
        piece = self._expected.endpoint.read_event(data)
        if piece.texts:
            self.events += 1
            self._count(piece)
        if piece.usage is not None and self._expected.trust_usage:
            self._remember(piece)
        if piece.finish:
            self._finish = piece.finish
        self._error = self._error or piece.error
        return piece

    def _count(self, piece: Piece) -> None:
        counter = self._expected.counter
        if counter is None:
            return
        for index, text in piece.texts:
            running = self._texts.get(index)
            if running is None:
                # Indexes are the backend's: more of them than were asked for are counted as one text.
                index = index if len(self._texts) < self._expected.choices else next(iter(self._texts))  # noqa: PLW2901
                running = self._texts.setdefault(index, counter.running())
            running.feed(text)

    def _remember(self, piece: Piece) -> None:
        if piece.final:
            self._final = piece.usage
            return
        index = piece.texts[0][0] if piece.texts else 0
        if index in self._running or len(self._running) < self._expected.choices:
            self._running[index] = piece.usage

    def _edit(self, event: SseEvent, piece: Piece | None) -> bytes:
        expected = self._expected
        if piece is None or piece.error:
            return event.raw
        if piece.final:
            return b"" if expected.hide_final else renamed(event.raw, expected.rename)
        raw = without_usage(event) if expected.hide_running and b'"usage"' in event.data else event.raw
        return renamed(raw, expected.rename)


class AnswerMeter:
    """A JSON answer, in one buffered message or in pieces."""

    __slots__ = ("_body", "_ended", "_expected", "_piece", "_size")

    def __init__(self, expected: Expected) -> None:
        self._expected = expected
        self._body = bytearray()
        self._size = 0
        self._piece: Piece | None = None
        self._ended = False

    @property
    def started(self) -> bool:
        return self._size > 0

    @property
    def events(self) -> int:
        return 1 if self._size else 0

    @property
    def complete(self) -> bool:
        return self._ended

    def plain(self, chunk: bytes) -> bool:
        """Never: a JSON answer comes in few pieces, and its last one settles."""
        del chunk
        return False

    def observe(self, chunk: bytes) -> None:
        self.feed(chunk, end_of_stream=False)

    def feed(self, chunk: bytes, *, end_of_stream: bool) -> bytes:
        """Bytes are kept up to a limit; only a name is ever changed, and only in an answer that came whole."""
        whole = end_of_stream and not self._size
        self._size += len(chunk)
        if len(self._body) < ANSWER_BYTES_MAX:
            self._body += chunk
        if not end_of_stream:
            return chunk
        self._ended = True
        self._piece = self._expected.endpoint.read_answer(bytes(self._body))
        return renamed(chunk, self._expected.rename) if whole else chunk

    def usage(self, *, ended_early: bool) -> Usage:
        """The answer's own usage, else a count of its text, else of what arrived of it."""
        expected = self._expected
        if expected.trust_usage and self._piece is not None and self._piece.usage is not None:
            usage = usage_of(self._piece.usage, UsageSource.UPSTREAM, expected)
            if usage is not None:
                return usage
        texts = [text for _, text in self._piece.texts] if self._piece is not None else []
        if ended_early or not texts:
            texts = [_text_so_far(bytes(self._body))]
        if expected.counter is None:
            return counted(expected, sum(map(len, texts)) // 4, UsageSource.CHUNKS)
        return counted(expected, sum(map(expected.counter.count, texts)), UsageSource.COUNTED)

    def reason(self) -> EndReason | None:
        """As the answer says."""
        if self._piece is None:
            return None
        if self._piece.error:
            return EndReason.UPSTREAM_ERROR
        if self._piece.finish == "abort":
            return EndReason.ABORT
        return _REASONS.get(self._piece.finish, EndReason.STOP)


class OpaqueMeter:
    """An answer that cannot be read (a backend that compresses although nobody asked it to): the worst case, flagged."""

    __slots__ = ("_ended", "_expected", "events")

    def __init__(self, expected: Expected) -> None:
        self._expected = expected
        self._ended = False
        self.events = 0

    @property
    def started(self) -> bool:
        return self.events > 0

    @property
    def complete(self) -> bool:
        return self._ended

    def plain(self, chunk: bytes) -> bool:
        """Everything is."""
        del chunk
        return True

    def observe(self, chunk: bytes) -> None:
        self.feed(chunk, end_of_stream=False)

    def feed(self, chunk: bytes, *, end_of_stream: bool) -> bytes:
        """Unchanged."""
        self.events += 1
        self._ended = end_of_stream
        return chunk

    def usage(self, *, ended_early: bool) -> Usage:
        """Everything that was held for."""
        del ended_early
        usage = counted(self._expected, self._expected.output_tokens_max, UsageSource.CHUNKS)
        return replace(usage, flags=(*usage.flags, "unreadable"))

    def reason(self) -> EndReason | None:
        """Nobody can tell."""
        return EndReason.STOP if self._ended else None


def counted(expected: Expected, output_tokens: int, source: UsageSource) -> Usage:
    """Our own figures, within what was held for."""
    flags = ("prompt_estimated",) if expected.prompt_estimated else ()
    return Usage(
        input_tokens=min(expected.prompt_tokens, expected.input_tokens_max),
        output_tokens=min(output_tokens, expected.output_tokens_max),
        source=source,
        flags=flags,
    )


def usage_of(raw: Any, source: UsageSource, expected: Expected) -> Usage | None:
    """OpenAI's usage object → a usage; ``None`` if it has no figures. 0 is a figure; what cannot be is clamped and flagged."""
    if not isinstance(raw, dict):
        return None
    flags: list[str] = []
    figure = _figures(flags)
    prompt = figure(raw, "prompt_tokens", expected.input_tokens_max)
    output = figure(raw, "completion_tokens", expected.output_tokens_max)
    if prompt is None:
        return None
    cached = figure(raw.get("prompt_tokens_details"), "cached_tokens", prompt) or 0
    reasoning = figure(raw.get("completion_tokens_details"), "reasoning_tokens", output or 0) or 0
    return Usage(
        input_tokens=prompt, cached_tokens=cached, output_tokens=output or 0, reasoning_tokens=reasoning, source=source, flags=tuple(flags)
    )


def _figures(flags: list[str]) -> Callable[[Any, str, int], int | None]:
    def figure(members: Any, name: str, most: int) -> int | None:
        value = members.get(name) if isinstance(members, dict) else None
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, int):
            flags.append(f"{name}_not_a_number")
            return None
        if not 0 <= value <= most:
            flags.append(f"{name}_impossible")
            return min(max(value, 0), most)
        return value

    return figure


def _summed(running: dict[int, Any]) -> Any:
    """Per-chunk usage counts each choice by itself (VLLM.md): prompt once, completions summed over choices."""
    usages = [usage for usage in running.values() if isinstance(usage, dict)]
    outputs = [usage.get("completion_tokens") for usage in usages]
    prompts = [usage.get("prompt_tokens") for usage in usages]
    return {
        "prompt_tokens": next((prompt for prompt in prompts if prompt is not None), None),
        "completion_tokens": sum(output for output in outputs if isinstance(output, int)),
    }


def without_usage(event: SseEvent) -> bytes:
    """The event without its top-level ``usage`` member, every other byte as it was; unchanged if that is not certain."""
    data = event.data
    start = data.rfind(b',"usage":')
    if start < 0 or not data.endswith(b"}") or event.raw.count(b"data:") != 1:
        return event.raw
    try:
        msgspec.json.decode(data[start + 9 : -1])
        msgspec.json.decode(data[:start] + b"}")
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return event.raw
    return event.raw.replace(data, data[:start] + b"}", 1)


def renamed(raw: bytes, rename: tuple[bytes, bytes] | None) -> bytes:
    """The model's name as the client asked for it. A quoted key cannot stand unescaped inside a JSON string, so bytes are enough."""
    if rename is None:
        return raw
    served, asked = rename
    for gap in (b"", b" "):
        raw = raw.replace(b'"model":' + gap + served, b'"model":' + gap + asked, 1)
    return raw


_TEXT_MEMBER = re.compile(rb'"(?:content|text|reasoning_content|arguments)":\s*"((?:[^"\\]|\\.)*)')


def _text_so_far(body: bytes) -> str:
    """The generated text in as much of a JSON answer as arrived."""
    pieces = [match.group(1) for match in _TEXT_MEMBER.finditer(body)]
    return b"".join(pieces).decode("utf-8", "ignore").replace("\\n", "\n").replace('\\"', '"')
