"""What goes to a backend: only what we know, and what only we may say."""

from __future__ import annotations

import json
import random
import time
from typing import Any

import msgspec
import pytest
from stage import PAYER, chat, error_of, granted, key, model, pinned, to_open

from extproc.exchange import actions as act
from extproc.exchange import events as ev
from extproc.exchange.endpoints import ENDPOINTS
from extproc.exchange.endpoints.fields import NESTING_MAX, NESTS_MAX, json_object, printed, reprinted
from extproc.exchange.forwarding import cache_salt
from extproc.exchange.machine import Exchange, State
from extproc.exchange.policy import Bounds, Policy
from extproc.money.hold import EndKind

# Every member of VLLM.md that changes the bill, the queue, or what the backend does to others
FOREIGN: dict[str, Any] = {
    "priority": -100, "cache_salt": "mine", "request_id": "r", "stream_interval": 100, "include_reasoning": False, "vllm_xargs": {"a": 1},
    "kv_transfer_params": {"do_remote_decode": True}, "chat_template": "{{x}}", "chat_template_kwargs": {"a": 1}, "mm_processor_kwargs": {"a": 1},
    "prompt_logprobs": 1, "use_beam_search": True, "truncate_prompt_tokens": 1, "best_of": 3, "documents": [{}], "add_generation_prompt": False,
    "continue_final_message": True, "prompt_embeds": "x", "logits_processors": ["os.system"], "media_io_kwargs": {"a": 1}, "echo": True,
}  # fmt: skip
SECRET = b"s" * 32


def forwarded(exchange: Exchange, body: dict, path: str = "/v1/chat/completions", **more: str) -> dict:
    to_open(exchange, path=path, **more)
    exchange.receive(ev.Body(data=json.dumps({"model": "m"} | body).encode()))
    (passed,) = exchange.receive(ev.Amended(granted=granted()))
    assert isinstance(passed, act.PassBody)
    return json.loads(passed.data)


MESSAGES = {"messages": [{"role": "user", "content": "hello"}]}


def test_only_known_members_are_forwarded():
    assert forwarded(Exchange(pinned()), MESSAGES | FOREIGN | {"temperature": 0.5}) == {
        "model": "m", "temperature": 0.5, "messages": MESSAGES["messages"], "max_tokens": 100
    }  # fmt: skip


@pytest.mark.parametrize("name", FOREIGN)
def test_unknown_members_are_refused_where_the_policy_says_so(name: str):
    exchange = Exchange(pinned(policy=Policy(unknown_fields="reject")))
    to_open(exchange)
    reply = exchange.receive(chat(**{name: FOREIGN[name]}))[0]
    assert (reply.status, error_of(reply)["code"], error_of(reply)["param"]) == (400, "unknown_parameter", name)


def test_of_doubled_members_the_last_one_is_forwarded():
    exchange = Exchange(pinned())
    to_open(exchange)
    exchange.receive(
        ev.Body(data=b'{"model":"x","max_tokens":999,"messages":[],"max_tokens":7,"messages":[{"role":"user","content":"a"}],"model":"m"}')
    )
    (passed,) = exchange.receive(ev.Amended(granted=granted()))
    assert passed.data == b'{"messages":[{"role":"user","content":"a"}],"model":"m","max_tokens":7}'


@pytest.mark.parametrize(("opening", "closing"), [("[", "]"), ('{"a":', "}")])
@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/chat/completions", MESSAGES | {"response_format": "DEEP"}),
        ("/v1/chat/completions", MESSAGES | {"tools": "DEEP"}),
        ("/v1/chat/completions", {"messages": [{"role": "tool", "content": "a", "x": "DEEP"}]}),
        ("/v1/completions", {"prompt": "a", "logit_bias": "DEEP"}),
        ("/v1/responses", {"input": "a", "text": "DEEP"}),
        ("/v1/messages", MESSAGES | {"max_tokens": 1, "thinking": "DEEP"}),
        ("/v1/messages/count_tokens", MESSAGES | {"tools": [{"name": "f", "input_schema": {"a": "DEEP"}}]}),
        ("/tokenize", {"prompt": "a", "tools": "DEEP"}),
    ],
)
def test_nothing_is_held_for_what_is_nested_too_deeply(path: str, body: dict, opening: str, closing: str):
    """Python's stack bounds how deep JSON may be read and written, and is deeper when we write: what we take, we must be able to write."""

    def ask(depth: int) -> Exchange:
        exchange = Exchange(pinned(model(endpoints=frozenset(endpoint.name for endpoint in ENDPOINTS))))
        to_open(exchange, path=path)
        deep = opening * depth + "1" + closing * depth
        actions.extend(exchange.receive(ev.Body(data=json.dumps({"model": "m"} | body).replace('"DEEP"', deep).encode())))
        return exchange

    actions: list[act.Action] = []
    (passed,) = ask(NESTING_MAX - 8).receive(ev.Amended(granted=granted()))
    assert passed.data.count(opening.encode()) >= NESTING_MAX - 8
    actions.clear()
    for depth in (NESTING_MAX + 1, 900, 960, 980):
        assert ask(depth).state is State.CLOSED
        reply, end, _ = actions[-3:]
        assert (reply.status, error_of(reply)["code"], end.ending.kind) == (400, "invalid_json", EndKind.VOID)


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": [{"type": "DEEP"}]}]}),
        ("/v1/responses", {"input": [{"type": "DEEP"}]}),
        ("/v1/messages", {"messages": [{"role": "user", "content": [{"type": "DEEP"}]}], "max_tokens": 1}),
        ("/v1/embeddings", {"input": "DEEP"}),
        ("/v1/chat/completions", MESSAGES | {"unknown": "DEEP"}),
    ],
)
@pytest.mark.parametrize("depth", [NESTING_MAX + 1, 960])
def test_nobody_meets_what_is_nested_too_deeply(path: str, body: dict, depth: int):
    """Not even to say what it is: ``str`` of it ends at the stack, too."""
    exchange = Exchange(pinned(model(endpoints=frozenset(endpoint.name for endpoint in ENDPOINTS))))
    to_open(exchange, path=path)
    reply, end, _ = exchange.receive(ev.Body(data=json.dumps({"model": "m"} | body).replace('"DEEP"', "[" * depth + "]" * depth).encode()))
    assert (reply.status, error_of(reply)["code"], end.ending.kind) == (400, "invalid_json", EndKind.VOID)


