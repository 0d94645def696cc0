"""The pool, and what a failure means: refused, rejected or unknown – never guessed."""

from __future__ import annotations

import asyncio
import os
import signal

import psycopg
import pytest

from extproc.errors import StoreRefused, StoreRejected, StoreUnknown
from extproc.ledger.leadership import PostgresLeadership
from extproc.stores import postgres as module
from extproc.stores.postgres import Database
from extproc.stores.queries import Query, load_queries, parse_queries


def query(sql: str) -> Query:
    return Query(name="test", sentence="A test.", sql=sql.encode())


INSERT = query("INSERT INTO users (id, name, tier) VALUES (%(id)s::uuid, 'n', 't')")
ID = "018f0000-0000-7000-8000-000000000001"


@pytest.fixture
async def pool(database):
    async with Database(database, statement_timeout_ms=300) as opened:
        yield opened


async def users(pool) -> int:
    return (await pool.fetch(query("SELECT count(*) AS n FROM users")))[0]["n"]


async def test_a_block_that_raises_leaves_nothing(pool):
    with pytest.raises(KeyError):  # noqa: PT012 - the block is what is tested
        async with pool.transaction() as transaction:
            await transaction.fetch(INSERT, {"id": ID})
            raise KeyError
    assert await users(pool) == 0


async def test_a_constraint_is_a_rejection(pool):
    await pool.fetch(INSERT, {"id": ID})
    with pytest.raises(StoreRejected):
        await pool.fetch(INSERT, {"id": ID})
    with pytest.raises(StoreRejected):
        await pool.fetch(INSERT, {"id": "no id"})


COPY = query("COPY users (id, name, tier) FROM STDIN")


async def test_a_row_that_somebody_else_wrote_meanwhile_is_no_rejection(pool):
    """Repeating the batch finds it; setting the batch aside would lose the rest."""
    await pool.fetch(INSERT, {"id": ID})
    with pytest.raises(StoreRefused) as refused:
        async with pool.transaction() as transaction:
            await transaction.copy(COPY, [f"{ID}\tn\tt\n".encode()])
    assert not isinstance(refused.value, StoreRejected)
    assert await users(pool) == 1


@pytest.mark.parametrize("lines", [b"no id\tn\tt\n", b"two\tcolumns\n", ID.encode() + b"\t\\N\tt\n", ID.encode() + b"\t\x00\tt\n"])
async def test_lines_that_are_none_are_a_rejection(pool, lines):
    with pytest.raises(StoreRejected):
        async with pool.transaction() as transaction:
            await transaction.copy(COPY, [lines])
    assert await users(pool) == 0


async def test_a_late_schema_is_no_rejection(pool):
    """Else every event that waits for a migration would be set aside as poison."""
    with pytest.raises(StoreRefused) as refused:
        await pool.fetch(query("SELECT * FROM not_there_yet"))
    assert not isinstance(refused.value, StoreRejected)


async def test_a_slow_statement_is_refused(pool):
    with pytest.raises(StoreRefused):
        await pool.fetch(query("SELECT pg_sleep(5)"))


async def test_a_swallowed_error_does_not_commit(pool):
    with pytest.raises(StoreRefused):  # noqa: PT012 - the block is what is tested
        async with pool.transaction() as transaction:
            await transaction.fetch(INSERT, {"id": ID})
            with pytest.raises(psycopg.Error):
                await transaction.fetch(query("SELECT 1 / 0"))
    assert await users(pool) == 0


async def test_a_connection_lost_before_commit_is_refused(pool):
    with pytest.raises(StoreRefused):  # noqa: PT012 - the block is what is tested
        async with pool.transaction() as transaction:
            await transaction.fetch(INSERT, {"id": ID})
            await transaction.fetch(query("SELECT pg_terminate_backend(pg_backend_pid())"))
    assert await users(pool) == 0, "and the pool has another connection"


