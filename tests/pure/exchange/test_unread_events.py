"""Events that are passed unread: nothing that anybody can ask of a meter, and no byte for the client, differs from reading them all."""

from __future__ import annotations

import json
import random
import zlib
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from stage import DONE, RunningWords, Words, delta, usage_event

from extproc.exchange.ask import Piece
from extproc.exchange.endpoints.chat import ChatCompletions
from extproc.exchange.meter import Expected
from extproc.exchange.meter_stream import KEPT_BYTES_MAX, SHAPES_TRIED_MAX, StreamMeter
from extproc.exchange.shape import AROUND_BYTES_MAX
from extproc.money.usage import Usage


def expected(**changes: Any) -> Expected:
    values: dict[str, Any] = {
        "endpoint": ChatCompletions(), "counter": Words(), "prompt": Usage(input_tokens=11), "input_tokens_max": 10_000,
        "output_tokens_max": 100_000, "output_tokens_held": 100_000, "choices": 1, "hide_final": True,
    }  # fmt: skip
    return Expected(**(values | changes))


class Exactly(Words):
    """Another text is another count."""

    def running(self) -> RunningText:  # type: ignore[override]
        return RunningText()


class RunningText:
    def __init__(self) -> None:
        self.text = ""

    def feed(self, text: str) -> None:
        self.text += text

    def total(self) -> int:
        return zlib.crc32(self.text.encode("utf-8", "replace")) % 9_973


class Reader(ChatCompletions):
    """Counts the events that are read."""

    def __init__(self) -> None:
        self.events = 0

    def read_event(self, data: bytes) -> Piece:
        self.events += 1
        return super().read_event(data)


def all_reading(known: Expected) -> StreamMeter:
    """The reference: it looks for no shape, so it reads every event when it comes."""
    meter = StreamMeter(known)
    meter._tries = 0
    return meter


def answers(meter: StreamMeter) -> tuple[Any, ...]:
    """Everything that can be asked. (Asking reads what is kept.)"""
    return meter.events, meter.usage(ended_early=False), glances(meter)


def glances(meter: StreamMeter) -> tuple[Any, ...]:
    """What can be asked without reading."""
    return meter.started, meter.complete, meter.reason()


def said(text: str, *, ascii_only: bool = False, gaps: bool = False, end: bytes = b"\n\n", **more: Any) -> bytes:
    """An event as backends write them; ``more`` overwrites."""
    choice = {"index": 0, "delta": {"content": text}, "finish_reason": None} | more.pop("choice", {})
    members = {"id": "x", "model": "Org/M", "choices": [choice], **more}
    return b"data: " + json.dumps(members, ensure_ascii=ascii_only, separators=None if gaps else (",", ":")).encode() + end


TEXTS = [
    "a",
    " word",
    "你好",
    '"usage"',
    "\n\n",
    "[DONE]",
    'say "error": {',
    "back\\slash",
    "tab\t",
    "\\",
    '"',
    ",",
    '",\n"',
    "}]}",
    "🙂",
    "usage",
]
DIALECTS: dict[str, Callable[[str], bytes]] = {
    "logprobs null": lambda text: said(text, choice={"logprobs": None, "token_ids": None}),
    "usage null": lambda text: said(text, usage=None),
    "with gaps": lambda text: said(text, gaps=True),
    "escaped": lambda text: said(text, ascii_only=True),
    "crlf": lambda text: said(text, end=b"\r\n\r\n"),
    "comments": lambda text: b": ping\n" + said(text),
    "named": lambda text: b"event: chunk\n" + said(text, end=b"\nid: 7\n\n"),
    "numbered": lambda text: said(text, sequence_number=7),
    "numbered before": lambda text: said(text, id=1, sequence_number=7).replace(b'{"id":1,', b'{"sequence_number":7,"id":1,'),
    "second choice": lambda text: said(text, choice={"index": 1}),
    "reasoning": lambda text: said("", choice={"delta": {"reasoning_content": text}}),
    "tools": lambda text: said("", choice={"delta": {"tool_calls": [{"index": 0, "function": {"arguments": text}}]}}),
    "completions": lambda text: said("", choice={"delta": None, "text": text}),
}


@pytest.mark.parametrize("joined", [1, 4])
@pytest.mark.parametrize("name", DIALECTS)
def test_a_stream_of_every_dialect_is_passed_unread_whatever_is_said(name: str, joined: int):
    events = [DIALECTS[name](text) for text in TEXTS * 4]
    reader = Reader()
    meter = StreamMeter(expected(endpoint=reader))
    for chunk in [events[0], *(b"".join(events[at : at + joined]) for at in range(1, len(events), joined))]:
        assert meter.feed(chunk, end_of_stream=False) == chunk
    assert meter.events == len(events)
    assert meter.usage(ended_early=True).output_tokens == 4 * sum(map(len, TEXTS))
    assert reader.events == 2  # the first one, and the proof of its shape


