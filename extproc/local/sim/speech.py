"""What the engine says in answer to one request: for each choice a sequence of pieces, and what they belong to."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum
from itertools import repeat

from extproc.local.sim.ask import Ask
from extproc.local.sim.steering import Steering
from extproc.local.sim.text import Piece, Text


class Kind(Enum):
    """Of an item."""

    TEXT = "text"
    REASONING = "reasoning"
    CALL = "call"


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Item:
    """What pieces belong to: all of a choice's text, all of its reasoning, or one call of a function."""

    kind: Kind
    number: int = 0
    """Of a call, among those of its choice."""
    name: str = ""


TEXT = Item(kind=Kind.TEXT)
REASONING = Item(kind=Kind.REASONING)

Said = tuple[Item | None, bytes, int]
"""The item (``None``: tokens that show nothing), JSON-escaped text, and its number of tokens."""

CALL_HEAD_TOKENS = 5
"""<tool_call>, the name and what is around it: swallowed by the parser, which shows the name when the arguments begin."""

CALL_TAIL_TOKENS = 1
"""</tool_call>"""

CALL_TOKENS = CALL_HEAD_TOKENS + 2 + CALL_TAIL_TOKENS
"""A call with empty arguments: what opens and what closes them is one token each."""

ARGUMENTS_OPEN, ARGUMENTS_CLOSE = b'{\\"text\\": \\"', b'\\"}'
"""Escaped as a string within JSON; the text between them is escaped twice."""


def speech(ask: Ask, steering: Steering, text: Text, choice: int, *, interval: int) -> Iterator[Said]:
    """All that one choice says; the same arguments give the same text."""
    said = _calls(ask, steering, text, choice) if ask.calls else _text(ask, steering, text, choice)
    if ask.echoes:
        said = _echoed(said, ask.echoes[choice // ask.n])
    return said if interval == 1 else _grouped(said, interval)


def _text(ask: Ask, steering: Steering, text: Text, choice: int) -> Iterator[Said]:
    pieces = text.pieces(steering.language, choice, ask.tokens)
    if ask.is_silent:
        yield from _hidden(ask.tokens)
        return
    if steering.reasoning:
        yield from _reasoning(ask, pieces, steering.reasoning)
    item = TEXT
    for piece, tokens in pieces:
        yield item, piece, tokens


def _reasoning(ask: Ask, pieces: Iterator[Piece], most: int) -> Iterator[Said]:
    """The first pieces, until ``most`` tokens are said. Hidden if the client does not want them; they are made all the same."""
    item = REASONING if ask.include_reasoning else None
    made = 0
    while made < most and (piece := next(pieces, None)) is not None:
        made += piece[1]
        yield item, piece[0] if item else b"", piece[1]


def _calls(ask: Ask, steering: Steering, text: Text, choice: int) -> Iterator[Said]:
    """Calls of functions after the reasoning. The last one stays open if the answer is cut."""
    thought = min(steering.reasoning, max(0, ask.tokens - CALL_TOKENS * len(ask.calls)))
    yield from _reasoning(ask, text.pieces(steering.language, choice, thought), thought)
    share, rest = divmod(ask.tokens - thought, len(ask.calls))
    for number, name in enumerate(ask.calls):
        last = number == len(ask.calls) - 1
        item = Item(kind=Kind.CALL, number=number, name=name)
        closed = share >= CALL_TOKENS and not (last and ask.finish_reason == "length")
        yield from _call(item, share + rest * last, text, steering.language, closed=closed)


def _call(item: Item, tokens: int, text: Text, language: str, *, closed: bool) -> Iterator[Said]:
    yield from _hidden(min(tokens, CALL_HEAD_TOKENS))
    if tokens <= CALL_HEAD_TOKENS:
        return
    yield item, ARGUMENTS_OPEN, 1
    left = tokens - CALL_HEAD_TOKENS - 1
    for piece, count in text.pieces(language, item.number, left - 1 - CALL_TAIL_TOKENS if closed else left):
        yield item, piece.replace(b"\\", b"\\\\").replace(b'"', b'\\"'), count
    if closed:
        yield item, ARGUMENTS_CLOSE, 1
        yield from _hidden(CALL_TAIL_TOKENS)


def _hidden(tokens: int) -> Iterator[Said]:
    return repeat((None, b"", 1), tokens)


def _echoed(said: Iterator[Said], echo: bytes) -> Iterator[Said]:
    """The prompt comes with the first token."""
    first = next(said, None)
    if first is not None:
        yield TEXT, echo + first[1], first[2]
    yield from said


def _grouped(said: Iterator[Said], interval: int) -> Iterator[Said]:
    """The stream interval of vLLM: the first token by itself, then so many an event. What belongs to two items is never joined."""
    size, count = 1, 0
    item: Item | None = None
    texts: list[bytes] = []
    tokens = 0
    for one, text, made in said:
        if count and (one is not item or count == size):
            yield item, b"".join(texts), tokens
            size, count, tokens = interval, 0, 0
            texts.clear()
        item = one
        texts.append(text)
        tokens += made
        count += 1
    if count:
        yield item, b"".join(texts), tokens
