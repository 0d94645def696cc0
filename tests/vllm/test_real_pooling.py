"""Embeddings of a real vLLM, through Envoy."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from real_books import Books, tell
from real_server import RealVllm
from upstack import Up

pytestmark = pytest.mark.vllm


@pytest.fixture(scope="module")
def embedded(up: Up, embedder: RealVllm) -> Iterator[Books]:
    kept = Books(up, embedder)
    yield kept
    tell(*kept.summary())


@pytest.mark.parametrize("texts", ["hello there", ["hello", "bonjour 北京"], [9707, 1879], [[9707], [1879, 0]]], ids=str)
@pytest.mark.parametrize("form", ["float", "base64"])
def test_embeddings(up: Up, embedded: Books, texts: Any, form: str):
    with embedded.agree(f"embeddings of {texts}") as block:
        answer = up.http.post("/v1/embeddings", json={"model": "tiny-embed", "input": texts, "encoding_format": form})
        block.add(answer.headers["x-request-id"])
    assert answer.status_code == 200, answer.text
    row = up.row(answer.headers["x-request-id"])
    assert (row["input_tokens"], row["output_tokens"], row["usage_source"]) == (answer.json()["usage"]["prompt_tokens"], 0, "upstream")
    assert row["cost"] == row["input_tokens"] * 100 <= row["hold_nanos"]


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/rerank", {"query": "what is a river?", "documents": ["a stream of water", "a kind of tree"]}),
        ("/score", {"text_1": "what is a river?", "text_2": ["a stream of water", "a kind of tree"]}),
    ],
)
def test_pairs(up: Up, embedded: Books, path: str, body: dict[str, Any]):
    with embedded.agree(path) as block:
        answer = up.http.post(path, json={"model": "tiny-embed"} | body)
        block.add(answer.headers["x-request-id"])
    assert answer.status_code == 200, answer.text
    row = up.row(answer.headers["x-request-id"])
    assert 0 < row["cost"] == row["input_tokens"] * 100 <= row["hold_nanos"]