@pytest.mark.parametrize("last", [usage_event(11, 7), delta("", "stop") + usage_event(11, 7) + DONE])
def test_with_the_final_usage_no_text_is_counted(last: bytes, monkeypatch: pytest.MonkeyPatch):
    counted: list[str] = []
    monkeypatch.setattr(RunningWords, "feed", lambda self, text: counted.append(text))
    meter = StreamMeter(expected())
    for _ in range(100):
        meter.feed(delta("word"), end_of_stream=False)
    meter.feed(last, end_of_stream=False)
    assert (meter.usage(ended_early=False).output_tokens, meter.events, counted) == (7, 100, ["word"])


def test_what_is_kept_is_bounded():
    meter = StreamMeter(expected())
    for _ in range(1_000):
        meter.feed(delta("word"), end_of_stream=False)
        assert len(meter._kept) <= KEPT_BYTES_MAX
    meter.feed(delta("x" * 50_000), end_of_stream=False)
    assert not meter._kept
    assert meter.usage(ended_early=True).output_tokens == 54_000


def test_the_shape_of_a_large_event_is_not_kept():
    reader = Reader()
    meter = StreamMeter(expected(endpoint=reader))
    for _ in range(20):
        meter.feed(said("word", padding="x" * AROUND_BYTES_MAX), end_of_stream=False)
    assert reader.events == 20
    assert meter._shape is None


@pytest.mark.parametrize("index", [lambda place: place % 2, lambda place: 0])
def test_shapes_that_fit_nothing_are_given_up(index: Callable[[int], int]):
    reader = Reader()
    meter = StreamMeter(expected(endpoint=reader, choices=2))
    for place in range(200):
        meter.feed(said("word", obfuscation="x" * place, choice={"index": index(place)}), end_of_stream=False)
    assert reader.events == 200 + SHAPES_TRIED_MAX
    assert meter.usage(ended_early=True).output_tokens == 800


def test_events_under_an_alias_are_renamed_unread():
    reader = Reader()
    meter = StreamMeter(expected(endpoint=reader, rename=(b'"Org/M"', b'"gpt"')))
    for text in TEXTS:
        event = said(text)
        assert meter.feed(event + event, end_of_stream=False) == (event + event).replace(b'"Org/M"', b'"gpt"')
    assert reader.events == 3  # the first two, and the proof of their shape


