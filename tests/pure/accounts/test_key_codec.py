"""A key comes out of Redis as it went in."""

from __future__ import annotations

import pytest

from extproc.accounts.codec import Shared, enforced, from_json, to_json
from extproc.accounts.model import Change, Key, KeyDelivery, Period
from extproc.money.hold import Limits

FULL = Key(
    id="k",
    payer_id="p",
    name="Schlüssel",
    tier="t",
    price_factor=850_000,
    changes=(Change(at_ms=5, tier="u"), Change(at_ms=6, price_factor=1)),
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


@pytest.mark.parametrize("unknown", [b'"price_factor":1000000,', b'"changes":[],'])
def test_what_an_older_program_has_written_is_understood(unknown):
    plain = Shared(key=Key(id="k", payer_id="p", name="", tier="t"), loaded_ms=9)
    assert from_json(to_json(plain).replace(unknown, b"")) == plain


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