async def test_a_connection_lost_during_commit_is_unknown(pool, database):
    """A deferred trigger ends the session while COMMIT runs: the client cannot tell that from a commit whose answer was lost."""
    with psycopg.connect(database, autocommit=True) as connection:
        connection.execute(
            "CREATE FUNCTION die() RETURNS trigger LANGUAGE plpgsql AS"
            " 'BEGIN PERFORM pg_terminate_backend(pg_backend_pid()); PERFORM pg_sleep(1); RETURN NULL; END'"
        )
        connection.execute(
            "CREATE CONSTRAINT TRIGGER die AFTER INSERT ON users DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION die()"
        )
    with pytest.raises(StoreUnknown):
        await pool.fetch(INSERT, {"id": ID})


async def test_nobody_there_is_refused_soon():
    async with Database("postgresql:///x?host=/nonexistent") as pool:
        async with asyncio.timeout(5):
            with pytest.raises(StoreRefused):
                await pool.fetch(query("SELECT 1"))
        with pytest.raises(StoreRefused):
            await pool.session()


async def test_cancelled_in_the_middle(pool):
    inserted = asyncio.Event()

    async def slow() -> None:
        async with pool.transaction() as transaction:
            await transaction.fetch(INSERT, {"id": ID})
            inserted.set()
            await asyncio.Event().wait()

    task = asyncio.create_task(slow())
    await inserted.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert await users(pool) == 0


async def test_a_pool_that_does_not_connect_any_more_is_replaced(database, monkeypatch):
    """As one did in an outage of ten minutes: it counts connections that it does not have, and makes none."""
    monkeypatch.setattr(module, "POOL_WAIT_S", 0.1)
    async with Database(database, pool_max=2) as pool:
        broken = pool._pool
        broken._nconns = broken.max_size
        for _ in range(module.TIMEOUTS_MAX):
            with pytest.raises(StoreRefused):
                await pool.fetch(query("SELECT 1 AS one"))
        assert (await pool.fetch(query("SELECT 1 AS one")))[0]["one"] == 1
        assert pool._pool is not broken


async def test_a_busy_pool_is_left_alone(database, monkeypatch):
    monkeypatch.setattr(module, "POOL_WAIT_S", 0.1)
    async with Database(database, pool_max=1) as pool:
        first = pool._pool
        async with pool.transaction():
            for _ in range(module.TIMEOUTS_MAX + 1):
                with pytest.raises(StoreRefused):
                    await pool.fetch(query("SELECT 1 AS one"))
        assert pool._pool is first


async def test_cancelled_in_the_moment_in_which_a_connection_comes(database):
    """The pool of psycopg swallows it on Python 3.11: the task would go on as if nobody had cancelled it."""
    async with Database(database, pool_max=1) as pool:
        begun = asyncio.Event()

        async def second() -> None:
            async with pool.transaction():
                begun.set()

        for ticks in range(12):  # of the loop, between the return of the only connection and the cancellation
            async with pool.transaction():
                task = asyncio.create_task(second())
                while not pool._pool.get_stats().get("requests_waiting"):
                    await asyncio.sleep(0)
            for _ in range(ticks):
                await asyncio.sleep(0)
            if begun.is_set() or not task.cancel():
                await task
                begun.clear()
                continue
            with pytest.raises(asyncio.CancelledError):
                await task
            assert not begun.is_set()
        assert (await pool.fetch(query("SELECT 1 AS one")))[0]["one"] == 1, "the connection is not lost"


class Frozen:
    """Our sessions' backends, stopped as a hung server would be, and set free at the end."""

    def __init__(self, dsn: str) -> None:
        with psycopg.connect(dsn, autocommit=True) as connection:
            wanted = "SELECT pid FROM pg_stat_activity WHERE datname = current_database() AND application_name LIKE 'extproc%'"
            self.pids = [row[0] for row in connection.execute(wanted)]

    def __enter__(self) -> None:
        assert self.pids
        for pid in self.pids:
            os.kill(pid, signal.SIGSTOP)

    def __exit__(self, *_: object) -> None:
        for pid in self.pids:
            os.kill(pid, signal.SIGCONT)


