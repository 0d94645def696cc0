"""Found by reviewers and attackers; each of these cost somebody money."""

from __future__ import annotations

import json

import pytest
from stage import (
    DONE,
    chat,
    chunk,
    delivered,
    delta,
    error_of,
    granted,
    model,
    pinned,
    play,
    to_open,
    to_streaming,
    usage_event,
)  # fmt: skip

from extproc.catalog.model import Tariff
from extproc.exchange import actions as act
from extproc.exchange import events as ev
from extproc.exchange.machine import Exchange
from extproc.exchange.policy import Bounds, Policy
from extproc.money.hold import EndKind
from extproc.money.price import Rates
from extproc.money.usage import TOKENS_MAX


def completions(exchange: Exchange, **fields: object) -> list[act.Action]:
    to_open(exchange, path="/v1/completions")
    return list(exchange.receive(ev.Body(at_ns=2_000_000, data=json.dumps({"model": "m"} | fields).encode())))


def test_prompts_of_token_ids_have_a_window_each():
    exchange = Exchange(pinned(model(tokenizer="upstream")))
    (amend,) = completions(exchange, prompt=[[1] * 5_000] * 60, max_tokens=1)
    assert amend.amendment.tokens >= 300_000
    known = Exchange(pinned())
    (amend,) = completions(known, prompt=[[1] * 2_000] * 10, max_tokens=1)
    assert isinstance(amend, act.Amend)


def test_a_part_is_counted_by_the_member_that_the_backend_reads():
    exchange = Exchange(pinned())
    to_open(exchange)
    parts = [{"type": "refusal", "text": "x", "refusal": "y" * 800, "more": "z"}]
    (amend,) = exchange.receive(chat(messages=[{"role": "assistant", "content": parts}], max_tokens=1))
    assert amend.amendment.tokens == 806 + 22 + 1
    (body,) = exchange.receive(ev.Amended(granted=granted()))
    assert json.loads(body.data)["messages"] == [{"role": "assistant", "content": [{"type": "refusal", "refusal": "y" * 800}]}]


def piece(index: int, text: str, prompt: int, output: int) -> bytes:
    usage = {"prompt_tokens": prompt, "completion_tokens": output}
    return b"data: " + json.dumps({"choices": [{"index": index, "text": text}], "usage": usage}).encode() + b"\n\n"


def test_running_usage_is_summed_over_prompts_and_choices():
    exchange = Exchange(pinned())
    completions(exchange, prompt=["a" * 500] * 3, stream=True, stream_options={"include_usage": True, "continuous_usage_stats": True}, n=2)
    exchange.receive(ev.Amended(granted=granted()))
    exchange.receive(ev.ResponseHeaders(status=200, headers={"content-type": "text/event-stream"}))
    play(exchange, chunk(piece(0, "x", 500, 1)))
    assert exchange.receive(ev.Tick(at_ns=1))[0].checkpoint.charge_nanos == 1_500 * 1_000 + 2_000  # unheard prompts by our own count
    play(exchange, chunk(piece(3, "y", 501, 4) + piece(5, "z", 502, 2)), chunk(piece(3, "", 501, 5)))
    end, _ = exchange.receive(ev.Gone())
    assert end.ending.charge_nanos == (500 + 501 + 502) * 1_000 + (1 + 5 + 2) * 2_000


@pytest.mark.parametrize(("prompts", "n", "param"), [(2_048, 128, "n"), (9, 114, "n"), (1_025, 1, "prompt")])
def test_too_many_answers_for_one_request(prompts: int, n: int, param: str):
    """Each choice of a stream has a count of its own, and figures are due four times a second."""
    reply, end, _ = completions(Exchange(pinned()), prompt=["a"] * prompts, n=n)
    assert (reply.status, error_of(reply)["param"], end.ending.kind) == (400, param, EndKind.VOID)


def test_too_many_tokens_for_one_request():
    huge = TOKENS_MAX // 100
    exchange = Exchange(pinned(model(output_tokens_max=huge, output_tokens_default=huge, context_tokens=huge)))
    reply, end, _ = completions(exchange, prompt=["a"] * 8, n=128, max_tokens=huge)
    assert (reply.status, error_of(reply)["param"], end.ending.kind) == (400, "n", EndKind.VOID)


@pytest.mark.parametrize("number", ["--3", "+-3", "-+1", "1e3", "٣", " "])
def test_numbers_that_are_none(number: str):
    exchange = Exchange(pinned())
    to_open(exchange)
    assert exchange.receive(chat(n=number))[0].status == 400


def to_answer(exchange: Exchange, **headers: str) -> None:
    to_open(exchange)
    exchange.receive(chat(max_tokens=50))
    exchange.receive(ev.Amended(granted=granted()))
    exchange.receive(ev.ResponseHeaders(status=200, headers={"content-type": "application/json"} | headers))


