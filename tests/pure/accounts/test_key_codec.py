"""A key comes out of Redis as it went in."""

from __future__ import annotations

import pytest

from extproc.accounts.codec import Shared, enforced, from_json, to_json
from extproc.accounts.model import Key, KeyDelivery, Period
from extproc.money.hold import Limits

FULL = Key(
    id="k",
    payer_id="p",
    name="Schlüssel",
    tier="t",
    price_factor=850_000,
    models=frozenset({"b", "a"}),
    networks=("10.0.0.0/8", "::/0"),
    expires_ms=17,
    revoked=True,
    limits=Limits(requests_per_minute=3, tokens_per_minute=0),
    budget_nanos=5,
    budget_period=Period.DAY,
    sandbox=True,
)


@pytest.mark.parametrize("key", [FULL, Key(id="k", payer_id="p", name="", tier="t")])
def test_there_and_back(key):
    assert from_json(to_json(Shared(key=key, loaded_ms=9))) == Shared(key=key, loaded_ms=9)


def test_what_a_program_without_price_factors_has_written_is_understood():
    plain = Key(id="k", payer_id="p", name="", tier="t")
    assert from_json(to_json(Shared(key=plain, loaded_ms=9)).replace(b'"price_factor":1000000,', b"")) == Shared(key=plain, loaded_ms=9)


@pytest.mark.parametrize(
    "data", [b"", b"[]", b"{}", b"null", b'{"loaded_ms":1}', b'{"loaded_ms":1,"models":[],"networks":[],"limits":{"x":1}}', b"\xff"]
)
def test_what_is_not_understood_is_not_there(data):
    assert from_json(data) is None


def test_what_admit_enforces():
    assert enforced(KeyDelivery(key=FULL, hash=b"", version=1, budget_id="first")) == {
        "revoked": "1",
        "expires_ms": "17",
        "budget_nanos": "5",
        "budget_period": "day",
        "budget_id": "first",
    }
    assert enforced(KeyDelivery(key=Key(id="k", payer_id="p", name="", tier="t"), hash=b"", version=1, budget_id="k")) == {
        "revoked": "0",
        "expires_ms": "0",
        "budget_nanos": "",
        "budget_period": "none",
        "budget_id": "k",
    }
