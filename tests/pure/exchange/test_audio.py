"""How long a recording is: headers as encoders write them, and as nobody should."""

from __future__ import annotations

import io
import random
import struct
import wave

import pytest

from extproc.exchange.audio import BYTES_PER_S_LIKELY, BYTES_PER_S_MIN, length_of


def wav(seconds: float, rate: int = 8_000) -> bytes:
    file = io.BytesIO()
    with wave.open(file, "wb") as written:
        written.setnchannels(1)
        written.setsampwidth(2)
        written.setframerate(rate)
        written.writeframes(bytes(int(seconds * rate) * 2))
    return file.getvalue()


def flac(samples: int, size: int, rate: int = 16_000) -> bytes:
    packed = rate << 44 | 0 << 41 | 15 << 36 | samples
    return b"fLaC\x80\0\0\x22" + struct.pack(">HH", 4096, 4096) + bytes(6) + packed.to_bytes(8, "big") + bytes(16) + bytes(size)


def page(granule: int, content: bytes) -> bytes:
    return b"OggS\0\0" + struct.pack("<q", granule) + bytes(12) + b"\x01" + bytes([min(len(content), 255)]) + content


def opus(samples: int, size: int) -> bytes:
    return page(0, b"OpusHead\x01\x01" + struct.pack("<HI", 312, 48_000) + b"\0\0\0") + bytes(size) + page(samples + 312, b"x")


def vorbis(samples: int, size: int) -> bytes:
    return page(0, b"\x01vorbis" + bytes(4) + b"\x01" + struct.pack("<I", 44_100) + bytes(14)) + bytes(size) + page(samples, b"x")


def mp3(frames: int, *, kbits: int = 128, marked: int | None = None, tag: bytes = b"") -> bytes:
    index = (0, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320).index(kbits)
    head = bytes([0xFF, 0xFB, index << 4, 0x00])
    frame = head + bytes(1_152 * kbits * 125 // 44_100 - 4)
    first = frame
    if marked is not None:
        first = head + bytes(32) + b"Xing" + struct.pack(">II", 1, marked) + frame[48 - 0 :]
    return tag + first + frame * (frames - 1)


ID3 = b"ID3\x04\0\0\0\0\x02\x00" + bytes(256)


@pytest.mark.parametrize(
    ("file", "told_ms"),
    [
        (wav(2.5), 2_500),
        (wav(2.5)[:40] + b"\xff\xff\xff\xff" + wav(2.5)[44:], 2_500),  # written while it was recorded
        (flac(48_000, 20_000), 3_000),
        (opus(96_000, 9_000), 2_000),
        (vorbis(44_100, 9_000), 1_000),
        (mp3(100), 2_605),
        (mp3(100, tag=ID3), 2_605),
        (mp3(100, marked=1_000), 26_123),
    ],
)
def test_headers_tell_the_length(file: bytes, told_ms: int):
    length = length_of(memoryview(file))
    assert length.is_told
    assert abs(length.likely_ms - told_ms) <= 10
    assert length.most_ms % 1_000 == 0
    assert length.likely_ms + 1_000 <= length.most_ms <= length.likely_ms + 2_000  # a backend rounds up


@pytest.mark.parametrize(
    "file",
    [
        b"",
        b"RIFF",
        wav(1)[:30],
        wav(1).replace(b"\x01\x00\x01\x00", b"\x11\x00\x01\x00", 1),  # ADPCM
        wav(1).replace(b"WAVE", b"AVI "),
        wav(1)[:12] + b"junk\0\0\0\0" * 100,
        wav(1)[:36] + wav(1)[12:],  # two formats: who knows which one counts
        flac(0, 20_000),
        flac(16, 1_000_000),
        opus(-400, 9_000),
        opus(4_800, 2_000_000),
        b"OggS" + bytes(40),
        vorbis(44_100, 9_000).replace(b"\x01vorbis", b"\x01speexxx"),
        mp3(20) + mp3(20, kbits=320),
        mp3(1_000, marked=2),
        b"\x1aE\xdf\xa3" + bytes(1_000),  # WebM
        b"\0\0\0\x20ftypM4A " + bytes(1_000),
        ID3[:6] + b"\x7f\x7f\x7f\x7f" + bytes(100),
    ],
)
def test_what_tells_nothing_is_held_by_its_size(file: bytes):
    length = length_of(memoryview(file))
    assert not length.is_told
    assert length.most_ms >= len(file) * 1_000 // BYTES_PER_S_MIN + 1_000
    assert length.likely_ms == -(-len(file) * 1_000 // BYTES_PER_S_LIKELY)


def test_any_damage_has_a_length():
    chance = random.Random(7)
    for file in (wav(1), flac(48_000, 500), opus(96_000, 500), vorbis(44_100, 500), mp3(10), mp3(10, marked=10), ID3 + mp3(3)):
        for _ in range(40):
            broken = bytearray(file[: chance.choice((len(file), 60, 200))])
            for _ in range(chance.randint(1, 6)):
                broken[chance.randrange(min(64, len(broken)))] = chance.randrange(256)
            length = length_of(memoryview(bytes(broken)))
            assert 0 <= length.likely_ms < length.most_ms
