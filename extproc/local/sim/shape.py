"""How the answers of an endpoint are written; one implementation per endpoint.

Texts are JSON-escaped UTF-8 without quotes. ``usage`` in events is empty, or ``,"usage":{…}`` of one choice so far.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Protocol

from extproc.local.sim.ask import Ask
from extproc.local.sim.speech import Item
from extproc.local.sim.usage import Spent

DONE = b"data: [DONE]\n\n"

Output = Sequence[tuple[Item, bytes]]
"""The items of one choice, whole."""


class Shape(Protocol):
    """The words around what one request's choices say."""

    end: bytes
    """After the last event; may be empty."""

    def opening(self, choice: int, usage: bytes) -> Iterable[bytes]:
        """Events before the first token of a choice."""

    def begin(self, choice: int, item: Item, usage: bytes) -> Iterable[bytes]:
        """Events before the first piece of an item."""

    def said(self, choice: int, item: Item, text: bytes, usage: bytes) -> bytes:
        """The event of a piece."""

    def finish(self, choice: int, reason: str, usage: bytes) -> Iterable[bytes]:
        """Events that say why a choice ended."""

    def final(self, reason: str, usage: bytes | None) -> Iterable[bytes]:
        """Events after the last choice. ``usage``: the whole object, where it is told."""

    def died(self, message: str) -> Iterable[bytes]:
        """Events that say that the engine is dead."""

    def document(self, outputs: Sequence[Output], reason: str, usage: bytes | None) -> bytes:
        """The whole JSON answer."""

    def usage(self, spent: Spent, wrong: str | None) -> bytes | None:
        """The usage object; ``None``: this answer has none."""


class DocumentShape:
    """Of an answer that is never streamed and, unless it says otherwise, has no usage."""

    end = b""

    def opening(self, choice: int, usage: bytes) -> Iterable[bytes]:  # noqa: ARG002 - the protocol's
        return ()

    def begin(self, choice: int, item: Item, usage: bytes) -> Iterable[bytes]:  # noqa: ARG002 - the protocol's
        return ()

    def said(self, choice: int, item: Item, text: bytes, usage: bytes) -> bytes:  # noqa: ARG002 - the protocol's
        return b""

    def finish(self, choice: int, reason: str, usage: bytes) -> Iterable[bytes]:  # noqa: ARG002 - the protocol's
        return ()

    def final(self, reason: str, usage: bytes | None) -> Iterable[bytes]:  # noqa: ARG002 - the protocol's
        return ()

    def died(self, message: str) -> Iterable[bytes]:  # noqa: ARG002 - the protocol's
        return ()

    def usage(self, spent: Spent, wrong: str | None) -> bytes | None:  # noqa: ARG002 - the protocol's
        return None


Shaper = Callable[[str, int, bytes, Ask], Shape]
"""Request id, time in seconds, the model's name in JSON, and what was asked for → the shape of its answer."""


def texts_of(output: Output, item: Item) -> bytes:
    """All that was said of an item."""
    return b"".join(text for one, text in output if one is item)
