"""A model without a vocabulary here: its own server is asked, and what it tells is held for."""

from __future__ import annotations

import json
from typing import Any

import pytest
from stage import chat, model, pinned, to_open

from extproc.exchange import actions as act
from extproc.exchange import events as ev
from extproc.exchange.ask import ALLOWANCE_TOKENS, ALLOWANCE_TOKENS_PER_MESSAGE, ALLOWANCE_TOKENS_TOOLS, Prompt
from extproc.exchange.machine import Exchange
from extproc.exchange.policy import Bounds
from extproc.exchange.upstream import question

ASKED = Bounds(counted_upstream=frozenset({"m"}))
MODEL = model(tokenizer="upstream", served_name="org/m", aliases=("alias",))


def opened(bounds: Bounds = ASKED) -> Exchange:
    exchange = Exchange(pinned(MODEL, bounds=bounds))
    to_open(exchange)
    return exchange


def held_input(action: act.Action) -> int:
    """Tokens of the prompt that are held for: 1,000 nanos each, 100 of the answer at 2,000."""
    assert isinstance(action, act.Amend)
    return action.amendment.cap_nanos // 1_000 - 200


@pytest.mark.parametrize("name", ["m", "alias"])
def test_its_server_is_asked_and_believed(name: str) -> None:
    exchange = opened()
    [asked] = exchange.receive(chat(model=name))
    assert isinstance(asked, act.CountUpstream)
    assert (asked.model, exchange.state) == ("m", "counting")
    assert json.loads(asked.question) == {"model": "org/m", "messages": [{"role": "user", "content": "hello"}]}
    [amend] = exchange.receive(ev.Counted(tokens=40))
    assert held_input(amend) == 40 + ALLOWANCE_TOKENS + ALLOWANCE_TOKENS_PER_MESSAGE + 2
    assert exchange.tab.sized is not None
    assert not exchange.tab.sized.estimated


TALK: list[dict[str, Any]] = [
    {"role": "user", "content": "where"},
    {
        "role": "assistant",
        "content": None,
        "tool_calls": [{"id": "a", "type": "function", "function": {"name": "f", "arguments": '{"a":1}'}}],
    },
    {"role": "tool", "tool_call_id": "a", "name": "f", "content": "42"},
]


def test_it_is_asked_with_tools_and_calls() -> None:
    """What it tells then is exact, so their size is not held for: its template may only be another one than when the request comes."""
    exchange = opened()
    tool = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}
    [asked] = exchange.receive(chat(tools=[tool], messages=TALK))
    assert isinstance(asked, act.CountUpstream)
    told = json.loads(asked.question)
    assert told["tools"] == [tool]
    assert [(message["role"], message["content"]) for message in told["messages"]] == [("user", "where"), ("assistant", ""), ("tool", "42")]
    (call,) = told["messages"][1]["tool_calls"]
    assert call == {"id": "call_0", "type": "function", "function": {"name": "f", "arguments": '{"a":1}'}}
    exchange.receive(ev.Counted(tokens=40))
    sized = exchange.tab.sized
    assert sized is not None
    assert not sized.estimated
    assert sized.prompt.input_tokens == 40
    assert 40 + ALLOWANCE_TOKENS_TOOLS < sized.demand.input_tokens < 40 + ALLOWANCE_TOKENS_TOOLS + 150


def test_what_it_cannot_be_asked_is_estimated_beside_what_it_tells() -> None:
    exchange = opened()
    exchange.receive(chat(messages=[{"role": "user", "content": "hello", "name": "n" * 400}]))
    exchange.receive(ev.Counted(tokens=40))
    assert exchange.tab.sized is not None
    assert exchange.tab.sized.estimated
    assert 40 + 100 < exchange.tab.sized.prompt.input_tokens < 40 + 130


def test_when_it_does_not_tell_the_size_is_held_for() -> None:
    told, untold = opened(), opened(Bounds())
    told.receive(chat())
    [amend] = told.receive(ev.Counted(tokens=None))
    [at_once] = untold.receive(chat())
    assert held_input(amend) == held_input(at_once) > 40


def test_prompts_that_are_too_long_are_not_sent() -> None:
    exchange = opened(Bounds(counted_upstream=frozenset({"m"}), count_exactly_bytes_max=4))
    [amend] = exchange.receive(chat())
    assert isinstance(amend, act.Amend)


def test_more_than_the_window_is_refused() -> None:
    exchange = opened()
    exchange.receive(chat())
    answer = exchange.receive(ev.Counted(tokens=10_000))[0]
    assert isinstance(answer, act.Answer)
    assert answer.code == "context_length_exceeded"


@pytest.mark.parametrize(
    ("prompt", "asked"),
    [
        ({"texts": ("a",)}, {"model": "x", "prompt": "a"}),
        ({"texts": ("a",), "images": ((1, 1),)}, {"model": "x", "prompt": "a"}),
        ({"messages": (("user", ""), ("tool", "é"))}, {"model": "x", "messages": [{"role": "user", "content": ""}, {"role": "tool", "content": "é"}]}),
        ({"texts": ("a", "b"), "prompts": 2}, None),
        ({"texts": ("a",), "shared": "q"}, None),
        ({"texts": ("a",), "messages": (("user", "b"),)}, None),
        ({"token_ids": 5}, None),
        ({"messages": (("user", ""),)}, None),
    ],
)  # fmt: skip
def test_questions(prompt: dict[str, Any], asked: dict[str, Any] | None) -> None:
    body = question(Prompt(**prompt), "x")
    assert (json.loads(body) if body else None) == asked
