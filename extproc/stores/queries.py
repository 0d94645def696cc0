"""Named queries out of ``.sql`` files.

A file holds any number of queries; each begins with its name and a sentence that says what it answers::

    -- name: open_requests_of_account
    -- Requests of one account, newest first, for its usage page.
    SELECT …

Parameters are psycopg's ``%(name)s``. A query without a sentence, or two of one name, is refused when the files are read.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib.resources import files

_NAME = re.compile(r"^-- name: (?P<name>[a-z][a-z0-9_]*)$", re.MULTILINE)


@dataclass(frozen=True, slots=True, kw_only=True)
class Query:
    """One statement. ``sql`` is bytes, because that is what a driver takes for text that is not a literal of the program."""

    name: str
    sentence: str
    sql: bytes


class Queries(Mapping[str, Query]):
    """The queries of one package by name; an unknown name is a ``KeyError`` at the first use, which every test of the adapter meets."""

    def __init__(self, queries: Mapping[str, Query]) -> None:
        self._queries = dict(queries)

    def __getitem__(self, name: str) -> Query:
        return self._queries[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._queries)

    def __len__(self) -> int:
        return len(self._queries)


def parse_queries(text: str, *, source: str) -> list[Query]:
    """The queries of one file. ``ValueError`` names the file and what is wrong in it."""
    starts = list(_NAME.finditer(text))
    if not starts or text[: starts[0].start()].strip():
        raise ValueError(f"{source}: a query file begins with '-- name: …'")
    ends = [match.start() for match in starts[1:]] + [len(text)]
    return [_query(match["name"], text[match.end() : end].strip("\n"), source) for match, end in zip(starts, ends, strict=True)]


def _query(name: str, body: str, source: str) -> Query:
    lines = body.split("\n")
    count = next((i for i, line in enumerate(lines) if not line.startswith("--")), len(lines))
    sentence = " ".join(line.removeprefix("--").strip() for line in lines[:count])
    sql = "\n".join(lines[count:]).strip().rstrip(";")
    if not sentence or not sql:
        raise ValueError(f"{source}: query {name} needs a sentence and a statement")
    return Query(name=name, sentence=sentence, sql=sql.encode())


def load_queries(package: str, folder: str = "sql") -> Queries:
    """Every ``.sql`` file in ``folder`` of ``package``."""
    found: dict[str, Query] = {}
    for entry in sorted(files(package).joinpath(folder).iterdir(), key=lambda path: path.name):
        if not entry.name.endswith(".sql"):
            continue
        for query in parse_queries(entry.read_text(encoding="utf-8"), source=entry.name):
            if query.name in found:
                raise ValueError(f"{entry.name}: query {query.name} exists twice")
            found[query.name] = query
    return Queries(found)
