"""Characters and words, for prices that are put on them."""

from __future__ import annotations


class TextUnits:
    """Counts a text that arrives in pieces, cut anywhere between two code points: the same totals however it is cut.

    A character is a code point. A word is what ``str.split()`` calls one: a run between white space, so that a text without blanks
    (Chinese) is one word. Nothing of the text is kept. One per choice: a word never spans two.
    """

    __slots__ = ("_in_word", "characters", "words")

    def __init__(self) -> None:
        self.characters = 0
        self.words = 0
        self._in_word = False

    def feed(self, text: str) -> None:
        """The next piece."""
        if not text:
            return
        self.characters += len(text)
        self.words += len(text.split()) - (self._in_word and not text[0].isspace())
        self._in_word = not text[-1].isspace()
