r"""What the events of a stream have in common: everything but one text.

A backend's events differ in a few letters: between ``data: {"id":"x","choices":[{"index":0,"delta":{"content":"`` and
``"},"finish_reason":null}]}\n\n`` stands the inside of a JSON string, and nothing else changes. Once one of them has been read,
others need no reading: with the same front and back and the inside of a string in between, they say the same with another text.

That is proved, not guessed: another text is put in, and read as any event is. If it comes out as the text, and nothing else comes
out, then what stands between front and back is a string that the endpoint takes for the text, whatever is in it. Usage, an error, a
finish reason, another choice or member make another front or back. So a hostile backend can make us read everything, but not
overlook anything.

Some backends number their events, so that no two of them are alike. Such a number may be another one with as many digits; that it says
nothing is part of the proof, which puts another one in.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable

import msgspec

from extproc.exchange.ask import Piece

BETWEEN = b'",\n"'
"""Joins insides to the inside of a JSON list. The newline makes it unique: no inside of a string has one."""

AROUND_BYTES_MAX = 2_048
"""Of one event without its text; they have some 250. A shape lives as long as its stream."""

_PROBE = b"~probe~"

# Possessive, so that the work is linear. Line ends cannot be in it, so that an event stays one event.
_inside = re.compile(rb'(?:[^"\\\x00-\x1f]++|\\["\\/bfnrtu])++').fullmatch
_LIST = msgspec.json.Decoder(list[str])
# A quoted key cannot stand unescaped inside a JSON string, so this is a member wherever it stands.
_find_number = re.compile(rb'("sequence_number": ?)(0|[1-9][0-9]{0,17})(?=[,}])').search
_ZERO = b"0"[0]


class Shape(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """``front`` + inside + ``back`` is one event of choice ``index`` with one text.

    ``around_bytes``: of front and back. ``shown``: what stands in their places for the client, if something is to be hidden or renamed.
    ``number``: of this event, if it has one: its key, and its digits.
    """

    index: int
    front: bytes
    back: bytes
    around_bytes: int
    shown: tuple[bytes, bytes] | None
    number: tuple[bytes, bytes] | None = None

    def insides(self, chunk: bytes) -> bytes | None:
        """The insides of a chunk of such events, joined by ``BETWEEN``; ``None``: something else is in it."""
        if self.number is not None:
            chunk = _numbered(chunk, *self.number)
        middle = chunk.removeprefix(self.front).removesuffix(self.back)
        if len(chunk) - len(middle) != self.around_bytes:
            return None
        if _inside(middle):
            return middle
        parts = middle.split(self.back + self.front)
        return BETWEEN.join(parts) if all(map(_inside, parts)) else None


def events_of(insides: bytes, front: bytes, back: bytes) -> bytes:
    """The insides, each in its place again."""
    return front + insides.replace(BETWEEN, back + front) + back


def texts_of(insides: bytes) -> list[str] | None:
    """The texts; ``None``: some inside is of no JSON string after all (half a surrogate pair, no UTF-8): read the events."""
    try:
        return _LIST.decode(b'["' + insides + b'"]')
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return None


def shape_of(raw: bytes, index: int, text: str, read: Callable[[bytes], tuple[Piece, bytes] | None]) -> Shape | None:
    """The shape of an event with this text. ``read``: what a chunk says and what the client gets of it, if it is one whole event."""
    around = _around(raw, text)
    if around is None or sum(map(len, around)) > AROUND_BYTES_MAX or any(_PROBE in side for side in around):
        return None
    front, back = around
    number, probe = _number(raw), front + _PROBE + back
    if number is not None:
        probe = _numbered(probe, number[0], _another(number[1]))
    probed = read(probe)
    if probed is None or probed[0] != Piece(texts=((index, _PROBE.decode()),), index=index):
        return None
    if number is not None:
        numbered = Shape(index=index, front=front, back=back, around_bytes=len(front) + len(back), shown=None, number=number)
        return numbered if probed[1] == probe else None
    shown_front, found, shown_back = probed[1].partition(_PROBE)
    if not found:
        return None
    shown = None if (shown_front, shown_back) == around else (shown_front, shown_back)
    return Shape(index=index, front=front, back=back, around_bytes=len(front) + len(back), shown=shown)


def _number(raw: bytes) -> tuple[bytes, bytes] | None:
    found = _find_number(raw)
    return (found[1], found[2]) if found is not None else None


def _numbered(chunk: bytes, key: bytes, digits: bytes) -> bytes:
    """With this number in place of every other one with as many digits. (What has more is no number after that: a shape does not fit.)"""
    width = len(digits)
    begin, *rest = chunk.split(key)
    for part in rest:
        if not part[:width].isdigit() or (part[0] == _ZERO and width > 1):
            return chunk
    return (key + digits).join([begin, *[part[width:] for part in rest]])


def _another(digits: bytes) -> bytes:
    """As many of them."""
    return (b"2" if digits[:1] == b"1" else b"1") * len(digits)


def _around(raw: bytes, text: str) -> tuple[bytes, bytes] | None:
    """What stands before and behind the inside of the string, its quotes included."""
    for written in (msgspec.json.encode(text), json.dumps(text).encode()):  # backends that escape what is not ASCII
        before, found, behind = raw.rpartition(written)
        if found:
            return before + b'"', b'"' + behind
    return None
