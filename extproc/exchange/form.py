"""``multipart/form-data`` (RFC 7578), read strictly and written anew: what a backend gets is made by us, and can be read in one way only.

Everything is bounded, and whatever is doubtful is refused with a 400 that says what. A file's bytes are never copied nor changed.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import NamedTuple

from extproc.errors import ClientError

PARTS_MAX = 64  # a transcription has 17 fields
PART_HEADER_BYTES_MAX = 4_096  # two lines; a filename may have 255 bytes
PART_HEADERS_MAX = 8
FIELD_BYTES_MAX = 65_536  # of a member that is no file
NAME_CHARS_MAX = 128
FILENAME_CHARS_MAX = 64  # of what is left of a filename
BOUNDARY = "extproc.form.1f8c27a6d35b4e90"
CONTENT_TYPE = f"multipart/form-data; boundary={BOUNDARY}"

_WORD = r"[!#$%&'*+.^_`|~0-9A-Za-z-]+"
_PARAMETER = re.compile(rf';\s{{0,8}}({_WORD})=(?:"((?:[^"\\\x00-\x1f\x7f]|\\["\\])*+)"|({_WORD}))\s{{0,8}}')
_BOUNDARY = re.compile(r"[0-9A-Za-z'()+_,./:=? -]{0,69}[0-9A-Za-z'()+_,./:=?-]", re.ASCII)
_HARMLESS_ENCODINGS = ("7bit", "8bit", "binary")
_NOT_IN_FILENAMES = re.compile(r"[^A-Za-z0-9._-]+")


class File(NamedTuple):
    """A member with a filename. ``data`` is a view of the body; ``filename`` is fit to be written into a header."""

    filename: str
    data: memoryview


Value = str | File | list[str]


def read_form(data: bytes, content_type: str) -> dict[str, Value]:
    """Members by name. Of doubled fields the last wins; those whose name ends with ``[]`` are lists. A file may come once."""
    delimiter = b"--" + _boundary_of(content_type).encode()
    if BOUNDARY.encode() in data:  # nobody can put our own boundary into a member, and so members into our form
        raise _fault("has a member that cannot be forwarded")
    if not data.startswith(delimiter):
        raise _fault("does not begin with its boundary")
    members: dict[str, Value] = {}
    at = len(delimiter)
    for _ in range(PARTS_MAX + 1):
        if data[at : at + 2] == b"--":
            if data[at + 2 :].strip(b" \t\r\n"):
                raise _fault("has something behind its end")
            return members
        if data[at : at + 2] != b"\r\n":
            raise _fault("has a boundary that is not followed by a line break")
        end = data.find(b"\r\n" + delimiter, at)
        if end < 0:
            raise _fault("has no end")
        _add(members, data, at + 2, end)
        at = end + 2 + len(delimiter)
    raise _fault(f"has more than {PARTS_MAX} parts")


def write_form(fields: Mapping[str, object]) -> bytes:
    """The members in our own words: text, lists of texts, and files."""
    pieces: list[bytes | memoryview] = []
    for name, value in fields.items():
        if isinstance(value, File):
            head = _head(name, f'; filename="{value.filename}"', "\r\nContent-Type: application/octet-stream")
            pieces += (head, value.data, b"\r\n")
        else:
            for text in value if isinstance(value, list) else [value]:
                pieces += (_head(name), str(text).encode(), b"\r\n")
    return b"".join((*pieces, f"--{BOUNDARY}--\r\n".encode()))


def _head(name: str, filename: str = "", more: str = "") -> bytes:
    return f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="{name}"{filename}{more}\r\n\r\n'.encode()


def _boundary_of(content_type: str) -> str:
    kind, parameters = _parameters(content_type, "the content-type")
    if kind != "multipart/form-data":
        raise ClientError("Send the body as multipart/form-data.", status=415, code="unsupported_media_type")
    boundary = parameters.get("boundary", "")
    if not _BOUNDARY.fullmatch(boundary):
        raise _fault("has no boundary that could be one")
    return boundary


def _parameters(text: str, where: str) -> tuple[str, dict[str, str]]:
    """``a; b=c; d="e"`` → ``a`` and its parameters, in lower case; one that is doubled or misshapen is a fault."""
    kind = text.partition(";")[0]
    found: dict[str, str] = {}
    at = len(kind)
    while at < len(text):
        match = _PARAMETER.match(text, at)
        if match is None or match[1].lower() in found:
            raise _fault(f"has {where} that cannot be read")
        found[match[1].lower()] = match[3] or re.sub(r"\\(.)", r"\1", match[2] or "")
        at = match.end()
    return kind.strip().lower(), found


def _add(members: dict[str, Value], data: bytes, start: int, end: int) -> None:
    """One part: headers, an empty line, content."""
    blank = data.find(b"\r\n\r\n", start, min(end, start + PART_HEADER_BYTES_MAX))
    if blank < 0:
        raise _fault(f"has a part without headers, or with more than {PART_HEADER_BYTES_MAX} bytes of them")
    name, filename = _name_of(data[start:blank])
    content = blank + 4
    if filename is not None:
        if name in members:
            raise _fault(f"has the file {name!r} twice")
        members[name] = File(_harmless(filename), memoryview(data)[content:end])
        return
    if end - content > FIELD_BYTES_MAX:
        raise ClientError(f"`{name}` has more than {FIELD_BYTES_MAX} bytes.", param=name, code="invalid_value")
    try:
        text = data[content:end].decode()
    except UnicodeDecodeError as error:
        raise ClientError(f"`{name}` is not UTF-8.", param=name, code="invalid_value") from error
    before = members.get(name)
    if isinstance(before, File):
        raise _fault(f"has {name!r} twice")
    if not name.endswith("[]"):
        members[name] = text
    elif isinstance(before, list):
        before.append(text)
    else:
        members[name] = [text]


def _name_of(head: bytes) -> tuple[str, str | None]:
    """Name and filename, out of the headers of a part."""
    try:
        lines = head.decode().split("\r\n")
    except UnicodeDecodeError as error:
        raise _fault("has part headers that are not UTF-8") from error
    if len(lines) > PART_HEADERS_MAX:
        raise _fault("has too many headers in a part")
    headers: dict[str, str] = {}
    for line in lines:
        name, colon, value = line.partition(":")
        if not colon or not re.fullmatch(_WORD, name) or name.lower() in headers or not value.isprintable():
            raise _fault("has a part header that cannot be read")
        headers[name.lower()] = value.strip()
    if headers.get("content-transfer-encoding", "binary").lower() not in _HARMLESS_ENCODINGS:
        raise _fault("has an encoded part; send it as it is")
    kind, parameters = _parameters(headers.get("content-disposition", ""), "a content-disposition")
    found = parameters.get("name", "")
    if kind != "form-data" or not found:
        raise _fault("has a part without a name")
    if len(found) > NAME_CHARS_MAX or not re.fullmatch(r"[A-Za-z0-9_.\[\]-]+", found):
        raise _fault("has a part whose name cannot be one")
    filename = parameters.get("filename")
    return found, "" if filename is None and "filename*" in parameters else filename


def _harmless(filename: str) -> str:
    """What of a filename says something to a backend, its ending above all."""
    return _NOT_IN_FILENAMES.sub("_", re.split(r"[/\\]", filename)[-1])[-FILENAME_CHARS_MAX:].lstrip(".") or "file"


def _fault(what: str) -> ClientError:
    return ClientError(f"The form {what}.", code="invalid_form")
