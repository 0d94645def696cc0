"""Numbered migrations: ``NNNN_name.sql``, each in one transaction, under one advisory lock, remembered with its hash.

A migration must suit the program of the version before it as well (add, fill, and only a release later drop): during a rollout both run.
Therefore a database that is *newer* than the program is fine; one whose applied migration was edited afterwards is not.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from hashlib import sha256
from importlib.resources import files
from typing import Any

import psycopg
from psycopg.rows import TupleRow

from extproc.errors import StoreRefused, UsageError

PACKAGE = "extproc.ledger"  # whose folder ``migrations`` holds the schema: named, not imported
CONNECT_TIMEOUT_S = 5
LOCK_TIMEOUT_MS = 30_000  # a migration that waits longer for a table stands in the way of everybody behind it
_FILE = re.compile(r"^(?P<number>\d{4})_(?P<name>[a-z0-9_]+)\.sql$")
_LOCK = 0x65787470  # "extp": one migration at a time per database

_TABLE = """
CREATE TABLE IF NOT EXISTS schema_migrations (
    number integer PRIMARY KEY,
    name text NOT NULL,
    sha256 text NOT NULL,
    applied_at timestamptz NOT NULL DEFAULT now()
)
"""

Connection = psycopg.Connection[TupleRow]


@dataclass(frozen=True, slots=True, kw_only=True)
class Migration:
    """One file. ``digest`` is the SHA-256 of its text."""

    number: int
    name: str
    sql: str

    @property
    def label(self) -> str:
        return f"{self.number:04d}_{self.name}"

    @property
    def digest(self) -> str:
        return sha256(self.sql.encode()).hexdigest()


def load_migrations(package: str = PACKAGE) -> tuple[Migration, ...]:
    """The migrations of a package's folder ``migrations``, in order, numbered from 1 without a gap."""
    found = [
        Migration(number=int(match["number"]), name=match["name"], sql=entry.read_text(encoding="utf-8"))
        for entry in sorted(files(package).joinpath("migrations").iterdir(), key=lambda path: path.name)
        if (match := _FILE.match(entry.name))
    ]
    if [migration.number for migration in found] != list(range(1, len(found) + 1)):
        raise ValueError(f"migrations of {package} are not numbered 1…{len(found)}")
    return tuple(found)


def migrate(
    dsn: str,
    *,
    password: str | None = None,
    migrations: Sequence[Migration] | None = None,
    progress: Callable[[str], None] = lambda _: None,
) -> tuple[str, ...]:
    """Bring the schema up to date; the labels of what was applied, none if it was. Safe to run from several places at once.

    Blocks: a program with a loop calls it in a thread. :class:`StoreRefused`: nothing of the migration that failed was kept.
    """
    wanted = load_migrations() if migrations is None else migrations
    options: dict[str, Any] = {} if password is None else {"password": password}
    try:
        with psycopg.connect(dsn, autocommit=True, connect_timeout=CONNECT_TIMEOUT_S, **options) as connection:
            connection.execute("SELECT pg_advisory_lock(%s)", (_LOCK,))  # let go of with the connection
            connection.execute("SELECT set_config('lock_timeout', %s, false)", (f"{LOCK_TIMEOUT_MS}ms",))
            connection.execute("SET client_min_messages = warning")
            connection.execute(_TABLE)
            return _apply(connection, wanted, progress)
    except psycopg.Error as error:
        raise StoreRefused(f"the schema could not be migrated: {error}") from error


def _apply(connection: Connection, migrations: Sequence[Migration], progress: Callable[[str], None]) -> tuple[str, ...]:
    applied: dict[int, str] = dict(connection.execute("SELECT number, sha256 FROM schema_migrations").fetchall())
    done = []
    for migration in migrations:
        digest = applied.get(migration.number)
        if digest is None:
            progress(migration.label)
            _apply_one(connection, migration)
            done.append(migration.label)
        elif digest != migration.digest:
            raise UsageError(f"migration {migration.label} was applied with another text: write a new one instead of editing it")
    return tuple(done)


def _apply_one(connection: Connection, migration: Migration) -> None:
    """The change and its record in one transaction."""
    with connection.transaction():
        connection.execute(migration.sql.encode())
        connection.execute(
            "INSERT INTO schema_migrations (number, name, sha256) VALUES (%s, %s, %s)",
            (migration.number, migration.name, migration.digest),
        )
