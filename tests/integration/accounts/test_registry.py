"""Accounts and keys from birth to revocation, in PostgreSQL and in Redis."""

from __future__ import annotations

import psycopg
import pytest

from extproc.accounts.directory import KeyStore
from extproc.accounts.keys import hash_of, is_well_formed
from extproc.accounts.model import Change, Period, as_of
from extproc.accounts.registry import Registry, Scopes
from extproc.accounts.terms import CHANGES_MAX
from extproc.errors import StoreRefused, UsageError
from extproc.money.hold import Limits


class DeafRedis:
    """Redis away, for deliveries."""

    def epoch_of(self, _payer):
        return ""

    def __getattr__(self, _verb):
        async def refuse(*_args, **_fields):
            raise StoreRefused("away")

        return refuse


def rows(house, statement: str) -> list:
    with psycopg.connect(house.dsn) as connection:
        return connection.execute(statement.encode()).fetchall()


async def enforced(house, payer: str, key: str) -> dict[str, str]:
    (name,) = await house.pipeline.execute("KEYS", f"*:key:{payer}:{key}")
    flat = await house.pipeline.execute("HGETALL", name)
    return {field.decode(): value.decode() for field, value in zip(flat[::2], flat[1::2], strict=True)}


async def test_an_account_is_there_with_nothing_on_it(house):
    account = await house.registry.create_account(name="Ada", email="ada@example.org", tier="default", actor="test")
    assert await house.registry.account(account.id) == account == await house.registry.account_named("ADA@example.org")
    assert await house.registry.account_named("Ada") == account
    assert await house.registry.accounts() == [account]
    view = await house.holds.view(account.id)
    assert view is not None
    assert (view.available_nanos, view.version) == (0, 0)
    assert rows(house, "SELECT balance, version, redis_version FROM balances") == [(0, 0, 0)]
    assert rows(house, "SELECT actor, action FROM audit") == [("test", "create_account")]


@pytest.mark.parametrize("fields", [{"name": ""}, {"name": "x" * 201}, {"tier": ""}, {"email": "e" * 321}])
async def test_an_account_that_cannot_be(house, fields):
    with pytest.raises(UsageError):
        await house.registry.create_account(**({"name": "n", "tier": "t", "actor": "test"} | fields))


async def test_names_that_name_nobody_or_two(house):
    for _ in range(2):
        await house.registry.create_account(name="twin", tier="t", actor="test")
    await house.registry.create_account(name="n", email="e@x", tier="t", actor="test")
    for name in ("nobody", "twin"):
        with pytest.raises(UsageError):
            await house.registry.account_named(name)
    with pytest.raises(UsageError):
        await house.registry.create_account(name="n", email="E@x", tier="t", actor="test")
    with pytest.raises(UsageError):
        await house.registry.account("00000000-0000-7000-8000-000000000000")


async def test_the_secret_is_shown_once_and_kept_nowhere(house):
    account = await house.registry.create_account(name="n", tier="t", actor="test")
    key = await house.registry.create_key(account.id, name="k", scopes=Scopes(), actor="test")
    assert is_well_formed(key.secret)
    assert key.is_delivered
    assert key.secret not in repr(key)
    assert rows(house, "SELECT hash, hint FROM credentials") == [(hash_of(key.secret), key.secret[-4:])]
    everything = rows(
        house, "SELECT coalesce(string_agg(c::text, ' '), '') || (SELECT string_agg(a::text, ' ') FROM audit a) FROM credentials c"
    )
    assert key.secret not in everything[0][0]
    for name in await house.pipeline.execute("KEYS", "*"):
        assert key.secret.encode() not in name
    (listed,) = await house.registry.keys(account.id)
    assert (listed["id"], listed["hint"], listed["delivered"], "hash" in listed) == (key.id, key.secret[-4:], True, False)


