"""PostgreSQL for everybody: a bounded pool, transactions whose outcome is never guessed, session locks.

psycopg's errors end here::

    connection lost or refused, server starting or stopping, time-out, deadlock, pool exhausted  → StoreRefused
    a value or a constraint forbids it (classes 22 and 23 of SQLSTATE)                            → StoreRejected (a StoreRefused)
    connection lost while COMMIT was on its way                                                   → StoreUnknown

A server that hangs ends here too: what is not answered within twice the statement time-out loses its connection.

Nothing is executed outside a transaction, so that only COMMIT can leave an outcome unknown.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping, Sequence
from typing import Any, Self

import psycopg
from psycopg import AsyncConnection, pq
from psycopg.rows import DictRow, dict_row
from psycopg_pool import AsyncConnectionPool, PoolClosed, PoolTimeout, TooManyRequests

from extproc.errors import StoreRefused, StoreRejected, StoreUnknown
from extproc.stores.queries import Query

Params = Mapping[str, object]
Row = dict[str, Any]

POOL_WAIT_S = 1.0  # a look-up that waits longer is answered with 503: the client may come again
CHECK_S = 0.4  # for a connection that lay idle to say that it still stands; one that does not leaves time for another one
POOL_WAITING_MAX = 1_000  # callers in line for a connection; more than a worker has key look-ups at once
CONNECT_TIMEOUT_S = 5
# The pool doubles its pause between attempts until this is over and then starts afresh at the next call. Short, so that a database
# that is back is used within seconds, not after a pause that grew for an hour.
RECONNECT_S = 3.0
TIMEOUTS_MAX = 5  # in a row, while nobody has a connection: then the pool is a new one
# The server ends what is slow; one that does not even do that (frozen, or behind a black hole) is given up after so many of its time-outs.
PATIENCE = 2
# A peer that is gone is found by the kernel as well, while a session only waits; libpq does not do it on Unix sockets.
KEEPALIVES = {"keepalives": 1, "keepalives_idle": 10, "keepalives_interval": 5, "keepalives_count": 3}
# Data exceptions and integrity violations. Not 42 (no such table, no such right): that says nothing against the data, and a schema that is
# late must not send every event to quarantine.
_REJECTED_CLASSES = ("22", "23")


class Transaction:
    """One open transaction. Statements raise :class:`StoreRefused`: whatever went wrong, nothing of it was kept."""

    def __init__(self, connection: AsyncConnection[DictRow], *, limit_s: float) -> None:
        self._connection = connection
        self._limit_s = limit_s

    async def fetch(self, query: Query, params: Params | None = None) -> list[Row]:
        """Every row of the answer; none for a statement that returns nothing."""
        with _within(self._connection, self._limit_s):
            cursor = await self._connection.execute(query.sql, params)
            return await cursor.fetchall() if cursor.description else []

    async def run(self, statements: Sequence[tuple[Query, Params]]) -> list[list[Row]]:
        """Several statements in one round trip (libpq's pipeline), answered in order. The first that fails, fails all."""
        with _within(self._connection, self._limit_s):
            async with self._connection.pipeline():
                cursors = [await self._connection.execute(query.sql, params) for query, params in statements]
        # Only now, after the pipeline's end, does a cursor know whether its statement answers rows.
        return [await cursor.fetchall() if cursor.description else [] for cursor in cursors]

    async def copy(self, query: Query, pieces: Iterable[bytes]) -> None:
        """``COPY … FROM STDIN`` of these lines, piece by piece. A key that is there already is no fault of the data: it came meanwhile."""
        try:
            with _within(self._connection, self._limit_s):
                await self._feed(query, pieces)
        except psycopg.errors.UniqueViolation as error:
            raise StoreRefused(f"a row was there already; it is to be tried again: {error}") from error

    async def _feed(self, query: Query, pieces: Iterable[bytes]) -> None:
        async with self._connection.cursor().copy(query.sql) as copy:
            for piece in pieces:
                await copy.write(piece)


class Database:
    """A pool of connections. Opening it does not need the server: a worker starts, and serves known keys, while PostgreSQL is away."""

    def __init__(
        self, dsn: str, *, pool_max: int = 4, statement_timeout_ms: int = 5_000, password: str | None = None, application: str = "extproc"
    ) -> None:
        """``dsn`` is libpq's (URL or keywords); ``password`` overrides the one in it, so that it can come from a file."""
        self._dsn = dsn
        self._limit_s = PATIENCE * statement_timeout_ms / 1000
        self._kwargs: dict[str, Any] = {
            **KEEPALIVES,
            "tcp_user_timeout": PATIENCE * statement_timeout_ms,
            "row_factory": dict_row,
            "connect_timeout": CONNECT_TIMEOUT_S,
            "application_name": application,
            "autocommit": False,
        }
        if password is not None:
            self._kwargs["password"] = password
        self._statement_timeout_ms = statement_timeout_ms
        self._pool_max = pool_max
        self._application = application
        self._lent = 0  # connections that somebody has
        self._timeouts = 0  # since one was got
        self._closing: set[asyncio.Task[None]] = set()
        self._pool = self._new_pool()

    def _new_pool(self) -> AsyncConnectionPool[AsyncConnection[DictRow]]:
        return AsyncConnectionPool(
            self._dsn,
            kwargs=self._kwargs,
            min_size=0,
            max_size=self._pool_max,
            open=False,
            timeout=POOL_WAIT_S,
            max_waiting=POOL_WAITING_MAX,
            reconnect_timeout=RECONNECT_S,
            configure=self._configure,
            check=self._check,
            name=self._application,
        )

    async def open(self) -> None:
        """Start the pool's tasks. Returns at once, connected or not."""
        await self._pool.open(wait=False)

    async def close(self) -> None:
        await self._pool.close()
        await asyncio.gather(*self._closing, return_exceptions=True)

    async def __aenter__(self) -> Self:
        await self.open()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    @contextlib.asynccontextmanager
    async def transaction(self) -> AsyncIterator[Transaction]:
        """Commit when the block ends, roll back when it raises."""
        task = asyncio.current_task()
        cancelled_before = task.cancelling() if task else 0
        pool = self._pool
        try:
            connection = await pool.getconn()
        except (PoolTimeout, PoolClosed, TooManyRequests, psycopg.Error) as error:
            await self._timed_out(pool, error)
            raise StoreRefused(f"PostgreSQL is away: {error}") from error
        self._timeouts = 0
        self._lent += 1
        try:
            if task and task.cancelling() > cancelled_before:
                # The pool waits by `asyncio.wait_for`, which before Python 3.12 drops a cancellation that comes together with a connection.
                raise asyncio.CancelledError
            try:
                yield Transaction(connection, limit_s=self._limit_s)
            except BaseException as error:
                await _roll_back(connection, self._limit_s)
                if isinstance(error, psycopg.Error):
                    raise _wrapped(error) from error
                raise
            await _commit(connection, self._limit_s)
        finally:
            self._lent -= 1
            await pool.putconn(connection)

    async def _timed_out(self, pool: AsyncConnectionPool[AsyncConnection[DictRow]], error: Exception) -> None:
        """A pool of psycopg may stop to connect for good: a settler whose PostgreSQL was away for ten minutes never asked it again.

        So one that gives nobody a connection, and has lent none, is not believed for long. It costs little to begin with a new one.
        """
        if not isinstance(error, PoolTimeout) or pool is not self._pool or self._lent:
            return
        self._timeouts += 1
        if self._timeouts < TIMEOUTS_MAX:
            return
        self._timeouts = 0
        self._pool = self._new_pool()
        await self._pool.open(wait=False)
        task = asyncio.create_task(pool.close())
        self._closing.add(task)
        task.add_done_callback(self._closing.discard)

    async def fetch(self, query: Query, params: Params | None = None) -> list[Row]:
        """One statement in a transaction of its own."""
        async with self.transaction() as transaction:
            return await transaction.fetch(query, params)

    async def session(self) -> Session:
        """A connection outside the pool, for locks that live as long as it does. The caller closes it."""
        try:
            connection = await AsyncConnection.connect(self._dsn, **{**self._kwargs, "autocommit": True})
        except psycopg.Error as error:
            raise StoreRefused(f"PostgreSQL is away: {error}") from error
        return Session(connection, limit_s=self._limit_s)

    async def _configure(self, connection: AsyncConnection[DictRow]) -> None:
        # Whatever role or database were set to: a posting that was confirmed is on disk.
        with _within(connection, self._limit_s):
            await connection.execute(
                "SELECT set_config('synchronous_commit', 'on', false), set_config('statement_timeout', %s, false),"
                " set_config('idle_in_transaction_session_timeout', %s, false), set_config('timezone', 'UTC', false)",
                (f"{self._statement_timeout_ms}ms", f"{2 * self._statement_timeout_ms}ms"),
            )
            await connection.commit()

    async def _check(self, connection: AsyncConnection[DictRow]) -> None:
        with _within(connection, CHECK_S):
            await AsyncConnectionPool.check_connection(connection)


class Session:
    """A connection of its own that holds advisory locks. When it breaks, the server has let go of all of them."""

    def __init__(self, connection: AsyncConnection[DictRow], *, limit_s: float) -> None:
        self._connection = connection
        self._limit_s = limit_s

    async def fetch(self, query: Query, params: Params | None = None) -> list[Row]:
        """Outside any transaction: for locks and other things that leave nothing behind."""
        try:
            with _within(self._connection, self._limit_s):
                cursor = await self._connection.execute(query.sql, params)
                return await cursor.fetchall() if cursor.description else []
        except psycopg.Error as error:
            raise _wrapped(error) from error

    async def close(self) -> None:
        await self._connection.close()


@contextlib.contextmanager
def _within(connection: AsyncConnection[DictRow], limit_s: float) -> Iterator[None]:
    """Cut the connection when the time is over: whoever waits for it gets the error of a connection that was lost.

    Not ``asyncio.timeout``: psycopg, cancelled, asks the server to stop and then waits for it to say so, without a limit.
    """
    timer = asyncio.get_running_loop().call_later(limit_s, _cut, connection)
    try:
        yield
    finally:
        timer.cancel()


def _cut(connection: AsyncConnection[DictRow]) -> None:
    # Only shut down, by a duplicate: the descriptor itself is libpq's to close, and the loop is waiting for it.
    with contextlib.suppress(psycopg.Error, OSError), socket.socket(fileno=os.dup(connection.fileno())) as duplicate:
        duplicate.shutdown(socket.SHUT_RDWR)


def array_of(values: Iterable[object]) -> str:
    """Ids or numbers as PostgreSQL writes an array of them; psycopg's own way takes as long as reading the events they are of."""
    return "{" + ",".join(map(str, values)) + "}"


async def _commit(connection: AsyncConnection[DictRow], limit_s: float) -> None:
    status = connection.info.transaction_status
    if status in (pq.TransactionStatus.UNKNOWN, pq.TransactionStatus.INERROR):
        # COMMIT is not sent: the server has rolled back, and would answer COMMIT of a failed transaction without an error.
        await _roll_back(connection, limit_s)
        raise StoreRefused("the transaction was lost before its commit")
    try:
        with _within(connection, limit_s):
            await connection.commit()
    except psycopg.OperationalError as error:
        raise StoreUnknown(f"connection lost during commit: {error}") from error
    except psycopg.Error as error:
        raise _wrapped(error) from error


async def _roll_back(connection: AsyncConnection[DictRow], limit_s: float) -> None:
    # A connection too broken to roll back is thrown away by the pool, and the server rolls back by itself.
    with contextlib.suppress(psycopg.Error), _within(connection, limit_s):
        await connection.rollback()


def _wrapped(error: psycopg.Error) -> StoreRefused:
    state = error.sqlstate or ""
    if state.startswith(_REJECTED_CLASSES):
        return StoreRejected(f"PostgreSQL rejected it ({state}): {error}")
    return StoreRefused(f"PostgreSQL did not do it ({state or 'no answer'}): {error}")
