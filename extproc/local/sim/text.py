"""Text of exactly so many tokens, in several languages, and the count of prompts.

With a vocabulary, sentences are cut into the model's own tokens. A sentence ends with a line break, and no tokenizer's word crosses
one that is followed by a letter; so every beginning of the text has as many tokens as pieces were taken, which ``_pieces_of`` verifies.
Without one, the text is made of words that are single tokens in the vocabularies of Qwen and cl100k alike.
"""

from __future__ import annotations

import json
from collections import OrderedDict
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, cycle

from extproc.local.sim.vocabulary import Vocabulary

CORPUS: dict[str, tuple[str, ...]] = {
    "en": (
        "The river runs slowly through the valley, and every stone on its bank has a story to tell.",
        "She opened the window, looked at the city below, and counted the lights one by one.",
        "Prepaid means that the money is there before the first word is written.",
    ),
    "zh": ("今天天气很好，我们一起去公园散步吧。", "他打开电脑，开始写一份关于市场的报告。", "第一步：准备数据。"),
    "ko": ("오늘은 날씨가 좋아서 친구와 함께 공원에 갔다.", "그는 매일 아침 신문을 읽고 커피를 마신다."),
    "ja": ("今日は天気がいいので、公園を散歩しました。",),
    "ru": ("Сегодня хорошая погода, и мы идём гулять в парк.",),
    "fr": ("Le petit village se trouve au bord de la mer, près de la forêt.",),
    "de": ("Der Zug fährt jeden Morgen um acht Uhr vom Bahnhof ab.",),
    "es": ("El tiempo es bueno y la gente camina por la calle.",),
    "code": ("def total(items): return sum(item.price for item in items)", 'print("total: %d" % total(basket), file=log)'),
    "emoji": ("So good 🎉🚀 😀👍🏽 🌍✨ again and again.",),
}

WORDS = (
    "the time people make great small world water light paper house river green table music every under story point plant start "
    "place right think never work again find three year after before because through should good little long write number sound "
    "most where help line turn cause much mean same tell boy follow came want show form set put end does another well large must "
    "big even such land here ask men read need different home move try kind hand picture change off play spell air away animal "
    "letter mother answer"
)
"""Divided by spaces."""

MIXED = "mixed"
"""All sentences whose tokens are whole characters: one token, one event."""

FILLERS = (" ok", " so", " a", " I", "a", "\n")
"""Single tokens that end a text where the next piece would be too long. Space and letter: a boundary after anything."""

COUNTS_REMEMBERED_MAX = 1_024
COUNTED_BYTES_REMEMBERED_MAX = 16_384
"""Benchmarks send the same prompts again and again: 16 MB at most."""


@dataclass(frozen=True, slots=True)
class Template:
    """Tokens that a chat template adds: before everything, to each message, at the end; and its own system message where there is none.

    ``roles``: what it adds to the messages of these, in place of ``message``.
    """

    before: int
    message: int
    after: int
    default_system: int = 0
    roles: tuple[tuple[str, int], ...] = ()

    def around(self, role: str) -> int:
        """A message of this role."""
        return dict(self.roles).get(role, self.message)


CHAT_TEMPLATES = {
    "chatml": Template(0, 5, 3),
    "chatml-default-system": Template(0, 5, 3, default_system=21),  # Qwen2.5
    "chatml-think": Template(0, 5, 5),  # Qwen3 Thinking: the answer is begun with <think>\n
    "qwen3.5": Template(0, 5, 5),  # the same
    "llama3": Template(1, 5, 4),
    "gpt": Template(0, 3, 3),
    "deepseek-v3": Template(1, 4, 1, roles=(("system", 0), ("user", 1), ("assistant", 2))),
    "deepseek-v3.1": Template(1, 4, 2, roles=(("system", 0), ("user", 1), ("assistant", 3))),  # with <think> or </think>
    "none": Template(0, 0, 0),
}

Piece = tuple[bytes, int]
"""JSON-escaped UTF-8 without quotes, and its number of tokens."""


