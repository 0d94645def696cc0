"""How long a recording is: files as encoders write them, and as those do who want to pay less."""

from __future__ import annotations

import io
import math
import random
import struct
import wave

import pytest

from extproc.exchange import audio
from extproc.exchange.audio import BYTES_PER_S_LIKELY, BYTES_PER_S_MIN, length_of


def wav(seconds: float, rate: int = 8_000) -> bytes:
    file = io.BytesIO()
    with wave.open(file, "wb") as written:
        written.setnchannels(1)
        written.setsampwidth(2)
        written.setframerate(rate)
        written.writeframes(bytes(int(seconds * rate) * 2))
    return file.getvalue()


def flac(frames: int, *, rate: int = 16_000, told: int = 0, noise: bytes = b"") -> bytes:
    """Frames of 4,096 samples; STREAMINFO tells ``told``."""
    packed = rate << 44 | 0 << 41 | 15 << 36 | told
    head = b"fLaC\x80\0\0\x22" + struct.pack(">HH", 4096, 4096) + bytes(6) + packed.to_bytes(8, "big") + bytes(16)
    return head + b"".join(flac_head(number) + bytes(500) + noise for number in range(frames))


def flac_head(number: int, *, rate_code: int = 5) -> bytes:
    """RFC 9639, 9.1: blocks of 4,096 samples, at 16 kHz, mono, 16 bits, with a number of one or two bytes."""
    coded = bytes([number]) if number < 128 else bytes([0xC0 | number >> 6, 0x80 | number & 63])
    head = b"\xff\xf8" + bytes([0xC0 | rate_code, 0x08]) + coded + (b"\x10" if rate_code == 12 else b"")
    crc = 0
    for bit in "".join(f"{byte:08b}" for byte in head):
        crc = (crc << 1 & 0xFF) ^ (0x07 if (crc >> 7) ^ int(bit) else 0)
    return head + bytes([crc])


