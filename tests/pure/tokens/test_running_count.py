"""What a running count spares itself."""

from __future__ import annotations

from collections.abc import Sequence

from extproc.tokens.incremental import Codec, RunningCount


class Letters:
    """A token a letter; remembers what it was asked."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    def encode_ordinary(self, text: str) -> list[int]:
        self.asked.append(text)
        return [0] * len(text)

    def decode_tokens_bytes(self, tokens: Sequence[int]) -> list[bytes]:
        return [b"a" for _ in tokens]


def test_a_text_that_has_not_grown_is_not_counted_again():
    """A figure is due four times a second, for each of up to a thousand choices."""
    letters = Letters()
    running = RunningCount(Codec(letters, nfc=False))
    assert (running.total(), letters.asked) == (0, [])
    for size in (3, 300, 3):
        running.feed("ab " * size)
        total = running.total()
        asked = len(letters.asked)
        assert (running.total(), len(letters.asked)) == (total, asked)
    assert running.total() == 3 * 306
