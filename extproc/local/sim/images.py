"""Images: their size from the first bytes of their file, and the tokens that Qwen2-VL makes of it. Own formulas, as everything here."""

from __future__ import annotations

import base64
import binascii
import hashlib
import math

from extproc.local.sim.prompt import Filler

PATCH = 28
"""Sides are rounded to multiples of it; a token stands for its square. Source: smart_resize of Qwen2-VL's image processor."""

TOKENS_MIN, TOKENS_MAX = 4, 16_384
"""Of an image; a larger one is made smaller, and the other way round."""

FRAME_TOKENS = 2
"""<|vision_start|> and <|vision_end|>."""

_JPEG_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_JPEG_ALONE = frozenset((0x01, *range(0xD0, 0xDA)))
_GIF = (b"GIF87a", b"GIF89a")


def image_of(url: str, *, fetched_size: tuple[int, int]) -> Filler:
    """A prompt's part for an image. ``fetched_size``: (width, height) of whatever a URL leads to: nothing is ever fetched.

    Raises :class:`ValueError` if the data is no image.
    """
    width, height = _size_of_data(url) if url.startswith("data:") else fetched_size
    return Filler(what=hashlib.sha256(url.encode()).digest(), tokens=tokens_of(width, height) + FRAME_TOKENS)


def tokens_of(width: int, height: int) -> int:
    """Of the image itself, without its frame."""
    if min(width, height) < 1 or max(width, height) > 200 * min(width, height):
        raise ValueError(f"no model takes an image of {width} × {height}")
    columns, rows = max(1, round(width / PATCH)), max(1, round(height / PATCH))
    # In pixels and in this order, as the original does: its roundings are to be ours.
    if columns * rows > TOKENS_MAX:
        shrink = math.sqrt(width * height / (TOKENS_MAX * PATCH**2))
        columns, rows = (max(1, math.floor(side / shrink / PATCH)) for side in (width, height))
    elif columns * rows < TOKENS_MIN:
        stretch = math.sqrt(TOKENS_MIN * PATCH**2 / (width * height))
        columns, rows = (math.ceil(side * stretch / PATCH) for side in (width, height))
    return columns * rows


def _size_of_data(url: str) -> tuple[int, int]:
    head, _, content = url.partition(",")
    if not head.endswith(";base64"):
        raise ValueError("image data must be base64")
    try:
        data = base64.b64decode(content, validate=True)
    except (binascii.Error, ValueError) as error:
        raise ValueError("image data is no base64") from error
    size = size_of(data)
    if size is None:
        raise ValueError("cannot identify image file")
    return size


def size_of(data: bytes) -> tuple[int, int] | None:
    """(width, height) of a PNG, GIF, JPEG or WebP."""
    if data.startswith(b"\x89PNG\r\n\x1a\n") and len(data) >= 24:
        return int.from_bytes(data[16:20], "big"), int.from_bytes(data[20:24], "big")
    if data.startswith(_GIF) and len(data) >= 10:
        return int.from_bytes(data[6:8], "little"), int.from_bytes(data[8:10], "little")
    if data.startswith(b"\xff\xd8"):
        return _size_of_jpeg(data)
    if data.startswith(b"RIFF") and data[8:12] == b"WEBP" and len(data) >= 30:
        return _size_of_webp(data)
    return None


def _size_of_jpeg(data: bytes) -> tuple[int, int] | None:
    at = 2
    while at + 9 <= len(data) and data[at] == 0xFF:
        kind = data[at + 1]
        if kind in _JPEG_FRAMES:
            return int.from_bytes(data[at + 7 : at + 9], "big"), int.from_bytes(data[at + 5 : at + 7], "big")
        # Fill bytes and markers without a body are stepped over; every other segment says how long it is.
        at += 1 if kind == 0xFF else 2 if kind in _JPEG_ALONE else 2 + int.from_bytes(data[at + 2 : at + 4], "big")
    return None


def _size_of_webp(data: bytes) -> tuple[int, int] | None:
    match data[12:16]:
        case b"VP8X":
            return 1 + int.from_bytes(data[24:27], "little"), 1 + int.from_bytes(data[27:30], "little")
        case b"VP8L":
            bits = int.from_bytes(data[21:25], "little")
            return 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
        case b"VP8 ":
            return int.from_bytes(data[26:28], "little") & 0x3FFF, int.from_bytes(data[28:30], "little") & 0x3FFF
        case _:
            return None
