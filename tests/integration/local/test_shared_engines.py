"""The fixtures that everybody uses: fresh for every test."""

from __future__ import annotations

import psycopg
import pytest
import redis


@pytest.mark.parametrize("turn", [1, 2])
def test_a_database_is_fresh_and_has_the_schema(database, turn):
    with psycopg.connect(database) as connection:
        tables = {name for (name,) in connection.execute("select tablename from pg_tables where schemaname = 'public'")}
        assert {"schema_migrations", "billing_events", "balances"} <= tables
        assert "left_behind" not in tables
        connection.execute("create table left_behind ()")


@pytest.mark.parametrize("turn", [1, 2])
def test_redis_is_empty(redis_url, turn):
    with redis.Redis.from_url(redis_url) as client:
        assert client.dbsize() == 0
        client.set("left", "behind")
