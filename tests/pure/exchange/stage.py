"""A catalog, a key and a counter that are small enough to reckon in the head; and walks through the machine."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from extproc.accounts.model import Key
from extproc.catalog.model import Catalog, Model, Tariff, Tier
from extproc.exchange import actions as act
from extproc.exchange import events as ev
from extproc.exchange.machine import Exchange
from extproc.exchange.policy import Bounds, Policy
from extproc.exchange.tab import Pinned
from extproc.money.hold import NO_LIMITS, Granted
from extproc.money.price import Rates
from extproc.tokens.counter import Tools

HOLD = "018bcfe5-6800-7000-8000-000000000001"
PAYER = "018bcfe5-6800-7000-8000-00000000000a"
RATE = 1_000_000_000  # nanos per million tokens: 1,000 nanos a token


class Words:
    """One token a letter, 3 a message, 3 a prompt; a function or a call has as many as its name."""

    name = "words"
    prints_tools = False

    def count(self, text: str) -> int:
        return len(text)

    def count_chat(self, messages: Sequence[tuple[str, str]], tools: Tools | None = None) -> int:
        named = [*(function["name"] for function in tools.functions), *(call.name for call in tools.calls)] if tools is not None else []
        return sum(3 + len(content) for _, content in messages) + 3 + sum(map(len, named))

    def bound_chat(self, content_bytes: int, messages: int) -> int:
        return content_bytes + 3 * messages + 3

    def bound(self, content_bytes: int) -> int:
        return content_bytes

    def running(self) -> RunningWords:
        return RunningWords()


class RunningWords:
    def __init__(self) -> None:
        self.letters = 0

    def feed(self, text: str) -> None:
        self.letters += len(text)

    def total(self) -> int:
        return self.letters


class AllWords:
    def get(self, tokenizer: str, chat_template: str) -> Words | None:
        return None if tokenizer == "upstream" else Words()


def model(name: str = "m", **changes: Any) -> Model:
    values: dict[str, Any] = {
        "name": name, "served_name": name, "endpoints": frozenset({"chat.completions", "completions"}), "tokenizer": "words",
        "chat_template": "none", "context_tokens": 10_000, "output_tokens_max": 1_000, "output_tokens_default": 100, "free": False,
        "tariffs": (Tariff(rates=Rates(input=RATE, cached_input=RATE // 2, output=2 * RATE)),), "priority_factors": {"standard": 1_000_000},
    }  # fmt: skip
    return Model(**(values | changes))


def pinned(*models: Model, policy: Policy | None = None, bounds: Bounds | None = None, **tier: Any) -> Pinned:
    models = models or (model(),)
    named = {one.name: one for one in models} | {alias: one for one in models for alias in one.aliases}
    return Pinned(
        catalog=Catalog(
            version="v",
            currency="CNY",
            tiers={"default": Tier(**({"name": "default", "limits": NO_LIMITS} | tier))},
            default_tier="default",
            models=named,
        ),
        policy=policy or Policy(),
        bounds=bounds or Bounds(),
        counters=AllWords(),
        price_known=lambda payer, price: True,
    )


def key(**changes: Any) -> Key:
    values: dict[str, Any] = {"id": "k1", "payer_id": PAYER, "name": "laptop", "tier": "default"}
    return Key(**(values | changes))


def headers(path: str = "/v1/chat/completions", *, method: str = "POST", end: bool = False, **more: str) -> ev.Headers:
    sent = {"authorization": "Bearer sk-good"} | {name.replace("_", "-"): value for name, value in more.items()}
    return ev.Headers(
        at_ns=1_000_000, method=method, path=path, headers={name: value for name, value in sent.items() if value is not None},
        client_ip="10.1.2.3", request_id="r1", hold_id=HOLD, unix_ms=1_700_000_000_000, end_of_stream=end,
    )  # fmt: skip


def chat(**fields: Any) -> ev.Body:
    body = {"model": "m", "messages": [{"role": "user", "content": "hello"}]} | fields
    return ev.Body(at_ns=2_000_000, data=json.dumps(body).encode())


def granted(hold_id: str = HOLD) -> Granted:
    return Granted(hold_id=hold_id, spendable_nanos=10**9)


def to_open(exchange: Exchange, **more: Any) -> None:
    exchange.receive(headers(**more))
    exchange.receive(ev.KeyRead(key=key()))
    exchange.receive(ev.Admitted(granted=granted()))


def to_streaming(exchange: Exchange, *, content_type: str = "text/event-stream", **fields: Any) -> act.PassBody:
    to_open(exchange)
    exchange.receive(chat(stream=True, **fields))
    (passed,) = exchange.receive(ev.Amended(granted=granted()))
    exchange.receive(ev.ResponseHeaders(status=200, headers={"content-type": content_type}))
    assert isinstance(passed, act.PassBody)
    return passed


def delta(text: str, finish: str | None = None) -> bytes:
    choice = {"index": 0, "delta": {"content": text} if text else {}, "finish_reason": finish}
    return b"data: " + json.dumps({"id": "x", "choices": [choice]}, separators=(",", ":")).encode() + b"\n\n"


def usage_event(prompt: int = 11, output: int = 5, **more: Any) -> bytes:
    usage = {"prompt_tokens": prompt, "completion_tokens": output, "total_tokens": prompt + output} | more
    return b"data: " + json.dumps({"id": "x", "choices": [], "usage": usage}, separators=(",", ":")).encode() + b"\n\n"


DONE = b"data: [DONE]\n\n"


def chunk(data: bytes, *, end: bool = False, at_ns: int = 5_000_000) -> ev.Chunk:
    return ev.Chunk(at_ns=at_ns, data=data, end_of_stream=end)


def play(exchange: Exchange, *events: ev.Event) -> list[act.Action]:
    """The actions of several events."""
    return [action for event in events for action in exchange.receive(event)]


def ends(actions: Sequence[act.Action]) -> list[act.End]:
    return [action for action in actions if isinstance(action, act.End)]


def delivered(sent: bytes, actions: Sequence[act.Action]) -> bytes:
    """What the client gets of one chunk."""
    for action in actions:
        if isinstance(action, act.PassChunk):
            return sent if action.data is None else action.data
    raise AssertionError("no reply to a chunk")


def error_of(action: act.Action) -> dict:
    assert isinstance(action, act.Answer)
    return json.loads(action.body)["error"]
