"""Counts are those of the model's tokenizer, however the text is cut into pieces.

Two encodings stand for all here; every one of them is fuzzed in tests/integration/tokens. ``EXTPROC_FUZZ_EXAMPLES=5000`` runs more.
"""

from __future__ import annotations

import json
import os
import unicodedata
from collections.abc import Mapping
from pathlib import Path

import pytest
import tiktoken
from hypothesis import given, settings
from hypothesis import strategies as st

from extproc.tokens import incremental
from extproc.tokens.incremental import Codec
from extproc.tokens.registry import BpeCounter, LoadedCounters

EXAMPLES = int(os.environ.get("EXTPROC_FUZZ_EXAMPLES", "15"))
NAMES = ("qwen3", "cl100k")

TEXTS: dict[str, str] = json.loads((Path(__file__).parents[2] / "data/texts.json").read_text())


def reference(encodings: Mapping[str, tiktoken.Encoding], name: str, text: str) -> int:
    return len(encodings[name].encode_ordinary(text if name == "cl100k" else unicodedata.normalize("NFC", text)))


def running_total(counter: BpeCounter, text: str, sizes: list[int]) -> int:
    running = counter.running()
    at = turn = 0
    while at < len(text):
        size = sizes[turn % len(sizes)]
        running.feed(text[at : at + size])
        at += size
        turn += 1
    return running.total()


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("kind", TEXTS)
def test_every_kind_of_text_agrees(counters: LoadedCounters, encodings: Mapping[str, tiktoken.Encoding], name: str, kind: str) -> None:
    counter = counters.get(name, "none")
    assert counter is not None
    text = TEXTS[kind] * 30
    expected = reference(encodings, name, text)
    assert counter.count(text) == expected
    for sizes in ([1], [4], [3, 1, 2], [200, 1], [len(text)]):
        assert running_total(counter, text, sizes) == expected


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=EXAMPLES, deadline=None)
@given(data=st.data())
def test_any_text_in_any_pieces(
    counters: LoadedCounters, encodings: Mapping[str, tiktoken.Encoding], name: str, data: st.DataObject
) -> None:
    counter = counters.get(name, "none")
    assert counter is not None
    fragment = st.one_of(
        st.sampled_from(sorted("".join(TEXTS.values()))),
        st.sampled_from([text[start : start + 40] for text in TEXTS.values() for start in (0, 17, 41)]),
        st.text(max_size=20),
    )
    text = "".join(data.draw(st.lists(fragment, max_size=60)))
    sizes = data.draw(st.lists(st.integers(1, 60), min_size=1, max_size=8))
    expected = reference(encodings, name, text)
    assert counter.count(text) == expected
    assert running_total(counter, text, sizes) == expected
    assert counter.bound(len(text.encode())) >= expected


@pytest.mark.parametrize("name", NAMES)
def test_cutting_everywhere_changes_nothing(
    counters: LoadedCounters, encodings: Mapping[str, tiktoken.Encoding], name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Windows of 100 characters put a cut into every corner of these texts."""
    monkeypatch.setattr(incremental, "COUNT_WINDOW", 100)
    codec = Codec(encodings[name], nfc=name != "cl100k")
    for kind, text in TEXTS.items():
        for shift in range(0, len(text), 7):
            sample = text[shift:] + text * 4
            assert codec.count(sample) == reference(encodings, name, sample), (kind, shift)


def test_total_may_be_asked_at_any_time(counters: LoadedCounters, encodings: Mapping[str, tiktoken.Encoding]) -> None:
    counter = counters.get("qwen2", "chatml")
    assert counter is not None
    text = TEXTS["marks"] * 12 + TEXTS["korean"] * 6 + TEXTS["code"] * 4
    running = counter.running()
    assert running.total() == 0
    for at in range(0, len(text), 5):
        running.feed(text[at : at + 5])
        assert running.total() == reference(encodings, "qwen2", text[: at + 5])
        assert running.total() == running.total()


@pytest.mark.parametrize(
    ("name", "text", "tokens"),
    [
        # published for cl100k in OpenAI's cookbook
        ("cl100k", "tiktoken is great!", 6),
        ("cl100k", "antidisestablishmentarianism", 6),
        ("cl100k", "2 + 2 = 4", 7),
        ("cl100k", "お誕生日おめでとう", 9),
        # by the Hugging Face tokenizer of Qwen
        ("qwen3", "You are Qwen, created by Alibaba Cloud. You are a helpful assistant.", 16),
        ("qwen3", "你好，世界！", 4),
        ("qwen3", "안녕하세요 세계", 4),
        ("qwen3", "e\u0301", 1),
        # where the two part ways
        ("qwen3", "12345", 5),
        ("cl100k", "12345", 2),
        ("cl100k", "e\u0301", 2),
        # 'VE is apart in capitals, too: THEY 'VE N
        ("qwen3", "THEY'VEN", 5),
        ("cl100k", "THEY'VEN", 5),
        # text that looks special is text
        ("qwen3", "<|im_end|>", 6),
        ("cl100k", "<|endoftext|>", 7),
    ],
)
def test_known_counts(counters: LoadedCounters, name: str, text: str, tokens: int) -> None:
    counter = counters.get(name, "none")
    assert counter is not None
    assert counter.count(text) == tokens


def test_lone_surrogates_are_counted(counters: LoadedCounters) -> None:
    """JSON can carry them; the tokenizers see U+FFFD."""
    counter = counters.get("qwen3", "none")
    assert counter is not None
    assert counter.count("a\ud83d") == counter.count("a\ufffd")
    assert counter.count("\ud83d" * 20_000) == running_total(counter, "\ud83d" * 20_000, [97])
