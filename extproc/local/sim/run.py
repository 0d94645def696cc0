"""One answer as it is generated: the sequence of its events, and the bytes in which they are written."""

from __future__ import annotations

from collections.abc import Iterator
from enum import Enum
from itertools import islice, repeat, zip_longest

from extproc.local.sim.ask import Ask
from extproc.local.sim.faults import Faults
from extproc.local.sim.http import END_OF_CHUNKS, chunk
from extproc.local.sim.shape import Shape
from extproc.local.sim.speech import Item, Said, speech
from extproc.local.sim.steering import Steering
from extproc.local.sim.text import Text
from extproc.local.sim.usage import Spent, usage_json

ENGINE_DEAD_MESSAGE = "EngineCore encountered an issue. See stack trace (above) for the root cause."

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

    def __init__(self, ask: Ask, shape: Shape, text: Text, steering: Steering, *, cached: int | None) -> None:
        self.ask = ask
        self.shape = shape
        self.steering = steering
        self.cached = cached if steering.cached_tokens is None else steering.cached_tokens
        self.aborting = False
        self.finish_reason: str | None = None
        self.usage_sent: bytes | None = None
        self._text = text
        self._made = [0] * ask.choices
        self._prompt_tokens = ask.prompt_tokens
        self._continuous = ask.continuous_usage and not steering.faults.no_usage

    @property
    def document_tokens(self) -> int:
        """Output tokens of a JSON answer, per choice."""
        aborted = self.faults.abort_after
        return self.ask.tokens if aborted is None else min(aborted, self.ask.tokens)

    @property
    def reasoning_tokens(self) -> int:
        """Of all that was made so far."""
        most = self.steering.reasoning
        return sum(min(most, made) for made in self._made) if most else 0

    @property
    def faults(self) -> Faults:
        return self.steering.faults

    def steps(self) -> Iterator[Step]:
        """The streamed answer, write by write."""
        reshaped = _reshaped if self.faults.reshapes else _plain
        return reshaped(self._events(), self.shape.end, self.faults)

    def document(self) -> bytes:
        """The JSON answer."""
        ask, tokens = self.ask, self.document_tokens
        outputs = [_whole(speech(ask, self.steering, self._text, choice, interval=1), tokens) for choice in range(ask.choices)]
        self._made = [tokens] * ask.choices
        self.finish_reason = ask.finish_reason if self.faults.abort_after is None else "abort"
        return self.shape.document(outputs, self.finish_reason or "", None if self.faults.no_usage else self._usage_in_full())

    def _events(self) -> Iterator[Event]:
        ask, shape, faults = self.ask, self.shape, self.faults
        for choice in range(ask.choices):
            for event in shape.opening(choice, self._usage_of(choice)):
                yield event, 0
        cut, seen = self._cut(0), 0
        tokens = self._tokens()
        while cut is None and (made := next(tokens, None)) is not None:
            yield made
            if made[1]:
                seen += 1
                cut = self._cut(seen)
        if cut == ENGINE_DEATH:
            for event in shape.died(ENGINE_DEAD_MESSAGE):
                yield event, 0
            return
        reason = self.finish_reason = cut or ask.finish_reason or "stop"
        for choice in range(ask.choices):
            for event in shape.finish(choice, reason, self._usage_of(choice)):
                yield event, 0
        told = ask.include_usage and not faults.no_usage and not faults.no_final_usage
        for event in shape.final(reason, self._usage_in_full() if told else None):
            yield event, 0

    def _cut(self, seen: int) -> str | None:
        """Whether the answer ends early, after so many events with output."""
        if self.aborting or seen == self.faults.abort_after:
            return "abort"
        return ENGINE_DEATH if seen == self.faults.engine_death_after else None

    def _tokens(self) -> Iterator[Event]:
        """The events with output; choices take turns, as in an engine's batch."""
        ask, said, made = self.ask, self.shape.said, self._made
        items: list[Item | None] = [None] * ask.choices
        speeches = [speech(ask, self.steering, self._text, choice, interval=ask.stream_interval) for choice in range(ask.choices)]
        usage = b""
        for choice, (item, text, tokens) in _turns(speeches):
            made[choice] += tokens
            if item is None:
                yield b"", tokens
                continue
            if item is not items[choice]:
                items[choice] = item
                for event in self.shape.begin(choice, item, self._usage_of(choice)):
                    yield event, 0
            if self._continuous:
                usage = self._usage_of(choice)
            yield said(choice, item, text, usage), tokens

    def _usage_of(self, choice: int) -> bytes:
        """For an event: vLLM counts each choice by itself there."""
        if not self._continuous:
            return b""
        prompt = self._prompt_tokens[choice // self.ask.n]
        return b',"usage":%b' % usage_json(prompt, self._made[choice], wrong=self.faults.wrong_usage)

    def _usage_in_full(self) -> bytes | None:
        spent = Spent(
            prompt=sum(self._prompt_tokens),
            completion=sum(self._made),
            cached=self.cached,
            created=self.steering.cache_creation_tokens,
            reasoning=self.reasoning_tokens,
            reasoning_told=self.steering.reasoning_told,
            seconds=self.ask.seconds,
        )
        self.usage_sent = self.shape.usage(spent, self.faults.wrong_usage)
        return self.usage_sent


def _turns(speeches: list[Iterator[Said]]) -> Iterator[tuple[int, Said]]:
    """(choice, piece), one of each choice at a time."""
    if len(speeches) == 1:
        return zip(repeat(0), speeches[0])
    return ((choice, piece) for turn in zip_longest(*speeches) for choice, piece in enumerate(turn) if piece is not None)


def _whole(said: Iterator[Said], tokens: int) -> list[tuple[Item, bytes]]:
    """The items of a choice that says no more than so many tokens."""
    parts: dict[Item, list[bytes]] = {}
    left = tokens
    for item, text, count in said:
        if count > left:
            break
        left -= count
        if item is not None:
            parts.setdefault(item, []).append(text)
    return [(item, b"".join(texts)) for item, texts in parts.items()]


def _plain(events: Iterator[Event], end: bytes, faults: Faults) -> Iterator[Step]:
    """Every event in a chunk of its own."""
    for step in _interrupted(events, faults):
        yield step if isinstance(step, Order) else (chunk(step[0]) if step[0] else b"", step[1])
    yield from _end(end, faults)


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


def _reshaped(events: Iterator[Event], end: bytes, faults: Faults) -> Iterator[Step]:
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
    yield from _end(end, faults)


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


def _end(end: bytes, faults: Faults) -> Iterator[Step]:
    if end and not faults.no_done:
        yield chunk(end.replace(b"\n", b"\r\n") if faults.crlf else end), 0
    if faults.late_eos_ms is not None:
        yield Order.LATE_END
    yield END_OF_CHUNKS, 0
