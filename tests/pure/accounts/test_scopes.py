"""Scopes: models, networks, time."""

from __future__ import annotations

import pytest

from extproc.accounts.model import Key
from extproc.accounts.scopes import Fault, address, key_fault, model, model_fault, parse_networks, standing
from extproc.errors import ClientError


def key(**fields: object) -> Key:
    return Key(id="k", payer_id="p", name="n", tier="t", **fields)  # type: ignore[arg-type]


def test_no_scope_restricts_nothing():
    assert standing(key(), unix_ms=2**50) is None
    assert address(key(), "") is None
    assert model(key(), "anything") is None
    key_fault(key(), client_ip="", unix_ms=0)
    model_fault(key(), "anything", open_to_sandbox=False)


@pytest.mark.parametrize(("now", "fault"), [(99, None), (100, Fault.EXPIRED), (101, Fault.EXPIRED)])
def test_a_key_is_over_at_the_instant_that_it_names(now, fault):
    assert standing(key(expires_ms=100), unix_ms=now) is fault


def test_revoked_comes_before_expired():
    assert standing(key(revoked=True, expires_ms=1), unix_ms=5) is Fault.REVOKED


@pytest.mark.parametrize(
    ("networks", "client", "allowed"),
    [
        (("10.0.0.0/8",), "10.255.0.1", True),
        (("10.0.0.0/8",), "11.0.0.1", False),
        (("10.0.0.0/8",), "::ffff:10.1.2.3", True),
        (("::ffff:10.0.0.0/104",), "10.1.2.3", True),
        (("2001:db8::/32",), "2001:db8::1", True),
        (("2001:db8::/32",), "10.0.0.1", False),
        (("192.0.2.7",), "192.0.2.7", True),
        (("192.0.2.7", "2001:db8::/32"), "2001:db8:1::", True),
        (("0.0.0.0/0",), "2001:db8::1", False),
        (("10.0.0.0/8",), "", False),
        (("10.0.0.0/8",), "10.0.0.1:443", False),
        (("10.0.0.0/8",), "localhost", False),
    ],
)
def test_networks(networks, client, allowed):
    assert (address(key(networks=networks), client) is None) is allowed


@pytest.mark.parametrize("text", ["10.0.0.1/8", "10.0.0.0/33", "example.org", "", "10.0.0.0/8 "])
def test_what_is_no_network(text):
    with pytest.raises(ValueError):
        parse_networks((text,))


def test_models_are_matched_whole():
    scoped = key(models=frozenset({"qwen"}))
    assert model(scoped, "qwen") is None
    assert model(scoped, "qwen2") is Fault.MODEL


@pytest.mark.parametrize(
    ("fields", "status", "code"),
    [
        ({"revoked": True}, 401, "invalid_api_key"),
        ({"expires_ms": 5}, 401, "invalid_api_key"),
        ({"networks": ("10.0.0.0/8",)}, 403, "address_not_allowed"),
    ],
)
def test_refusals_carry_status_and_code(fields, status, code):
    with pytest.raises(ClientError) as refused:
        key_fault(key(**fields), client_ip="192.0.2.1", unix_ms=10)
    assert (refused.value.status, refused.value.code) == (status, code)


def test_a_model_outside_the_scope_is_403():
    with pytest.raises(ClientError) as refused:
        model_fault(key(models=frozenset({"a"})), "b", open_to_sandbox=False)
    assert (refused.value.status, refused.value.code) == (403, "model_not_allowed")
