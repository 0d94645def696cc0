"""multipart/form-data → members: texts, and files as bytes. Source: RFC 7578."""

from __future__ import annotations

import re
from typing import Any

PARTS_MAX = 64
"""Of a form: no endpoint knows more than twenty."""

_BOUNDARY = re.compile(r'multipart/form-data\s*;.*?boundary="?([^";,]{1,70})"?', re.IGNORECASE | re.DOTALL)
_NAME = re.compile(r'content-disposition:[ \t]*form-data\b.*?;[ \t]*name="([^"]*)"', re.IGNORECASE)
_FILE = re.compile(r";[ \t]*filename\*?=", re.IGNORECASE)


def members(body: bytes, content_type: str) -> dict[str, Any]:
    """Of doubled names the last wins. Raises :class:`ValueError`."""
    found = _BOUNDARY.match(content_type)
    if found is None:
        raise ValueError("no multipart form with a boundary")
    delimiter = b"\r\n--" + found[1].encode("latin-1", "replace")
    parts = (b"\r\n" + body).split(delimiter, PARTS_MAX + 1)
    if len(parts) < 2 or len(parts) > PARTS_MAX or not parts[-1].startswith(b"--"):
        raise ValueError("the form has no end, or too many parts")
    return dict(_member(part) for part in parts[1:-1])


def _member(part: bytes) -> tuple[str, str | bytes]:
    head, blank, content = part.partition(b"\r\n\r\n")
    named = _NAME.search(head.decode("latin-1"))
    if not blank or named is None:
        raise ValueError("a part of the form has no name")
    if _FILE.search(head.decode("latin-1")):
        return named[1], content
    return named[1], content.decode("utf-8", "replace")
