"""Vocabularies are loaded once a session: they are most of what these tests cost."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
import tiktoken

from extproc.tokens.bpe import load_encoding
from extproc.tokens.incremental import Codec
from extproc.tokens.registry import LoadedCounters
from extproc.tokens.vocabulary import CL100K, QWEN


@pytest.fixture(scope="session")
def encodings() -> Mapping[str, tiktoken.Encoding]:
    """The reference: tiktoken over a whole text."""
    qwen = load_encoding(QWEN)
    return {"qwen2": qwen, "qwen3": qwen, "cl100k": load_encoding(CL100K)}


@pytest.fixture(scope="session")
def counters(encodings: Mapping[str, tiktoken.Encoding]) -> LoadedCounters:
    return LoadedCounters({"qwen": Codec(encodings["qwen3"], nfc=True), "cl100k": Codec(encodings["cl100k"], nfc=False)})
