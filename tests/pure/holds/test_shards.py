from __future__ import annotations

from collections import Counter

import pytest

from extproc.errors import StoreRefused, StoreRejected, StoreUnknown
from extproc.stores.redis_errors import store_error
from extproc.stores.shards import SHARDS, TAGS, shard_of, tag_of


def test_shards_never_move() -> None:
    """Where payers are today, they are for ever: a changed function would lose their balances."""
    assert [shard_of(payer) for payer in ("", "anna", "0190b8a0-0000-7000-8000-000000000001", "größe")] == [0, 55, 29, 9]
    assert (TAGS[0], TAGS[63], len(TAGS)) == ("{s00}", "{s63}", SHARDS)


def test_a_tag_is_its_shard() -> None:
    payers = [f"payer {number}" for number in range(6_400)]
    assert all(tag_of(payer) == TAGS[shard_of(payer)] for payer in payers)
    sizes = Counter(map(shard_of, payers))
    assert len(sizes) == SHARDS
    assert max(sizes.values()) < 200


@pytest.mark.parametrize(
    "text",
    [
        "MOVED 3999 127.0.0.1:6381",
        "ASK 3999 127.0.0.1:6381",
        "TRYAGAIN Multiple keys request during rehashing of slot",
        "LOADING Redis is loading the dataset in memory",
        "READONLY You can't write against a read only replica.",
        "CLUSTERDOWN Hash slot not served",
        "NOREPLICAS Not enough good replicas to write.",
        "OOM command not allowed when used memory > 'maxmemory'.",
        "NOSCRIPT No matching script.",
    ],
)
def test_what_was_certainly_not_executed(text: str) -> None:
    assert type(store_error(text)) is StoreRefused


@pytest.mark.parametrize(
    "text", ["ERR value is not an integer or out of range script: 9a", "WRONGTYPE Operation", "EXECABORT", "", "OOMPH"]
)
def test_everything_else_is_unknown(text: str) -> None:
    assert type(store_error(text)) is StoreUnknown


def test_what_our_scripts_refuse_is_refused_again() -> None:
    text = "REFUSED the charge is above the cap of the hold script: 9a, on @user_script:16."
    assert type(store_error(text)) is StoreRejected
