"""A JSON answer in pieces, under another name; and units that a backend does not tell."""

from __future__ import annotations

import json
from typing import Any

import pytest
from stage import Words, chat, chunk, ends, granted, pinned, play, to_open

from extproc.exchange import events as ev
from extproc.exchange.ask import Echo
from extproc.exchange.endpoints.chat import ChatCompletions
from extproc.exchange.endpoints.completions import Completions
from extproc.exchange.endpoints.responses import Responses
from extproc.exchange.machine import Exchange, State
from extproc.exchange.meter import Expected, Meter, OpaqueMeter
from extproc.exchange.meter_answer import ANSWER_BYTES_MAX, AnswerMeter
from extproc.exchange.meter_stream import StreamMeter
from extproc.exchange.policy import Bounds
from extproc.money.usage import CHARACTERS_PER_TOKEN_MAX, Usage, UsageSource

PROMPT = Usage(input_tokens=11, images=1, image_tokens=6, input_characters=30, input_words=4)


def expected(**changes: Any) -> Expected:
    values: dict[str, Any] = {
        "endpoint": ChatCompletions(), "counter": Words(), "prompt": Usage(input_tokens=11), "input_tokens_max": 10_000,
        "output_tokens_max": 1_000, "output_tokens_held": 100, "choices": 1,
    }  # fmt: skip
    return Expected(**(values | changes))


@pytest.mark.parametrize("gap", [b"", b" "])
def test_a_name_is_changed_wherever_an_answer_is_cut(gap: bytes):
    member = b'"model":' + gap + b'"Org/M"'
    sent = b'{"instructions":"model",' + member + b',"output":[],"note":"\\"model\\":"}'
    shown = sent.replace(b"Org/M", b"gpt")
    for first in range(len(sent) + 1):
        for second in (first, min(first + 3, len(sent))):
            meter = AnswerMeter(expected(endpoint=Responses(), rename=(b'"Org/M"', b'"gpt"')))
            pieces = [meter.feed(sent[:first], end_of_stream=False), meter.feed(sent[first:second], end_of_stream=False)]
            assert b"".join(pieces) + meter.feed(sent[second:], end_of_stream=True) == shown


def test_an_answer_without_the_name_goes_out_whole():
    meter = AnswerMeter(expected(rename=(b'"Org/M"', b'"gpt"')))
    assert meter.feed(b'{"model":"Or', end_of_stream=False) == b"{"
    assert meter.feed(b"", end_of_stream=True) == b'"model":"Or'


def answer(words: list[str], output: int | None) -> tuple[bytes, bytes]:
    """The same as a stream and as a document."""
    usage = None if output is None else {"prompt_tokens": 9, "completion_tokens": output}
    stream = [{"choices": [{"index": 0, "delta": {"content": word}}]} for word in words] + [{"choices": [], "usage": usage}]
    document = {"choices": [{"index": 0, "message": {"content": "".join(words)}, "finish_reason": "stop"}], "usage": usage}
    return b"".join(b"data: " + json.dumps(event).encode() + b"\n\n" for event in stream), json.dumps(document).encode()


def usages(known: Expected, words: list[str], output: int | None) -> Usage:
    stream, document = answer(words, output)
    meters: list[tuple[Meter, bytes]] = [(StreamMeter(known), stream), (AnswerMeter(known), document)]
    found = []
    for meter, data in meters:
        meter.feed(data, end_of_stream=True)
        found.append(meter.usage(ended_early=False))
    assert found[0] == found[1]
    return found[0]


@pytest.mark.parametrize("output", [6, None])
def test_text_is_counted_whatever_the_usage_says(output: int | None):
    usage = usages(expected(needs_text=True, prompt=PROMPT), ["one", " two", "\n\nthr", "ee ", "四五"], output)
    assert (usage.output_characters, usage.output_words) == (17, 4)
    assert (usage.images, usage.image_tokens > 0, usage.input_characters, usage.input_words) == (1, True, 30, 4)
    assert usage.source is (UsageSource.COUNTED if output is None else UsageSource.UPSTREAM)


@pytest.mark.parametrize(("told", "image"), [(20, 6), (11, 6), (8, 3), (4, 0)])
def test_images_have_what_our_count_of_the_text_leaves_of_the_input(told: int, image: int):
    meter = StreamMeter(expected(prompt=PROMPT))
    usage = {"prompt_tokens": told, "completion_tokens": 1}
    meter.feed(b"data: " + json.dumps({"choices": [], "usage": usage}).encode() + b"\n\n", end_of_stream=False)
    assert meter.usage(ended_early=False).image_tokens == image


