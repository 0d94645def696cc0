from __future__ import annotations

import random

import pytest

from extproc.errors import ClientError
from extproc.exchange.form import BOUNDARY, CONTENT_TYPE, FIELD_BYTES_MAX, PARTS_MAX, File, read_form, write_form

TYPE = "multipart/form-data; boundary=b"
MODEL = b'--b\r\nContent-Disposition: form-data; name="model"\r\n\r\nwhisper\r\n'
SOUND = bytes(range(256)) + b"\r\n--c\r\n--\r\n"
FILE = b'--b\r\nContent-Disposition: form-data; name="file"; filename="a b.wav"\r\nContent-Type: audio/wav\r\n\r\n' + SOUND + b"\r\n"
FORM = MODEL + FILE + b"--b--\r\n"


def test_a_form_is_read_and_written_anew():
    members = read_form(FORM, TYPE)
    assert members["model"] == "whisper"
    assert members["file"].filename == "a_b.wav"
    assert members["file"].data == SOUND
    again = write_form(members)
    assert read_form(again.replace(BOUNDARY.encode(), b"x"), "multipart/form-data; boundary=x") == members
    assert again.startswith(f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="model"\r\n\r\nwhisper\r\n'.encode())


def test_doubled_fields_and_lists():
    listed = b"".join(b'--b\r\nContent-Disposition: form-data; name="g[]"\r\n\r\n%s\r\n' % one for one in (b"word", b"segment"))
    members = read_form(MODEL + listed + MODEL.replace(b"whisper", b"other") + b"--b--", TYPE)
    assert members == {"model": "other", "g[]": ["word", "segment"]}
    assert write_form(members).count(b'name="g[]"') == 2


@pytest.mark.parametrize("boundary", ['"b"', "b; charset=utf-8", 'b ;  x="\\""'])
def test_boundaries_as_clients_write_them(boundary: str):
    assert read_form(FORM, f"Multipart/Form-Data; boundary={boundary}")["model"] == "whisper"


@pytest.mark.parametrize(
    ("filename", "kept"),
    [
        ("../../etc/passwd", "passwd"),
        ("C:\\x\\y.mp3", "y.mp3"),
        (".bashrc", "bashrc"),
        ("声音.wav", "_.wav"),
        ("", "file"),
        ("x" * 900, "x" * 64),
    ],
)
def test_of_a_filename_only_what_is_harmless_is_kept(filename: str, kept: str):
    members = read_form(FILE.replace(b"a b.wav", filename.replace("\\", "\\\\").encode()) + b"--b--", TYPE)
    assert isinstance(members["file"], File)
    assert members["file"].filename == kept


@pytest.mark.parametrize(
    ("content_type", "body"),
    [
        ("application/json", b"{}"),
        ("", FORM),
        ("multipart/form-data", FORM),
        ("multipart/form-data; boundary=", FORM),
        ("multipart/form-data; boundary=b; boundary=c", FORM),
        ('multipart/form-data; boundary="b', FORM),
        ("multipart/form-data; boundary=" + "b" * 71, FORM.replace(b"--b", b"--" + b"b" * 71)),
        ('multipart/form-data; boundary="b "', FORM),
        (CONTENT_TYPE, FORM.replace(b"--b", b"--" + BOUNDARY.encode())),
        (TYPE, FORM.replace(b"whisper", BOUNDARY.encode())),
        (TYPE, b""),
        (TYPE, b"--c--"),
        (TYPE, b"\r\n" + FORM),
        (TYPE, MODEL),
        (TYPE, FORM + b"--b"),
        (TYPE, FORM.replace(b"\r\n\r\nwhisper", b"\r\nwhisper")),
        (TYPE, FORM.replace(b"\r\nContent-D", b"\nContent-D", 1)),
        (TYPE, FORM.replace(b"whisper", b"\xff")),
        (TYPE, FILE.replace(b'"file"', b'"x[]"') + MODEL.replace(b"model", b"x[]") + b"--b--"),
        (TYPE, MODEL.replace(b"model", b"x[]") + FILE.replace(b'"file"', b'"x[]"') + b"--b--"),
        (TYPE, FORM.replace(b"whisper", b"x" * (FIELD_BYTES_MAX + 1))),
        (TYPE, FORM.replace(b'name="model"', b'name=""')),
        (TYPE, FORM.replace(b'name="model"', b'name="mo\ndel"')),
        (TYPE, FORM.replace(b'name="model"', b'name="m"; name="model"')),
        (TYPE, FORM.replace(b'name="model"', b'name="m\\"odel"')),
        (TYPE, FORM.replace(b'name="model"', b"name=model=")),
        (TYPE, FORM.replace(b'form-data; name="model"', b'attachment; name="model"')),
        (TYPE, FORM.replace(b"a b.wav", b"a\r\nX: b")),
        (TYPE, FORM.replace(b"a b.wav", b"a\0b")),
        (TYPE, FORM.replace(b"Content-Type: audio/wav", b"Content-Transfer-Encoding: base64")),
        (TYPE, FORM.replace(b"Content-Type: audio/wav", b'Content-Disposition: form-data; name="x"')),
        (TYPE, FORM.replace(b"Content-Type: audio/wav", b"X: y\r\n" * 9)),
        (TYPE, FORM.replace(b"Content-Type: audio/wav", b"X: " + b"y" * 5_000)),
        (TYPE, FILE + FORM),
        (TYPE, FILE + FILE.replace(b'; filename="a b.wav"', b"") + b"--b--"),
        (TYPE, MODEL * (PARTS_MAX + 1) + b"--b--"),
    ],
)  # fmt: skip
def test_hostile_forms_are_refused_with_a_reason(content_type: str, body: bytes):
    with pytest.raises(ClientError) as refused:
        read_form(body, content_type)
    assert refused.value.status in (400, 415)
    assert refused.value.code


def test_any_damage_is_read_or_refused():
    chance = random.Random(5)
    for _ in range(300):
        body = bytearray(FORM)
        for _ in range(chance.randint(1, 4)):
            at = chance.randrange(len(body))
            body[at : at + chance.randint(0, 3)] = chance.randbytes(chance.randint(0, 3))
        try:
            members = read_form(bytes(body), TYPE)
        except ClientError:
            continue
        assert read_form(write_form(members).replace(BOUNDARY.encode(), b"other"), "multipart/form-data; boundary=other") == members
