"""A JSON answer, metered: in one buffered message, or in pieces."""

from __future__ import annotations

import json
import re
from typing import Any

from extproc.exchange.ask import Piece
from extproc.exchange.meter import REASONS, Expected, counted, renamed, unreadable, with_units
from extproc.money.hold import EndReason
from extproc.money.usage import TOKENS_MAX, Usage, UsageSource
from extproc.tokens.counter import Counter
from extproc.tokens.units import TextUnits

# An answer up to this size is parsed whole, on the loop (8 ms at most). Log-probabilities make larger ones; of these the end is read.
ANSWER_BYTES_MAX = 2 * 1_048_576
TAIL_BYTES = 65_536  # usage is the last or nearly the last member of an answer, and has a few hundred bytes
TEXT_BYTES_MAX = 262_144  # an answer that broke off is searched for text up to this size
COUNT_CHARS_MAX = 65_536  # and so much text is counted exactly; of more a share of each choice
CHARS_PER_TOKEN = 4


class AnswerMeter:
    """Keeps the beginning up to a limit, and the end; nothing is counted before there is a reason to.

    ``length_bytes``: as its header says, -1 = it does not. With the last of them a client has everything, whenever the end is told.
    """

    __slots__ = ("_body", "_ended", "_expected", "_held", "_length_bytes", "_piece", "_rename", "_size", "_tail")

    def __init__(self, expected: Expected, *, length_bytes: int = -1) -> None:
        self._expected = expected
        self._length_bytes = length_bytes
        self._body = bytearray()
        self._tail = b""
        self._size = 0
        self._piece: Piece | None = None
        self._ended = False
        self._rename = expected.rename  # None once that is done
        self._held = b""  # of an answer in pieces: what may be the beginning of the name

    @property
    def started(self) -> bool:
        """Something was delivered; of a whole answer, that it says anything of what a model says."""
        if not self._ended or self._piece is None:
            return self._size > 0
        return bool(self._piece.texts) or self._piece.usage is not None

    @property
    def events(self) -> int:
        return 1 if self._size else 0

    @property
    def complete(self) -> bool:
        return self._ended

    def feed(self, chunk: bytes, *, end_of_stream: bool) -> bytes:
        """Only a name is ever changed."""
        if self._ended:
            return chunk  # there is nothing behind the end
        room = max(0, ANSWER_BYTES_MAX - self._size)
        self._size += len(chunk)
        self._body += chunk[:room]
        if len(chunk) > room:
            self._tail = (self._tail + chunk[room:])[-TAIL_BYTES:]
        if end_of_stream or self._size == self._length_bytes:
            self._ended = True
            self._piece = self._read()
        return chunk if self._rename is None else self._renamed(self._held + chunk, self._rename)

    def _renamed(self, data: bytes, rename: tuple[bytes, bytes]) -> bytes:
        shown = renamed(data, rename)
        if shown != data:
            self._rename = None
        self._held = b"" if shown != data or self._ended else _beginning_of(rename[0], data)
        return shown.removesuffix(self._held)

    def priced(self, shown: bytes, cost_nanos: int) -> bytes:
        """Unchanged: a whole answer has its cost in a header."""
        del cost_nanos
        return shown

    def usage(self, *, ended_early: bool) -> Usage:
        """The answer's own usage, else a count of its text, or of what arrived of it; too large to be read: what was held."""
        expected = self._expected
        usage = self._said()
        if usage is None and self._size > (TEXT_BYTES_MAX if ended_early else ANSWER_BYTES_MAX):
            # Only a client that wants it so takes most of a large answer and leaves before its end.
            return unreadable(expected)
        whole = max(self._size, self._length_bytes) if ended_early else self._size
        if usage is None:
            usage = self._counted(whole)
        return with_units(usage, expected, *self._units(whole)) if expected.needs_text else with_units(usage, expected, 0, 0)

    def _told(self) -> Any:
        """The answer's usage object, if it is to be trusted."""
        return self._piece.usage if self._piece is not None and self._expected.trust_usage else None

    def _said(self) -> Usage | None:
        told = self._told()
        return None if told is None else self._expected.endpoint.usage(told, UsageSource.UPSTREAM, self._expected)

    def _texts(self) -> list[tuple[int, str]]:
        """(choice, text), without what it repeats of its prompt."""
        if self._piece is not None and self._piece.texts:
            texts = list(self._piece.texts)
        elif self._expected.echoes:
            texts = list(enumerate(_texts_so_far(bytes(self._body))))
        else:
            texts = [(0, "".join(_texts_so_far(bytes(self._body))))]
        if self._expected.echoes:
            return [(index, text[self._expected.echo(index).characters :]) for index, text in texts]
        return texts

    def _counted(self, whole: int) -> Usage:
        """Our own count of ``whole`` bytes: what did not come of an answer whose length was told was generated like what did."""
        expected, texts = self._expected, self._texts()
        length = sum(len(text) for _, text in texts)
        tokens = length // CHARS_PER_TOKEN if expected.counter is None else self._tokens(expected.counter, texts, length)
        is_exact = expected.counter is not None and length <= COUNT_CHARS_MAX and whole == self._size
        source = UsageSource.COUNTED if is_exact else UsageSource.CHUNKS
        return counted(expected, self._of_whole(tokens, whole), source, self._told())

    def _of_whole(self, count: int, whole: int) -> int:
        return -(-count * whole // max(1, self._size))

    def _tokens(self, counter: Counter, texts: list[tuple[int, str]], length: int) -> int:
        """Of a long answer the beginning of each text, which stands for the rest of it. Without a prompt that it repeats as tokens."""
        tokens = 0
        for index, text in texts:
            sample = text[: -(-len(text) * COUNT_CHARS_MAX // length)] if length > COUNT_CHARS_MAX else text
            echoed = self._expected.echo(index).tokens if self._expected.echoes else 0
            tokens += max(0, -(-counter.count(sample) * len(text) // max(1, len(sample))) - echoed)
        return tokens

    def _units(self, whole: int) -> tuple[int, int]:
        """Characters and words of ``whole`` bytes; as many as can be of an answer that was too large to be read."""
        if self._size > ANSWER_BYTES_MAX:
            return TOKENS_MAX, TOKENS_MAX
        units: dict[int, TextUnits] = {}
        for index, text in self._texts():
            units.setdefault(index, TextUnits()).feed(text)
        characters, words = sum(text.characters for text in units.values()), sum(text.words for text in units.values())
        return self._of_whole(characters, whole), self._of_whole(words, whole)

    def reason(self) -> EndReason | None:
        """As the answer says; one that says nothing is a failure of the backend."""
        piece = self._piece
        if piece is None:
            return None
        if piece.error or not self.started:
            return EndReason.UPSTREAM_ERROR
        if piece.finish == "abort":
            return EndReason.ABORT
        return REASONS.get(piece.finish, EndReason.STOP)

    def _read(self) -> Piece:
        if self._size <= ANSWER_BYTES_MAX:
            body = bytes(self._body)
            piece = self._expected.endpoint.read_answer(body)
            if piece.error or piece.texts or piece.usage is not None:
                return piece
            texts = _texts_so_far(body[:TEXT_BYTES_MAX])  # not to be parsed, and yet an answer
            return Piece(texts=tuple(enumerate(texts))) if any(texts) else piece
        return Piece(texts=((0, ""),), usage=usage_at_the_end(bytes(self._body[-TAIL_BYTES:]) + self._tail), final=True)


def _beginning_of(name: bytes, data: bytes) -> bytes:
    """The end of ``data`` that may be the beginning of a member ``model`` with this name."""
    members = [b'"model":' + gap + name for gap in (b"", b" ")]
    begun = [member[:size] for member in members for size in range(len(member) - 1, 0, -1)]
    return max((part for part in begun if data.endswith(part)), key=len, default=b"")


def usage_at_the_end(tail: bytes) -> Any:
    """The last ``usage`` object in the end of an answer; ``None`` if there is none that can be read."""
    start = tail.rfind(b'"usage":')
    if start < 0:
        return None
    try:
        usage, _ = json.JSONDecoder().raw_decode(tail[start + 8 :].decode("utf-8", "replace").lstrip())
    except ValueError:
        return None
    return usage


_TEXT_MEMBER = re.compile(rb'"(?:content|text|reasoning_content|reasoning|thinking|refusal|arguments|name)":\s*"((?:[^"\\]|\\.)*)')


def _texts_so_far(body: bytes) -> list[str]:
    """The generated texts in as much of a JSON answer as arrived; of completions, one for each choice."""
    pieces = [match.group(1).decode("utf-8", "ignore") for match in _TEXT_MEMBER.finditer(body)]
    return [piece.replace("\\n", "\n").replace('\\"', '"') for piece in pieces]