def test_an_answer_too_large_to_be_parsed_is_read_at_its_end():
    exchange = Exchange(pinned())
    to_answer(exchange)
    body = (
        b'{"choices":[{"message":{"content":"'
        + b"x" * 3_000_000
        + b'"},"finish_reason":"stop"}],"usage":{"prompt_tokens":11,"completion_tokens":7}}'
    )
    pieces = [body[start : start + 500_000] for start in range(0, len(body), 500_000)]
    play(exchange, *(chunk(part) for part in pieces))
    end, _, note = play(exchange, chunk(b"", end=True))
    assert (end.ending.charge_nanos, note.record.usage_source) == (11_000 + 14_000, "upstream")
    blind = Exchange(pinned())
    to_answer(blind)
    play(blind, chunk(b'{"choices":' + b" " * 3_000_000))
    end, _, note = play(blind, chunk(b"", end=True))
    assert (end.ending.charge_nanos, note.record.usage_flags) == (11_000 + 100_000, ("unreadable",))


@pytest.mark.parametrize("body", [b'{"error":{"message":"no"}}', b"<html>", b'{"object":"error"}', b"", b"{}"])
def test_a_failed_answer_with_status_200_is_not_charged(body: bytes):
    exchange = Exchange(pinned())
    to_answer(exchange, **{"content-length": str(len(body))})
    end, _, note = play(exchange, chunk(body, end=True))
    assert (end.ending.kind, note.record.end_reason) == (EndKind.VOID, "upstream_error")


@pytest.mark.parametrize("told", [{"completion_tokens": "50"}, {"completion_tokens": None}, {}], ids=["a word", "null", "nothing"])
def test_output_of_which_no_figure_is_told_is_counted_by_ourselves(told: dict):
    """It was free, though the prompt's figure stood beside it; and that one still holds."""
    told = {"prompt_tokens": 30, "prompt_tokens_details": {"cached_tokens": 5}} | told
    streamed, whole = Exchange(pinned()), Exchange(pinned())
    to_streaming(streamed)
    to_answer(whole)
    usage = b'data: {"choices":[],"usage":' + json.dumps(told).encode() + b"}\n\n"
    answer = {"choices": [{"message": {"content": "abcde"}, "finish_reason": "stop"}], "usage": told}
    for exchange, sent in ((streamed, delta("abcde", "stop") + usage + DONE), (whole, json.dumps(answer).encode())):
        end, _, note = play(exchange, chunk(sent, end=True))
        assert (end.ending.charge_nanos, note.record.usage_source) == (25_000 + 5 * 500 + 10_000, "counted")
        assert (note.record.input_tokens, note.record.cached_tokens, note.record.output_tokens) == (30, 5, 5)


@pytest.mark.parametrize("served", [model(served_name="Org/M"), model(usage="continuous"), model(usage="forced")])
def test_the_first_output_is_checkpointed_however_it_comes(served):
    exchange = Exchange(pinned(served))
    to_streaming(exchange)
    sent = b'data: {"model":"Org/M","choices":[{"index":0,"delta":{"content":"d"}}],"usage":{"prompt_tokens":11,"completion_tokens":1}}\n\n'
    actions = play(exchange, *(chunk(sent) for _ in range(20)))
    assert sum(isinstance(action, act.Beat) for action in actions) == 1


def test_tools_leave_room_for_an_answer():
    tools = [{"type": "function", "function": {"name": "f", "description": "x" * 11_000}}]
    exchange = Exchange(pinned())
    to_open(exchange)
    exchange.receive(chat(tools=tools, max_tokens=800))
    (body,) = exchange.receive(ev.Amended(granted=granted()))
    assert json.loads(body.data)["max_tokens"] == 800


def test_a_model_whose_usage_is_not_trusted_is_counted_under_every_policy():
    exchange = Exchange(pinned(model(usage="counted"), policy=Policy(no_usage="hold")))
    to_streaming(exchange)
    end, *_ = play(exchange, chunk(delta("abc", "stop") + usage_event(9_000, 900) + DONE))
    assert end.ending.charge_nanos == 11_000 + 6_000


def test_running_usage_stays_hidden_whatever_the_text_says():
    exchange = Exchange(pinned(model(usage="continuous")))
    to_streaming(exchange)
    sent = b'data: {"choices":[{"index":0,"delta":{"content":"data: x"}}],"usage":{"prompt_tokens":11,"completion_tokens":1}}\n\n'
    assert b"usage" not in delivered(sent, play(exchange, chunk(sent)))


