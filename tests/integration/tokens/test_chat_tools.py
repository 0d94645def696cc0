"""Tools as chat templates print them: against the templates' own words, rendered by Jinja, and against the bounds that hold money."""

from __future__ import annotations

import json
import random
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from fuzz.asks import called, schema, text

from extproc.exchange.ask import Prompt
from extproc.exchange.endpoints.chat import messages_of
from extproc.local.sim.chat import prompt_of_fields
from extproc.local.sim.steering import Steering
from extproc.local.sim.text import Text
from extproc.local.sim.vocabulary import Vocabulary, load
from extproc.tokens import chat, tools
from extproc.tokens.counter import Call, Tools
from extproc.tokens.registry import BpeCounter, LoadedCounters

RENDERED = json.loads((Path(__file__).parents[2] / "data" / "chat_tools.json").read_text())
EXACT = [name for name, template in chat.TEMPLATES.items() if template.prints_tools]
LOOK = {
    "name": "look",
    "description": "Looks.",
    "parameters": {"type": "object", "properties": {"at": {"type": "string", "enum": ["a", "b"]}}},
}
TALK = (("user", "Where?"), ("assistant", ""), ("tool", "here"), ("tool", "there"), ("assistant", "So."), ("user", "Ah."))
CALLS = (Call(1, "look", '{"at":"a"}'), Call(1, "look", {"at": "b", "n": [1, None]}))


def counter_of(counters: LoadedCounters, tokenizer: str, template: str) -> BpeCounter:
    counter = counters.get(tokenizer, template)
    assert counter is not None
    return counter


def prompt_of(asked: dict[str, Any]) -> Prompt:
    fields = {"tools": asked["tools"]} if asked["tools"] else {}
    return messages_of({"messages": asked["messages"]}, fields)[1]


@pytest.mark.parametrize("case", RENDERED["conversations"], ids=lambda case: case["name"])
def test_as_many_as_the_template_has_written(counters: LoadedCounters, case: dict[str, Any]) -> None:
    prompt = prompt_of(case)
    for template, tokens in case["tokens"].items():
        counter = counter_of(counters, "qwen3", template)
        assert (prompt.count(counter), prompt.is_exact(counter)) == (tokens, True), template


@pytest.fixture(scope="module")
def theirs() -> Vocabulary:
    """The simulator has its own."""
    return load(Path(chat.__file__).parent / "vocab" / "qwen.tiktoken.xz")


@pytest.mark.parametrize("template", EXACT)
def test_the_simulator_says_the_same(counters: LoadedCounters, theirs: Vocabulary, template: str) -> None:
    """It plays templates in its own way."""
    counter, sim = counter_of(counters, "qwen3", template), Text(theirs, chat_template=template)
    for case in RENDERED["conversations"]:
        assert prompt_of(case).count(counter) == prompt_of_fields(case, Steering(), sim).tokens, case["name"]


def test_lines_are_remembered_and_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    counted: list[str] = []
    monkeypatch.setattr(tools, "LINES_MAX", 2)

    def count(line: str) -> int:
        counted.append(line)
        return len(line)

    lines = tools.KnownLines(count)
    assert [lines(line) for line in ("a", "bb", "a", "\ud800", "bb", "bb")] == [1, 2, 1, 1, 2, 2]
    assert counted == ["a", "bb", "\ud800", "bb"]


@pytest.mark.parametrize("template", EXACT)
def test_without_tools_a_page_is_the_formula(counters: LoadedCounters, template: str) -> None:
    counter = counter_of(counters, "qwen3", template)
    talk = [("system", "Be brief."), ("user", "Hello!"), ("assistant", "Yes?"), ("user", "No.")]
    for messages in (talk, talk[1:], talk[1:2]):
        assert counter.count_chat(messages, Tools()) == counter.count_chat(messages)


@pytest.mark.parametrize("template", chat.TEMPLATES)
def test_every_function_call_and_result_costs_something(counters: LoadedCounters, template: str) -> None:
    counter = counter_of(counters, "qwen3", template)
    steps = [
        counter.count_chat(TALK, more) for more in (Tools(), Tools((LOOK,)), Tools((LOOK, LOOK)), Tools((LOOK,) * 2, CALLS[:1]), Tools((LOOK,) * 2, CALLS))
    ]  # fmt: skip
    assert all(before + 4 < after for before, after in pairwise(steps))
    assert counter.count_chat(TALK[:3], Tools()) < counter.count_chat(TALK[:4], Tools())


@pytest.mark.parametrize("template", chat.TEMPLATES)
@pytest.mark.parametrize("tokenizer", ["qwen3", "cl100k"])
def test_bounds_hold(counters: LoadedCounters, tokenizer: str, template: str) -> None:
    """Whether it was counted or not: for ordinary tools, odd ones, and calls of nothing but punctuation."""
    dice = random.Random(f"{tokenizer} {template}")
    counter = counter_of(counters, tokenizer, template)
    for _ in range(60):
        odd: list[Any] = [{"type": "function"}, {"function": {"name": "f", "strict": True}}, {"function": {"name": "\U0001d160" * 5}}]
        described = {"name": "look", "description": text(dice), "parameters": schema(dice)}
        given = {chr(97 + at): dice.choice((1, True, {}, [], "é", -1)) for at in range(dice.randint(0, 9))}
        call = {"function": {"name": "f", "arguments": json.dumps(given, separators=(",", ":"))}}
        talk = [{"role": "user", "content": text(dice)}, *called(dice), {"role": "assistant", "tool_calls": [call] * dice.randint(0, 9)}]
        prompt = prompt_of(
            {"tools": dice.choices([*odd, {"type": "function", "function": described}], k=dice.randint(0, 3)), "messages": talk}
        )
        tokens = prompt.count(counter)
        assert tokens <= prompt.bound(counter)
        assert tokens <= prompt.bound(None)


@pytest.mark.parametrize("arguments", ["", None, "[1]", "7", "{", '{"a":', "null", 7, [], "[" * 5_000, "9" * 5_000])
def test_what_are_no_arguments_are_none(arguments: Any) -> None:
    assert tools.arguments(Call(0, "f", arguments)) == {}


def test_functions_are_printed_as_a_server_hands_them_on() -> None:
    told = tools.definition({"parameters": {"b": 1, "a": "é"}, "name": "f", "x": 1, "strict": False})
    assert told == '{"type": "function", "function": {"name": "f", "description": null, "parameters": {"b": 1, "a": "é"}, "strict": false}}'


def test_what_is_nested_too_deeply_is_not_printed() -> None:
    deep: dict[str, Any] = {}
    for _ in range(100_000):
        deep = {"a": deep}
    assert tools.to_json(deep) == ""
    while deep:  # or Python takes it apart by recursion
        deep = deep["a"]
