"""A key is found in the process, in Redis or in PostgreSQL; while a store is away nobody is told that his key is wrong."""

from __future__ import annotations

import asyncio
import time

import pytest

from extproc.accounts import directory as directory_module
from extproc.accounts.directory import MISS, Directory, KeyStore
from extproc.accounts.keys import hash_of, new_key
from extproc.accounts.model import Period
from extproc.accounts.registry import Scopes
from extproc.errors import StoreRefused
from extproc.money.hold import Limits

SCOPES = Scopes(
    models=["a", "b"],
    networks=["10.0.0.0/8"],
    expires_ms=1_900_000_000_123,
    limits=Limits(requests_per_minute=3),
    budget_nanos=5,
    budget_period=Period.MONTH,
    sandbox=True,
)


class CountingStore(KeyStore):
    """Counts what reaches PostgreSQL; can be held up or cut off."""

    def __init__(self, house) -> None:
        super().__init__(house.database, house.pipeline, house.holds, unix_ms=lambda: house.now_ms)
        self.loads = 0
        self.gate = asyncio.Event()
        self.gate.set()
        self.is_away = False

    async def load(self, key_hash):
        self.loads += 1
        await self.gate.wait()
        if self.is_away:
            raise StoreRefused("cut off by the test")
        return await super().load(key_hash)


@pytest.fixture
async def store(house):
    return CountingStore(house)


@pytest.fixture
async def found(house, store):
    """A directory of an empty process, its counting store, and a key that Redis has not been told of."""
    account = await house.registry.create_account(name="n", tier="gold", actor="test")
    key = await house.registry.create_key(account.id, name="laptop", scopes=SCOPES, actor="test")
    await house.pipeline.execute("DEL", f"extproc:key:{hash_of(key.secret).hex()}")
    return Directory(store, monotonic_s=lambda: house.now_s), account, key


async def test_a_key_comes_with_all_its_scopes(found):
    directory, account, new = found
    assert directory.peek(new.secret) is MISS
    key = await directory.find(new.secret)
    assert key is not None
    assert (key.id, key.payer_id, key.name, key.tier) == (new.id, account.id, "laptop", "gold")
    assert (key.models, key.networks, key.expires_ms, key.sandbox) == (frozenset("ab"), ("10.0.0.0/8",), 1_900_000_000_123, True)
    assert (key.limits, key.budget_nanos, key.budget_period) == (SCOPES.limits, 5, Period.MONTH)
    assert directory.peek(new.secret) is key


async def test_the_process_asks_once_a_minute(house, store, found):
    directory, _, new = found
    await directory.find(new.secret)
    await directory.find(new.secret)
    assert store.loads == 1
    house.now_s += 60
    assert directory.peek(new.secret) is MISS
    await directory.find(new.secret)
    assert store.loads == 1, "Redis had it"
    house.now_s += 60
    house.now_ms += directory_module.SHARED_FRESH_MS
    await directory.find(new.secret)
    await directory.close()
    assert store.loads == 2, "what Redis has is read again now and then"


async def test_unknown_keys_are_remembered_for_seconds(house, store, found):
    directory, _, _ = found
    unknown = new_key()
    assert [await directory.find(unknown) for _ in range(3)] == [None] * 3
    assert (store.loads, directory.peek(unknown)) == (1, None)
    house.now_s += 5
    assert directory.peek(unknown) is MISS


async def test_what_is_no_key_asks_nobody(store, found):
    directory, _, new = found
    typo = new.secret[:-1] + ("0" if new.secret[-1] != "0" else "1")
    for text in ("", "sk-123", typo, "\ud800"):
        assert directory.peek(text) is None
        assert await directory.find(text) is None
    assert store.loads == 0


async def test_callers_of_one_key_share_a_query(store, found):
    directory, _, new = found
    store.gate.clear()
    callers = [asyncio.create_task(directory.find(new.secret)) for _ in range(20)]
    while not store.loads:
        await asyncio.sleep(0)
    callers[0].cancel()
    store.gate.set()
    results = await asyncio.gather(*callers, return_exceptions=True)
    assert isinstance(results[0], asyncio.CancelledError)
    assert {key.id for key in results[1:]} == {new.id}
    assert store.loads == 1


async def test_a_flood_of_made_up_keys_is_bounded_and_known_ones_are_found(house, store, found, monkeypatch):
    directory, _, new = found
    await directory.find(new.secret)
    store.gate.clear()
    callers = [asyncio.create_task(directory.find(new_key())) for _ in range(directory_module.LOADS_MAX + 7)]
    while sum(caller.done() for caller in callers) < 7:
        await asyncio.wait([caller for caller in callers if not caller.done()], return_when=asyncio.FIRST_COMPLETED)
    house.now_s += 100  # not in the process any more: in Redis
    assert (await directory.find(new.secret)).id == new.id
    house.now_s += 100
    monkeypatch.setattr(directory_module, "LOOKUPS_MAX", directory_module.LOADS_MAX)
    assert (await directory.find(new.secret)).id == new.id
    store.gate.set()
    results = await asyncio.gather(*callers, return_exceptions=True)
    assert len([one for one in results if isinstance(one, StoreRefused)]) == 7
    assert [one for one in results if not isinstance(one, StoreRefused)] == [None] * directory_module.LOADS_MAX


