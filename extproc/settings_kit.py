"""How a key of ``settings`` is read: builders of fields with type, bounds and default, and what is wrong with a text.

A builder stands where a field's default would: ``workers: int = number(0, 0, 256)``. What it knows travels in the field's metadata.
"""

from __future__ import annotations

import dataclasses
import re
import zoneinfo
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from extproc.money.amount import format_amount, parse_amount
from extproc.yamlfile import Cursor

MASK = "***"

NamedUrls = tuple[tuple[str, tuple[str, ...]], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Key:
    """How one key is read. ``raw``: an environment variable is taken as text, not as YAML."""

    read: Callable[[Cursor, Any], Any]
    name: str = ""  # in the file, where it differs from the field's
    raw: bool = False
    null: bool = False
    live: bool = False
    path: bool = False
    show: Callable[[Any], Any] | None = None  # value → as it would stand in the file
    secret_file: str = ""  # the key whose file holds this secret; such a key has no place in the file


def number(default: int | None, low: int, high: int, **more: Any) -> Any:
    """An integer from ``low`` to ``high``; ``more``: other members of :class:`Key`."""
    key = Key(read=lambda at, otherwise: at.integer(otherwise, low=low, high=high), null=default is None, **more)
    return dataclasses.field(default=default, metadata={"key": key})


def text(default: str | None, check: Callable[[str], str] | None = None, *, pattern: str = "", what: str = "", **more: Any) -> Any:
    """``check`` returns what is wrong with a text, or nothing."""

    def read_text(at: Cursor, otherwise: Any) -> Any:
        found = at.text(otherwise, pattern=pattern, what=what)
        wrong = check(found) if check and found is not None else ""
        if wrong:
            at.fault(wrong)
        return found

    return dataclasses.field(default=default, metadata={"key": Key(read=read_text, raw=True, null=default is None, **more)})


def word(*choices: str, **more: Any) -> Any:
    """One of these; the first is the default."""
    key = Key(read=lambda at, otherwise: at.text(otherwise, choices=choices), raw=True, **more)
    return dataclasses.field(default=choices[0], metadata={"key": key})


def flag(default: bool, **more: Any) -> Any:
    """Yes or no."""
    return dataclasses.field(default=default, metadata={"key": Key(read=Cursor.boolean, **more)})


def path(default: str | None, **more: Any) -> Any:
    """A path, taken from the directory of the file."""
    key = Key(read=lambda at, otherwise: as_path(at) or otherwise, raw=True, null=default is None, path=True, **more)
    return dataclasses.field(default=Path(default) if default else None, metadata={"key": key})


def secret(file_key: str) -> Any:
    """From the environment, or from the file that ``file_key`` names."""
    key = Key(read=Cursor.text, raw=True, secret_file=file_key)
    return dataclasses.field(default=None, repr=False, metadata={"key": key})


def read_by(default: Any, reader: Callable[[Cursor, Any], Any], **more: Any) -> Any:
    """Anything else: ``reader(cursor, default)``."""
    return dataclasses.field(default=default, metadata={"key": Key(read=reader, **more)})


def as_path(at: Cursor) -> Path | None:
    """``None``: a fault, told at the cursor."""
    text = at.text("", pattern=r"[^\x00]+", what="a path")
    return Path(text) if text else None


def check_address(text: str) -> str:
    """``unix:PATH`` or ``host:port``; ``{worker}`` may stand in either."""
    plain = text.replace("{worker}", "0")
    if plain.startswith("unix:"):
        return "" if len(plain) > len("unix:") and not plain.startswith("unix:@") else f"{text!r} names no socket file"
    return check_host_port(plain)


def check_host_port(text: str) -> str:
    """``host:port``."""
    host, _, port = text.rpartition(":")
    good = host and port.isascii() and port.isdigit() and len(port) <= 5 and int(port) < 65536
    return "" if good else f"{text!r} is not host:port"


def check_redis_url(text: str) -> str:
    """An address of Redis, of a socket or of a cluster."""
    scheme = text.partition("://")[0]
    if scheme not in ("redis", "rediss", "unix", "redis+cluster"):
        return f"{masked(text)!r} is no redis://, rediss://, unix:// or redis+cluster:// address"
    return ""


def check_dsn(text: str) -> str:
    """As libpq takes it: an address, or ``key=value`` pairs."""
    if text.startswith(("postgresql://", "postgres://")) or re.match(r"\s*\w+\s*=", text):
        return ""
    return f"{masked(text)!r} is no postgresql:// address and no list of key=value"


def check_time_zone(text: str) -> str:
    """A name of the tz database."""
    try:
        zoneinfo.ZoneInfo(text)
    except (zoneinfo.ZoneInfoNotFoundError, ValueError, OSError):
        return "" if text in ("UTC", "Etc/UTC") else f"{text!r} is no time zone that this machine knows"
    return ""


def read_amount(at: Cursor, otherwise: int | None) -> int | None:
    """A decimal amount of the currency → nanos."""
    text = at.text("")
    if not text:
        return otherwise
    try:
        return parse_amount(text)
    except ValueError as error:
        at.fault(str(error))
        return otherwise


def read_stores_away(at: Cursor, otherwise: int | None) -> int | None:
    """``closed`` → ``None``; ``{credit: "5.00"}`` → its nanos."""
    if isinstance(at.node.value, dict):
        credit = at.members(["credit"], required=["credit"]).get("credit")
        return read_amount(credit, otherwise) if credit else otherwise
    at.text("", choices=("closed", '{credit: "5.00"}'))
    return None


def show_stores_away(credit_nanos: int | None) -> Any:
    """The way back."""
    return "closed" if credit_nanos is None else {"credit": format_amount(credit_nanos)}


def read_status(at: Cursor, otherwise: int) -> int:
    """402 or 429."""
    status = at.integer(otherwise, low=400, high=499)
    if status in (402, 429):
        return status
    at.fault("must be 402 or 429")
    return otherwise


def read_paths(at: Cursor, otherwise: tuple[Path, ...]) -> tuple[Path, ...]:
    """A list of paths."""
    return tuple(Path(text) for text in at.texts(pattern=r"[^\x00]+", what="a path")) or otherwise


def read_uids(at: Cursor, otherwise: frozenset[int] | None) -> frozenset[int] | None:
    """A list of user ids."""
    uids = [element.integer(None, low=0, high=2**32 - 2) for element in at.elements()]
    return frozenset(uid for uid in uids if uid is not None) or otherwise


def read_urls(at: Cursor, otherwise: NamedUrls) -> NamedUrls:
    """``{name: [http(s) address, …]}``, none of them with a password."""
    listed = {name: urls.texts(pattern=r"https?://[^\s@]{1,1000}", what="an http(s) address") for name, urls in at.entries().items()}
    return tuple(listed.items()) or otherwise


def show_urls(value: NamedUrls) -> dict[str, list[str]]:
    """The way back."""
    return {name: list(urls) for name, urls in value}


def read_mode(at: Cursor, otherwise: int) -> int:
    """An octal file mode."""
    text = at.text("", pattern=r"0?[0-7]{3}", what='an octal file mode such as "0660"')
    return int(text, 8) if text else otherwise


def masked(text: str) -> str:
    """An address without its password: ``user:password@`` of a URL, ``password=`` of a query or of a DSN."""
    text = re.sub(r"(://[^/@:\s]*:)[^\s]+@", rf"\1{MASK}@", text)
    return re.sub(r"(?i)\b(password|passfile|sslpassword)\s*=\s*('(?:[^'\\]|\\.)*'|[^&\s]*)", rf"\1={MASK}", text)
