r"""Server-sent events out of a hostile byte stream, without IO.

Bytes in, whole events out. Upstream reads end anywhere: events come joined, split inside a UTF-8 character, with ``\\r\\n`` or ``\\r``,
with comments and several ``data:`` lines (WHATWG HTML §9.2). An event keeps its bytes as they came, so that what is passed on can be
the original. Work is linear in the bytes, whatever their cut.
"""

from __future__ import annotations

import re

import msgspec

# More than any event that a model sends (tool arguments, log-probabilities included); beyond it bytes are passed unread.
EVENT_BYTES_MAX = 4 * 1_048_576

# A blank line, i.e. two line ends in a row. Atomic groups: "\r\n" must never be read as two of them.
_BLANK_LINE = re.compile(rb"(?>\r\n|\n|\r)(?>\r\n|\n|\r)")
_LINE_ENDS_BYTES_MAX = 4


class SseEvent(msgspec.Struct, frozen=True, gc=False):
    """``raw``: every byte up to and with the blank line. ``data``: the joined data lines (``b""`` = a comment, or nothing)."""

    raw: bytes
    data: bytes


class SseDecoder:
    """``feed`` chunks, ``flush`` at the end. ``pending`` is what has arrived of an unfinished event."""

    __slots__ = ("_searched", "pending")

    def __init__(self) -> None:
        self.pending = bytearray()
        self._searched = 0  # no blank line begins before this offset

    def feed(self, chunk: bytes) -> list[SseEvent]:
        """Events that this chunk completed, in order. Joined, their ``raw`` and the pending rest are exactly the bytes fed."""
        if not self.pending and chunk.endswith(b"\n\n") and b"\r" not in chunk:
            if chunk.startswith(b"data: ") and chunk.find(b"\n") == len(chunk) - 2:  # one event of one line: nearly every chunk
                return [SseEvent(chunk, chunk[6:-2])]
            return [_event(piece + b"\n\n") for piece in chunk[:-2].split(b"\n\n")]
        buffer = self.pending
        buffer += chunk
        events = []
        start = 0
        for blank in _BLANK_LINE.finditer(buffer, self._searched):
            if blank.end() == len(buffer) and buffer.endswith(b"\r"):
                break  # its "\n" may be in the next read: an event keeps its line ends whole, or hiding it would leave one behind
            events.append(_event(bytes(buffer[start : blank.end()])))
            start = blank.end()
        del buffer[:start]
        self._searched = max(0, len(buffer) - _LINE_ENDS_BYTES_MAX)
        if len(buffer) > EVENT_BYTES_MAX:
            events.append(self._give_up())
        return events

    def flush(self) -> list[SseEvent]:
        """The stream is over: an unfinished event is dropped by clients, but its bytes go on."""
        if not self.pending:
            return []
        rest = bytes(self.pending)
        self.pending.clear()
        self._searched = 0
        return [_event(rest)]

    def _give_up(self) -> SseEvent:
        """What has come of an event that is too long to be read: it goes on, and says nothing."""
        raw = bytes(self.pending)
        self.pending.clear()
        self._searched = 0
        return SseEvent(raw, b"")


def _event(raw: bytes) -> SseEvent:
    if raw.startswith(b"data: ") and raw.find(b"\n") == len(raw) - 2 and raw.endswith(b"\n\n") and b"\r" not in raw:
        return SseEvent(raw, raw[6:-2])
    lines = []
    for line in raw.removeprefix(b"\xef\xbb\xbf").splitlines():
        if line.startswith(b"data:"):
            value = line[5:]
            lines.append(value.removeprefix(b" "))
    return SseEvent(raw, b"\n".join(lines))
