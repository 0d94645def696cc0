"""Functions, calls and results of a body: what of them is known, and what is only bounded."""

from __future__ import annotations

import json
from typing import Any

import pytest
from stage import Words

from extproc.errors import ClientError
from extproc.exchange.ask import ALLOWANCE_TOKENS, ALLOWANCE_TOKENS_PER_MESSAGE, ALLOWANCE_TOKENS_TOOLS, Prompt
from extproc.exchange.endpoints.chat import messages_of
from extproc.exchange.endpoints.messages import Messages
from extproc.exchange.endpoints.responses import Responses
from extproc.exchange.endpoints.tooling import PRINTED_MAX
from extproc.tokens.counter import Call, Tools

USER = {"role": "user", "content": "where"}
LOOK: dict[str, Any] = {"name": "look", "parameters": {"type": "object"}}
CALL = {"id": "c", "type": "function", "function": {"name": "look", "arguments": '{"a":1}'}}


class Prints(Words):
    prints_tools = True


def chat(*messages: dict[str, Any], **fields: Any) -> Prompt:
    return messages_of({"messages": [USER, *messages]}, fields)[1]


def test_what_all_three_endpoints_find():
    """A call belongs to the message of the assistant that makes it, a schema of Anthropic's is one of an object."""
    told = (
        {"role": "assistant", "content": "so", "tool_calls": [CALL]},
        {"role": "tool", "tool_call_id": "c", "name": "look", "content": "42"},
    )
    tools = Tools((LOOK,), (Call(1, "look", '{"a":1}'),))
    said = (("user", "where"), ("assistant", "so"), ("tool", "42"))
    by_chat = chat(*told, tools=[{"type": "function", "function": LOOK}])
    assert (by_chat.tools, by_chat.messages) == (tools, said)
    items = [
        USER,
        {"role": "assistant", "content": "so"},
        {"type": "function_call", "call_id": "c", "name": "look", "arguments": '{"a":1}'},
    ]
    items.append({"type": "function_call_output", "call_id": "c", "output": "42"})
    body: dict[str, Any] = {"model": "m", "input": items, "tools": [{"type": "function", **LOOK}]}
    by_items = Responses().parse(body, reject_unknown=True).prompt
    described = LOOK | {"strict": None}
    assert (by_items.tools, by_items.messages) == (Tools((described,), tools.calls), said)
    blocks = [{"type": "text", "text": "so"}, {"type": "tool_use", "id": "c", "name": "look", "input": {"a": 1}}]
    talk = [
        USER,
        {"role": "assistant", "content": blocks},
        {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "c", "content": "42"}]},
    ]
    body = {"model": "m", "max_tokens": 1, "messages": talk, "tools": [{"name": "look", "input_schema": {}}]}
    by_blocks = Messages().parse(body, reject_unknown=True).prompt
    assert (by_blocks.tools, by_blocks.messages) == (Tools((LOOK,), (Call(1, "look", {"a": 1}),)), said)
    assert all(prompt.is_exact(Prints()) and not prompt.is_exact(Words()) for prompt in (by_chat, by_items, by_blocks))


def test_plain_conversations_have_none():
    assert chat({"role": "assistant", "content": "so"}).tools is None
    assert chat(tools=[]).tools is None
    assert chat({"role": "assistant", "content": "so", "refusal": "no"}).is_exact(Words())


@pytest.mark.parametrize(
    ("messages", "fields"),
    [
        ((), {"tools": {"a": 1}}),
        ((), {"tools": [7]}),
        ((), {"tools": [{"type": "function"}]}),
        ((), {"tools": [{"type": "function", "function": LOOK | {"description": 1}}]}),
        ((), {"tools": [{"type": "function", "function": {"description": "no name"}}]}),
        ((), {"functions": [LOOK]}),
        (({"role": "assistant", "content": "", "tool_calls": 7},), {}),
        (({"role": "assistant", "content": "", "tool_calls": [{"function": {"arguments": "{}"}}]},), {}),
        (({"role": "user", "content": "", "name": "Ann"},), {}),
        (({"role": "assistant", "content": "", "reasoning": "hm"},), {}),
    ],
)
def test_what_is_odd_is_estimated_and_held_for_by_the_byte(messages: tuple[dict[str, Any], ...], fields: dict[str, Any]):
    prompt = chat(*messages, **fields)
    assert not prompt.is_exact(Prints())
    assert 0 < prompt.odd_bytes <= prompt.extra_bytes < prompt.extra_bytes_max
    assert prompt.allowance(Prints()) >= prompt.extra_bytes_max + ALLOWANCE_TOKENS_TOOLS


def test_what_was_counted_is_not_held_for_twice():
    prompt = chat(tools=[{"type": "function", "function": LOOK | {"description": "d" * 4_000}}])
    around = ALLOWANCE_TOKENS + ALLOWANCE_TOKENS_PER_MESSAGE + ALLOWANCE_TOKENS_TOOLS
    assert around + 1_000 < prompt.allowance(Prints()) == prompt.allowance(None) < around + 1_050
    assert prompt.allowance(Words()) > around + 4_000


def test_what_names_a_result_is_held_for():
    """Some templates print it."""

    def by_items(name: str) -> Prompt:
        items = [USER, {"type": "function_call_output", "call_id": name, "output": "42"}]
        return Responses().parse({"model": "m", "input": items}, reject_unknown=True).prompt

    def by_blocks(name: str) -> Prompt:
        result = {"role": "user", "content": [{"type": "tool_result", "tool_use_id": name, "content": "42"}]}
        return Messages().parse({"model": "m", "max_tokens": 1, "messages": [USER, result]}, reject_unknown=True).prompt

    for read in (by_items, by_blocks):
        assert read("c" * 128).extra_bound - read("c").extra_bound >= 127
        assert read("c" * 128).tools == Tools()


def test_arguments_are_held_for_as_they_are_printed_anew():
    function = {"name": "look", "arguments": '{"a":[' + ",".join(["1e15"] * 100) + "]}"}
    prompt = chat({"role": "assistant", "content": "", "tool_calls": [CALL | {"function": function}]})
    assert prompt.extra_bound >= len(json.dumps(json.loads(function["arguments"])))


def test_what_is_printed_widely_is_no_work_for_the_loop():
    """Half a second for a body of 15 KB: each of its pieces stood on a line of its own, behind 240 blanks."""
    deep: list[Any] = [[]] * 500
    for _ in range(50):
        deep = [deep]
    prompt = chat(tools=[{"type": "function", "function": LOOK | {"parameters": {"a": deep}}}])
    assert prompt.work_bytes(Prints()) < 2_500
    assert prompt.work_bytes(Words()) > 500 * 4 * 50


def test_more_calls_than_any_conversation_has():
    told = {"role": "assistant", "content": "", "tool_calls": [CALL] * PRINTED_MAX}
    assert chat(told).tools is not None
    with pytest.raises(ClientError, match="more than 8192"):
        chat(told, tools=[{"type": "function", "function": LOOK}])