async def test_the_process_forgets_the_least_used(house, monkeypatch):
    monkeypatch.setattr(directory_module, "UNKNOWN_MAX", 3)
    directory = house.new_process()
    keys = [new_key() for _ in range(4)]
    for key in keys[:3]:
        await directory.find(key)
    directory.peek(keys[0])
    await directory.find(keys[3])
    assert [directory.peek(key) is MISS for key in keys] == [False, True, False, False]


async def test_known_keys_work_while_postgres_is_away(house, store, found):
    directory, _, new = found
    await directory.find(new.secret)
    store.is_away = True
    house.now_s += 60
    house.now_ms += 3_600_000
    for fresh_process in (directory, Directory(store, monotonic_s=lambda: house.now_s)):
        key = await fresh_process.find(new.secret)
        assert key is not None
        assert key.id == new.id
        with pytest.raises(StoreRefused):
            await fresh_process.find(new_key())


async def test_nobody_waits_for_a_postgres_that_hangs(house, store, found, monkeypatch):
    """However old what Redis has may be: an outage of eleven minutes is no worse than one of nine."""
    directory, _, new = found
    await directory.find(new.secret)
    silent = asyncio.get_running_loop().create_future()
    monkeypatch.setattr(store, "load", lambda _: silent)
    house.now_s += 60
    house.now_ms += directory_module.SHARED_FRESH_MS
    for _ in range(2):
        async with asyncio.timeout(1):
            assert (await directory.find(new.secret)).id == new.id
        house.now_s += 60
    silent.set_exception(StoreRefused("away"))
    await directory.close()
    assert (await directory.find(new.secret)).id == new.id


async def test_what_postgres_says_meanwhile_is_in_force_afterwards(house, store, found, monkeypatch):
    directory, _, new = found
    await directory.find(new.secret)
    house.now_s += 60
    house.now_ms += directory_module.SHARED_FRESH_MS
    nothing = asyncio.get_running_loop().create_future()
    nothing.set_result(None)
    monkeypatch.setattr(store, "load", lambda _: nothing)
    assert await directory.find(new.secret) is not None
    await directory.close()
    assert directory.peek(new.secret) is None
    assert directory.recall(new.secret) is None


async def test_a_postgres_that_is_away_is_left_alone_for_a_while(house, store, found):
    directory, _, _ = found
    store.is_away = True
    for _ in range(5):
        with pytest.raises(StoreRefused):
            await directory.find(new_key())
    assert store.loads == 1
    store.is_away = False
    house.now_s += directory_module.AWAY_S
    assert await directory.find(new_key()) is None


async def test_a_stopped_postgres_and_one_that_is_back(postgres, redis_url, house, database_template):
    """The real thing: the server stops; known keys go on, unknown ones are 503 within two seconds; it comes back, and both are answered."""
    account = await house.registry.create_account(name="n", tier="t", actor="test")
    key = await house.registry.create_key(account.id, name="", scopes=Scopes(), actor="test")
    directory = house.new_process()
    postgres.stop()
    try:
        known = await directory.find(key.secret)
        assert known is not None
        assert known.id == key.id
        started = time.monotonic()
        with pytest.raises(StoreRefused):
            await directory.find(new_key())
        assert time.monotonic() - started < 2
    finally:
        postgres.start_again()
    house.now_s += directory_module.AWAY_S
    unknown = new_key()
    async with asyncio.timeout(10):
        while True:
            try:
                assert await directory.find(unknown) is None
                break
            except StoreRefused:
                house.now_s += directory_module.AWAY_S
                await asyncio.sleep(0.05)


async def test_forgetting_installs_a_key_again_that_redis_lost(house, found):
    directory, account, new = found
    await directory.find(new.secret)
    await house.empty_redis()
    directory.forget(new.secret)
    assert directory.peek(new.secret) is MISS
    key = await directory.find(new.secret)
    assert key is not None
    names = await house.pipeline.execute("KEYS", f"*:key:{account.id}:{new.id}")
    assert len(names) == 1


async def test_forgetting_does_not_trust_what_redis_says_of_itself(house, store, found):
    """The JSON may have survived what the payer's shard lost: only PostgreSQL brings the enforcement back."""
    directory, _, new = found
    await directory.find(new.secret)
    directory.forget(hash_of(new.secret))
    await directory.find(new.secret)
    assert store.loads == 2


async def test_garbage_in_redis_is_not_a_key(house, store, found):
    directory, _, new = found
    await house.pipeline.execute("SET", f"extproc:key:{hash_of(new.secret).hex()}", b'{"id":1}')
    key = await directory.find(new.secret)
    assert key is not None
    assert (key.id, store.loads) == (new.id, 1)


async def test_redis_away_is_no_answer_either(house, found, database):
    """PostgreSQL knows the key; but it cannot be installed where it is enforced."""
    _, _, new = found

    class Nobody:
        async def execute(self, *_command):
            raise StoreRefused("away")

        async def put_key(self, *_args, **_fields):
            raise StoreRefused("away")

    store = KeyStore(house.database, Nobody(), Nobody(), unix_ms=lambda: 0)
    with pytest.raises(StoreRefused):
        await Directory(store, monotonic_s=lambda: 0.0).find(new.secret)
