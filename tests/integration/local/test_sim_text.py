"""Text has exactly the tokens that were asked for, in every language and vocabulary that ships."""

from __future__ import annotations

import functools
import itertools
import json
from pathlib import Path

import pytest

import extproc
from extproc.local.sim.prompt import Message, prompt_of_chat
from extproc.local.sim.text import CORPUS, MIXED, WORDS, Text
from extproc.local.sim.vocabulary import PATTERNS, Vocabulary, load

FOLDER = Path(extproc.__file__).parent / "tokens" / "vocab"
NAMES = tuple(f"{name}.tiktoken.xz" for name in ("qwen", "qwen3_6", "cl100k_base", "o200k_base", "deepseek"))


@functools.cache
def vocabulary(name: str) -> Vocabulary:
    return load(FOLDER / name)


@functools.cache
def text(name: str) -> Text:
    return Text(vocabulary(name))


def joined(pieces) -> str:
    return json.loads(b'"%b"' % b"".join(piece for piece, _ in pieces))


@pytest.mark.parametrize("name", NAMES)
def test_every_beginning_has_the_tokens_that_were_asked_for(name):
    for language, tokens, sentence in itertools.product((*CORPUS, MIXED), (0, 1, 2, 7, 33, 150), (0, 1, 2)):
        pieces = list(text(name).pieces(language, sentence, tokens))
        assert sum(count for _, count in pieces) == tokens
        assert vocabulary(name).count(joined(pieces)) == tokens, (language, tokens, sentence)


@pytest.mark.parametrize("name", NAMES)
def test_mixed_text_has_one_token_a_piece_and_several_languages(name):
    pieces = list(text(name).pieces(MIXED, 0, 400))
    assert {count for _, count in pieces} == {1}
    assert any("ё" in piece.decode() or "і" in piece.decode() or "о" in piece.decode() for piece, _ in pieces)  # Cyrillic


def test_some_text_tears_characters():
    assert max(count for _, count in text("qwen.tiktoken.xz").pieces("emoji", 0, 60)) > 1


def test_built_in_words_are_single_tokens_everywhere():
    for name in NAMES:
        assert [word for word in WORDS.split() if vocabulary(name).count(f" {word}") != 1] == []
        sentence = joined(Text(None).pieces(MIXED, 0, 300))
        assert vocabulary(name).count(sentence) == 300 == Text(None).count(sentence)


@pytest.mark.parametrize(
    ("template", "tokens"),
    [("chatml", 2 * 5 + 3 + 3), ("chatml-default-system", 2 * 5 + 3 + 3 + 21), ("llama3", 1 + 10 + 3 + 4), ("gpt", 6 + 3 + 3), ("none", 3)],
)
def test_chat_templates(template, tokens):
    messages = [Message(role="user", text="one two"), Message(role="assistant", text="three")]
    assert prompt_of_chat(messages, (), Text(None, chat_template=template)).tokens == tokens


def test_a_system_message_replaces_the_default_one():
    text = Text(None, chat_template="chatml-default-system")
    assert prompt_of_chat([Message(role="system", text="one")], (), text).tokens == 1 + 5 + 3


def test_patterns_differ_where_models_do():
    ranks = {bytes([byte]): byte for byte in range(256)} | {b"12": 256, b"123": 257, b"n\n": 258}
    counts = {pattern: Vocabulary(ranks, pattern=pattern).count("123") for pattern in PATTERNS}
    assert counts == {"qwen": 3, "qwen3_6": 3, "cl100k": 1, "o200k": 1, "deepseek": 1}


def test_qwen_composes_first():
    assert vocabulary("qwen.tiktoken.xz").count("e\u0301") == vocabulary("qwen.tiktoken.xz").count("é") == 1
