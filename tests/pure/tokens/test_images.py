"""Sizes out of headers, whoever made them; and the tokens of a size."""

from __future__ import annotations

import base64
import random
import struct
import time
import zlib

import pytest

from extproc.tokens.images import FORMULAS, Size, image_sizes, image_tokens

PNG_MAGIC = b"\x89PNG\r\n\x1a\n"


def chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def header(width: int, height: int) -> bytes:
    return chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))


def png(width: int, height: int, *between: bytes) -> bytes:
    return PNG_MAGIC + header(width, height) + b"".join(between) + chunk(b"IDAT", bytes(50)) + chunk(b"IEND", b"")


def segment(kind: int, content: bytes) -> bytes:
    return struct.pack(">BBH", 0xFF, kind, len(content) + 2) + content


def frame(width: int, height: int, kind: int = 0xC0) -> bytes:
    return segment(kind, struct.pack(">BHHB", 8, height, width, 3) + bytes(9))


SCAN = segment(0xDA, bytes(10)) + bytes(40)


def jpeg(*segments: bytes) -> bytes:
    return b"\xff\xd8" + segment(0xE0, b"JFIF\0" + bytes(9)) + b"".join(segments) + SCAN


def picture(left: int, top: int, width: int, height: int) -> bytes:
    return b"," + struct.pack("<HHHHB", left, top, width, height, 0) + bytes(20)


def gif(width: int, height: int, *blocks: bytes, flags: int = 0x91) -> bytes:
    colours = bytes(3 << (flags & 7) + 1 if flags & 0x80 else 0)
    return b"GIF89a" + struct.pack("<HHBBB", width, height, flags, 0, 0) + colours + b"".join(blocks)


def webp(kind: bytes, content: bytes) -> bytes:
    return b"RIFF" + struct.pack("<I", len(content) + 12) + b"WEBP" + kind + struct.pack("<I", len(content)) + content


def bmp(width: int, height: int, size: int = 40) -> bytes:
    return b"BM" + bytes(12) + struct.pack("<Iii" if size > 12 else "<IHH", size, width, height) + bytes(40)


GRAPHIC_CONTROL = b"!\xf9\x04\0\0\0\0\0"
COMMENT = b"!\xfe" + (b"\xff" + bytes(255)) * 3 + b"\0"

GOOD = {
    "png": (png(640, 480), (640, 480)),
    "png with a profile": (png(3, 70_000, chunk(b"iCCP", bytes(30_000)), chunk(b"tEXt", b"x")), (3, 70_000)),
    "jpeg": (jpeg(frame(1920, 1080)), (1920, 1080)),
    "jpeg, progressive, behind a thumbnail": (jpeg(segment(0xE1, bytes(65_000)), segment(0xC4, bytes(30)), frame(7, 9, 0xC2)), (7, 9)),
    "jpeg, filled up": (jpeg(b"\xff\xff\xff" + frame(5, 6)), (5, 6)),
    "gif": (gif(10, 20, picture(0, 0, 10, 20)), (10, 20)),
    "gif without colours": (gif(10, 20, picture(2, 2, 3, 3), flags=0), (10, 20)),
    "gif with extensions": (gif(300, 200, GRAPHIC_CONTROL, COMMENT, GRAPHIC_CONTROL, picture(0, 0, 300, 200), flags=0xF7), (300, 200)),
    "gif that grows": (gif(1, 1, picture(4, 5, 600, 700)), (604, 705)),
    "webp, lossy": (webp(b"VP8 ", b"\x30\x01\0\x9d\x01\x2a" + struct.pack("<HH", 550 | 1 << 14, 368) + bytes(9)), (550, 368)),
    "webp, lossless": (webp(b"VP8L", b"\x2f" + struct.pack("<I", 399 | 300 << 14 | 1 << 28) + bytes(9)), (400, 301)),
    "webp, extended": (webp(b"VP8X", b"\x10\0\0\0" + struct.pack("<HBHB", 5999, 0, 3999, 0) + bytes(9)), (6000, 4000)),
    "bmp": (bmp(127, 64), (127, 64)),
    "bmp from the top": (bmp(127, -64), (127, 64)),
    "bmp of OS/2": (bmp(33, 44, 12), (33, 44)),
}

BAD = {
    "nothing": b"",
    "text": b"hello, this is no image at all",
    "png without a header": PNG_MAGIC + chunk(b"gAMA", bytes(13)) + header(1, 1) + chunk(b"IDAT", b""),
    "png with two": png(1, 1, header(4_000, 4_000)),
    "png without pixels": PNG_MAGIC + header(1, 1) + chunk(b"IEND", b""),
    "png of no width": png(0, 5),
    "png of a thousand chunks": png(1, 1, *[chunk(b"tEXt", b"")] * 1_000),
    "png with a chunk of 4 GB": PNG_MAGIC + header(1, 1) + b"\xff\xff\xff\xfftEXt" + bytes(100),
    "jpeg with two frames": jpeg(frame(1, 1), frame(4_000, 4_000)),
    "jpeg without a frame": jpeg(),
    "jpeg without a scan": b"\xff\xd8" + frame(1, 1) + b"\xff\xd9" + bytes(40),
    "jpeg with rubbish": jpeg(b"rubbish", frame(1, 1)),
    "jpeg of no height": jpeg(frame(5, 0)),
    "jpeg with empty segments": b"\xff\xd8" + b"\xff\xe0\0\0" * 2_000 + SCAN,
    "gif without a picture": gif(10, 10, GRAPHIC_CONTROL, b";" + bytes(20)),
    "gif of endless comments": gif(10, 10, b"!\xfe" + b"\x01x" * 2_000),
    "webp of another kind": webp(b"ANIM", bytes(30)),
    "webp of a later frame": webp(b"VP8 ", bytes(30)),
    "wave": b"RIFF" + bytes(4) + b"WAVE" + bytes(30),
    "bmp with an odd header": bmp(5, 5, 41),
    "bmp of no width": bmp(0, 5),
}