def test_a_renamed_answer_in_pieces():
    exchange = Exchange(pinned(model(aliases=("gpt",), served_name="Org/M")))
    to_open(exchange)
    exchange.receive(chat(model="gpt"))
    exchange.receive(ev.Amended(granted=granted()))
    exchange.receive(ev.ResponseHeaders(status=200, headers={"content-type": "application/json"}))
    sent = b'{"id":"x","model":"Org/M","choices":['
    assert delivered(sent, play(exchange, chunk(sent))) == sent.replace(b"Org/M", b"gpt")


def test_trailers_end_an_answer_with_what_came():
    exchange = Exchange(pinned())
    to_answer(exchange)
    play(exchange, chunk(b'{"choices":[{"message":{"content":"hi"}}],"usage":{"prompt_tokens":11,"completion_tokens":70}}'))
    end, *_ = exchange.receive(ev.Trailers(response=True))
    assert end.ending.charge_nanos == 133_000  # 70 tokens where 50 were held for: the cap


def test_a_json_answer_on_its_way_out_is_not_cut():
    exchange = Exchange(pinned())
    to_answer(exchange)
    play(exchange, chunk(b'{"choices":['))
    assert exchange.receive(ev.Stopped()) == ()
    end, *_ = play(exchange, chunk(b'{"message":{"content":"hi"}}],"usage":{"prompt_tokens":11,"completion_tokens":1}}', end=True))
    assert end.ending.charge_nanos == 13_000


def test_a_bug_ends_what_is_held_at_its_last_checkpoint():
    exchange = Exchange(pinned())
    to_streaming(exchange)
    play(exchange, chunk(delta("abc")))
    exchange.receive(ev.Tick(at_ns=1))
    end, _ = exchange.abandon(2)
    assert (end.ending.kind, end.ending.charge_nanos) == (EndKind.SETTLE, 17_000)
    assert exchange.abandon(3) == ()
    early = Exchange(pinned())
    to_open(early)
    assert early.abandon(1)[0].ending.kind is EndKind.VOID
    assert Exchange(pinned()).abandon(1) == ()


def test_tokens_whose_text_is_kept_back_are_counted_by_their_log_probabilities():
    exchange = Exchange(pinned())
    passed = to_streaming(exchange, logprobs=True, stop=["x" * 256])
    assert json.loads(passed.data)["stream_options"]["continuous_usage_stats"]
    entry = {"token": "a", "logprob": -1.0}
    sent = json.dumps({"choices": [{"index": 0, "delta": {"content": ""}, "logprobs": {"content": [entry, entry]}}]})
    play(exchange, *(chunk(b"data: " + sent.encode() + b"\n\n") for _ in range(3)))
    end, note = exchange.receive(ev.Gone())
    assert (end.ending.charge_nanos, note.record.output_tokens) == (11_000 + 12_000, 6)


@pytest.mark.parametrize("stop", ["x" * 257, ["x"] * 17, [1], {"a": 1}])
def test_stop_strings_are_bounded(stop):
    exchange = Exchange(pinned())
    to_open(exchange)
    assert error_of(exchange.receive(chat(stop=stop))[0])["param"] == "stop"


def test_most_of_a_large_answer_costs_what_was_held():
    for first in (b"", b'{"choices":[{"message":{"content":"'):
        exchange = Exchange(pinned())
        to_answer(exchange)
        play(exchange, chunk(first + b"x" * 3_000_000))
        assert exchange.receive(ev.Tick(at_ns=1))[0].checkpoint.charge_nanos == 11_000
        end, note = exchange.receive(ev.Gone())
        assert (end.ending.charge_nanos, note.record.usage_flags) == (111_000, ("unreadable",))


def test_an_answer_that_cannot_be_parsed_is_counted_by_its_text():
    exchange = Exchange(pinned())
    to_answer(exchange)
    body = b'{"choices":[{"message":{"reasoning":"abc"}}],"usage":{"prompt_tokens":' + b"9" * 5_000 + b"}}"
    end, _, note = play(exchange, chunk(body, end=True))
    assert (end.ending.charge_nanos, note.record.usage_source) == (11_000 + 6_000, "counted")


def test_a_prompt_that_nobody_had_time_to_count_is_held_by_its_bound():
    exchange = Exchange(pinned(model(context_tokens=100_000), bounds=Bounds(offload_bytes=10)))
    to_open(exchange)
    exchange.receive(chat(messages=[{"role": "user", "content": "x" * 400}], max_tokens=1, stream=True))
    (amend,) = exchange.receive(ev.Counted(tokens=None))
    assert amend.amendment.tokens == 406 + 1
    (body,) = exchange.receive(ev.Amended(granted=granted()))
    assert json.loads(body.data)["stream_options"]["continuous_usage_stats"]


