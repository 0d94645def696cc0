"""Exact token counts with bounded work: of a stream piece by piece, and of a text of any size.

A byte-pair encoder first cuts its text into pre-tokens, and merges inside each. Two texts can be counted apart, and the sum is
the count of both together, if

- no pre-token spans the cut, and the pre-tokens left of it stay what they are when the right side is missing; and
- for a normalising model, what stands right of the cut cannot combine with what stands left of it.

:data:`_LAST_CUT` names pairs of neighbours of which both are certain, whatever surrounds them. Only characters whose class every
version of Unicode agrees on are in it; any other neighbours are simply not cut between.

**Text without any such place** (a megabyte of ``aaaa``, digits, CJK without punctuation, blanks, combining marks) must be cut as
well: the work would grow with the square of its length, and above some 10⁵ blanks the encoder's regular expression overflows its
stack and panics. There the cut is made between two *tokens* of a window, in its first half, so that at least half a window stands
right of it. That is exact whenever the merges left of the cut do not depend on text more than half a window away.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from typing import Protocol

TAIL_CHARS_MAX = 256
"""An open tail longer than this is cut: ``total()`` encodes the tail (8 µs for 256 characters)."""

TAIL_WINDOW = 512
"""A tail without a safe cut is forced open at this length. Four times the longest token of any vocabulary here (128 bytes)."""

TAIL_GROWTH = 128
"""How much a tail that could not be cut must grow before the next attempt, so that attempts are paid for by text."""

COUNT_WINDOW = 4096
"""Texts are encoded in windows of this many characters: large enough for the call to cost nothing, small enough for the stack."""

NFC_WINDOW = 256
"""Normalising sorts marks in quadratic time and holds the interpreter lock; streams that are safe to exchange have at most 30 in a row."""

_NUMBERS_TOGETHER = 3  # o200k, cl100k and DeepSeek cut long numbers by threes, Qwen by ones
_TOKEN_CUTS_MAX = 16  # places between tokens among which a good one is looked for

# Signs, neither letter nor number nor white space for any pre-tokenizer, and still so when a mark combines with them (< and U+0338).
# Without the apostrophe: o200k takes "don't" as one.
_SIGNS = (
    r"!-&(-/:-@\[-`{-~\u00a1-\u00a9\u00ab-\u00b1\u00b4\u00b6-\u00b8\u00bb\u00bf\u060c\u061b\u061f\u0964\u0965"
    r"\u2010-\u2027\u2030-\u205e\u2190-\u23ff\u2500-\u2775\u2794-\u2bff\u3001-\u3003\u3008-\u3020"
    r"\uff01-\uff0f\uff1a-\uff20\uff3b-\uff40\uff5b-\uff65\U0001f300-\U0001faff"
)
_LETTERS = r"A-Za-z\u0400-\u0481\u0620-\u064a\u3041-\u3096\u30a1-\u30fa\u4e00-\u9fff\uac00-\ud7a3"

# Characters that begin something new for NFC: they never combine with what stands before them, nor sort before it.
_STARTERS = (
    r"\u0000-\u02ff\u0370-\u0482\u048a-\u0590\u05d0-\u05ea\u0620-\u064a\u0904-\u0939\u0e01-\u0e30\u0e3f-\u0e46\u1100-\u1112\u1e00-\u1fff"
    r"\u2000-\u20cf\u2100-\u2bff\u3000-\u3029\u3030-\u3096\u309b-\u31ff\u3400-\u9fff\uac00-\ud7a3\uff01-\uff60\U0001f000-\U0001faff"
)

_LAST_CUT = re.compile(
    r".+(?:"
    rf"(?<=[^\W_])(?=[{_SIGNS}\s])"  # a letter or number, then a sign or white space
    r"|(?<=\S)(?=[ \t\u3000])"  # anything visible, then a blank: signs take newlines with them, never blanks
    rf"|(?<=[\r\n])(?=[{_LETTERS}0-9!-.:-@\[-`{{-~])"  # a newline, then something visible (o200k: signs take / after newlines)
    rf"|(?<=[{_LETTERS}])(?=[0-9])|(?<=[0-9])(?=[{_LETTERS}])"
    r")",
    re.DOTALL,
)
_STARTER = re.compile(f"[{_STARTERS}]")
_NFC_WINDOWS = re.compile(rf".{{1,{NFC_WINDOW}}}(?=[{_STARTERS}]|\Z)|.{{1,{NFC_WINDOW}}}", re.DOTALL)


class Encoder(Protocol):
    """What is used of :class:`tiktoken.Encoding`."""

    def encode_ordinary(self, text: str) -> list[int]:
        """Tokens of a text in which nothing is special."""

    def decode_tokens_bytes(self, tokens: Sequence[int]) -> list[bytes]:
        """The bytes of each token."""


class Codec:
    """An encoder with its normaliser. Stateless: shared by every stream and thread (encoding releases the interpreter lock)."""

    __slots__ = ("_bytes_of", "_encode", "nfc")

    def __init__(self, encoder: Encoder, *, nfc: bool) -> None:
        self._encode = encoder.encode_ordinary
        self._bytes_of = encoder.decode_tokens_bytes
        self.nfc = nfc

    def count(self, text: str) -> int:
        """Tokens of a text; linear in its length."""
        return self.count_normal(self.normal(text))

    def count_normal(self, text: str) -> int:
        """The same for a text that is normal already."""
        if len(text) <= COUNT_WINDOW:
            return len(self._encode(text))
        tokens, rest = self.absorb(text, COUNT_WINDOW)
        return tokens + len(self._encode(rest))

    def normal(self, text: str) -> str:
        """The text as the model's normaliser leaves it, window by window."""
        if not self.nfc or text.isascii():
            return text
        if len(text) <= NFC_WINDOW:
            return unicodedata.normalize("NFC", text)
        return "".join(unicodedata.normalize("NFC", window) for window in _NFC_WINDOWS.findall(text))

    def absorb(self, text: str, window: int) -> tuple[int, str]:
        """Count the front of a normal text, for good; the rest, at most ``window`` characters, is left to be counted."""
        tokens = at = 0
        while len(text) - at > window:
            piece = text[at : at + window]
            counted, cut = self.head(piece) or self._forced(piece)
            assert 0 < cut < window
            tokens += counted
            at += cut
        return tokens, text[at:]

    def head(self, text: str) -> tuple[int, int] | None:
        """Tokens before the last safe cut of a normal text, and where that is; ``None``: there is none."""
        found = _LAST_CUT.match(text)
        if found is None:
            return None
        return len(self._encode(text[: found.end()])), found.end()

    def _forced(self, piece: str) -> tuple[int, int]:
        """Tokens of the first half of a text without a safe cut, and where it ends: between two tokens, if that can be."""
        cuts = self._token_cuts(piece)
        for is_good in (self._is_smooth, self._is_fresh):
            for tokens, cut in cuts:
                if is_good(piece, cut):
                    return tokens, cut
        if cuts:
            return cuts[0]
        half = len(piece) // 2
        return len(self._encode(piece[:half])), half

    def _token_cuts(self, piece: str) -> list[tuple[int, int]]:
        """Some places between tokens, from the middle down: tokens before, characters before."""
        parts = self._bytes_of(self._encode(piece))
        middle = len(parts) // 2
        cuts = []
        for at in range(middle, max(middle - _TOKEN_CUTS_MAX, 0), -1):
            front = b"".join(parts[:at]).decode("utf-8", "replace")
            # inside a character, or behind a lone surrogate (which the encoder replaces), the front is another text
            if 0 < len(front) < len(piece) - 1 and piece.startswith(front):
                cuts.append((at, len(front)))
        return cuts

    def _is_smooth(self, piece: str, cut: int) -> bool:
        """The neighbours are of one kind: a single sign on the right would join the letters behind it, its pre-token would not.

        Among numbers the cut is between two groups of digits.
        """
        before, here, after = map(_kind, piece[cut - 1 : cut + 2])
        if not before == here == after or not self._is_fresh(piece, cut):
            return False
        return here != "number" or _numbers_before(piece, cut) % _NUMBERS_TOGETHER == 0

    def _is_fresh(self, piece: str, cut: int) -> bool:
        """The right one starts afresh for the normaliser."""
        return not self.nfc or _STARTER.match(piece, cut) is not None


