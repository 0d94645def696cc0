"""The wire format of protobuf, as far as messages of Envoy are read and written without protobuf's objects (they cost more than the bytes).

A message is a row of fields (https://protobuf.dev/programming-guides/encoding/). A field is a tag (its number × 8 + its kind), then
of kind 0 a varint, of kind 2 a length and so many bytes: text, bytes, or another message. A varint has seven bits in each byte,
the lowest first; all but its last byte have the eighth bit set.

Messages are put together as strings in which every character is a byte: nothing in Python joins as cheaply as an f-string.
"""

from __future__ import annotations

from typing import Final

SIZES_REMEMBERED: Final = 4_096  # what headers and bodies of a few KB need; 0.3 MB


def varint(value: int) -> str:
    """Of a number ≥ 0."""
    digits = ""
    while value > 127:
        digits += chr(value & 127 | 128)
        value >>= 7
    return digits + chr(value)


def tag(field: int) -> str:
    """Of a field of kind 2, for :func:`record`."""
    return varint(field << 3 | 2)


def number(field: int, value: int) -> str:
    """A field of kind 0: number, flag or choice."""
    return varint(field << 3) + varint(value)


class _Sizes(dict[int, str]):
    """Varints of lengths: small ones are remembered, others made each time."""

    def __missing__(self, size: int) -> str:
        return varint(size)


SIZES: Final = _Sizes({size: varint(size) for size in range(SIZES_REMEMBERED)})


def record(tag: str, content: str, more_bytes: int = 0) -> str:
    """A field of kind 2, up to the last ``more_bytes`` of its content, which whoever writes it sends behind."""
    return f"{tag}{SIZES[len(content) + more_bytes]}{content}"


def text(value: str, errors: str = "strict") -> str:
    """A string as UTF-8. Raises UnicodeEncodeError, unless ``errors`` says what to do with what is no UTF-8 (as ``str.encode``)."""
    return value if value.isascii() else value.encode("utf-8", errors).decode("latin-1")


# ---- bodies

MESSAGE_BYTES_MIN: Final = 6
MESSAGE_BYTES_MAX: Final = 16_383  # no length has three bytes then; longer messages are rare, and dear for other reasons
BODY: Final = 0x0A
MORE: Final = b"\x42\x00"  # metadata_context = 8, empty: Envoy puts it behind every phase
LAST: Final = b"\x10\x01" + MORE  # end_of_stream = 2


def body_of(data: bytes, phase: int) -> tuple[bytes, bool] | None:
    """Body and end_of_stream of a ProcessingRequest with the HttpBody of this phase (its tag), if it has exactly the shape that Envoy
    writes; ``None`` of all others, whatever is wrong with them. ::

        phase { body = 1, end_of_stream = 2 }, metadata_context = 8 {}
    """
    if not MESSAGE_BYTES_MIN <= len(data) <= MESSAGE_BYTES_MAX or data[0] != phase:
        return None
    size, at = data[1], 2
    if size > 127:
        size, at = size - 128 + (data[2] << 7), 3
    end = at + size
    if data[at] != BODY:
        return (b"", True) if at + 2 == end and data[at:] == LAST else None
    size, at = data[at + 1], at + 2
    if size > 127:
        size, at = size - 128 + (data[at] << 7), at + 1
    last = at + size
    # That the rest is one of two constants proves both lengths: one that is wrong, or has three bytes, points elsewhere or beyond the end.
    if last == end and data[last:] == MORE:
        return data[at:last], False
    if last + 2 == end and data[last:] == LAST:
        return data[at:last], True
    return None
