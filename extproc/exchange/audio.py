"""How long a recording is, before anybody has decoded it: out of the header of its file, or at most, by its size.

A header is believed where decoders believe it too (libsndfile, which vLLM opens files with, reads as many frames as the header says) and
where it fits the size of the file. What is compressed may be anything from 6 kbit/s (the least that Opus is used with) upwards; for
what cannot be read, that is the bound.

Sources: RIFF/WAVE (Microsoft's "Multimedia Programming Interface"); FLAC, RFC 9639, 8.2; Ogg, RFC 3533, 6, with Opus, RFC 7845, and
Vorbis I, 4.2.2; MPEG-1/2 layer III, ISO 11172-3 and 13818-3, with the Xing and Info headers that encoders write.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

BYTES_PER_S_MIN = 750
"""6 kbit/s: what lasts longer for its size is silence."""

BYTES_PER_S_LIKELY = 8_000
"""64 kbit/s: speech as telephones and browsers record it. Charged only if neither header nor backend tells."""

BYTES_PER_S_MAX = 65_536
"""512 kbit/s: no compressed speech has more; a header that says so says too little."""

LOOKED_AT_BYTES = 65_536
"""Of the beginning and of the end: headers, tags without pictures, a page of Ogg."""

CHUNKS_MAX = 64
FRAMES_MAX = 128


class Length(NamedTuple):
    """``most_ms`` is held, ``likely_ms`` charged if nobody else tells. ``is_told``: by the file."""

    most_ms: int
    likely_ms: int
    is_told: bool


def length_of(file: memoryview) -> Length:
    """Never raises. Backends tell whole seconds, rounded up: so is what is held, and a second more."""
    size = len(file)
    told_ms = _told_ms(bytes(file[:LOOKED_AT_BYTES]), bytes(file[-LOOKED_AT_BYTES:]), size)
    if told_ms is None:
        return Length(_held_ms(_ratio(size, 1_000, BYTES_PER_S_MIN)), _ratio(size, 1_000, BYTES_PER_S_LIKELY), is_told=False)
    return Length(_held_ms(told_ms), told_ms, is_told=True)


def _held_ms(audio_ms: int) -> int:
    return (audio_ms // 1_000 + 2) * 1_000


def _ratio(count: int, times: int, by: int) -> int:
    """Rounded up."""
    return -(-count * times // by)


def _told_ms(head: bytes, tail: bytes, size: int) -> int | None:
    for sign, read in _READERS:
        if head.startswith(sign):
            return read(head, tail, size)
    start = _behind_id3(head)
    return _mp3(head[start:], size - start) if start is not None else None


def _little(data: bytes, at: int, length: int) -> int:
    return int.from_bytes(data[at : at + length], "little")


def _big(data: bytes, at: int, length: int) -> int:
    return int.from_bytes(data[at : at + length], "big")


def _wav(head: bytes, tail: bytes, size: int) -> int | None:
    """Plain samples: what a second has follows from their format. How many there are: what the chunk says, at most what the file has."""
    del tail
    if head[8:12] != b"WAVE":
        return None
    at, bytes_per_s = 12, 0
    for _ in range(CHUNKS_MAX):
        kind, length = head[at : at + 4], _little(head, at + 4, 4)
        if kind == b"fmt " and not bytes_per_s:
            bytes_per_s = _wav_rate(head[at + 8 : at + 8 + length])
            if not bytes_per_s:
                return None
        elif kind == b"data" and bytes_per_s:
            rest = size - at - 8  # one that was written while it was recorded says nothing, or the most that there is
            return _ratio(length if 0 < length < rest else rest, 1_000, bytes_per_s)
        elif len(kind) < 4 or kind == b"fmt ":
            return None
        at += 8 + length + length % 2
    return None


def _wav_rate(form: bytes) -> int:
    """Bytes a second of whole or floating samples; 0 for all that is compressed."""
    tag, channels, rate, bits = _little(form, 0, 2), _little(form, 2, 2), _little(form, 4, 4), _little(form, 14, 2)
    if tag == 0xFFFE:  # extensible: the format stands in what follows
        tag = _little(form, 24, 2)
    if tag not in (1, 3) or bits not in (8, 16, 24, 32, 64) or not 1 <= channels <= 64 or not 1_000 <= rate <= 768_000:
        return 0
    return channels * rate * bits // 8


def _flac(head: bytes, tail: bytes, size: int) -> int | None:
    """STREAMINFO comes first. Silence has hardly any bytes, so only samples that would not fit are doubted."""
    del tail
    if head[4] & 0x7F or len(head) < 42:
        return None
    packed = _big(head, 18, 8)
    rate, channels, bits, samples = packed >> 44, (packed >> 41 & 7) + 1, (packed >> 36 & 31) + 1, packed & (1 << 36) - 1
    if not samples or not rate or size > samples * channels * bits // 8 * 2 + 2 * LOOKED_AT_BYTES:
        return None
    return _ratio(samples, 1_000, rate)


def _ogg(head: bytes, tail: bytes, size: int) -> int | None:
    """The last page says how many samples there were."""
    page = tail.rfind(b"OggS")
    samples = _little(tail, page + 6, 8)
    first = head[28:]
    if page < 0 or page + 14 > len(tail) or samples >= 1 << 62:
        return None
    if first.startswith(b"OpusHead"):
        rate, samples = 48_000, samples - _little(first, 10, 2)
    elif first.startswith(b"\x01vorbis"):
        rate = _little(first, 12, 4)
    else:
        return None
    return _fitting(samples, rate, size)


def _fitting(samples: int, rate: int, size: int) -> int | None:
    """If so many bytes can be so long."""
    if not rate or samples <= 0:
        return None
    length_ms = _ratio(samples, 1_000, rate)
    too_short = size > _ratio(length_ms, BYTES_PER_S_MAX, 1_000) + LOOKED_AT_BYTES
    return None if too_short else length_ms


def _behind_id3(head: bytes) -> int | None:
    """Where an MP3 begins: behind its tags, if any. ``None``: no MP3, or a tag with a picture that reaches further than we look."""
    start = 0
    if head.startswith(b"ID3"):
        start = 10 + sum((byte & 0x7F) << shift for byte, shift in zip(head[6:10], (21, 14, 7, 0), strict=False))
    is_frame = start + 4 <= len(head) and head[start] == 0xFF and head[start + 1] & 0xE6 == 0xE2
    return start if is_frame else None


_MP3_KBITS = {
    1: (0, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320, 0),
    2: (0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160, 0),
}
_MP3_RATES = {3: (44_100, 48_000, 32_000), 2: (22_050, 24_000, 16_000), 0: (11_025, 12_000, 8_000)}  # by the version's bits


class _Frame(NamedTuple):
    size: int
    samples: int
    rate: int
    kbits: int
    side_bytes: int


def _mp3(head: bytes, size: int) -> int | None:
    """As many frames as an encoder wrote into the first one; without that, if they all have the same bit rate, as many as fit."""
    first = _frame(head, 0)
    if first is None:
        return None
    mark = 4 + first.side_bytes
    if head[mark : mark + 4] in (b"Xing", b"Info"):
        frames = _big(head, mark + 8, 4) if head[mark + 7] & 1 else 0
        return _fitting(frames * first.samples, first.rate, size)
    at = 0
    for _ in range(FRAMES_MAX):
        if at + 4 > len(head):
            break
        frame = _frame(head, at)
        if frame is None or frame.kbits != first.kbits or frame.rate != first.rate:
            return None
        at += frame.size
    return _ratio(size, 8, first.kbits)


def _frame(head: bytes, at: int) -> _Frame | None:
    bits = _big(head, at, 4)
    version, layer, rate_index = bits >> 19 & 3, bits >> 17 & 3, bits >> 10 & 3
    if bits >> 21 != 0x7FF or layer != 1 or version == 1 or rate_index == 3:
        return None
    is_first = version == 3
    kbits = _MP3_KBITS[1 if is_first else 2][bits >> 12 & 15]
    rate = _MP3_RATES[version][rate_index]
    if not kbits:
        return None
    samples = 1_152 if is_first else 576
    is_mono = bits >> 6 & 3 == 3
    side_bytes = (17 if is_mono else 32) if is_first else (9 if is_mono else 17)
    return _Frame(samples * kbits * 125 // rate + (bits >> 9 & 1), samples, rate, kbits, side_bytes)


_READERS: tuple[tuple[bytes, Callable[[bytes, bytes, int], int | None]], ...] = ((b"RIFF", _wav), (b"fLaC", _flac), (b"OggS", _ogg))
