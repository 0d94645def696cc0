"""The schema comes up once, from anywhere, and not half."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import psycopg
import pytest

from extproc.errors import StoreRefused, UsageError
from extproc.stores.migrations import Migration, load_migrations, migrate


@pytest.fixture
def empty(postgres) -> str:
    return postgres.create_database()


def test_twice_is_once(empty):
    told: list[str] = []
    assert migrate(empty, progress=told.append) == tuple(told) == tuple(one.label for one in load_migrations())
    assert migrate(empty) == ()


def test_from_several_places_at_once(empty):
    with ThreadPoolExecutor(4) as pool:
        applied = list(pool.map(lambda _: migrate(empty), range(4)))
    assert sorted(len(labels) for labels in applied) == [0, 0, 0, len(load_migrations())]


def test_one_that_fails_leaves_nothing_of_itself(empty):
    good = Migration(number=1, name="good", sql="CREATE TABLE a (x int)")
    bad = Migration(number=2, name="bad", sql="CREATE TABLE b (x int); SELECT 1 / 0")
    with pytest.raises(StoreRefused):
        migrate(empty, migrations=[good, bad])
    with psycopg.connect(empty) as connection:
        assert connection.execute("SELECT to_regclass('a') IS NULL, to_regclass('b') IS NULL").fetchone() == (False, True)
    fixed = Migration(number=2, name="bad", sql="CREATE TABLE b (x int)")
    assert migrate(empty, migrations=[good, fixed]) == ("0002_bad",)


def test_an_edited_migration_is_refused(empty):
    migrate(empty, migrations=[Migration(number=1, name="a", sql="SELECT 1")])
    with pytest.raises(UsageError):
        migrate(empty, migrations=[Migration(number=1, name="a", sql="SELECT 2")])


def test_an_older_program_meets_a_newer_schema(empty):
    migrate(empty, migrations=[Migration(number=1, name="a", sql="SELECT 1"), Migration(number=2, name="b", sql="SELECT 1")])
    assert migrate(empty, migrations=[Migration(number=1, name="a", sql="SELECT 1")]) == ()


def test_nobody_there():
    with pytest.raises(StoreRefused):
        migrate("postgresql:///x?host=/nonexistent")
