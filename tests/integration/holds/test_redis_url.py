from __future__ import annotations

import ssl

import pytest

from extproc.stores.redis_url import Address


def test_urls_are_read_as_redis_py_reads_them() -> None:
    plain = Address.parse("redis://redis.internal:7000/2")
    assert (plain.host, plain.port, plain.path, plain.tls, plain.greeting) == ("redis.internal", 7000, "", None, (("SELECT", "2"),))
    local = Address.parse("unix:///run/redis.sock?db=1")
    assert (local.path, local.greeting) == ("/run/redis.sock", (("SELECT", "1"),))
    assert Address.parse("redis://").port == 6379
    named = Address.parse("redis://anna:p%40ss@h", password=None)
    assert named.greeting == (("AUTH", "anna", "p@ss"),)
    assert Address.parse("redis://:old@h", password="new").greeting == (("AUTH", "new"),)


def test_tls_is_verified() -> None:
    address = Address.parse("rediss://h:6380")
    assert address.tls is not None
    assert (address.tls.verify_mode, address.tls.check_hostname) == (ssl.CERT_REQUIRED, True)


def test_another_scheme_is_told() -> None:
    with pytest.raises(ValueError, match="redis://"):
        Address.parse("http://h")


def test_no_password_is_printed() -> None:
    assert "sesame" not in repr(Address.parse("redis://anna:sesame@h"))
