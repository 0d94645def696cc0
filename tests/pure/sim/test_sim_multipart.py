"""Forms are read as browsers and SDKs write them, and nothing else is."""

from __future__ import annotations

import pytest

from extproc.local.sim.multipart import members

TYPE = "multipart/form-data; boundary=xyz"


def part(name: str, content: bytes, extra: str = "") -> bytes:
    return f'--xyz\r\nContent-Disposition: form-data; name="{name}"{extra}\r\n\r\n'.encode() + content + b"\r\n"


FILE = part("file", b"\0\r\n--xy\xff", '; filename="a.wav"\r\nContent-Type: audio/wav')


def test_texts_and_files():
    body = part("model", b"m") + FILE + part("model", "zwei ü".encode()) + b"--xyz--\r\n"
    assert members(body, TYPE) == {"model": "zwei ü", "file": b"\0\r\n--xy\xff"}
    assert members(body, 'Multipart/Form-Data; charset=utf-8; boundary="xyz"') == members(body, TYPE)
    assert members(b"preamble\r\n" + body + b"epilogue", TYPE) == members(body, TYPE)
    assert members(b"--xyz--\r\n", TYPE) == {}


@pytest.mark.parametrize("content_type", ["", "application/json", "multipart/form-data", "multipart/mixed; boundary=xyz"])
def test_types_that_are_no_form(content_type):
    with pytest.raises(ValueError, match="no multipart form"):
        members(FILE + b"--xyz--\r\n", content_type)


@pytest.mark.parametrize(
    "body", [b"", FILE, b"--xyz\r\n\r\nx\r\n--xyz--", b"--xyz\r\nno blank line\r\n--xyz--", part("a", b"1") * 65 + b"--xyz--"]
)
def test_bodies_that_are_none(body):
    with pytest.raises(ValueError):
        members(body, TYPE)