def test_a_stream_without_a_content_type_is_read_as_one():
    exchange = Exchange(pinned())
    to_open(exchange)
    exchange.receive(chat(stream=True))
    exchange.receive(ev.Amended(granted=granted()))
    exchange.receive(ev.ResponseHeaders(status=200, headers={}))
    end, *_ = play(exchange, chunk(delta("abc", "stop") + usage_event(11, 3) + DONE))
    assert end.ending.charge_nanos == 17_000


@pytest.mark.parametrize("prompt", [["p" * 300, "q"], [[1] * 300, [2]]])
@pytest.mark.parametrize("heard", [1, 4])
def test_choices_that_have_not_begun_have_no_echo(prompt: list[str | list[int]], heard: int):
    exchange = Exchange(pinned(model(usage="counted")))
    completions(exchange, prompt=prompt, n=2, echo=True, stream=True, max_tokens=100)
    exchange.receive(ev.Amended(granted=granted()))
    exchange.receive(ev.ResponseHeaders(status=200, headers={"content-type": "text/event-stream"}))
    echoes = ["p" * 300, "p" * 300, "q", "q"]
    for index, echo in list(enumerate(echoes))[-heard:]:
        cut = len(echo) // 2  # as it comes, in pieces
        play(exchange, *(chunk(spoken(index, text)) for text in (echo[:cut], echo[cut:] + "ab", "abc")))
    end, note = exchange.receive(ev.Gone())
    assert (note.record.output_tokens, end.ending.charge_nanos) == (5 * heard, 301_000 + 10_000 * heard)


def spoken(index: int, text: str) -> bytes:
    return b"data: " + json.dumps({"choices": [{"index": index, "text": text}]}).encode() + b"\n\n"


@pytest.mark.parametrize("whole", [True, False])
def test_each_choice_of_an_answer_has_its_own_echo(whole: bool):
    exchange = Exchange(pinned())
    completions(exchange, prompt=["p" * 300, "q"], echo=True)
    exchange.receive(ev.Amended(granted=granted()))
    exchange.receive(ev.ResponseHeaders(status=200, headers={"content-type": "application/json"}))
    sent = json.dumps({"choices": [{"index": 0, "text": "p" * 300 + "abc"}, {"index": 1, "text": "qabcd"}]}).encode()
    actions = play(exchange, chunk(sent, end=True)) if whole else play(exchange, chunk(sent[:-3]), ev.Gone())
    *_, note = actions
    assert note.record.output_tokens == 7


SILENT = {"ignore_eos": True, "logit_bias": {"5": 100}, "min_tokens": 9, "bad_words": ["a"], "allowed_token_ids": [5]}


@pytest.mark.parametrize("field", SILENT)
def test_tokens_that_show_no_text_are_charged_as_told(field: str):
    exchange = Exchange(pinned())
    to_open(exchange)
    exchange.receive(chat(stream=True, max_tokens=50, **{field: SILENT[field]}))
    (body,) = exchange.receive(ev.Amended(granted=granted()))
    assert json.loads(body.data)["stream_options"] == {"include_usage": True, "continuous_usage_stats": True}
    exchange.receive(ev.ResponseHeaders(status=200, headers={"content-type": "text/event-stream"}))
    for tokens in range(20):
        told = {"prompt_tokens": 11, "completion_tokens": tokens}
        sent = b"data: " + json.dumps({"choices": [{"index": 0, "delta": {"content": ""}}], "usage": told}).encode() + b"\n\n"
        play(exchange, chunk(sent))
    end, note = exchange.receive(ev.Gone())
    assert (end.ending.charge_nanos, note.record.usage_source) == (11_000 + 38_000, "continuous")


PRICED = {
    "tokens": Tariff(rates=Rates(output=1_000_000)),
    "characters": Tariff(method="per_character", rates=Rates(output_characters=1_000_000)),
    "words": Tariff(method="per_word", rates=Rates(output_words=10_000_000)),
}


@pytest.mark.parametrize("priced", PRICED)
def test_what_did_not_come_of_an_answer_of_a_told_length_had_been_generated(priced: str):
    exchange = Exchange(pinned(model(tariffs=(PRICED[priced],)), bounds=Bounds(body_bytes_max=100)))
    sent = b'{"choices":[{"message":{"content":"' + b"x" * 40 + b'"}}],"usage":{"prompt_tokens":11,"completion_tokens":40}}'
    to_answer(exchange, **{"content-length": str(len(sent))})
    play(exchange, chunk(sent[:45]))
    end, note = exchange.receive(ev.Gone())
    if priced == "words":
        assert end.ending.charge_nanos == -(-len(sent) // 45) * 10
    else:
        assert end.ending.charge_nanos == -(-10 * len(sent) // 45)
    assert (note.record.output_tokens, note.record.usage_source) == (-(-10 * len(sent) // 45), "chunks")