def image_size(image: str) -> Size | None:
    return image_sizes((image,))[0]


def url(image: bytes, media_type: str = "image/png") -> str:
    return f"data:{media_type};base64,{base64.b64encode(image).decode()}"


@pytest.mark.parametrize("kind", GOOD)
def test_sizes(kind: str) -> None:
    """The media type is not believed, and what follows the header is not needed."""
    image, size = GOOD[kind]
    assert image_size(url(image)) == size
    assert image_size(base64.b64encode(image).decode()) == size
    assert image_size(url(image + bytes(1_000)) + "not base64: never looked at!") == size


@pytest.mark.parametrize("kind", BAD)
def test_no_size(kind: str) -> None:
    assert image_size(url(BAD[kind])) is None


@pytest.mark.parametrize(
    "text",
    [
        "https://example.com/cat.png",
        "data:image/png," + "%89PNG",
        "data:image/png;base64",
        "data:" + "x" * 300 + ";base64," + base64.b64encode(png(1, 1)).decode(),
        "DATA:,",
        "data:image/png;base64,iVBORw0KGgo\n",
        "data:image/png;base64,\u200b" + base64.b64encode(png(1, 1)).decode(),
        "\ud83d" * 100,
        "====" * 100,
    ],
)
def test_other_texts_have_no_size(text: str) -> None:
    assert image_size(text) is None


def test_urls_in_capitals() -> None:
    assert image_size("DATA:image/PNG;name=x;BASE64," + base64.b64encode(png(8, 9)).decode()) == (8, 9)


@pytest.mark.parametrize("kind", GOOD)
def test_cut_off_headers(kind: str) -> None:
    """A beginning says the same, or nothing: never something else."""
    image, size = GOOD[kind]
    text = url(image[:200])
    assert all(image_size(text[:length]) in (None, size) for length in range(len(text) + 1))


def test_damaged_headers() -> None:
    """Never an exception; sizes are sizes."""
    chance = random.Random(5)
    for image, _ in GOOD.values():
        for _ in range(60):
            damaged = bytearray(image[:400])
            for _ in range(chance.randint(1, 6)):
                damaged[chance.randrange(len(damaged))] = chance.randrange(256)
            found = image_size(url(bytes(damaged)))
            assert found is None or min(found) > 0


def test_work_does_not_grow_with_the_image() -> None:
    """Six megabytes of hostile chunks: walking all of them takes half a second."""
    text = url(PNG_MAGIC + header(1, 1) + chunk(b"tEXt", b"") * 400_000)
    began = time.thread_time()
    assert image_size(text) is None
    assert time.thread_time() - began < 0.02


def test_work_does_not_grow_with_the_number_of_images() -> None:
    """A look at each of 512 fill bytes or blocks cost a quarter of a second for a megabyte; whoever sends such images is held for the most."""
    fills, blocks = url(b"\xff\xd8\xff" + b"\xff" * 2_000), url(b"GIF89a" + bytes(7) + b"\x21\xfe" + b"\x01\x01" * 2_000)
    began = time.thread_time()
    assert image_sizes([url(png(8, 9)), *[fills, blocks] * 500, url(png(8, 9))]) == [(8, 9), *[None] * 1_001]
    assert time.thread_time() - began < 0.1
    photographs = [url(jpeg(*[segment(0xE1, bytes(6))] * 20, frame(8, 9)))] * 256
    assert None not in image_sizes(photographs)


@pytest.mark.parametrize(
    ("formula", "size", "tokens"),
    [
        ("qwen2-vl", (512, 512), 324),
        ("qwen2-vl", (1920, 1080), 2_691),
        ("qwen2-vl", (1080, 1920), 2_691),
        ("qwen2-vl", (1, 1), 4),
        ("qwen2-vl", (28, 28), 4),
        ("qwen2-vl", (70, 98), 2 * 4),  # 2.5 and 3.5 squares: halves go to the even one
        ("qwen2-vl", (10, 1_000), 20),  # too flat for a row of squares: both sides grow
        ("qwen2-vl", (3_584, 3_584), 16_384),
        ("qwen2-vl", (10_000, 10_000), 127 * 127),  # 128 rows less a rounding error of the processor
        ("qwen2-vl", (20_000, 100), 714 * 4),
        ("qwen2-vl", (20_001, 100), 16_384),  # longer than 200 : 1 is refused by the backend
        ("qwen3-vl", (512, 512), 256),
        ("qwen3-vl", (1920, 1080), 60 * 34),
        ("qwen3-vl", (80, 80), 64),
        ("qwen3-vl", (4_096, 4_096), 16_384),
        ("qwen3-vl", (8_000, 6_000), 147 * 110),
    ],
)
def test_formulas(formula: str, size: tuple[int, int], tokens: int) -> None:
    assert image_tokens(formula, size, 16_384) == tokens + 2


@pytest.mark.parametrize("formula", FORMULAS)
def test_unknown_sizes_cost_the_most(formula: str) -> None:
    assert image_tokens(formula, None, 16_384) == 16_386
    assert image_tokens(formula, None, 1_280) == 1_282


@pytest.mark.parametrize("formula", FORMULAS)
def test_no_image_has_more_than_the_most(formula: str) -> None:
    chance = random.Random(6)
    for _ in range(300):
        size = int(2 ** chance.uniform(0, 16)), int(2 ** chance.uniform(0, 16))
        most = chance.choice([1_280, 4_096, 16_384])
        assert FORMULAS[formula].tokens_min + 2 <= image_tokens(formula, size, most) <= most + 2, size
