"""Requests are read as laxly and refused as strictly as by vLLM."""

from __future__ import annotations

import pytest

from extproc.local.sim.ask import Model, Refused
from extproc.local.sim.chat import ask_of_chat
from extproc.local.sim.completions import ask_of_completions
from extproc.local.sim.faults import parse_faults
from extproc.local.sim.fields import model_name, read_body
from extproc.local.sim.steering import Steering, Steerings
from extproc.local.sim.text import Text

MODEL = Model(names=("m", "other"), context_tokens=1_000)
TEXT = Text(None)
MESSAGES = [{"role": "user", "content": "one two"}]


def chat(steering: Steering | None = None, model: Model = MODEL, **fields):
    return ask_of_chat({"messages": MESSAGES, **fields}, model, steering or Steering(), TEXT)


@pytest.mark.parametrize("value", [3, "3", 3.0, " 3 "])
def test_numbers_in_any_coat(value):
    ask = chat(max_tokens=value)
    assert (ask.tokens, ask.finish_reason) == (3, "length")


@pytest.mark.parametrize("value", ["x", 2.5, [], {}, -1, 0, float("inf"), float("nan")])
def test_numbers_that_are_none(value):
    with pytest.raises(Refused) as refused:
        chat(max_tokens=value)
    assert refused.value.status == 400


@pytest.mark.parametrize(
    ("value", "stream"), [(True, True), ("true", True), (1, True), ("1", True), ("on", True), (0, False), ("False", False), (None, False)]
)
def test_stream_in_any_coat(value, stream):
    assert chat(stream=value).stream is stream


@pytest.mark.parametrize("value", ["maybe", 2, [], 0.5])
def test_stream_that_is_no_boolean(value):
    with pytest.raises(Refused):
        chat(stream=value)


def test_max_completion_tokens_wins():
    assert chat(max_completion_tokens=4, max_tokens=9).tokens == 4


def test_how_many_tokens():
    assert (chat().tokens, chat().finish_reason) == (16, "stop")
    assert (chat(max_tokens=100).tokens, chat(max_tokens=100).finish_reason) == (16, "stop")
    assert chat(max_tokens=100, ignore_eos=True).tokens == 100
    assert chat(Steering(tokens=40), max_tokens=100).tokens == 40
    assert (chat(Steering(tokens=40), max_tokens=10).tokens, chat(Steering(tokens=40), max_tokens=10).finish_reason) == (10, "length")


def test_the_context_is_a_limit():
    room = MODEL.context_tokens - chat().prompt_tokens[0]
    assert chat(max_tokens=room).tokens
    with pytest.raises(Refused, match="too large"):
        chat(max_tokens=room + 1)
    with pytest.raises(Refused, match="maximum context length"):
        chat(messages=[{"role": "user", "content": "a " * 1_000}])


def test_usage_is_asked_for():
    options = {"include_usage": True, "continuous_usage_stats": True}
    assert (chat(stream=True, stream_options=options).include_usage, chat(stream=True, stream_options=options).continuous_usage) == (
        True,
        True,
    )
    alone = chat(stream=True, stream_options={"continuous_usage_stats": True})
    assert (alone.include_usage, alone.continuous_usage) == (False, False)
    forced = chat(model=Model(names=("m",), context_tokens=1_000, force_include_usage=True), stream=True)
    assert (forced.include_usage, forced.continuous_usage) == (True, True)


def test_parts_tools_and_images_count():
    plain = chat().prompt_tokens[0]
    assert chat(messages=[{"role": "user", "content": [{"type": "text", "text": "one two"}]}]).prompt_tokens[0] == plain
    image = {"type": "image_url", "image_url": {"url": "https://pictures.example/a.png"}}
    assert chat(messages=[{"role": "user", "content": [{"type": "text", "text": "one two"}, image]}]).prompt_tokens[0] > plain + 300
    assert chat(tools=[{"type": "function"}]).prompt_tokens[0] > plain


@pytest.mark.parametrize(
    ("prompt", "tokens"),
    [("one two", (2,)), (["one", "two three"], (1, 2)), ([1, 2, 3], (3,)), ([[1, 2], [3]], (2, 1))],
)
def test_prompts(prompt, tokens):
    ask = ask_of_completions({"prompt": prompt, "n": 2}, MODEL, Steering(), TEXT)
    assert (ask.prompt_tokens, ask.choices, ask.tokens) == (tokens, 2 * len(tokens), 16)


@pytest.mark.parametrize("prompt", [None, [], 5, ["a", 1], [{}]])
def test_prompts_that_are_none(prompt):
    with pytest.raises(Refused):
        ask_of_completions({"prompt": prompt}, MODEL, Steering(), TEXT)


def test_models():
    assert model_name({}, MODEL) == "m"
    assert model_name({"model": "other"}, MODEL) == "other"
    for unknown in ("M", 5, ["m"]):
        with pytest.raises(Refused) as refused:
            model_name({"model": unknown}, MODEL)
        assert refused.value.status == 404


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"5", b"\xff", b"[" * 100_000])
def test_bodies_that_are_none(body):
    with pytest.raises(Refused):
        read_body(body)


def test_of_doubled_keys_the_last_wins():
    assert read_body(b'{"model":"a","model":"b"}') == {"model": "b"}


def test_faults_are_read_together_and_checked():
    faults = parse_faults("no_usage, reset_after=3,join,wrong_usage=cached")
    assert (faults.no_usage, faults.reset_after, faults.join, faults.wrong_usage) == (True, 3, 2, "cached")
    for wrong in ("no_usage=1", "reset_after", "reset_after=-1", "wrong_usage=odd", "nothing"):
        with pytest.raises(ValueError, match="unknown fault"):
            parse_faults(wrong)


def test_headers_override_defaults_and_are_checked():
    steerings = Steerings(TEXT.languages, Steering(tokens=5))
    steerings.set_defaults({"delay_ms": "20", "fault": "no_usage"})
    plain = steerings.of({})
    assert (plain.tokens, plain.delay_ms, plain.faults.no_usage) == (5, 20, True)
    assert steerings.of({"x-sim-tokens": "7", "x-sim-fault": "none"}) == Steering(tokens=7, delay_ms=20)
    for name, value in (("x-sim-tokens", "-1"), ("x-sim-tokens", "x"), ("x-sim-delay-ms", "nan"), ("x-sim-language", "tlh")):
        with pytest.raises(ValueError):
            steerings.of({name: value})