async def test_what_is_enforced_reaches_redis(house):
    account = await house.registry.create_account(name="n", tier="t", actor="test")
    scopes = Scopes(expires_ms=1_900_000_000_123, budget_nanos=7, budget_period=Period.DAY, limits=Limits(tokens_per_minute=9))
    key = await house.registry.create_key(account.id, name="k", scopes=scopes, actor="test")
    fields = await enforced(house, account.id, key.id)
    assert (fields["version"], fields["revoked"], fields["expires_ms"]) == ("1", "0", "1900000000123")
    assert (fields["budget_nanos"], fields["budget_period"]) == ("7", "day")


async def test_revoked_is_revoked_everywhere(house):
    account = await house.registry.create_account(name="n", tier="t", actor="test")
    key = await house.registry.create_key(account.id, name="k", scopes=Scopes(), actor="test")
    for _ in range(2):
        assert await house.registry.revoke(key.id, actor="test")
    fields = await enforced(house, account.id, key.id)
    assert (fields["revoked"], fields["version"]) == ("1", "2")
    found = await house.new_process().find(key.secret)
    assert found is not None
    assert found.revoked
    assert rows(house, "SELECT count(*) FROM audit WHERE action = 'revoke_key'") == [(1,)]
    with pytest.raises(UsageError):
        await house.registry.rotate(key.id, actor="test")
    with pytest.raises(UsageError):
        await house.registry.revoke("00000000-0000-7000-8000-000000000000", actor="test")


async def test_a_rotated_key_has_the_scopes_of_the_old_one(house):
    account = await house.registry.create_account(name="n", tier="t", actor="test")
    scopes = Scopes(models=["a"], networks=["10.0.0.0/8"], limits=Limits(concurrent_requests=2), budget_nanos=5, sandbox=True)
    old = await house.registry.create_key(account.id, name="k", scopes=scopes, actor="test")
    new = await house.registry.rotate(old.id, actor="test")
    directory = house.new_process()
    was, now = await directory.find(old.secret), await directory.find(new.secret)
    assert was is not None
    assert now is not None
    assert (was.revoked, now.revoked) == (True, False)
    assert (now.models, now.networks, now.limits, now.budget_nanos, now.sandbox, now.name) == (
        was.models,
        was.networks,
        was.limits,
        was.budget_nanos,
        was.sandbox,
        was.name,
    )


async def test_a_rotated_key_goes_on_with_the_budget_of_the_first(house):
    account = await house.registry.create_account(name="n", tier="t", actor="test")
    first = await house.registry.create_key(account.id, name="k", scopes=Scopes(budget_nanos=5), actor="test")
    second = await house.registry.rotate(first.id, actor="test")
    third = await house.registry.rotate(second.id, actor="test")
    for key in (first, second, third):
        assert (await enforced(house, account.id, key.id))["budget_id"] == first.id


async def test_a_key_of_the_program_before_has_its_own_budget(house):
    """It knows nothing of the column."""
    account = await house.registry.create_account(name="n", tier="t", actor="test")
    key = await house.registry.create_key(account.id, name="k", scopes=Scopes(budget_nanos=5), actor="test")
    assert rows(house, "SELECT budget_id FROM credentials") == [(None,)]
    assert (await enforced(house, account.id, key.id))["budget_id"] == key.id


@pytest.mark.parametrize("scopes", [Scopes(networks=["10.0.0.1/8"]), Scopes(networks=["x"]), Scopes(budget_nanos=-1)])
async def test_scopes_that_cannot_be(house, scopes):
    account = await house.registry.create_account(name="n", tier="t", actor="test")
    with pytest.raises(UsageError):
        await house.registry.create_key(account.id, name="k", scopes=scopes, actor="test")


async def test_frozen_and_thawed(house):
    account = await house.registry.create_account(name="n", tier="t", actor="test")
    (name,) = await house.pipeline.execute("KEYS", f"*:payer:{account.id}")
    for frozen, stored in ((True, b"1"), (True, b"1"), (False, b"0")):
        assert await house.registry.freeze(account.id, frozen=frozen, actor="test", reason="why")
        assert await house.pipeline.execute("HGET", name, "frozen") == stored
        assert (await house.registry.account(account.id)).frozen is frozen
    assert rows(house, "SELECT action FROM audit ORDER BY created_at, id") == [("create_account",), ("freeze",), ("thaw",)]
    with pytest.raises(UsageError):
        await house.registry.freeze(account.id, frozen=True, actor="test", reason="")


