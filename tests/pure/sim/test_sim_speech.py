"""What is said has exactly the tokens that were asked for, whatever it is."""

from __future__ import annotations

import itertools
import json

import pytest

from extproc.local.sim.ask import Ask
from extproc.local.sim.prompt import Prompt
from extproc.local.sim.speech import CALL_TOKENS, Kind, speech
from extproc.local.sim.steering import Steering
from extproc.local.sim.text import Text

TEXT = Text(None)
PROMPT = Prompt(parts=("hello",), tokens=1)


def said(*, tokens: int, interval: int = 1, reasoning: int = 0, **asked):
    ask = Ask(model="m", prompts=(PROMPT,), tokens=tokens, **asked)
    return list(speech(ask, Steering(reasoning=reasoning), TEXT, 0, interval=interval))


def arguments(pieces, number: int = 0) -> str:
    own = (text for item, text, _ in pieces if item is not None and item.kind is Kind.CALL and item.number == number)
    return json.loads(b'"%b"' % b"".join(own))


@pytest.mark.parametrize("calls", [(), ("f",), ("f", "g", "h")])
def test_every_number_of_tokens_is_said(calls):
    for tokens, interval, reasoning, reason in itertools.product((1, 5, 8, 23, 24, 40), (1, 3), (0, 7), ("stop", "length")):
        pieces = said(tokens=tokens, interval=interval, reasoning=reasoning, calls=calls, finish_reason=reason)
        assert sum(count for _, _, count in pieces) == tokens


def test_a_call_has_arguments_that_parse_unless_it_is_cut():
    whole = said(tokens=16, calls=("look", "see"), finish_reason="tool_calls")
    assert [json.loads(arguments(whole, number)) for number in (0, 1)] == [{"text": ""}, {"text": ""}]
    assert json.loads(arguments(said(tokens=CALL_TOKENS + 2, calls=("look",), finish_reason="tool_calls"))) == {"text": " the time"}
    cut = arguments(said(tokens=CALL_TOKENS + 2, calls=("look",), finish_reason="length"))
    assert cut == '{"text": " the time people make'
    assert arguments(said(tokens=6, calls=("look",), finish_reason="length")) == '{"text": "'
    assert all(item is None for item, _, _ in said(tokens=5, calls=("look",), finish_reason="length"))


def test_reasoning_comes_first_and_is_made_even_where_it_is_hidden():
    kinds = [item and item.kind for item, _, _ in said(tokens=5, reasoning=2)]
    assert kinds == [Kind.REASONING, Kind.REASONING, Kind.TEXT, Kind.TEXT, Kind.TEXT]
    hidden = said(tokens=5, reasoning=2, include_reasoning=False)
    assert [(item is None, text) for item, text, _ in hidden[:2]] == [(True, b""), (True, b"")]
    assert {item for item, _, _ in said(tokens=5, reasoning=9)} == {said(tokens=5, reasoning=9)[0][0]}


def test_an_interval_joins_what_belongs_together():
    assert [count for _, _, count in said(tokens=10, interval=4)] == [1, 4, 4, 1]
    assert [count for _, _, count in said(tokens=10, interval=4, reasoning=3)] == [1, 2, 4, 3]


def test_an_echo_comes_with_the_first_token():
    pieces = said(tokens=2, echoes=(b"hello",))
    assert [text for _, text, _ in pieces] == [b"hello the", b" time"]
    assert [(text, count) for _, text, count in said(tokens=1, echoes=(b"hello",), is_silent=True)] == [(b"hello", 1)]
