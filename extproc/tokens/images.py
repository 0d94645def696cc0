"""How many tokens an image of a prompt costs: its size out of the first bytes of a base64 text, and the models' formulas.

Only headers are read, a few bytes at each place that matters (base64 can be decoded anywhere: four characters are three bytes),
so an image of ten megabytes costs what a small one does. A header that is cut off, contradicts itself or is none of these formats
has no size: its image is held at the model's maximum, and billed by what the backend counts. The readers are as strict as those
of Pillow, which vLLM opens images with, are lenient: nobody can show us a small image and the model a large one.

Sources: PNG 3rd edition, 5.3; JPEG, ITU-T T.81, B.1; GIF89a, 18-20; WebP container, RFC 9649; BITMAPINFOHEADER. Formulas:
``smart_resize`` and the shipped ``preprocessor_config.json`` of Qwen2-VL, Qwen2.5-VL and Qwen3-VL in Hugging Face's transformers.
"""

from __future__ import annotations

import binascii
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

Size = tuple[int, int]
"""Width and height in pixels, both at least 1."""

URL_HEAD_CHARS_MAX = 256
"""Where the comma of a data URL must stand; the longest media type in use has a fifth of this."""

LOOKS_EACH_MAX = 1_024
"""Places of an image that are looked at before its size is certain, two for most segments. Photographs have some twenty of these, ICC
profiles up to 255."""

LOOKS_MAX = 16_384
"""… and of all images of a request: 0.4 µs each."""


class _Unreadable(Exception):
    """Cut off, no base64, or no header of ours; never leaves this module."""