def _numbers_before(piece: str, cut: int) -> int:
    """How many numbers stand in a row left of a cut; a window starts where a pre-token does."""
    start = cut
    while start and piece[start - 1].isnumeric():
        start -= 1
    return cut - start


def _kind(character: str) -> str:
    if character.isalpha():
        return "letter"
    if character.isnumeric():
        return "number"
    return "blank" if character.isspace() else "sign"


class RunningCount:
    """A text that arrives in pieces: what lies before the last safe cut is counted for good, only the tail is kept."""

    __slots__ = ("_codec", "_limit", "_tail", "_tail_tokens", "_tokens")

    def __init__(self, codec: Codec) -> None:
        self._codec = codec
        self._tokens = 0
        self._tail = ""
        self._tail_tokens = 0  # -1: not counted since it grew
        self._limit = TAIL_CHARS_MAX

    def feed(self, text: str) -> None:
        """The next piece."""
        tail = self._tail = self._tail + text
        self._tail_tokens = -1
        if len(tail) > self._limit:
            self._shorten()

    def total(self) -> int:
        """Tokens so far; encodes the tail, if it has grown."""
        if self._tail_tokens < 0:
            self._tail_tokens = self._codec.count(self._tail)
        return self._tokens + self._tail_tokens

    def _shorten(self) -> None:
        codec = self._codec
        tail = codec.normal(self._tail)
        for window in (COUNT_WINDOW, TAIL_WINDOW):  # a large piece in large steps, then down to a small tail
            counted, tail = codec.absorb(tail, window)
            self._tokens += counted
        head = codec.head(tail)
        if head is not None:
            self._tokens += head[0]
            tail = tail[head[1] :]
        self._tail = tail
        self._limit = max(TAIL_CHARS_MAX, len(tail) + TAIL_GROWTH)