def test_a_body_of_very_many_pieces_is_not_read():
    """Each list and object of it would take us ten times what it took the client."""
    exchange = Exchange(pinned())
    to_open(exchange)
    reply, _, _ = exchange.receive(ev.Body(data=b'{"model":"m","junk":[' + b"{}," * NESTS_MAX + b"{}]}"))
    assert (reply.status, error_of(reply)["code"]) == (413, "request_too_large")


def test_the_widest_print_is_measured_and_not_made():
    """Every piece that stands sixty deep has a line of 240 blanks: indented, a body of a megabyte took a worker's memory and its time."""
    value: list[Any] = [[] for _ in range(10_000)]
    for _ in range(NESTING_MAX - 4):
        value = [value]
    began = time.thread_time()
    _, wide = printed([value])
    assert time.thread_time() - began < 0.05
    assert 10_000 * 4 * (NESTING_MAX - 3) < wide < 10_000 * (4 * NESTING_MAX + 10)


def test_no_template_prints_more_than_is_held_for():
    """They print as Python does, indented by four at most, with every letter as it is."""
    dice = random.Random(7)
    floats = [dice.choice((1, 1.5, dice.random())) * 10.0 ** dice.randrange(-300, 300) for _ in range(500)]
    near_one = [dice.random() * 10.0 ** dice.randrange(-9, 25) for _ in range(500)]
    texts = ['é\u2028\x00\x1f\x7f"\\/\b語', "𝅘𝅥𝅮", "e-mail", ""]
    for value in (
        *floats,
        *near_one,
        *texts,
        -0.0,
        2**64 - 1,
        -(2**63),
        10**30,
        None,
        True,
        [],
        {},
        [[], {}],
        {"": {"a": []}},
        texts,
        near_one,
    ):
        (read,) = json_object(msgspec.json.encode({"a": value})).values()
        compact, wide = printed([read])
        assert compact <= wide
        assert len(json.dumps([read], indent=4, ensure_ascii=False).encode()) <= wide, read


@pytest.mark.parametrize(
    "text",
    [
        '{"a":[' + ",".join(["1e15"] * 50) + "]}",
        '{"a":[' + ",".join(["9E+15", "-1e15", "1e0", "1e999", "NaN", "1e-5", "1e22"] * 9) + "]}",
        '{"a":{"b":[],"c":[{},1,"\\u00e9","é"]},"d":null}',
        "[[],[[],{}]]",
    ],
)
def test_arguments_that_came_as_a_text_are_printed_anew(text: str):
    """Backends read them, and templates print numbers as Python does: 1e15 as 1000000000000000.0."""
    assert len(json.dumps(json.loads(text), ensure_ascii=False).encode()) <= reprinted(text)


def test_a_priority_is_told_to_backends_that_heed_it():
    served = model(priority_factors={"standard": 1_000_000, "spot": 500_000}, backend_priority={"spot": 10})
    assert forwarded(Exchange(pinned(served, priorities=frozenset({"standard", "spot"}))), MESSAGES, x_priority="spot")["priority"] == 10
    assert "priority" not in forwarded(Exchange(pinned(served)), MESSAGES | {"priority": 5})
    bare = {"prompt": "a"}
    assert forwarded(Exchange(pinned(served, priorities=frozenset({"spot"}))), bare, "/v1/completions", x_priority="spot")["priority"] == 10
    assert "priority" not in forwarded(Exchange(pinned(served, priorities=frozenset({"spot"}))), bare, "/tokenize", x_priority="spot")


def test_payers_do_not_share_a_prefix_cache():
    exchange = Exchange(pinned(bounds=Bounds(cache_salt_key=SECRET)))
    salt = forwarded(exchange, MESSAGES | {"cache_salt": "theirs"})["cache_salt"]
    assert salt == cache_salt(SECRET, PAYER) == "HXWF-I6yMOOeu7ddDp0Cr4BnrkqLDDNLeEBTwsmkBgQ"
    assert len({salt, cache_salt(SECRET, "another"), cache_salt(b"t" * 32, PAYER)}) == 3
    assert not set("@/\\=+") & set("".join(cache_salt(SECRET, f"{number}") for number in range(200)))
    assert "s" * 32 not in repr(exchange.tab.pinned)
    assert "cache_salt" not in forwarded(Exchange(pinned(bounds=Bounds(cache_salt_key=SECRET))), {"prompt": "a"}, "/tokenize")


def test_shadow_changes_nothing():
    exchange = Exchange(pinned(policy=Policy(shadow=True), bounds=Bounds(cache_salt_key=SECRET)))
    assert forwarded(exchange, MESSAGES | FOREIGN) == {"model": "m"} | MESSAGES | FOREIGN
    assert key().payer_id == PAYER
