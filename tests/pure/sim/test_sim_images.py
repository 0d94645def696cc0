"""Images: their size from their headers, and the tokens that Qwen2-VL makes of them."""

from __future__ import annotations

import base64

import pytest

from extproc.local.sim.images import FRAME_TOKENS, image_of, size_of, tokens_of

PNG = b"\x89PNG\r\n\x1a\n" + b"\0\0\0\rIHDR" + (1920).to_bytes(4, "big") + (1080).to_bytes(4, "big") + b"\x08\x02\0\0\0"
GIF = b"GIF89a" + (640).to_bytes(2, "little") + (480).to_bytes(2, "little") + b"\0\0\0"
JPEG_FRAME = b"\xff\xc2\0\x11\x08" + (300).to_bytes(2, "big") + (200).to_bytes(2, "big") + b"\3" + bytes(9)
JPEG = b"\xff\xd8" + b"\xff\xe0\0\x10JFIF" + bytes(10) + b"\xff\xff\xdb\0\5\0\0\0" + JPEG_FRAME
WEBP = b"RIFF\0\0\0\0WEBP"
VP8X = WEBP + b"VP8X" + bytes(8) + (799).to_bytes(3, "little") + (599).to_bytes(3, "little")
VP8L = WEBP + b"VP8L" + bytes(4) + b"\x2f" + (99 | 49 << 14).to_bytes(4, "little") + bytes(8)
VP8 = WEBP + b"VP8 " + bytes(7) + b"\x9d\x01\x2a" + (176).to_bytes(2, "little") + (144).to_bytes(2, "little")


@pytest.mark.parametrize(
    ("size", "tokens"),
    # 512², 1080p: VLLM's own answers; the others by smart_resize, its rounding included
    [((512, 512), 324), ((1920, 1080), 2_691), ((1, 1), 4), ((28, 28), 4), ((56, 56), 4), ((28, 84), 8), ((20_000, 20_000), 127**2)],
)
def test_tokens(size, tokens):
    assert tokens_of(*size) == tokens
    assert 4 <= tokens <= 16_384


@pytest.mark.parametrize("size", [(0, 5), (5, 0), (1, 201), (20_100, 100)])
def test_sizes_that_no_model_takes(size):
    with pytest.raises(ValueError, match="no model takes"):
        tokens_of(*size)


@pytest.mark.parametrize(
    ("data", "size"),
    [(PNG, (1920, 1080)), (GIF, (640, 480)), (JPEG, (200, 300)), (VP8X, (800, 600)), (VP8L, (100, 50)), (VP8, (176, 144))],
)
def test_sizes_from_headers(data, size):
    assert size_of(data) == size
    image = image_of("data:image/x;base64," + base64.b64encode(data).decode(), fetched_size=(1, 1))
    assert image.tokens == tokens_of(*size) + FRAME_TOKENS
    for end in range(len(data)):
        assert size_of(data[:end]) in (None, size)


def test_an_image_elsewhere_has_the_size_that_is_ordered():
    one, other = (image_of(f"https://pictures.example/{name}", fetched_size=(512, 512)) for name in "ab")
    assert one.tokens == other.tokens == 326
    assert one.what != other.what


@pytest.mark.parametrize("url", ["data:image/png;base64,AAAA", "data:image/png;base64,not base64", "data:text/plain,AAAA", "data:"])
def test_data_that_is_no_image(url):
    with pytest.raises(ValueError):
        image_of(url, fetched_size=(512, 512))
