"""How long a recording is, before anybody has decoded it: by what is in its file, or at most, by its size.

What a header says of the length is not believed: some decoders read as many frames as it says, others all that there are, and a backend
may ask both (vLLM: ffmpeg, libsndfile, PyAV, in an order that changes with its version). Pieces are counted instead, as every decoder has
to: bytes of samples, frames, packets. A file about which two decoders might disagree is held by its size: what is compressed may be
anything from 6 kbit/s (the least that Opus is used with) upwards.

Sources: RIFF/WAVE (Microsoft's "Multimedia Programming Interface"); FLAC, RFC 9639, 8.2 and 9.1; Ogg, RFC 3533, 6, with Opus, RFC 7845 and
RFC 6716, 3; MPEG-1/2 layer III, ISO 11172-3 and 13818-3; AAC in ADTS, ISO 13818-7.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import lru_cache
from typing import NamedTuple

BYTES_PER_S_MIN = 750
"""6 kbit/s: what lasts longer for its size is silence."""

BYTES_PER_S_LIKELY = 8_000
"""64 kbit/s: speech as telephones and browsers record it. Charged only if neither file nor backend tells."""

PIECES_MAX = 200_000
"""Frames, packets or pages that are looked at (half a microsecond each, on the loop): an hour of what has the shortest ones in use."""

FLAC_PIECES_MAX = 50_000
"""Checksums cost more."""

DISGUISE_BYTES = 65_536
DISGUISE_FRAMES = 4
CHUNKS_MAX = 64
RATE_MIN = 1_000
MS = 1_000


class Length(NamedTuple):
    """``most_ms`` is held, ``likely_ms`` charged if nobody else tells. ``is_told``: by the file."""

    most_ms: int
    likely_ms: int
    is_told: bool


def length_of(file: memoryview) -> Length:
    """Never raises. Backends tell whole seconds, rounded up: so is what is held, and a second more."""
    size = len(file)
    told_ms = _told_ms(file)
    if told_ms is None:
        return Length(_held_ms(_ratio(size, MS, BYTES_PER_S_MIN)), _ratio(size, MS, BYTES_PER_S_LIKELY), is_told=False)
    return Length(_held_ms(told_ms), told_ms, is_told=True)


def _held_ms(audio_ms: int) -> int:
    return (audio_ms // 1_000 + 2) * 1_000


def _ratio(count: int, times: int, by: int) -> int:
    """Rounded up."""
    return -(-count * times // by)


def _told_ms(file: memoryview) -> int | None:
    sign = bytes(file[:4])
    read = _READERS.get(sign, _mp3)
    return read(file)


def _little(data: memoryview, at: int, length: int) -> int:
    return int.from_bytes(data[at : at + length], "little")


def _big(data: memoryview, at: int, length: int) -> int:
    return int.from_bytes(data[at : at + length], "big")


def _wav(file: memoryview) -> int | None:
    """Plain samples: what a second has follows from their format. All that is behind the head of the data may be samples."""
    if bytes(file[8:12]) != b"WAVE":
        return None
    at, bytes_per_s = 12, 0
    for _ in range(CHUNKS_MAX):
        kind, length = bytes(file[at : at + 4]), _little(file, at + 4, 4)
        if kind == b"fmt " and not bytes_per_s:
            bytes_per_s = _wav_rate(file[at + 8 : at + 8 + length])
            if not bytes_per_s:
                return None
        elif kind == b"data" and bytes_per_s:
            samples = file[at + 8 :]
            return None if _is_disguised(bytes(samples[:DISGUISE_BYTES])) else _ratio(len(samples), MS, bytes_per_s)
        elif len(kind) < 4 or kind == b"fmt ":
            return None
        at += 8 + length + length % 2
    return None


def _wav_rate(form: memoryview) -> int:
    """Bytes a second of whole or floating samples; 0 for all that is compressed."""
    tag, channels, rate, bits = _little(form, 0, 2), _little(form, 2, 2), _little(form, 4, 4), _little(form, 14, 2)
    if tag == 0xFFFE and _little(form, 18, 2) in (0, bits):  # extensible: the format stands in what follows
        tag = _little(form, 24, 2)
    if tag not in (1, 3) or bits not in (8, 16, 24, 32, 64) or not 1 <= channels <= 64 or not RATE_MIN <= rate <= 768_000:
        return 0
    frame_bytes = channels * bits // 8
    return frame_bytes * rate if _little(form, 12, 2) == frame_bytes else 0


_SYNC = re.compile(rb"\xff[\xe2-\xff]")


def _is_disguised(samples: bytes) -> bool:
    """Whether these samples are frames of MP3 or AAC: ffmpeg looks, and plays them as that."""
    return any(_is_chain(samples, found.start()) for found in _SYNC.finditer(samples))


def _is_chain(data: bytes, at: int) -> bool:
    for _ in range(DISGUISE_FRAMES):
        frame = _frame(int.from_bytes(data[at : at + 3], "big"))
        size = _adts_size(data[at : at + 6]) if frame is None else frame.size
        if not size:
            return False
        at += size
    return True


def _adts_size(head: bytes) -> int:
    """Bytes of a frame of AAC (ISO 13818-7, 6.2); 0: it is none."""
    if len(head) < 6 or head[0] != 0xFF or head[1] & 0xF6 != 0xF0:
        return 0
    size = (head[3] & 3) << 11 | head[4] << 3 | head[5] >> 5
    return size if size > 7 else 0


_FLAC_FRAME = re.compile(rb"\xff[\xf8\xf9][\x10-\xff][\x00-\xaf]")
_FLAC_RATES = (0, 88_200, 176_400, 192_000, 8_000, 16_000, 22_050, 24_000, 32_000, 44_100, 48_000, 96_000)
_FLAC_BLOCKS = (0, 192, 576, 1_152, 2_304, 4_608, 0, 0, *(256 << power for power in range(8)))


def _flac(file: memoryview) -> int | None:
    """All that looks like the head of a frame is one: each has a checksum, and of other bytes few look like that."""
    if not _has_one_streaminfo(file):
        return None
    rate, samples = _big(file, 18, 8) >> 44, 0
    for number, found in enumerate(_FLAC_FRAME.finditer(file)):
        block = _flac_block(bytes(file[found.start() : found.start() + 16]), rate)
        if block is None or number == FLAC_PIECES_MAX:
            return None
        samples += block
    return _ratio(samples, MS, rate) if rate >= RATE_MIN and samples else None


def _has_one_streaminfo(file: memoryview) -> bool:
    """At the beginning, and none behind it that another decoder might take."""
    at = 4
    for number in range(CHUNKS_MAX):
        if at + 4 > len(file) or (file[at] & 0x7F == 0) != (number == 0):
            return False
        if file[at] & 0x80:
            return True
        at += 4 + _big(file, at + 1, 3)
    return False


def _flac_block(head: bytes, rate: int) -> int | None:
    """Samples of the frame with this head; 0 if it is none; ``None``: at another rate than the file's."""
    code, rate_code = head[2] >> 4, head[2] & 15
    at = 4
    number = head[at] if len(head) > at else 0xFF
    at += 1 if number < 0x80 else 8 - (number ^ 0xFF).bit_length()
    block = _FLAC_BLOCKS[code]
    if code in (6, 7):
        block = int.from_bytes(head[at : at + code - 5], "big") + 1
        at += code - 5
    at += (0, 1, 2, 2)[rate_code - 11] if 11 < rate_code < 15 else 0
    if at >= len(head) or _crc8(head[:at]) != head[at]:
        return 0
    return block if not rate_code or (rate_code < 12 and _FLAC_RATES[rate_code] == rate) else None