def test_text_is_counted_within_what_was_held_for_it():
    usage = usages(expected(needs_text=True, prompt=PROMPT), ["a b c d e f " + " " * 80], 3)
    assert (usage.output_characters, usage.output_words) == (3 * CHARACTERS_PER_TOKEN_MAX, 3)


def test_text_that_is_not_priced_is_not_counted():
    usage = usages(expected(prompt=PROMPT), ["one two"], 2)
    assert (usage.images, usage.output_characters, usage.output_words) == (1, 0, 0)
    assert usages(expected(), ["one two"], 2) == Usage(input_tokens=9, output_tokens=2, source=UsageSource.UPSTREAM)


def test_what_a_backend_tells_of_images_and_sound_stands():
    details = {"cached_tokens": 1, "cache_write_tokens": 4, "image_tokens": 3, "audio_tokens": 7}
    told = {"prompt_tokens": 9, "completion_tokens": 2, "prompt_tokens_details": details}
    meter = StreamMeter(expected(prompt=PROMPT))
    meter.feed(b"data: " + json.dumps({"choices": [], "usage": told}).encode() + b"\n\n", end_of_stream=False)
    usage = meter.usage(ended_early=False)
    assert (usage.cached_tokens, usage.cache_creation_tokens, usage.image_tokens, usage.audio_tokens) == (1, 4, 3, 6)
    assert usage.flags == ("audio_tokens_impossible",)


def test_an_echo_is_no_output():
    known = expected(
        endpoint=Completions(), needs_text=True, prompt=Usage(input_tokens=5, input_characters=5, input_words=1), echoes=(Echo(5, 0),)
    )
    meter = AnswerMeter(known)
    meter.feed(json.dumps({"choices": [{"text": "hello to you"}]}).encode(), end_of_stream=True)
    usage = meter.usage(ended_early=False)
    assert (usage.output_tokens, usage.output_characters, usage.output_words) == (7, 7, 2)


class Blanks(Words):
    """A token for each word."""

    def count(self, text: str) -> int:
        return len(text.split())


@pytest.mark.parametrize("echoed", [0, 20_000])
def test_of_a_long_answer_each_choice_is_counted_in_part(echoed: int):
    """The first ones are long words, which are few tokens; they stood for all the others."""
    texts = [*("w" * 19_999 + " ",) * 10, *("ab " * 20_000,) * 10, "", "x"]
    known = expected(
        endpoint=Completions(),
        counter=Blanks(),
        choices=22,
        prompts=22,
        output_tokens_held=10**6,
        echoes=(Echo(0, echoed),) * 22 if echoed else (),
    )
    meter = AnswerMeter(known)
    meter.feed(json.dumps({"choices": [{"index": index, "text": text} for index, text in enumerate(texts)]}).encode(), end_of_stream=True)
    usage = meter.usage(ended_early=False)
    assert usage.source is UsageSource.CHUNKS
    assert abs(usage.output_tokens - (0 if echoed else 200_011)) <= 200, "ten choices of 20,000 words"


def test_what_cannot_be_read_costs_what_was_held():
    known = expected(needs_text=True, prompt=PROMPT)
    opaque, large = OpaqueMeter(known), AnswerMeter(known)
    opaque.feed(b"\x1f\x8b", end_of_stream=True)
    large.feed(b"{" + b" " * ANSWER_BYTES_MAX, end_of_stream=True)
    for meter in (opaque, large):
        usage = meter.usage(ended_early=False)
        assert (usage.output_tokens, usage.output_characters, usage.output_words) == (100, 100 * CHARACTERS_PER_TOKEN_MAX, 100)
        assert usage.flags == ("unreadable",)


@pytest.mark.parametrize("encoding", ["identity", "gzip"])
def test_an_answer_of_a_told_length_ends_with_its_last_byte(encoding: str):
    """A client has all of it then: Envoy tells the end in a chunk of its own, and nobody waits for that one."""
    _, sent = answer(["one", " two"], 6)
    exchange = Exchange(pinned(bounds=Bounds(body_bytes_max=2 * len(sent) - 2)))
    to_open(exchange)
    headers = {"content-type": "application/json", "content-length": str(len(sent)), "content-encoding": encoding}
    play(exchange, chat(), ev.Amended(granted=granted()))
    (passed,) = play(exchange, ev.ResponseHeaders(status=200, headers=headers))
    assert not passed.buffer
    assert not ends(play(exchange, chunk(sent[:-1])))
    (end,) = ends(actions := play(exchange, chunk(sent[-1:])))
    assert (end.wait, actions[0], exchange.state) == (True, end, State.ENDED)
    assert end.ending.charge_nanos > 0
    (late,) = play(exchange, chunk(b"", end=True), ev.Gone(at_ns=0, reason="closed"))
    assert late.data is None
