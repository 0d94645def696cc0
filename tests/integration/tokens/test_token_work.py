"""Work and memory stay bounded for text that nobody can cut safely. Work is counted in characters encoded, not in seconds."""

from __future__ import annotations

import random
import unicodedata
from collections.abc import Mapping, Sequence

import pytest
import tiktoken

from extproc.tokens.incremental import COUNT_WINDOW, TAIL_CHARS_MAX, TAIL_GROWTH, TAIL_WINDOW, Codec, RunningCount

LENGTH = 12_000
_RANDOM = random.Random(1)

HOSTILE = {
    "letter": "a" * LENGTH,
    "letters": "".join(_RANDOM.choice("etaoinshrdlu") for _ in range(LENGTH)),
    "digits": "".join(_RANDOM.choice("0123456789") for _ in range(LENGTH)),
    "cjk": "".join(chr(_RANDOM.randint(0x4E00, 0x9FFF)) for _ in range(LENGTH)),
    "blanks": " " * LENGTH,
    "newlines": "\n" * LENGTH,
    "signs": "".join(_RANDOM.choice("!#$%&*'") for _ in range(LENGTH)),
    "thai": "".join(_RANDOM.choice("สวัสดีครับภาษาไทย") for _ in range(LENGTH)),
    "jamo": "\u1112\u1161\u11ab" * (LENGTH // 3),
    "mark": "\u0301" * LENGTH,
    "emoji": "😀" * LENGTH,
    "contractions": "".join(_RANDOM.choice("''st") for _ in range(LENGTH)),
    "bengali": "".join(_RANDOM.choice("\u09c7\u09cb") + _RANDOM.choice("\u09be\u09d7\u0995") for _ in range(LENGTH // 2)),
    "devanagari": "".join(_RANDOM.choice("नमस्तेदुनियाक\u093c") for _ in range(LENGTH)),
}


class Metered:
    """An encoder that notes what it is given."""

    def __init__(self, encoder: tiktoken.Encoding) -> None:
        self._encoder = encoder
        self.chars = 0
        self.longest = 0

    def encode_ordinary(self, text: str) -> list[int]:
        self.chars += len(text)
        self.longest = max(self.longest, len(text))
        return self._encoder.encode_ordinary(text)

    def decode_tokens_bytes(self, tokens: Sequence[int]) -> list[bytes]:
        return self._encoder.decode_tokens_bytes(tokens)


class Attempts(Codec):
    """Counts the searches for a cut."""

    attempts = 0

    def head(self, text: str) -> tuple[int, int] | None:
        self.attempts += 1
        return super().head(text)


@pytest.mark.parametrize("kind", HOSTILE)
def test_hostile_text_is_linear_and_exact(encodings: Mapping[str, tiktoken.Encoding], kind: str) -> None:
    text = HOSTILE[kind]
    encoding = encodings["qwen3"]
    expected = len(encoding.encode_ordinary(unicodedata.normalize("NFC", text)))

    meter = Metered(encoding)
    assert Codec(meter, nfc=True).count(text) == expected
    assert meter.chars <= 3 * len(text)
    assert meter.longest <= COUNT_WINDOW

    meter = Metered(encoding)
    running = RunningCount(Codec(meter, nfc=True))
    for at in range(0, len(text), 40):
        running.feed(text[at : at + 40])
        assert len(running._tail) <= TAIL_WINDOW + TAIL_GROWTH + 40
    assert meter.chars <= 3 * len(text)
    assert meter.longest <= COUNT_WINDOW
    assert running.total() == expected


def test_a_cut_bound_to_be_wrong_is_off_by_little(encodings: Mapping[str, tiktoken.Encoding]) -> None:
    """More than 256 combining marks in a row that have to be sorted: at most one token a window of 256."""
    text = "a" + "\u0301\u0323" * 2_000
    expected = len(encodings["qwen3"].encode_ordinary(unicodedata.normalize("NFC", text)))
    codec = Codec(encodings["qwen3"], nfc=True)
    running = RunningCount(codec)
    for at in range(0, len(text), 4):
        running.feed(text[at : at + 4])
    assert abs(codec.count(text) - expected) <= len(text) // 256
    assert abs(running.total() - expected) <= len(text) // 256


def test_a_tail_that_cannot_be_cut_is_not_searched_for_every_piece(encodings: Mapping[str, tiktoken.Encoding]) -> None:
    codec = Attempts(encodings["cl100k"], nfc=False)
    running = RunningCount(codec)
    for _ in range(LENGTH // 4):
        running.feed("aaaa")
    assert codec.attempts <= 2 * LENGTH // TAIL_GROWTH


def test_a_normal_tail_is_short(encodings: Mapping[str, tiktoken.Encoding]) -> None:
    meter = Metered(encodings["cl100k"])
    running = RunningCount(Codec(meter, nfc=False))
    text = "The quick brown fox, over there, isn't lazy. " * 200
    for at in range(0, len(text), 4):
        running.feed(text[at : at + 4])
        assert len(running._tail) <= TAIL_CHARS_MAX + 4
    assert meter.chars <= len(text)
    assert not hasattr(running, "__dict__")


def test_one_large_piece(encodings: Mapping[str, tiktoken.Encoding]) -> None:
    meter = Metered(encodings["qwen3"])
    running = RunningCount(Codec(meter, nfc=True))
    text = "一个JSON回答，整个到来。\n" * 5_000
    running.feed(text)
    assert len(running._tail) <= TAIL_CHARS_MAX
    assert meter.chars <= len(text)
    assert meter.longest <= COUNT_WINDOW
    assert running.total() == len(encodings["qwen3"].encode_ordinary(text))
