"""How the answers of an endpoint are written; one implementation per endpoint (``chat``, ``completions``).

An event is put together as head + piece + tail, so that a token costs one formatting of bytes. Heads and tails end without the object's
closing brace, because usage may follow.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol


class Shape(Protocol):
    """The texts around the pieces of one answer."""

    piece_tail: bytes

    def opening(self, choice: int) -> bytes | None:
        """The event before the first token of a choice, if there is one."""

    def piece_head(self, choice: int, *, reasoning: bool) -> bytes:
        """All of an event that comes before its text."""

    def finish(self, choice: int, reason: str) -> bytes:
        """The event that says why a choice ended."""

    def final(self) -> bytes:
        """The event that carries nothing but usage."""

    def document(self, texts: Sequence[bytes], reasonings: Sequence[bytes], reason: str, usage: bytes | None) -> bytes:
        """The whole JSON answer. Texts are JSON-escaped, one per choice."""
