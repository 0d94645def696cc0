"""What a model reads: texts, token ids, and what is known by its number of tokens only (images, sound, a template's own tokens)."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from functools import lru_cache

from extproc.local.sim.text import Text

TOOLS_PREAMBLE_TOKENS = 130
"""Of Qwen's template around the list of tools, about."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Filler:
    """Tokens without a text; equal ``what``, equal tokens."""

    what: Hashable
    tokens: int


Part = str | tuple[int, ...] | Filler


@dataclass(frozen=True, slots=True, kw_only=True)
class Prompt:
    """One prompt, in the order in which the model reads it."""

    parts: tuple[Part, ...]
    tokens: int
    images: int = 0

    def units(self, text: Text) -> list[Hashable]:
        """One per token, equal where the tokens are: what a prefix cache compares."""
        units: list[Hashable] = []
        for part in self.parts:
            match part:
                case str():
                    units.extend(text.units(part))
                case tuple():
                    units.extend(part)
                case Filler(what=what, tokens=tokens):
                    units.extend((what, number) for number in range(tokens))
        return units


@dataclass(frozen=True, slots=True, kw_only=True)
class Message:
    """Of a conversation, whatever the endpoint calls it."""

    role: str
    text: str
    images: tuple[Filler, ...] = ()


def prompt_of(parts: Sequence[Part], text: Text, *, images: int = 0) -> Prompt:
    """Of parts that stand side by side. (No tokenizer's word crosses from one into the next: a template's tokens are between them.)"""
    tokens = 0
    for part in parts:
        match part:
            case str():
                tokens += text.count(part)
            case tuple():
                tokens += len(part)
            case Filler():
                tokens += part.tokens
    return Prompt(parts=tuple(parts), tokens=tokens, images=images)


@lru_cache(maxsize=1_024)
def _frame(what: str, tokens: int) -> Filler:
    return Filler(what=what, tokens=tokens)


def prompt_of_chat(messages: Sequence[Message], tools: str, text: Text) -> Prompt:
    """As the chat template writes it. ``tools``: the list that it prints, in JSON; empty for none."""
    template = text.template
    before = template.before
    if not messages or messages[0].role != "system":
        before += template.default_system
    parts: list[Part] = [_frame("beginning", before)]
    if tools:
        parts += [_frame("tools", TOOLS_PREAMBLE_TOKENS), tools]
    for message in messages:
        parts += [_frame(message.role, template.around(message.role)), message.text, *message.images]
    parts.append(_frame("answer", template.after))
    return prompt_of(parts, text, images=sum(len(message.images) for message in messages))