def page(packets: list[bytes], number: int, *, granule: int = 0, kind: int = 0, serial: int = 7) -> bytes:
    lacing = b"".join(b"\xff" * (len(packet) // 255) + bytes([len(packet) % 255]) for packet in packets)
    head = b"OggS\0" + struct.pack("<BqIII", kind, granule, serial, number, 0)
    return head + bytes([len(lacing)]) + lacing + b"".join(packets)


def unfinished(number: int, kind: int = 0) -> bytes:
    """A page whose packet goes on in the next one."""
    return b"OggS\0" + struct.pack("<BqIII", kind, 0, 7, number, 0) + b"\x01\xff" + TALK[:255]


OPUS_HEAD = page([b"OpusHead\x01\x01" + struct.pack("<HI", 312, 48_000) + b"\0\0\0"], 0, kind=2) + page([b"OpusTags" + bytes(300)], 1)


def opus(packets: list[bytes], *, granule: int = 0) -> bytes:
    return OPUS_HEAD + b"".join(page([packet], number, granule=granule) for number, packet in enumerate(packets, 2))


TALK = b"\x08" + bytes(300)  # SILK, one frame of 20 ms
VORBIS = page([b"\x01vorbis" + bytes(4) + b"\x01" + struct.pack("<I", 44_100) + bytes(14)], 0, kind=2) + page(
    [bytes(200)], 1, granule=44_100
)


def mp3(frames: int, *, kbits: int = 128, marked: int | None = None, tag: bytes = b"") -> bytes:
    """``marked``: how many frames the first of them tells."""
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
        (wav(2.5)[:40] + b"\x08\0\0\0" + wav(2.5)[44:], 2_500),  # libsndfile believes that, others read on
        (wav(2.5) + b"data\x40\x1f\0\0" + bytes(8_000), 3_001),  # ffmpeg plays both
        (flac(12), 3_072),
        (flac(12, told=1), 3_072),
        (flac(200, told=1 << 35), 51_200),
        (flac(12, noise=b"\xff\xf8\xc5\x08\x00\x00"), 3_072),  # no checksum, no frame
        (opus([TALK] * 100), 2_000),
        (opus([TALK] * 100, granule=400), 2_000),
        (opus([b"\x18", b"\x19x", b"\x1ax", b"\x1b\x03", b"\xfb\x05", b"\xfb", b"\x80"]), 522.5),  # 120 ms in a packet at most
        (OPUS_HEAD + page([TALK] * 50, 2, kind=4), 1_000),
        (OPUS_HEAD + unfinished(2) + page([b"", TALK], 3, kind=1), 40),
        (mp3(100), 2_613),
        (mp3(100, tag=ID3), 2_613),
        (mp3(100, tag=ID3[:5] + b"\x10" + ID3[6:] + bytes(10)), 2_613),  # with a footer
        (mp3(100) + b"TAG" + bytes(125), 2_613),
        (mp3(100, marked=2), 2_613),
        (mp3(20) + mp3(20, kbits=320), 1_045),
    ],
)
def test_pieces_tell_the_length_whatever_a_header_says(file: bytes, told_ms: float):
    length = length_of(memoryview(file))
    assert length.is_told
    assert length.likely_ms == math.ceil(told_ms)
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
        flac(0) + bytes(20_000),
        flac(0, rate=0) + bytes(20_000),
        flac(3, rate=1),
        flac(3, rate=600_000),  # the frames are at another rate
        flac(3) + flac_head(3, rate_code=12),
        VORBIS,
        OPUS_HEAD,
        OPUS_HEAD + b"OggS",
        OPUS_HEAD + b"x" + page([TALK], 2),  # who looks on finds it
        OPUS_HEAD + page([TALK], 2) + page([TALK], 4),
        OPUS_HEAD + page([TALK], 2) + page([TALK], 3, serial=8),
        OPUS_HEAD + unfinished(2) + page([TALK], 3),  # who drops what is not finished begins anew
        OPUS_HEAD + page([TALK], 2) + page([TALK], 3, kind=1),
        OPUS_HEAD + page([TALK], 2, kind=2),
        flac(3)[:4] + b"\0" + flac(3)[5:42] + flac(3)[4:],  # two STREAMINFO
        wav(1)[:44] + mp3(5) + wav(1)[44:],  # ffmpeg plays an MP3
        wav(1)[:44] + b"\xff\xf1\x50\x80\x0c\x9f\xfc".ljust(100, b"\0") * 9 + wav(1)[44:],  # … or AAC
        wav(1)[:32] + b"\x01\0" + wav(1)[34:],  # samples of two bytes in frames of one
        mp3(9, tag=ID3[:6] + b"\x80" + ID3[7:]),
        mp3(9, tag=ID3[:3] + b"\xff" + ID3[4:]),
        b"OggS" + bytes(40),
        mp3(20) + b"\0" + mp3(20),
        mp3(20).replace(b"\xff\xfb\x90", b"\xff\xfd\x90"),  # layer II
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


@pytest.mark.parametrize("file", [flac(9), opus([TALK] * 9), mp3(9)])
def test_more_pieces_than_there_is_time_for(file: bytes, monkeypatch: pytest.MonkeyPatch):
    assert length_of(memoryview(file)).is_told
    monkeypatch.setattr(audio, "PIECES_MAX", 8)
    monkeypatch.setattr(audio, "FLAC_PIECES_MAX", 8)
    assert not length_of(memoryview(file)).is_told


def test_any_damage_has_a_length():
    chance = random.Random(7)
    for file in (wav(1), flac(3), opus([TALK] * 3), VORBIS, mp3(10), mp3(10, marked=10), ID3 + mp3(3)):
        for _ in range(40):
            broken = bytearray(file[: chance.choice((len(file), 60, 200))])
            for _ in range(chance.randint(1, 6)):
                broken[chance.randrange(min(64, len(broken)))] = chance.randrange(256)
            length = length_of(memoryview(bytes(broken)))
            assert 0 <= length.likely_ms < length.most_ms
