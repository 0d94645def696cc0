"""What the rest of the house knows of tokenizers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol


class Running(Protocol):
    """Counts a text that arrives in pieces; work per piece does not grow with the text.

    One per choice (streams of different choices must not be joined: a token never spans them).
    """

    def feed(self, text: str) -> None:
        """The next piece. Pieces may split words and grapheme clusters, never code points."""

    def total(self) -> int:
        """Tokens of everything fed so far, exact: equal to ``Counter.count`` of the whole text. May be called at any time."""


class Counter(Protocol):
    """A tokenizer with the model's chat template, as far as counting goes."""

    name: str

    def count(self, text: str) -> int:
        """Tokens of a plain text (no special tokens are recognised in it)."""

    def count_chat(self, messages: Sequence[tuple[str, str]]) -> int:
        """Prompt tokens of (role, content) messages, template overhead included."""

    def bound_chat(self, content_bytes: int, messages: int) -> int:
        """An upper bound of :meth:`count_chat` from sizes alone: bytes of all contents and number of messages."""

    def bound(self, content_bytes: int) -> int:
        """An upper bound of :meth:`count` from the UTF-8 length alone (byte-level BPE: a token is at least a byte; NFC: × 3)."""

    def running(self) -> Running:
        """A fresh running count."""


class Counters(Protocol):
    """All tokenizers that the catalog names, loaded at start."""

    def get(self, tokenizer: str, chat_template: str) -> Counter | None:
        """``None``: no local vocabulary of that name (``tokenizer: upstream``)."""