async def test_what_redis_did_not_hear_is_left_to_the_sweep(house):
    deaf = Registry(KeyStore(house.database, DeafRedis(), DeafRedis(), unix_ms=lambda: 0), DeafRedis(), new_id=house.registry._new_id)
    account = await deaf.create_account(name="n", tier="t", actor="test")
    key = await deaf.create_key(account.id, name="k", scopes=Scopes(), actor="test")
    assert not key.is_delivered
    for _ in range(2):
        assert not await deaf.freeze(account.id, frozen=True, actor="test", reason="why"), "the second time, too, Redis lacks it"
    assert rows(house, "SELECT redis_version FROM balances") == [(None,)]
    (waiting,) = await house.registry.undelivered_keys(after=None, limit=5)
    assert (waiting.key.id, waiting.version) == (key.id, 1)
    await house.registry.deliver_key(waiting)
    assert await house.registry.undelivered_keys(after=None, limit=5) == []
    assert (await enforced(house, account.id, key.id))["revoked"] == "0"
    (freeze,) = await house.registry.undelivered_freezes(after=None, limit=5)
    assert not await house.registry.deliver_freeze(freeze), "the payer is not installed yet"
    await house.holds.install_payer(account.id, version=0, total_nanos=0, available_nanos=0, credit_nanos=0)
    assert await house.registry.deliver_freeze(freeze)
    assert await house.registry.freeze(account.id, frozen=True, actor="test", reason="why"), "it was frozen already, everywhere"
    assert await house.registry.undelivered_freezes(after=None, limit=5) == []


async def test_a_price_factor_reaches_every_process_within_its_cache(house):
    account = await house.registry.create_account(name="n", tier="t", actor="test")
    assert account.price_factor == 1_000_000
    first, second, over = [
        await house.registry.create_key(account.id, name="k", scopes=Scopes(budget_nanos=5), actor="test") for _ in range(3)
    ]
    await house.registry.revoke(over.id, actor="test")
    other = house.new_process()
    assert (await other.find(first.secret)).price_factor == 1_000_000
    assert await house.registry.change_terms(account.id, Change(at_ms=0, price_factor=850_000), actor="test", reason="a contract")
    assert (await house.registry.account(account.id)).price_factor == 850_000
    assert (await other.find(second.secret)).price_factor == 850_000, "a key that it does not know yet"
    assert (await other.find(first.secret)).price_factor == 1_000_000, "one that it remembers"
    house.now_s += 60
    assert (await other.find(first.secret)).price_factor == 850_000
    assert rows(house, "SELECT actor, reason FROM audit WHERE action = 'set_price_factor'") == [("test", "1 → 0.85: a contract")]
    assert rows(house, "SELECT revoked, version FROM credentials ORDER BY id") == [(False, 2), (False, 2), (True, 2)], (
        "a revoked key is left alone"
    )
    assert (await enforced(house, account.id, first.id))["budget_nanos"] == "5"


async def test_a_change_that_is_told_beforehand_is_known_to_every_process(house):
    account = await house.registry.create_account(name="n", tier="t", actor="test")
    key = await house.registry.create_key(account.id, name="k", scopes=Scopes(), actor="test")
    begins_ms = house.now_ms + 3_600_000
    assert await house.registry.change_terms(account.id, Change(at_ms=begins_ms, tier="pro"), actor="test", reason="an upgrade")
    assert await house.registry.change_terms(account.id, Change(at_ms=begins_ms, price_factor=500_000), actor="test", reason="likewise")
    (listed,) = await house.registry.accounts()
    assert listed == await house.registry.account(account.id)
    for process in (house.directory, house.new_process()):  # out of Redis, where the command has left it
        found = await process.find(key.secret)
        assert [(as_of(found, at_ms).tier, as_of(found, at_ms).price_factor) for at_ms in (begins_ms - 1, begins_ms)] == [
            ("t", 1_000_000),
            ("pro", 500_000),
        ]
    assert rows(house, "SELECT action, reason FROM audit WHERE subject = '" + account.id + "' AND action LIKE 'set%%' ORDER BY id") == [
        ("set_tier", "t → pro from 2025-10-09T09:53:20Z on: an upgrade"),
        ("set_price_factor", "1 → 0.5 from 2025-10-09T09:53:20Z on: likewise"),
    ]
    house.now_ms = begins_ms + 1
    assert await house.registry.change_terms(account.id, Change(at_ms=0, price_factor=900_000), actor="test", reason="a contract")
    now = await house.registry.account(account.id)
    assert (now.tier, now.price_factor, now.changes) == ("pro", 900_000, ())


