"""Server-sent events, metered: usage, text and end; and what the client gets to see of them."""

from __future__ import annotations

from typing import Any

import msgspec

from extproc.exchange.ask import Piece
from extproc.exchange.meter import REASONS, Expected, counted, renamed, usage_of
from extproc.exchange.sse import SseDecoder, SseEvent
from extproc.money.hold import EndReason
from extproc.money.usage import Usage, UsageSource
from extproc.tokens.counter import Running

_DONE = b"[DONE]"


class StreamMeter:
    """Server-sent events. Memory: one running count a choice, one unfinished event."""

    __slots__ = ("_done", "_error", "_expected", "_final", "_finish", "_running", "_sse", "_texts", "_tokens", "events")

    def __init__(self, expected: Expected) -> None:
        self._expected = expected
        self._sse = SseDecoder()
        self._texts: dict[int, Running] = {}
        self._tokens: dict[int, int] = {}  # of each choice, by its log-probabilities
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
            usage = usage_of(_summed(self._running, expected), UsageSource.CONTINUOUS, expected)
            if usage is not None:
                return usage
        if expected.counter is None:
            return counted(expected, max(self.events, sum(self._tokens.values())), UsageSource.CHUNKS)
        texts = {index: text.total() for index, text in self._texts.items()}
        output = sum(max(texts.get(index, 0), self._tokens.get(index, 0)) for index in texts.keys() | self._tokens.keys())
        return counted(expected, output, UsageSource.COUNTED)

    def reason(self) -> EndReason | None:
        """An error event or ``abort`` wins over what else was said; ``[DONE]`` alone is no success (VLLM.md)."""
        if self._error:
            return EndReason.UPSTREAM_ERROR
        if self._finish == "abort":
            return EndReason.ABORT
        if self._finish:
            return REASONS.get(self._finish, EndReason.STOP)
        return EndReason.UPSTREAM_ERROR if self._done else None

    def _look(self, event: SseEvent) -> Piece | None:
        data = event.data
        if not data:
            return None
        if data.strip() == _DONE:
            self._done = True
            return None
        piece = self._expected.endpoint.read_event(data)
        if piece.texts or piece.tokens:
            self.events += 1
            self._count(piece)
        if piece.usage is not None and self._expected.trust_usage:
            self._remember(piece)
        if piece.finish:
            self._finish = piece.finish
        self._error = self._error or piece.error
        return piece

    def _count(self, piece: Piece) -> None:
        for index, tokens in piece.tokens:
            if index in self._tokens or len(self._tokens) < self._expected.choices:
                self._tokens[index] = self._tokens.get(index, 0) + tokens
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
        if piece.index in self._running or len(self._running) < self._expected.choices:
            self._running[piece.index] = piece.usage

    def _edit(self, event: SseEvent, piece: Piece | None) -> bytes:
        expected = self._expected
        if piece is None or piece.error:
            return event.raw
        if piece.final:
            return b"" if expected.hide_final else renamed(event.raw, expected.rename)
        raw = without_usage(event) if expected.hide_running and b'"usage"' in event.data else event.raw
        return renamed(raw, expected.rename)


def _summed(running: dict[int, Any], expected: Expected) -> Any:
    """Per-chunk usage counts each choice, and each prompt, by itself (VLLM.md): completions are summed over choices, prompts once each.

    vLLM numbers choices over all prompts: choice = prompt × n + i. Prompts that have not been heard of are in our own count.
    """
    each = max(1, expected.choices // expected.prompts)
    prompts: dict[int, int] = {}
    outputs = 0
    for index, usage in running.items():
        if not isinstance(usage, dict):
            continue
        prompt, output = usage.get("prompt_tokens"), usage.get("completion_tokens")
        if isinstance(prompt, int):
            prompts[index // each] = prompt
        outputs += output if isinstance(output, int) else 0
    if not prompts:
        return None
    read = sum(prompts.values())
    if len(prompts) < expected.prompts:
        read = max(read, expected.prompt_tokens)
    return {"prompt_tokens": read, "completion_tokens": outputs}


def without_usage(event: SseEvent) -> bytes:
    """The event without its top-level ``usage`` member, every other byte as it was; unchanged if that is not certain."""
    data = event.data
    start = data.rfind(b',"usage":')
    if start < 0 or not data.endswith(b"}") or not event.raw.startswith(b"data:") or b"\ndata:" in event.raw:
        return event.raw
    try:
        msgspec.json.decode(data[start + 9 : -1])
        msgspec.json.decode(data[:start] + b"}")
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return event.raw
    return event.raw.replace(data, data[:start] + b"}", 1)
