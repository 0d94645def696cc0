"""Models and tiers of one catalog added to the text of another, which keeps its comments: what stands there already is never changed."""

from __future__ import annotations

from collections.abc import Collection
from typing import Final

from extproc.catalog.load import parse_catalog
from extproc.catalog.model import Catalog, Model
from extproc.errors import ConfigError, UsageError
from extproc.yamlfile import Node, parse

INDENT: Final = "  "  # of the entries of a fragment


def add_to(text: str, file: str, fragment: str) -> tuple[str, list[str]]:
    """``text`` (of ``file``) with what it lacks of ``fragment``, a whole catalog; and a note of each that it has and says otherwise.

    :class:`UsageError`: it cannot take it.
    """
    old, fresh = parse_catalog(text.encode(), file=file), parse_catalog(fragment.encode(), file="")
    if old.currency != fresh.currency:
        raise UsageError(f"{file} is in {old.currency}, the import in {fresh.currency}: say --currency and --usd-rate")
    place, node = parse(text, file=file), parse(fragment, file="")
    added = text
    for section, known in (("models", old.models), ("tiers", old.tiers)):
        lines = _entries(fragment, node, section, known)
        added = _with_lines(added, parse(added, file=file), section, lines) if lines else added
    try:
        new = parse_catalog(added.encode(), file=file)
    except ConfigError as error:
        raise UsageError(f"{file} with the import in it would be refused, so it is left as it is: {error}") from error
    assert all(new.models[name] == model for name, model in old.models.items()), "nothing that was there is changed"
    assert all(_same_price(new.models[name], fresh.models[name]) for name in fresh.models.keys() - old.models.keys())
    return added, _differences(old, fresh, place)


def _differences(old: Catalog, fresh: Catalog, file: Node) -> list[str]:
    tiers = [name for name in old.tiers if name in fresh.tiers and old.tiers[name].price_factor != fresh.tiers[name].price_factor]
    models = [name for name in old.models if name in fresh.models and not _same_price(old.models[name], fresh.models[name])]
    return [
        *(f"{_place(file, 'tiers', name)}: tier {name!r} has another price_factor than the table; left as it is" for name in tiers),
        *(
            f"{_place(file, 'models', old.models[name].name)}: model {name!r} has another price than the table; left as it is"
            for name in models
        ),
    ]


def _place(file: Node, section: str, name: str) -> str:
    node = file.get(section, name)
    return f"{file.file}:{node.line if node else 0}"


def _same_price(one: Model, other: Model) -> bool:
    first, second = one.tariffs[0], other.tariffs[0]
    return (one.free, first.method, first.rates, len(one.tariffs)) == (other.free, second.method, second.rates, len(other.tariffs))


def _entries(fragment: str, node: Node, section: str, known: Collection[str]) -> list[str]:
    """Lines of the entries that are not known, as they stand in the fragment."""
    lines, entries = fragment.splitlines(), node.get(section)
    starts = [(name, entry.line) for name, entry in entries.items()] if entries else []
    ends = [line for _, line in starts[1:]] + [_end(node, section, len(lines))]
    return [line for (name, start), end in zip(starts, ends, strict=True) if name not in known for line in lines[start - 1 : end - 1]]


def _with_lines(text: str, node: Node, section: str, added: list[str]) -> str:
    """``added`` at the end of a section, as far to the right as what stands there."""
    lines = text.splitlines()
    entries = node.get(section)
    first = min((entry.line for _, entry in entries.items()), default=0) if entries else 0
    if entries is None or first <= entries.line:
        raise UsageError(f"{node.file}: `{section}` is written in braces; put the fragment there by hand")
    end = _end(node, section, len(lines)) - 1
    while not lines[end - 1].strip() or lines[end - 1].startswith("#"):
        end -= 1
    indent = lines[first - 1][: len(lines[first - 1]) - len(lines[first - 1].lstrip())]
    lines[end:end] = [indent + line.removeprefix(INDENT) for line in added]
    return "\n".join(lines) + "\n"


def _end(node: Node, section: str, last: int) -> int:
    """The line after a section: that of the next one, or after the last."""
    start = node.get(section)
    assert start is not None
    return min((other.line for _, other in node.items() if other.line > start.line), default=last + 1)