def _crc8_of(byte: int) -> int:
    for _ in range(8):
        byte = (byte << 1 ^ 0x107) if byte & 0x80 else byte << 1
    return byte


_CRC8 = bytes([_crc8_of(byte) for byte in range(256)])


def _crc8(data: bytes) -> int:
    crc = 0
    for byte in data:
        crc = _CRC8[crc ^ byte]
    return crc


_OPUS_FRAME_US = (
    *((10_000, 20_000, 40_000, 60_000) * 3), *((10_000, 20_000) * 2), *((2_500, 5_000, 10_000, 20_000) * 4),
)  # fmt: skip


_OPUS_PACKET_US_MAX = 120_000


def _ogg(file: memoryview) -> int | None:
    """Opus alone: the packets of its pages, one behind the other, of one stream. Others (Vorbis) must be decoded to be counted."""
    if bytes(file[28:36]) != b"OpusHead":
        return None
    at, length_us, pieces, begins, sequence = 0, 0, 0, True, _little(file, 18, 4)
    serial = bytes(file[14:18])
    while at < len(file):
        segments = file[at + 26] if at + 27 <= len(file) else 0
        lacing = bytes(file[at + 27 : at + 27 + segments])
        pieces += 1 + len(lacing)
        # "OggS", version 0, continued or not, beginning or not; the end may be marked
        head = b"OggS\0" + bytes([(not begins) | (not at) << 1 | file[at + 5] & 4]) if lacing else b""
        if bytes(file[at : at + 6]) != head or file[at + 14 : at + 18] != serial or pieces > PIECES_MAX:
            return None
        if _little(file, at + 18, 4) != sequence:
            return None
        sequence += 1
        at += 27 + segments
        for size in lacing:
            if begins:
                length_us += _opus_us(bytes(file[at : at + 8]) if size >= 8 else bytes(file[at : at + size]))
            begins = size < 255
            at += size
    return _ratio(length_us, 1, 1_000) or None


