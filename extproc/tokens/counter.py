"""What the rest of the house knows of tokenizers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Protocol

ROLE_BYTES_MAX = 16
"""What :meth:`Counter.bound_chat` allows for a role; the longest that any template knows is ``developer``. No longer one is let in."""

NFC_GROWTH = 3
"""UTF-8 grows at most threefold under NFC (Unicode's FAQ on normalization; U+1D160 does)."""


class Call(NamedTuple):
    """Of a function. ``message``: the position of the assistant's message that makes it. ``arguments`` as they came: JSON, or an object."""

    message: int
    name: str
    arguments: Any


class Tools(NamedTuple):
    """What of a conversation a template prints beside its contents; without either, there are results of calls.

    ``functions``: those that may be called, as OpenAI describes them: name, description, parameters and what else there is.
    """

    functions: tuple[Mapping[str, Any], ...] = ()
    calls: tuple[Call, ...] = ()


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

    @property
    def prints_tools(self) -> bool:
        """Whether it is known how the template prints tools; else :meth:`count_chat` estimates them."""

    def count(self, text: str) -> int:
        """Tokens of a plain text (no special tokens are recognised in it)."""

    def count_chat(self, messages: Sequence[tuple[str, str]], tools: Tools | None = None) -> int:
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