async def test_changes_that_cannot_be(house):
    account = await house.registry.create_account(name="n", tier="t", actor="test")
    for days in range(CHANGES_MAX):
        change = Change(at_ms=house.now_ms + (days + 1) * 86_400_000, tier=f"t{days}")
        await house.registry.change_terms(account.id, change, actor="test", reason="why")
    with pytest.raises(UsageError, match="wait already"):
        await house.registry.change_terms(account.id, Change(at_ms=2 * house.now_ms, price_factor=1), actor="test", reason="why")
    with pytest.raises(UsageError, match="a tier has a name"):
        await house.registry.change_terms(account.id, Change(at_ms=0, tier=""), actor="test", reason="why")


async def test_a_price_factor_that_redis_did_not_hear_of_is_brought_by_the_sweep(house):
    account = await house.registry.create_account(name="n", tier="t", actor="test")
    key = await house.registry.create_key(account.id, name="k", scopes=Scopes(), actor="test")
    deaf = Registry(KeyStore(house.database, DeafRedis(), DeafRedis(), unix_ms=lambda: 0), DeafRedis(), new_id=house.registry._new_id)
    assert not await deaf.change_terms(account.id, Change(at_ms=0, price_factor=0), actor="test", reason="why")
    (waiting,) = await house.registry.undelivered_keys(after=None, limit=5)
    assert (waiting.key.id, waiting.key.price_factor) == (key.id, 0)
    await house.registry.deliver_key(waiting)
    assert (await house.directory.find(key.secret)).price_factor == 0


@pytest.mark.parametrize(("factor", "reason"), [(-1, "why"), (1_000_000_001, "why"), (500_000, ""), (500_000, " ")])
async def test_a_price_factor_that_cannot_be(house, factor, reason):
    account = await house.registry.create_account(name="n", tier="t", actor="test")
    with pytest.raises(UsageError):
        await house.registry.change_terms(account.id, Change(at_ms=0, price_factor=factor), actor="test", reason=reason)
    assert (await house.registry.account(account.id)).price_factor == 1_000_000


async def test_a_price_factor_of_nobody(house):
    with pytest.raises(UsageError, match="there is no account"):
        await house.registry.change_terms(house.registry._new_id(), Change(at_ms=0, price_factor=1), actor="test", reason="why")


async def test_what_an_old_master_was_told_is_told_its_successor(house):
    """The shard was opened elsewhere since: a revocation that was brought to the old one must not be taken for delivered."""
    account = await house.registry.create_account(name="n", tier="t", actor="test")
    key = await house.registry.create_key(account.id, name="k", scopes=Scopes(), actor="test")
    epoch = house.holds.epoch_of(account.id)
    with psycopg.connect(house.dsn) as connection:
        connection.execute("INSERT INTO shard_epochs SELECT shard_of(%s), 9, 'successor.9', 'open'", [account.id])
    await house.registry.revoke(key.id, actor="test")
    await house.registry.freeze(account.id, frozen=True, actor="test", reason="test")
    (waiting,) = await house.registry.undelivered_keys(after=None, limit=5)
    (freeze,) = await house.registry.undelivered_freezes(after=None, limit=5)
    with psycopg.connect(house.dsn) as connection:
        connection.execute("UPDATE shard_epochs SET epoch = %s", [epoch])
    await house.registry.deliver_key(waiting)
    assert await house.registry.deliver_freeze(freeze)
    assert await house.registry.undelivered_keys(after=None, limit=5) == []
    assert await house.registry.undelivered_freezes(after=None, limit=5) == []