def test_a_shape_that_has_served_is_followed_by_another():
    reader = Reader()
    meter = StreamMeter(expected(endpoint=reader))
    for place in range(200):
        meter.feed(said("word", created=place // 5), end_of_stream=False)
    assert reader.events == 2 * 40


def test_a_language_that_is_escaped():
    reader = Reader()
    meter = StreamMeter(expected(endpoint=reader))
    for _ in range(20):
        meter.feed(said("你好", ascii_only=True), end_of_stream=False)
    assert reader.events == 2
    assert meter.usage(ended_early=True).output_tokens == 40


def test_events_with_a_running_number_are_passed_unread():
    reader = Reader()
    meter = StreamMeter(expected(endpoint=reader))
    events = [said("word", sequence_number=number) for number in range(5, 1_205)]
    for at in range(0, len(events), 3):
        chunk = b"".join(events[at : at + 3])
        assert meter.feed(chunk, end_of_stream=False) == chunk
    assert reader.events <= 4 * (3 + 1)  # the first chunk with a number of more digits, and the proof of its shape
    assert meter.usage(ended_early=True).output_tokens == 4_800
    assert meter.delivered().body_bytes == sum(map(len, events))


def test_a_number_that_says_something_is_read():
    meter, reference = StreamMeter(expected(choices=9)), all_reading(expected(choices=9))
    for index in range(9):
        event = said("word", choice={"index": index, "sequence_number": index})
        assert meter.feed(event, end_of_stream=False) == reference.feed(event, end_of_stream=False)
    assert answers(meter) == answers(reference)


FRONT, BACK = said("@").split(b"@")


@pytest.mark.parametrize(
    "chunks",
    [
        [said("x")[:-1], said("y"), b"\n"],  # two lines of one event, which is no JSON
        [b"data: ", said("y")],
        [b"x" + BACK],
        [FRONT + b"x", BACK],
        [FRONT + b"x" + BACK[:-1], b"\n"],
        [FRONT + b"x" + BACK[1:]],
        [FRONT + b"a\n\ndata: [DONE]\n\nb" + BACK],
        [FRONT + b"a\r\rdata: [DONE]\r\rb" + BACK],
        [FRONT + b"a" + BACK + DONE],
        [said("a") + DONE + said("b")],
        [said('",'), FRONT + b"\\ud83d" + BACK, said("b")],  # joined, and then to be taken apart
        [said("a"), said("bc"), said("x", choice={"index": 1}), said("d")],
        [said("a"), said("b", choice={"logprobs": {"content": [{"token": "b"}]}}), said("c")],
        [FRONT + b"\xff" + BACK, said("a"), FRONT + b"\\u12" + BACK + FRONT + b"\\ude00" + BACK],
        [said("x").replace(b"null", b'"stop"'), said("y")],
    ],
)
def test_what_only_looks_alike_is_read(chunks: list[bytes]):
    ways = expected(counter=Exactly(), choices=2)
    meter, reference = StreamMeter(ways), all_reading(ways)
    for chunk in [said("first"), said("second"), *chunks]:
        assert meter.feed(chunk, end_of_stream=False) == reference.feed(chunk, end_of_stream=False)
        assert glances(meter) == glances(reference)
    assert meter.events == reference.events
    assert answers(meter) == answers(reference)


@pytest.mark.parametrize("front", [b"", b"\xef\xbb\xbf"])
def test_events_that_are_others_in_a_row_are_not_kept(front: bytes):
    """A third line end belongs to the event behind it, if there is one: a byte order mark is in its first line no more."""
    ways = expected(counter=Exactly(), hide_running=True)
    meter, reference = StreamMeter(ways), all_reading(ways)
    events = [front + said(text, usage=None, end=b"\n\n\n") for text in TEXTS]
    half = front + (FRONT + b"\\ud83d" + BACK[:-3] + b',"usage":null}\n\n\n')
    for chunk in [*events, half, events[0] + events[1], half]:
        assert meter.feed(chunk, end_of_stream=False) == reference.feed(chunk, end_of_stream=False)
    assert answers(meter) == answers(reference)


# Whatever comes, however it is cut, whenever somebody asks.

HOSTILE = [
    b"a\n\nb",
    b"\r",
    b"\x00",
    b"\\q",
    b"\\ud83d",
    b"\\ude00",
    b"\xff",
    b"\xed\xa0\xbd",
    b"a\n\ndata: [DONE]\n\nb",
    b"\\",
    b'\\",',
    b'"',
    b"",
    b"\\u12",
]
INSIDES = st.one_of(
    st.sampled_from(TEXTS).map(lambda text: json.dumps(text).encode()[1:-1]), st.sampled_from(HOSTILE), st.binary(max_size=6)
)  # fmt: skip
FIRST = st.sampled_from([write("@") for write in DIALECTS.values()])
NUMBERS = [b"8", b"9", b"10", b"07", b"-1", b"7.5", b'"7"']


def numbered(events: list[bytes]) -> list[bytes]:
    """Where events have a number, each has another one."""
    numbers = [b'"sequence_number":' + NUMBERS[place % len(NUMBERS)] for place in range(len(events))]
    return [event.replace(b'"sequence_number":7', number) for event, number in zip(events, numbers, strict=True)]


RUNS = st.tuples(FIRST, st.lists(INSIDES, min_size=1, max_size=8)).map(
    lambda run: numbered([run[0].replace(b"@", b"first"), *(run[0].replace(b"@", inside) for inside in run[1])])
)
OTHERS = st.sampled_from(
    [
        delta(""), delta("x", "stop"), delta("", "length"), delta("", "abort"), delta("x")[:-1], b": ping\n\n", b"\n\n", b"data: ", DONE,
        said("x", usage={"prompt_tokens": 11, "completion_tokens": 3}), said("x", obfuscation="zz"), said("~probe~"), said("a", error=None),
        said("x", choice={"logprobs": {"content": [{"token": "x"}, {"token": "y"}]}}), b'data: {"error": {"message": "dead"}}\n\n',
        usage_event(11, 7), usage_event(11, 7, completion_tokens="50"), usage_event(-1, 7), b'data: {"choices":[],"usage":{}}\n\n', b"\xef\xbb\xbf" + said("bom"),
    ]
)  # fmt: skip
STREAMS = st.lists(st.one_of(RUNS, RUNS, OTHERS.map(lambda event: [event])), max_size=6).map(
    lambda runs: [event for run in runs for event in run]
)
WAYS = st.fixed_dictionaries(
    {
        "hide_final": st.booleans(), "hide_running": st.booleans(), "trust_usage": st.booleans(), "choices": st.sampled_from([1, 2]),
        "rename": st.sampled_from([None, (b'"Org/M"', b'"gpt"')]), "counter": st.sampled_from([None, Exactly()]),
    }
)  # fmt: skip


def cut(events: list[bytes], chance: random.Random) -> Iterator[bytes]:
    """Mostly an event a chunk; now and then several in one, or one in pieces."""
    pending = b""
    for event in events:
        pending += event
        if chance.random() < 0.8:
            at = chance.randrange(len(pending) + 1) if chance.random() < 0.1 else len(pending)
            yield pending[:at]
            pending = pending[at:]
    yield pending


@given(STREAMS, WAYS, st.randoms(use_true_random=False))
def test_nothing_differs_from_reading_everything(events: list[bytes], ways: dict[str, Any], chance: random.Random):
    meter, reference = StreamMeter(expected(**ways)), all_reading(expected(**ways))
    for chunk in cut(events, chance):
        assert meter.feed(chunk, end_of_stream=False) == reference.feed(chunk, end_of_stream=False)
        assert glances(meter) == glances(reference)
        if chance.random() < 0.1:
            assert answers(meter) == answers(reference)
    assert meter.feed(b"", end_of_stream=True) == reference.feed(b"", end_of_stream=True)
    assert meter.events == reference.events
    assert answers(meter) == answers(reference)