@pytest.mark.parametrize("verb", ["fetch", "run", "copy"])
async def test_a_server_that_hangs_is_given_up(pool, database, verb):
    async with asyncio.timeout(8):
        with pytest.raises(StoreRefused):  # noqa: PT012 - the block is what is tested
            async with pool.transaction() as transaction:
                await transaction.fetch(INSERT, {"id": ID})
                with Frozen(database):
                    one = query("SELECT 1 AS n")
                    verbs = {"fetch": (one,), "run": ([(one, {})],), "copy": (COPY, [])}
                    await getattr(transaction, verb)(*verbs[verb])
        assert await users(pool) == 0, "and the pool has another connection"


async def test_a_server_that_hangs_in_commit_is_unknown(pool, database):
    async with asyncio.timeout(8):
        frozen = None
        with pytest.raises(StoreUnknown):  # noqa: PT012 - the block is what is tested
            async with pool.transaction() as transaction:
                await transaction.fetch(INSERT, {"id": ID})
                frozen = Frozen(database)
                frozen.__enter__()
        frozen.__exit__()
        assert await users(pool) in (0, 1)


async def test_a_session_of_a_server_that_hangs_is_given_up(pool, database):
    session = await pool.session()
    async with asyncio.timeout(8):
        with Frozen(database), pytest.raises(StoreRefused):
            await session.fetch(query("SELECT 1 AS n"))
    await session.close()


async def test_an_idle_connection_that_hangs_is_not_handed_out(pool, database):
    await users(pool)
    async with asyncio.timeout(8):
        with Frozen(database):
            assert await users(pool) == 0


async def test_statements_share_a_round_trip(pool):
    async with pool.transaction() as transaction:
        answers = await transaction.run([(INSERT, {"id": ID}), (query("SELECT count(*) AS n FROM users"), {})])
    assert answers == [[], [{"n": 1}]]


async def test_shards_have_one_leader_and_another_takes_over(database):
    async with Database(database) as one, Database(database) as two:
        first, second = PostgresLeadership(one, range(4)), PostgresLeadership(two, range(6))
        assert await first.held() == {0, 1, 2, 3}
        assert await second.held() == {4, 5}
        assert await first.held() == {0, 1, 2, 3}
        await first.release()
        while len(await second.held()) < 6:
            await asyncio.sleep(0.01)
        await second.release()


async def test_a_leader_that_lost_its_connection_holds_nothing(database):
    async with Database(database) as pool:
        leader = PostgresLeadership(pool, range(4))
        await leader.held()
        assert leader._session is not None
        with pytest.raises(StoreRefused):
            await leader._session.fetch(query("SELECT pg_terminate_backend(pg_backend_pid())"))
        with pytest.raises(StoreRefused):
            await leader.held()
        assert leader._held == frozenset()
        assert await leader.held() == {0, 1, 2, 3}
        await leader.release()


@pytest.mark.parametrize("package", ["extproc.ledger", "extproc.accounts"])
async def test_every_query_is_understood_by_the_database(pool, package):
    """Each is prepared: a column that was renamed or a type that does not fit is found here, not in production."""
    for one in load_queries(package).values():
        sql = one.sql.decode()
        names = sorted({name.split(")")[0] for name in sql.split("%(")[1:]})
        for place, name in enumerate(names, 1):
            sql = sql.replace(f"%({name})s", f"${place}")
        if sql.startswith("SET"):  # there is nothing in it to be prepared
            await pool.fetch(one)
        elif sql.startswith("COPY"):  # cannot be prepared: no lines at all are good ones, and the columns are looked at all the same
            async with pool.transaction() as transaction:
                await transaction.copy(one, [])
        else:
            await pool.fetch(query(f"PREPARE q_{one.name} AS {sql}".replace("%", "%%")))


def test_query_files_say_what_they_are_for():
    with pytest.raises(ValueError):
        parse_queries("SELECT 1", source="x.sql")
    with pytest.raises(ValueError):
        parse_queries("-- name: a\nSELECT 1", source="x.sql")
    two = parse_queries("-- name: a\n-- Says\n-- one.\nSELECT 1;\n\n-- name: b\n-- Says two.\nSELECT 2", source="x.sql")
    assert [(one.name, one.sentence, one.sql) for one in two] == [("a", "Says one.", b"SELECT 1"), ("b", "Says two.", b"SELECT 2")]
