"""gRPC's length-prefixed messages, put together from whatever pieces come. Each byte is copied twice at most."""

from __future__ import annotations

from typing import Final

from extproc.edge.transport.lean.frames import PREFIX_BYTES, read_prefix
from extproc.edge.transport.port import MESSAGE_BYTES_MAX

INTERNAL: Final = 13
UNIMPLEMENTED: Final = 12
RESOURCE_EXHAUSTED: Final = 8


class Broken(Exception):
    """What came is no message that we take: the stream ends with this status. Never leaves ``connection``."""

    def __init__(self, code: int, reason: str) -> None:
        super().__init__(reason)
        self.code = code
        self.reason = reason


class Assembly:
    """The pieces of one stream. ``missing``: bytes that the message under way still lacks, 0 when none has begun."""

    __slots__ = ("_bytes", "_end", "missing")

    def __init__(self) -> None:
        self._bytes = bytearray()
        self._end = 0  # of the message under way, prefix included; 0 = its prefix is not complete
        self.missing = 0

    @property
    def empty(self) -> bool:
        return not self._bytes

    def feed(self, data: bytes, start: int, stop: int) -> list[bytes]:
        """The messages that ``data[start:stop]`` completes. Raises Broken."""
        messages: list[bytes] = []
        while start < stop:
            want = (self._end or PREFIX_BYTES) - len(self._bytes)
            taken = min(want, stop - start)
            self._bytes += memoryview(data)[start : start + taken]
            start += taken
            if taken == want and not self._end:
                self._end = PREFIX_BYTES + _length(self._bytes)
            if len(self._bytes) == self._end:
                messages.append(bytes(memoryview(self._bytes)[PREFIX_BYTES:]))
                self._bytes = bytearray()
                self._end = 0
        self.missing = self._end - len(self._bytes) if self._end else 0
        return messages


def _length(prefix: bytearray) -> int:
    compressed, length = read_prefix(prefix)
    check(compressed, length)
    return int(length)


def check(compressed: int, length: int) -> None:
    """Raises Broken."""
    if compressed:
        raise Broken(UNIMPLEMENTED if compressed == 1 else INTERNAL, "compressed messages are not taken")
    if length > MESSAGE_BYTES_MAX:
        raise Broken(RESOURCE_EXHAUSTED, f"message of {length} bytes, {MESSAGE_BYTES_MAX} at most")
