"""Every vocabulary that ships: counts of pieces, of windows and of wholes are those of tiktoken over the whole text.

A quick run takes 2,000 strings of each; ``HYPOTHESIS_PROFILE=thorough`` (``make fuzz``) 20,000.
"""

from __future__ import annotations

import json
import os
import random
import unicodedata
from collections.abc import Iterator
from pathlib import Path

import pytest
import tiktoken

from extproc.tokens import incremental
from extproc.tokens.bpe import load_encoding
from extproc.tokens.incremental import Codec, RunningCount
from extproc.tokens.vocabulary import CL100K, DEEPSEEK, O200K, QWEN, QWEN3_6, TOKENIZERS, Vocabulary

DATA = Path(__file__).parents[2] / "data"
TEXTS: dict[str, str] = json.loads((DATA / "texts.json").read_text())
STRINGS = 20_000 if os.environ.get("HYPOTHESIS_PROFILE") == "thorough" else 2_000
ODD = " \t\n\r\x0b\x0c\x1c\x85\u00a0\u2028\u3000\x00\u200b\u200d\u3040\u3099\u309b\u30a0\u30fb\u30fc1٣½a!'-/é\u0301\u0308世か🙂\U0001f1e9\ufe0f\ue000\u0378"
CHARACTERS = sorted(set("".join(TEXTS.values())))


class Loaded:
    def __init__(self, vocabulary: Vocabulary) -> None:
        self.vocabulary = vocabulary
        self.encoding = load_encoding(vocabulary)
        self.codec = Codec(self.encoding, nfc=vocabulary.nfc)

    def reference(self, text: str) -> int:
        return len(self.encoding.encode_ordinary(unicodedata.normalize("NFC", text) if self.vocabulary.nfc else text))


@pytest.fixture(scope="module", params=(QWEN, QWEN3_6, CL100K, O200K, DEEPSEEK), ids=lambda vocabulary: vocabulary.name)
def loaded(request: pytest.FixtureRequest) -> Loaded:
    return Loaded(request.param)


def strings(count: int, seed: int) -> Iterator[tuple[str, random.Random]]:
    """Mixtures of texts, of single characters, of odd ones, and of anything in Unicode."""
    chance = random.Random(seed)
    texts = list(TEXTS.values())
    for _ in range(count):
        parts = []
        for _ in range(chance.randint(1, 30)):
            kind, size = chance.random(), chance.randint(1, 9)
            if kind < 0.5:
                text = chance.choice(texts)
                start = chance.randrange(len(text))
                parts.append(text[start : start + chance.randint(1, 70)])
            elif kind < 0.7:
                parts.append("".join(chance.choice(CHARACTERS) for _ in range(size)))
            elif kind < 0.9:
                parts.append("".join(chance.choice(ODD) for _ in range(size)))
            else:
                parts.append(
                    "".join(chr(chance.choice([chance.randrange(0xD800), chance.randrange(0xE000, 0x20000)])) for _ in range(size))
                )
        yield "".join(parts), chance


def running_total(codec: Codec, text: str, sizes: list[int]) -> int:
    running = RunningCount(codec)
    at = turn = 0
    while at < len(text):
        running.feed(text[at : at + sizes[turn % len(sizes)]])
        at += sizes[turn % len(sizes)]
        turn += 1
    return running.total()


def test_any_text_in_any_pieces(loaded: Loaded, monkeypatch: pytest.MonkeyPatch) -> None:
    """In pieces; and in windows of 97 characters, which put a cut into every corner."""
    monkeypatch.setattr(incremental, "COUNT_WINDOW", 97)
    wrong = []
    for text, chance in strings(STRINGS, seed=len(loaded.vocabulary.name)):
        expected = loaded.reference(text)
        sizes = [chance.randint(1, 60) for _ in range(chance.randint(1, 6))]
        if {running_total(loaded.codec, text, sizes), loaded.codec.count(text)} != {expected}:
            wrong.append((text, sizes))
    assert not wrong, ascii(wrong[:3])


HOSTILE = {
    "digits of Arabic": "٠١٢٣٤٥٦٧٨٩",
    "numbers": "½²①Ⅷ",
    "controls": "\0\x01\u200b\ue000",
    "marks": "a\u0301\u0303é",
    "kana": "かカ漢ー・",
    "cases": "aBcDEf",
    "slashes": "/\n\r!",
    "apostrophes": "'sSTtx",
    "family": "👩\u200d",
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_text_that_cannot_be_cut_safely(loaded: Loaded, kind: str) -> None:
    chance = random.Random(3)
    text = "".join(chance.choice(HOSTILE[kind]) for _ in range(12_000))
    expected = loaded.reference(text)
    assert loaded.codec.count(text) == expected
    assert running_total(loaded.codec, text, [40]) == expected


@pytest.mark.parametrize("kind", TEXTS)
def test_every_kind_of_text_agrees(loaded: Loaded, kind: str) -> None:
    text = TEXTS[kind] * 40
    expected = loaded.reference(text)
    assert loaded.codec.count(text) == expected
    for sizes in ([1], [4], [3, 1, 2], [200, 1], [len(text)]):
        assert running_total(loaded.codec, text, sizes) == expected


def test_blanks_that_make_the_encoder_panic(loaded: Loaded) -> None:
    """tiktoken overflows the stack of its regular expression at some 10⁵ blanks; that panic is no Exception and would end a worker."""
    longest = max(len(token) for token in loaded.encoding.token_byte_values() if token.isspace() and set(token) == {32})
    text = " " * (1_200 * longest)
    assert loaded.codec.count(text) == running_total(loaded.codec, text, [len(text)]) == 1_200


def test_every_byte_and_no_special_token(loaded: Loaded) -> None:
    """What looks special is text, and there is no text that the encoding cannot say again."""
    for text in (*TEXTS.values(), "".join(map(chr, range(0x3200)))):
        assert loaded.encoding.decode(loaded.encoding.encode_ordinary(text)) == text
    assert loaded.codec.count("<|endoftext|>") > 3
    assert loaded.encoding.special_tokens_set == set()


def test_recorded_tokens(loaded: Loaded) -> None:
    """The ids that other programs give these texts: the publishers' own tokenizers where a package carries them (see the file)."""
    recorded = json.loads((DATA / "tokens.json").read_text())[loaded.vocabulary.name]
    assert recorded.keys() == TEXTS.keys()
    for kind, ids in recorded.items():
        text = unicodedata.normalize("NFC", TEXTS[kind]) if loaded.vocabulary.nfc else TEXTS[kind]
        assert loaded.encoding.encode_ordinary(text) == ids, kind


def test_all_that_ships_is_here() -> None:
    assert set(TOKENIZERS.values()) == {QWEN, QWEN3_6, CL100K, O200K, DEEPSEEK}
    assert isinstance(load_encoding(DEEPSEEK), tiktoken.Encoding)