class _Base64:
    """Bytes at any place of a base64 text, without decoding what lies before them; ``looks``: how many times that was done."""

    __slots__ = ("_looks_max", "_start", "_text", "looks")

    def __init__(self, text: str, start: int, looks_max: int) -> None:
        self._text = text
        self._start = start
        self._looks_max = looks_max
        self.looks = 0

    def at(self, offset: int, length: int) -> bytes:
        """Exactly ``length`` bytes."""
        if self.looks >= self._looks_max:
            raise _Unreadable
        self.looks += 1
        first, last = offset // 3 * 4, (offset + length + 2) // 3 * 4
        quads = self._text[self._start + first : self._start + last]
        try:
            content = binascii.a2b_base64(quads[: len(quads) // 4 * 4], strict_mode=True)
        except ValueError as error:  # binascii.Error is one; so is a character that is not ASCII
            raise _Unreadable from error
        found = content[offset % 3 : offset % 3 + length]
        if len(found) < length:
            raise _Unreadable
        return found

    def big(self, offset: int, length: int) -> int:
        return int.from_bytes(self.at(offset, length), "big")

    def little(self, offset: int, length: int) -> int:
        return int.from_bytes(self.at(offset, length), "little")


def image_sizes(images: Sequence[str]) -> list[Size | None]:
    """Width and height of each image of a request, given as ``data:…;base64,…`` or as base64 alone; ``None``: not known.

    What the URL says of the media type is not believed. Never raises; the work does not grow with the images, and is bounded for all of
    them together.
    """
    sizes, left = list[Size | None](), LOOKS_MAX
    for image in images:
        data = _Base64(image, _start_of(image), min(left, LOOKS_EACH_MAX))
        sizes.append(_size_of(data))
        left -= data.looks
    return sizes


def _start_of(image: str) -> int:
    """Where its base64 begins; its end, if it has none."""
    if image[:5].lower() != "data:":
        return 0
    head, comma, _ = image[:URL_HEAD_CHARS_MAX].partition(",")
    return len(head) + 1 if comma and head.lower().endswith(";base64") else len(image)


def _size_of(data: _Base64) -> Size | None:
    try:
        magic = data.at(0, 12)
        reader = next((read for sign, read in _READERS if magic.startswith(sign)), None)
        size = reader(data) if reader else None
    except _Unreadable:
        return None
    return size if size and min(size) > 0 else None


def _png(data: _Base64) -> Size | None:
    """The header comes first. Pillow obeys a second one as well, so all chunks before the pixels are looked at."""
    if data.at(8, 8) != b"\0\0\0\rIHDR":
        return None
    size = data.big(16, 4), data.big(20, 4)
    at = 33
    while True:
        kind = data.at(at + 4, 4)
        if kind == b"IDAT":
            return size
        if kind == b"IHDR":
            return None
        at += 12 + data.big(at, 4)


_JPEG_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}  # SOF0 to SOF15 without tables and the reserved one
_JPEG_SCAN = 0xDA
_JPEG_ALONE = frozenset((0x00, 0x01, *range(0xD0, 0xDA)))  # markers without a length: none belongs before the scan


def _jpeg(data: _Base64) -> Size | None:
    """The one frame header before the scan."""
    size: Size | None = None
    at = 2
    while True:
        mark, kind = data.at(at, 2)
        if mark != 0xFF or kind in _JPEG_ALONE:
            return None
        if kind == 0xFF:  # filled up
            at += 1
            continue
        if kind == _JPEG_SCAN:
            return size
        if kind in _JPEG_FRAMES:
            if size is not None:
                return None
            size = data.big(at + 7, 2), data.big(at + 5, 2)
        at += 2 + max(2, data.big(at + 2, 2))


def _gif(data: _Base64) -> Size | None:
    """The screen, or as much more as the first picture needs: Pillow lets the screen grow."""
    width, height, flags = data.little(6, 2), data.little(8, 2), data.big(10, 1)
    at = 13 + _gif_colours(flags)
    is_inside = False  # of an extension: sub-blocks follow, the empty one is the last
    while True:
        kind = data.big(at, 1)
        if is_inside:
            is_inside = kind != 0
            at += 1 + kind
        elif kind == 0x21:
            is_inside = True
            at += 2
        elif kind == 0x2C:
            left, top, wide, high = (data.little(at + place, 2) for place in (1, 3, 5, 7))
            return max(width, left + wide), max(height, top + high)
        else:
            return None


def _gif_colours(flags: int) -> int:
    """Bytes of a colour table."""
    return 3 << (flags & 7) + 1 if flags & 0x80 else 0


def _webp(data: _Base64) -> Size | None:
    """Lossy, lossless, or a canvas (which a single picture must fill)."""
    if data.at(8, 4) != b"WEBP":
        return None
    match data.at(12, 4):
        case b"VP8 " if data.at(23, 3) == b"\x9d\x01\x2a":
            return data.little(26, 2) & 0x3FFF, data.little(28, 2) & 0x3FFF
        case b"VP8L" if data.big(20, 1) == 0x2F:
            bits = data.little(21, 4)
            return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
        case b"VP8X":
            return data.little(24, 3) + 1, data.little(27, 3) + 1
    return None


def _bmp(data: _Base64) -> Size | None:
    """A negative height says that the rows come from the top."""
    header = data.little(14, 4)
    if header == 12:
        return data.little(18, 2), data.little(20, 2)
    if header not in {40, 52, 56, 64, 108, 124}:
        return None
    height = data.little(22, 4)
    return data.little(18, 4), height if height < 1 << 31 else (1 << 32) - height


_READERS: tuple[tuple[bytes, Callable[[_Base64], Size | None]], ...] = (
    (b"\x89PNG\r\n\x1a\n", _png),
    (b"\xff\xd8\xff", _jpeg),
    (b"GIF87a", _gif),
    (b"GIF89a", _gif),
    (b"RIFF", _webp),
    (b"BM", _bmp),
)

FRAME_TOKENS = 2
"""``<|vision_start|>`` and ``<|vision_end|>`` around the tokens of an image."""

RATIO_MAX = 200
"""Longer images are refused by the processor."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Formula:
    """Sides are rounded to multiples of ``step`` pixels (patch × merge), and a square of them is a token: at least ``tokens_min``, and
    at most as many as the backend is set to.
    """

    name: str
    step: int
    tokens_min: int

    def tokens(self, size: Size, tokens_max: int) -> int:
        """``smart_resize``, operation by operation: floats decide whether a side that should be whole comes out one less."""
        if max(size) > RATIO_MAX * min(size):
            return tokens_max
        step, area = self.step, size[0] * size[1]
        wide, high = (round(side / step) for side in size)
        if wide * high > tokens_max:
            shrink = math.sqrt(area / (tokens_max * step**2))
            wide, high = (max(1, math.floor(side / shrink / step)) for side in size)
        elif wide * high < self.tokens_min:
            grow = math.sqrt(self.tokens_min * step**2 / area)
            wide, high = (math.ceil(side * grow / step) for side in size)
        return wide * high


FORMULAS: Mapping[str, Formula] = MappingProxyType(
    {
        formula.name: formula
        for formula in (
            Formula(name="qwen2-vl", step=28, tokens_min=4),  # patches of 14, merged 2 × 2; 56² to 3584² pixels; Qwen2.5-VL as well
            Formula(name="qwen3-vl", step=32, tokens_min=64),  # patches of 16, merged 2 × 2; 256² to 4096² pixels; Qwen3.5 as well
        )
    }
)
"""The names that ``image.formula`` may have in ``models.yaml``."""


def image_tokens(formula: str, size: Size | None, tokens_max: int) -> int:
    """Prompt tokens of one image, its frame included. ``size`` ``None``: the most that it can have (an image by URL).

    ``tokens_max``: of the image without its frame; the backend's ``max_pixels`` / step², 16384 if it was not changed.
    """
    assert tokens_max > 0
    return FRAME_TOKENS + (tokens_max if size is None else FORMULAS[formula].tokens(size, tokens_max))
