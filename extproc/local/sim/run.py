"""One answer as it is generated: the sequence of its events, and the bytes in which they are written."""

from __future__ import annotations

from collections.abc import Iterator
from enum import Enum
from itertools import islice, zip_longest

from extproc.local.sim.ask import Ask, error_json
from extproc.local.sim.faults import Faults
from extproc.local.sim.http import END_OF_CHUNKS, chunk
from extproc.local.sim.shape import Shape
from extproc.local.sim.steering import Steering
from extproc.local.sim.text import Piece, Text
from extproc.local.sim.usage import usage_json

DONE = b"data: [DONE]\n\n"

ENGINE_DEAD_MESSAGE = "EngineCore encountered an issue. See stack trace (above) for the root cause."

ENGINE_DEAD = b"data: %b\n\n" % error_json(500, ENGINE_DEAD_MESSAGE, kind="InternalServerError")

ENGINE_DEATH = "engine_death"

Event = tuple[bytes, int]
"""Bytes of one SSE event (may be empty: a token that shows nothing) and the tokens in it."""


class Order(Enum):
    """What is to happen instead of a write."""

    RESET = "reset"
    STALL = "stall"
    LATE_END = "late_end"


Step = Event | Order


class Run:
    """What one request makes the engine do. ``aborting`` may be set at any time: the answer ends as on SIGTERM."""

    def __init__(self, ask: Ask, shape: Shape, text: Text, steering: Steering, *, details: bool) -> None:
        self.ask = ask
        self.shape = shape
        self.steering = steering
        self.aborting = False
        self.finish_reason: str | None = None
        self.usage_sent: bytes | None = None
        self._text = text
        self._made = [0] * ask.choices
        self._cached = steering.cached_tokens if steering.cached_tokens is not None else (0 if details else None)

    @property
    def document_tokens(self) -> int:
        """Output tokens of a JSON answer, per choice."""
        aborted = self.faults.abort_after
        return self.ask.tokens if aborted is None else min(aborted, self.ask.tokens)

    @property
    def faults(self) -> Faults:
        return self.steering.faults

    def steps(self) -> Iterator[Step]:
        """The streamed answer, write by write."""
        return _reshaped(self._events(), self.faults) if self.faults.reshapes else _plain(self._events(), self.faults)

    def document(self) -> bytes:
        """The JSON answer."""
        ask, reasoning, tokens = self.ask, self.steering.reasoning, self.document_tokens
        texts, reasonings = [], []
        for choice in range(ask.choices):
            pieces = [piece for piece, _ in self._text.pieces(self.steering.language, choice, tokens)]
            reasonings.append(b"".join(pieces[:reasoning]) if ask.include_reasoning else b"")
            texts.append(b"".join(pieces[reasoning:]))
        self._made = [tokens] * ask.choices
        self.finish_reason = ask.finish_reason if self.faults.abort_after is None else "abort"
        usage = None if self.faults.no_usage else self._usage_in_full()
        return self.shape.document(texts, reasonings, self.finish_reason, usage)

    def _events(self) -> Iterator[Event]:
        ask, shape, faults = self.ask, self.shape, self.faults
        continuous = ask.continuous_usage and not faults.no_usage
        for choice in range(ask.choices):
            if (opening := shape.opening(choice)) is not None:
                yield self._closed(opening, choice if continuous else None), 0
        cut, seen = self._cut(0), 0
        tokens = self._tokens(continuous=continuous)
        while cut is None and (event := next(tokens, None)) is not None:
            yield event
            seen += 1
            cut = self._cut(seen)
        if cut == ENGINE_DEATH:
            yield ENGINE_DEAD, 0
            return
        reason = self.finish_reason = cut or ask.finish_reason
        for choice in range(ask.choices):
            yield self._closed(shape.finish(choice, reason), choice if continuous else None), 0
        if ask.include_usage and not faults.no_usage and not faults.no_final_usage:
            yield b'%b,"usage":%b}\n\n' % (shape.final(), self._usage_in_full()), 0

    def _cut(self, seen: int) -> str | None:
        """Whether the answer ends early, after so many events with output."""
        if self.aborting or seen == self.faults.abort_after:
            return "abort"
        return ENGINE_DEATH if seen == self.faults.engine_death_after else None

    def _tokens(self, *, continuous: bool) -> Iterator[Event]:
        """The events with output; choices take turns, as in an engine's batch."""
        ask, shape, made = self.ask, self.shape, self._made
        heads = [shape.piece_head(choice, reasoning=False) for choice in range(ask.choices)]
        tail = shape.piece_tail + b"}\n\n"
        reasoning = self.steering.reasoning
        runs = [_grouped(self._pieces(choice), ask.stream_interval, reasoning) for choice in range(ask.choices)]
        for turn in zip_longest(*runs):
            for choice, piece in enumerate(turn):
                if piece is None:
                    continue
                text, tokens = piece
                thinking = made[choice] < reasoning
                made[choice] += tokens
                if thinking and not ask.include_reasoning:
                    yield b"", tokens
                    continue
                head = shape.piece_head(choice, reasoning=True) if thinking else heads[choice]
                yield (self._closed(head + text + shape.piece_tail, choice) if continuous else b"%b%b%b" % (head, text, tail)), tokens

    def _pieces(self, choice: int) -> Iterator[Piece]:
        return self._text.pieces(self.steering.language, choice, self.ask.tokens)

    def _closed(self, event: bytes, choice: int | None) -> bytes:
        """With the closing brace, and before it the usage of one choice: vLLM counts each by itself."""
        if choice is None:
            return event + b"}\n\n"
        prompt = self.ask.prompt_tokens[choice // self.ask.n]
        return b'%b,"usage":%b}\n\n' % (event, usage_json(prompt, self._made[choice], wrong=self.faults.wrong_usage))

    def _usage_in_full(self) -> bytes:
        self.usage_sent = usage_json(sum(self.ask.prompt_tokens), sum(self._made), cached=self._cached, wrong=self.faults.wrong_usage)
        return self.usage_sent


def _grouped(pieces: Iterator[Piece], interval: int, reasoning: int) -> Iterator[Piece]:
    """The stream interval of vLLM: the first token by itself, then so many an event. Reasoning and content are never joined."""
    if interval == 1:
        return pieces
    return _in_groups(pieces, interval, reasoning)


def _in_groups(pieces: Iterator[Piece], interval: int, reasoning: int) -> Iterator[Piece]:
    made, size = 0, 1
    while group := list(islice(pieces, min(size, reasoning - made) if made < reasoning else size)):
        tokens = sum(count for _, count in group)
        yield b"".join(text for text, _ in group), tokens
        made += tokens
        size = interval


def _plain(events: Iterator[Event], faults: Faults) -> Iterator[Step]:
    """Every event in a chunk of its own."""
    for step in _interrupted(events, faults):
        yield step if isinstance(step, Order) else (chunk(step[0]) if step[0] else b"", step[1])
    yield from _end(faults)


def _interrupted(events: Iterator[Event], faults: Faults) -> Iterator[Step]:
    """Up to the event at which the connection breaks or falls silent; what follows is never reached."""
    if faults.reset_after is None and faults.stall_after is None:
        yield from events
        return
    seen = 0
    for event in events:
        if event[0] and event[1]:
            if seen == faults.reset_after:
                yield Order.RESET
            if seen == faults.stall_after:
                yield Order.STALL
            seen += 1
        yield event


def _reshaped(events: Iterator[Event], faults: Faults) -> Iterator[Step]:
    """Events edited, joined or torn."""
    edited = _edited(events, faults)
    for step in _interrupted(_joined(edited, faults.join) if faults.join else edited, faults):
        if isinstance(step, Order):
            yield step
            continue
        parts = _torn(step[0], faults)
        for part in parts[:-1]:
            yield chunk(part), 0
        yield chunk(parts[-1]) if parts[-1] else b"", step[1]
    yield from _end(faults)


def _edited(events: Iterator[Event], faults: Faults) -> Iterator[Event]:
    padding = faults.long_event
    for payload, tokens in events:
        text = payload
        if padding is not None and tokens and text:
            text = b'%b,"sim_padding":"%b"}\n\n' % (text.removesuffix(b"}\n\n"), b"x" * padding)
            padding = None
        if faults.comments:
            text = b": ping\n\n" + text
        yield (text.replace(b"\n", b"\r\n") if faults.crlf else text), tokens


def _joined(events: Iterator[Event], size: int) -> Iterator[Event]:
    while group := list(islice(events, size)):
        yield b"".join(payload for payload, _ in group), sum(tokens for _, tokens in group)


def _torn(payload: bytes, faults: Faults) -> list[bytes]:
    if faults.byte_by_byte:
        return [payload[at : at + 1] for at in range(len(payload))] or [b""]
    if not faults.split_utf8 or len(payload) < 2:
        return [payload]
    # The first byte of several has its two upper bits set; cutting behind it tears the character.
    at = next((index + 1 for index, byte in enumerate(payload) if byte >= 0xC0), len(payload) // 2)
    return [payload[:at], payload[at:]]


def _end(faults: Faults) -> Iterator[Step]:
    if not faults.no_done:
        yield chunk(DONE.replace(b"\n", b"\r\n") if faults.crlf else DONE), 0
    if faults.late_eos_ms is not None:
        yield Order.LATE_END
    yield END_OF_CHUNKS, 0
