"""The files of the outboxes: endings that were promised, until the ledger has been seen to have them.

``gate-<slot>-<n>.sqlite`` belongs to whoever holds the lock on ``gate-<slot>-<n>.lock``: a gate worker while it lives, afterwards nobody,
or the settler while it clears up. Only the owner writes to it; the settler reads every one of them, and says in ``….confirmed`` how far
the ledger has it. So no process ever waits for another one's lock on the database. Whoever takes a file over ends what its last owner
had lent. A file of another format is left alone, for the version that writes it.

SQLite's exceptions end here: :class:`StoreRejected` is a file that is broken, or is not one of ours; :class:`StoreRefused` everything that
may be otherwise the next time (a full disk, a lock, rights).
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import sqlite3
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any, Final, NamedTuple, Self

from extproc.errors import StoreRefused, StoreRejected
from extproc.ledger.port import OutboxRow
from extproc.money.hold import EndKind
from extproc.money.posting import Posting, with_quota

SUFFIX: Final = ".sqlite"
BROKEN: Final = "broken-"
COMPANIONS: Final = ("-wal", "-shm")  # what SQLite keeps beside its file
KEEP_MS: Final = 24 * 3_600_000  # confirmed rows stay so long: a ledger that falls back behind them gets them again
FILES_EACH_MAX: Final = 64  # of one slot: more processes of it never live at once
APPLICATION_ID: Final = 0x65786F62  # "exob", in the header of the file
HEADER_BYTES: Final = 100
HOST_BYTES_MAX: Final = 255  # of a name (POSIX)
FORMAT: Final = 2
BUSY_S: Final = 2.0  # nobody else writes; only a process that opens the file first keeps it for a moment
ROWS_A_STATEMENT: Final = 64  # a group in one call: each call gives the interpreter away and takes it back from a busy loop, 20 µs of that
WAL_BYTES: Final = 16_777_216  # what is left of a log that has grown beyond it
HOPELESS: Final = frozenset({sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB})  # the first byte of an error code: no repetition helps

_COLUMNS = "at_ms, shard, hold_id, payer_id, key_id, kind, charge_nanos, reserved_nanos, row"
_ROW = f"({', '.join('?' * 9)})"
_READ = f"SELECT id, {_COLUMNS} FROM endings WHERE id > ? ORDER BY id LIMIT ?"  # noqa: S608 - constants
_INSERT = f"INSERT INTO endings ({_COLUMNS}) VALUES "  # noqa: S608 - likewise
_LOANS = "SELECT hold_id, shard, payer_id, key_id, cap_nanos, charge_nanos, row FROM loans"
# A checkpoint never falls.
_LEND = """INSERT INTO loans VALUES (?, ?, ?, ?, ?, ?, ?)
    ON CONFLICT (hold_id) DO UPDATE SET charge_nanos = excluded.charge_nanos, row = excluded.row
    WHERE excluded.charge_nanos > charge_nanos"""
_FORGET = "DELETE FROM loans WHERE hold_id = ?"
_EXPIRE = f"""INSERT INTO endings ({_COLUMNS})
    SELECT ?, shard, hold_id, payer_id, key_id, '{EndKind.EXPIRE}', charge_nanos, 0, row FROM loans"""  # noqa: S608 - likewise


class Written(NamedTuple):
    """A row without its id: the columns of ``endings`` in their order."""

    at_ms: int
    shard: int
    hold_id: str
    payer_id: str
    key_id: str
    kind: str
    charge_nanos: int
    reserved_nanos: int
    row: bytes


class Lent(NamedTuple):
    """The columns of ``loans`` in their order."""

    hold_id: str
    shard: int
    payer_id: str
    key_id: str
    cap_nanos: int
    charge_nanos: int
    row: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Watermark:
    """The ledger ``ledger_id`` has every row of the outbox with an id ``below`` this.

    ``again_below``: one that is no more had them up to here, and this one is being brought there; 0 = it is not behind.
    """

    outbox_id: str
    below: int
    ledger_id: str
    again_below: int = 0


class Extent(NamedTuple):
    """Ids from ``first`` up to ``last`` (0, 0 = none), when the first was written, and what they take of the disk."""

    first: int
    last: int
    first_ms: int
    used_bytes: int


def outboxes(directory: Path) -> list[Path]:
    """All of them, whoever owns them. ``[]``: there is no such directory. :class:`StoreRefused`."""
    with _disk("looked for outboxes"):
        return sorted(directory.glob(f"gate-*-*{SUFFIX}"))


def broken(directory: Path) -> list[Path]:
    """Files that were put aside: somebody has to look at them. :class:`StoreRefused`."""
    with _disk("looked for outboxes"):
        return sorted(directory.glob(f"{BROKEN}*{SUFFIX}"))


def watermark_of(path: Path) -> Watermark | None:
    """What the settler has said last; ``None``: nothing, or nothing that can be read (it says it again)."""
    try:
        return Watermark(**json.loads(path.with_suffix(".confirmed").read_bytes()))
    except (OSError, ValueError, TypeError):
        return None


def confirm(path: Path, watermark: Watermark) -> None:
    """Whole or not at all. :class:`StoreRefused`."""
    fresh = path.with_suffix(".confirmed.new")
    with _disk("confirmed an outbox"):
        file = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        try:
            os.write(file, json.dumps(asdict(watermark)).encode())
            os.fsync(file)
        finally:
            os.close(file)
        fresh.rename(path.with_suffix(".confirmed"))


class Claim:
    """The lock of one outbox, as long as it is not released: a process that ends, however it ends, gives it back."""

    def __init__(self, path: Path, file: int) -> None:
        self.path = path
        self._file = file

    @classmethod
    def of(cls, path: Path) -> Self | None:
        """``None``: somebody else has it. The directory is made if it is not there. :class:`StoreRefused`."""
        lock = path.with_suffix(".lock")
        with _disk("claimed an outbox"):
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            file = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        with contextlib.suppress(OSError):
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.fstat(file).st_ino == lock.stat().st_ino:  # else its last owner has removed it in the meantime
                return cls(path, file)
        os.close(file)
        return None

    @classmethod
    def first_of(cls, directory: Path, slot: int) -> Self:
        """The first file of this worker slot that nobody owns and that we can read. :class:`StoreRefused`."""
        for number in range(FILES_EACH_MAX):
            claim = cls.of(directory / f"gate-{slot}-{number}{SUFFIX}")
            if claim is None:
                continue
            if _format_of(claim.path) in (None, FORMAT):
                return claim
            claim.release()
        raise StoreRefused(f"all {FILES_EACH_MAX} outboxes of gate-{slot} in {directory} are taken, or of another version")

    @property
    def host(self) -> str:
        """Whose it was last, "" = nobody has said so: it stands in the lock. :class:`StoreRefused`."""
        with _disk("looked whose an outbox is"):
            return os.pread(self._file, HOST_BYTES_MAX, 0).decode(errors="replace")

    @host.setter
    def host(self, host: str) -> None:
        with _disk("said whose an outbox is"):
            os.ftruncate(self._file, 0)
            os.pwrite(self._file, host.encode(), 0)

    def put_aside(self, unix_ms: int) -> Path:
        """Out of the way, and kept: what is in it may be all that is left of somebody's bill. :class:`StoreRefused`."""
        aside = self.path.with_name(f"{BROKEN}{unix_ms}-{self.path.name}")
        with _disk("put an outbox aside"):
            for companion in ("", *COMPANIONS):
                with contextlib.suppress(FileNotFoundError):
                    Path(f"{self.path}{companion}").rename(f"{aside}{companion}")
            self.path.with_suffix(".confirmed").unlink(missing_ok=True)
        return aside

    def remove(self) -> None:
        """The file, all that is beside it, and the claim. :class:`StoreRefused`."""
        with _disk("removed an outbox"):
            for companion in ("", *COMPANIONS):
                Path(f"{self.path}{companion}").unlink(missing_ok=True)
            for suffix in (".confirmed", ".lock"):
                self.path.with_suffix(suffix).unlink(missing_ok=True)
        self.release()

    def release(self) -> None:
        """Idempotent."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1


class OutboxFile:
    """One connection to one file. Blocks; may be handed from thread to thread, but not shared."""

    def __init__(self, path: Path, connection: sqlite3.Connection) -> None:
        self.path = path
        self._log = Path(f"{path}-wal")
        self._connection = connection
        self.outbox_id = str(self._rows("SELECT id FROM outbox")[0][0])
        self._place = self._seen()

    @classmethod
    def read_only(cls, path: Path) -> Self:
        """For whoever does not own it. :class:`StoreRejected`, :class:`StoreRefused`."""
        with _sqlite(path):
            connection = _connect(path)
        return cls._checked(path, connection, "query_only = 1")

    @classmethod
    def owned(cls, claim: Claim, *, new_id: str, unix_ms: int, host: str = "") -> Self:
        """The claimed file, or a new one. A commit of it is on the disk when it returns. :class:`StoreRejected`, :class:`StoreRefused`.

        A file that another ``host`` had has another id from now on: machines made from one image, or set up from one's backup, go on with
        the same numbers, and what the ledger confirms of one of them is not confirmed of the other.
        """
        if not claim.path.exists():
            _make(claim.path, new_id, unix_ms)
        file = cls.inherited(claim, unix_ms=unix_ms)
        try:
            if claim.host != host:
                file.name(new_id)
                claim.host = host
        except BaseException:
            file.close()
            raise
        return file

    @classmethod
    def inherited(cls, claim: Claim, *, unix_ms: int) -> Self:
        """The claimed file. What its last owner had lent ends here. :class:`StoreRejected`, :class:`StoreRefused`."""
        with _sqlite(claim.path):
            connection = _connect(claim.path)
        file = cls._checked(claim.path, connection, "synchronous = FULL", f"journal_size_limit = {WAL_BYTES}")
        try:
            file.end_loans(unix_ms)
        except BaseException:
            file.close()
            raise
        return file

    @classmethod
    def _checked(cls, path: Path, connection: sqlite3.Connection, *pragmas: str) -> Self:
        try:
            with _sqlite(path):
                marks = [connection.execute(f"PRAGMA {name}").fetchone()[0] for name in ("application_id", "user_version")]
                for pragma in pragmas:
                    connection.execute(f"PRAGMA {pragma}")
            _assert_ours(path, marks)
            return cls(path, connection)
        except BaseException:
            connection.close()
            raise

    @property
    def is_in_place(self) -> bool:
        """Its names still lead to what we write: else nobody who comes after us finds it."""
        return self._seen() == self._place

    def name(self, new_id: str) -> None:
        """Another one than it was, for the ledger."""
        with self._transaction():
            self._connection.execute("UPDATE outbox SET id = ?", (new_id,))
        self.outbox_id = new_id

    def read(self, after_id: int, limit: int) -> list[OutboxRow]:
        """The next rows in the order of their commits, as endings that never passed through Redis."""
        return [
            OutboxRow(id_, with_quota(Posting(shard, "", kind, hold_id, payer_id, key_id, charge, reserved, "", 0, at_ms, row)))
            for id_, at_ms, shard, hold_id, payer_id, key_id, kind, charge, reserved, row in self._rows(_READ, (after_id, limit))
        ]

    @property
    def has_loans(self) -> bool:
        """Somebody has lent: the owner, or, if there is none, the one before."""
        return bool(self._rows("SELECT EXISTS (SELECT 1 FROM loans)")[0][0])

    def loans(self) -> list[Lent]:
        """All of them: no more than a worker has open."""
        return [Lent(*row) for row in self._rows(_LOANS)]

    def append(self, rows: Sequence[Written], *, lent: Sequence[Lent] = (), ended: Sequence[str] = ()) -> None:
        """All of them or none, and on the disk: endings, loans as they are now, and holds whose loans are over."""
        if not lent and not ended and 0 < len(rows) <= ROWS_A_STATEMENT:
            with _sqlite(self.path):
                self._insert(rows)  # a statement alone is a transaction
            return
        with self._transaction():
            self._connection.executemany(_LEND, lent)
            for start in range(0, len(rows), ROWS_A_STATEMENT):
                self._insert(rows[start : start + ROWS_A_STATEMENT])
            self._connection.executemany(_FORGET, [(hold_id,) for hold_id in ended])

    def end_loans(self, unix_ms: int) -> None:
        """Of an owner that is no more: each expires at what its last checkpoint says."""
        if self.has_loans:
            with self._transaction():
                self._connection.execute(_EXPIRE, (unix_ms,))
                self._connection.execute("DELETE FROM loans")

    def drop(self, *, below: int, before_ms: int, limit: int) -> int:
        """Delete the oldest rows, whole pieces of ``limit`` of them: those with an id ``below``, written before a time. How many."""
        piece = self._rows("SELECT id, at_ms FROM endings ORDER BY id LIMIT 1 OFFSET ?", (limit - 1,))
        if not piece or piece[0][0] >= below or piece[0][1] >= before_ms:
            return 0
        with self._transaction():
            return self._connection.execute("DELETE FROM endings WHERE id <= ?", (piece[0][0],)).rowcount

    def extent(self) -> Extent:
        """What there is."""
        first = self._rows("SELECT id, at_ms FROM endings ORDER BY id LIMIT 1")
        last = self._rows("SELECT max(id) FROM endings")
        pages, free, size = (self._rows(f"PRAGMA {name}")[0][0] for name in ("page_count", "freelist_count", "page_size"))
        first_id, first_ms = first[0] if first else (0, 0)
        return Extent(first_id, last[0][0] or 0, first_ms, (pages - free) * size)

    def close(self) -> None:
        """Idempotent. What was committed is there, whatever this raises; so it raises nothing."""
        with contextlib.suppress(sqlite3.Error):
            self._connection.close()

    def _insert(self, rows: Sequence[Written]) -> None:
        self._connection.execute(_INSERT + ",".join([_ROW] * len(rows)), [value for row in rows for value in row])

    def _seen(self) -> tuple[int, ...] | None:
        try:
            return self.path.stat().st_ino, self._log.stat().st_ino
        except OSError:
            return None

    def _rows(self, sql: str, values: tuple[int, ...] = ()) -> list[Any]:
        with _sqlite(self.path):
            return self._connection.execute(sql, values).fetchall()

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[None]:
        with _sqlite(self.path):
            self._connection.execute("BEGIN IMMEDIATE")
            try:
                yield
                self._connection.execute("COMMIT")
            except BaseException:
                if self._connection.in_transaction:
                    self._connection.execute("ROLLBACK")
                raise


def _connect(path: Path) -> sqlite3.Connection:
    """A file that is there: a name that is not is none."""
    return sqlite3.connect(
        f"{path.absolute().as_uri()}?mode=rw",
        uri=True,
        timeout=BUSY_S,
        isolation_level=None,
        check_same_thread=False,
        cached_statements=2 * ROWS_A_STATEMENT,
    )


def _make(path: Path, new_id: str, unix_ms: int) -> None:
    """Whole or not at all: whoever looks for outboxes never meets half of one."""
    fresh = path.with_suffix(".new")
    schema = files("extproc.settlement").joinpath("outbox.sql").read_text()
    with _disk("made an outbox"), _sqlite(fresh):
        fresh.unlink(missing_ok=True)
        os.close(os.open(fresh, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))  # a log takes the mode of its database
        with contextlib.closing(_connect(fresh)) as connection:
            connection.executescript(f"{schema} PRAGMA application_id = {APPLICATION_ID}; PRAGMA user_version = {FORMAT};")
            connection.execute("INSERT INTO outbox VALUES (?, ?)", (new_id, unix_ms))
            connection.execute("PRAGMA journal_mode = WAL")
        fresh.rename(path)
        directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(directory)  # else the file could be gone after a power cut, with all that was committed to it
        finally:
            os.close(directory)


def _assert_ours(path: Path, marks: list[int]) -> None:
    application_id, version = marks
    if application_id != APPLICATION_ID:
        raise StoreRejected(f"{path} is no outbox")
    if version != FORMAT:
        raise StoreRefused(f"{path} is an outbox of format {version}, not {FORMAT}: the version of extproc that writes it has to book it")


def _format_of(path: Path) -> int | None:
    """As the header says it (SQLite, "Database File Format", 1.3). ``None``: there is no such file, or it is none of ours."""
    try:
        with path.open("rb") as file:
            header = file.read(HEADER_BYTES)
    except OSError:
        return None
    version, application_id = (int.from_bytes(header[at : at + 4], "big") for at in (60, 68))
    return version if header.startswith(b"SQLite format 3\0") and application_id == APPLICATION_ID else None


@contextlib.contextmanager
def _sqlite(path: Path) -> Iterator[None]:
    try:
        yield
    except sqlite3.Error as error:
        kind = StoreRejected if getattr(error, "sqlite_errorcode", 0) & 0xFF in HOPELESS else StoreRefused
        raise kind(f"{path}: {error}") from error


@contextlib.contextmanager
def _disk(what: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise StoreRefused(f"{error.filename or ''}: {error.strerror} (while somebody {what})") from error
