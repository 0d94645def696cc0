"""A few of what `make fuzz` has many of: hostile bodies, and random requests from the body to the charge."""

from __future__ import annotations

import pytest
from fuzz import holds, hostile

SEED = 5


def test_hostile_bodies():
    found = hostile.run(500, SEED)
    assert found["forwarded"] > 50
    assert {"400 invalid_json", "400 invalid_type", "400 invalid_form", "413 request_too_large"} <= found.keys()


def test_random_requests():
    became, ratios = holds.run(500, SEED)
    assert became["stop"] > 100
    assert became["client_gone"] > 0
    assert {"transcriptions", "rerank", "method per_token", "method hybrid"} <= ratios.keys()


@pytest.mark.parametrize(
    "body", [b'{"model":"qwen2.5-7b"', b"[" * 20_000, b'{"model":NaN}', b'{"model":"\\ud800"}', b'{"a":' + b"9" * 5_000 + b"}"]
)
@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/messages", "/v1/embeddings", "/tokenize"])
def test_some_by_name(path: str, body: bytes):
    terms = hostile.pinned(hostile.CATALOG)
    assert hostile.check(hostile.Ask(path, body, "application/json", None), terms, spendable_nanos=10**12).startswith("400 ")