def _opus_us(packet: bytes) -> int:
    """Its first byte tells how long its frames are and how many it has, or that the second one does."""
    if not packet or packet in (b"OpusHead", b"OpusTags"):
        return 0
    count = (1, 2, 2, packet[1] & 63 if len(packet) > 1 else 0)[packet[0] & 3]
    return min(_OPUS_FRAME_US[packet[0] >> 3] * count, _OPUS_PACKET_US_MAX)


_MP3_KBITS = {
    1: (0, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320, 0),
    2: (0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160, 0),
}
_MP3_RATES = {3: (44_100, 48_000, 32_000), 2: (22_050, 24_000, 16_000), 0: (11_025, 12_000, 8_000)}  # by the version's bits
_MP3_TAG_BYTES = 128  # at the end (ID3v1)


def _mp3(file: memoryview) -> int | None:
    """Frames from the tags to the end, one behind the other."""
    at = 0
    if bytes(file[:3]) == b"ID3":
        tag = bytes(file[3:10])
        if len(tag) < 7 or 0xFF in tag[:2] or any(byte & 0x80 for byte in tag[3:]):
            return None  # no tag to everybody
        at = 10 + sum(byte << shift for byte, shift in zip(tag[3:], (21, 14, 7, 0), strict=True)) + (10 if tag[2] & 0x10 else 0)
    end = len(file) - (_MP3_TAG_BYTES if bytes(file[-_MP3_TAG_BYTES:][:3]) == b"TAG" else 0)
    samples: dict[int, int] = {}
    pieces = 0
    while at + 4 <= end:
        frame = _frame(file[at] << 16 | file[at + 1] << 8 | file[at + 2])
        pieces += 1
        if frame is None or pieces > PIECES_MAX:
            return None
        samples[frame.rate] = samples.get(frame.rate, 0) + frame.samples
        at += frame.size
    return sum(_ratio(count, MS, rate) for rate, count in samples.items()) or None


class _Frame(NamedTuple):
    size: int
    samples: int
    rate: int


@lru_cache(maxsize=4_096)
def _frame(bits: int) -> _Frame | None:
    """Of the first three bytes of its head; ``None``: there is none."""
    version, layer, rate_index = bits >> 11 & 3, bits >> 9 & 3, bits >> 2 & 3
    if bits >> 13 != 0x7FF or layer != 1 or version == 1 or rate_index == 3:
        return None
    is_first = version == 3
    kbits = _MP3_KBITS[1 if is_first else 2][bits >> 4 & 15]
    rate = _MP3_RATES[version][rate_index]
    if not kbits:
        return None
    samples = 1_152 if is_first else 576
    return _Frame(samples * kbits * 125 // rate + (bits >> 1 & 1), samples, rate)


_READERS: dict[bytes, Callable[[memoryview], int | None]] = {b"RIFF": _wav, b"fLaC": _flac, b"OggS": _ogg}
