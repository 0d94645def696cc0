"""Vocabularies are loaded once a session: they are most of what these tests cost."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NoReturn

import pytest
import tiktoken

from extproc.tokens.bpe import load_encoding
from extproc.tokens.incremental import Codec
from extproc.tokens.registry import LoadedCounters
from extproc.tokens.vocabulary import CL100K, QWEN


def refuse(*_: object) -> NoReturn:
    raise AssertionError("tiktoken's own loader was used")


@pytest.fixture(scope="session")
def encodings(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, tiktoken.Encoding]:
    """The reference: tiktoken over a whole text. Loaded from neither network nor cache."""
    cache = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tiktoken.load.read_file", refuse)
        patch.setattr("tiktoken.load.read_file_cached", refuse)
        patch.setenv("TIKTOKEN_CACHE_DIR", str(cache))
        qwen, cl100k = load_encoding(QWEN), load_encoding(CL100K)
    assert list(cache.iterdir()) == []
    return {"qwen2": qwen, "qwen3": qwen, "cl100k": cl100k}


@pytest.fixture(scope="session")
def counters(encodings: Mapping[str, tiktoken.Encoding]) -> LoadedCounters:
    return LoadedCounters({"qwen": Codec(encodings["qwen3"], nfc=True), "cl100k": Codec(encodings["cl100k"], nfc=False)})