class Text:
    """What the simulated model says, and how it counts what it reads."""

    def __init__(self, vocabulary: Vocabulary | None, *, chat_template: str = "chatml") -> None:
        assert chat_template in CHAT_TEMPLATES, chat_template
        self._vocabulary = vocabulary
        self.chat_template, self.template = chat_template, CHAT_TEMPLATES[chat_template]
        self._counts: OrderedDict[str, int] = OrderedDict()
        self._filler: Piece = (b"", 1)
        self._scripts: dict[str, tuple[tuple[Piece, ...], ...]] = {}
        self._load(vocabulary)

    @property
    def languages(self) -> tuple[str, ...]:
        return tuple(self._scripts)

    def pieces(self, language: str, first_sentence: int, tokens: int) -> Iterator[Piece]:
        """Pieces of ``tokens`` tokens in all; the same arguments give the same text."""
        sentences = self._scripts[language]
        start = first_sentence % len(sentences)
        left = tokens
        for piece in chain.from_iterable(cycle((*sentences[start:], *sentences[:start]))):
            if piece[1] > left:
                break
            left -= piece[1]
            yield piece
        for _ in range(left):
            yield self._filler

    def count(self, text: str) -> int:
        """Tokens of a plain text. Without a vocabulary: its words, which is true of the built-in ones."""
        if self._vocabulary is None:
            return len(text.split())
        known = self._counts.get(text)
        if known is not None:
            return known
        tokens = self._vocabulary.count(text)
        if len(text) <= COUNTED_BYTES_REMEMBERED_MAX:
            self._counts[text] = tokens
            if len(self._counts) > COUNTS_REMEMBERED_MAX:
                self._counts.popitem(last=False)
        return tokens

    def encode(self, text: str) -> list[int]:
        """Token ids for ``/tokenize``; without a vocabulary, ids that stand for nothing."""
        return list(range(self.count(text))) if self._vocabulary is None else self._vocabulary.encode(text)

    def decode(self, tokens: Sequence[int]) -> str:
        """What ids say. Raises :class:`ValueError` for one that is none; without a vocabulary any is a word."""
        if self._vocabulary is not None:
            return self._vocabulary.decode(tokens)
        words = WORDS.split()
        return "".join(f" {words[token % len(words)]}" for token in tokens)

    def units(self, text: str) -> Sequence[Hashable]:
        """As many as :meth:`count`, equal where the tokens are."""
        return text.split() if self._vocabulary is None else self._vocabulary.encode(text)

    def _load(self, vocabulary: Vocabulary | None) -> None:
        if vocabulary is None:
            self._scripts = {MIXED: (tuple((f" {word}".encode(), 1) for word in WORDS.split()),)}
            self._filler = (b" ok", 1)
            return
        filler = next((text for text in FILLERS if vocabulary.count(text) == 1), None)
        if filler is None:
            raise ValueError("the vocabulary has no single token for any of " + ", ".join(map(repr, FILLERS)))
        self._filler = (_escaped(filler), 1)
        for language, sentences in CORPUS.items():
            cut = [pieces for sentence in sentences if (pieces := _pieces_of(vocabulary, sentence + "\n"))]
            if cut:
                self._scripts[language] = tuple(cut)
        whole = [pieces for script in self._scripts.values() for pieces in script if all(tokens == 1 for _, tokens in pieces)]
        self._scripts[MIXED] = tuple(whole) or (((self._filler),),)


def _pieces_of(vocabulary: Vocabulary, sentence: str) -> tuple[Piece, ...] | None:
    """A sentence as pieces of whole characters, or ``None`` if some beginning of it would be cut into other tokens."""
    pieces: list[Piece] = []
    torn = b""
    held = taken = 0
    beginning = ""
    for token in vocabulary.encode(sentence):
        torn += vocabulary.token_bytes(token)
        held += 1
        try:
            text = torn.decode()
        except UnicodeDecodeError:
            continue
        beginning += text
        taken += held
        if vocabulary.count(beginning) != taken:
            return None
        pieces.append((_escaped(text), held))
        torn, held = b"", 0
    return tuple(pieces)


def _escaped(text: str) -> bytes:
    return json.dumps(text, ensure_ascii=False)[1:-1].encode()
