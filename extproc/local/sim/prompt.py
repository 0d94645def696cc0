"""What a model reads: texts, token ids, and what is known by its number of tokens only (images, sound, a template's own tokens)."""

from __future__ import annotations

import json
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from extproc.local.sim.text import Text
from extproc.local.sim.tools import SCRIPTS, Call, Script, Turn, pieces

TOOLS_PREAMBLE_TOKENS = 130
"""Of a template that is not known around the list of tools, about."""


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
    calls: tuple[Call, ...] = ()
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


def prompt_of_chat(messages: Sequence[Message], functions: Sequence[Mapping[str, Any]], text: Text) -> Prompt:
    """As the chat template writes it. ``functions``: those that may be called."""
    template, script = text.template, SCRIPTS.get(text.chat_template)
    images = [image for message in messages for image in message.images]
    if script is not None and (functions or any(message.calls or message.role == "tool" for message in messages)):
        return prompt_of([*_played(messages, functions, script), *images], text, images=len(images))
    before = template.before
    if not messages or messages[0].role != "system":
        before += template.default_system
    parts: list[Part] = [_frame("beginning", before)]
    if functions:
        parts += [_frame("tools", TOOLS_PREAMBLE_TOKENS), json.dumps(functions, ensure_ascii=False)]
    for message in messages:
        parts += [_frame(message.role, template.around(message.role)), message.text, *message.images]
        parts += [json.dumps(call._asdict(), ensure_ascii=False) for call in message.calls]
    parts.append(_frame("answer", template.after))
    return prompt_of(parts, text, images=len(images))


def _played(messages: Sequence[Message], functions: Sequence[Mapping[str, Any]], script: Script) -> list[Part]:
    turns = [Turn(message.role, message.text, message.calls) for message in messages]
    return [_frame(piece, 1) if piece in script.tags else piece for piece in pieces(turns, functions, script)]
