"""What chunk replies tell the second witness: at most four times a second, never more than is true, and nothing once the hold is ended."""

from __future__ import annotations

import json

from hypothesis import given, settings
from hypothesis import strategies as st
from stage import DONE, RATE, chunk, delta, pinned, to_streaming, usage_event

from extproc.exchange import actions as act
from extproc.exchange import events as ev
from extproc.exchange.figures import FIGURES_EVERY_NS
from extproc.exchange.machine import Exchange
from extproc.exchange.policy import Policy

NANO = RATE // 1_000_000  # of an input token; an output token costs two
EVENT_BYTES = len(delta("a"))


def told(exchange: Exchange, event: ev.Event) -> dict[str, str]:
    (reply,) = [action for action in exchange.receive(event) if isinstance(action, act.PassChunk)]
    return dict(reply.metadata)


def streaming() -> Exchange:
    exchange = Exchange(pinned())
    to_streaming(exchange)
    return exchange


def test_the_first_output_is_told_with_everything_and_later_only_what_is_new():
    exchange = streaming()
    first = told(exchange, chunk(delta("a"), at_ns=10))
    prompt = int(first["input_tokens"])
    assert first == {
        "charge_nanos": str(NANO * (prompt + 2)),
        "input_tokens": str(prompt),
        "output_tokens": "1",
        "usage_source": "counted",
        "delivered": f"{EVENT_BYTES}/{EVENT_BYTES}/1",
    }
    assert told(exchange, chunk(delta("b"), at_ns=10 + FIGURES_EVERY_NS - 1)) == {}
    later = told(exchange, chunk(delta("c"), at_ns=10 + FIGURES_EVERY_NS))
    assert later == {"charge_nanos": str(NANO * (prompt + 6)), "output_tokens": "3", "delivered": f"{3 * EVENT_BYTES}/{EVENT_BYTES}/1"}
    assert told(exchange, chunk(delta("d"), at_ns=10 + FIGURES_EVERY_NS + 1)) == {}


def test_where_the_policy_charges_the_prompt_alone_nobody_is_told_of_output():
    """Neither a worker that dies nor a line of the access log may cost a client more than his leaving would have."""
    exchange = Exchange(pinned(policy=Policy(ended_early="input_only")))
    to_streaming(exchange)
    figures = told(exchange, chunk(delta("abc"), at_ns=10))
    assert (figures["output_tokens"], figures["charge_nanos"]) == ("0", str(NANO * int(figures["input_tokens"])))
    assert "delivered" not in figures, "what came later is nobody's either"
    checkpoint = exchange.receive(ev.Tick(at_ns=20))[0].checkpoint
    end, _ = exchange.receive(ev.Gone(at_ns=30))
    assert checkpoint.charge_nanos == end.ending.charge_nanos == int(figures["charge_nanos"])


def test_nothing_is_told_before_output():
    exchange = streaming()
    assert told(exchange, chunk(b": ping\n\n", at_ns=10**9)) == {}


def test_the_reply_that_ends_the_hold_says_so_and_no_figure():
    exchange = streaming()
    told(exchange, chunk(delta("a"), at_ns=10))
    assert told(exchange, chunk(usage_event() + DONE, at_ns=10**10)) == {"end_reason": "upstream_error"}
    assert told(exchange, chunk(b"", end=True, at_ns=10**11)) == {}

    exchange = streaming()
    assert told(exchange, chunk(delta("a", finish="stop") + usage_event() + DONE, at_ns=10)) == {"end_reason": "stop"}


def test_a_whole_answer_says_only_that_it_is_ended():
    exchange = Exchange(pinned())
    to_streaming(exchange, content_type="application/json")
    choice = {"index": 0, "message": {"content": "hi"}, "finish_reason": "length"}
    body = json.dumps({"choices": [choice], "usage": {"prompt_tokens": 9, "completion_tokens": 2}}).encode()
    assert told(exchange, chunk(body, end=True)) == {"end_reason": "length"}


def test_an_answer_in_pieces_tells_its_prompt_once():
    exchange = Exchange(pinned())
    to_streaming(exchange, content_type="application/json")
    assert told(exchange, chunk(b'{"choices":[', at_ns=10))["output_tokens"] == "0"
    assert told(exchange, chunk(b'{"index":0', at_ns=10 + FIGURES_EVERY_NS)) == {}


def test_what_a_drain_has_cut_is_not_taken_for_a_client_that_left():
    exchange = streaming()
    told(exchange, chunk(delta("a"), at_ns=10))
    exchange.receive(ev.Stopped(at_ns=20))
    assert told(exchange, chunk(delta("b"), at_ns=30)) == {"end_reason": "cut"}


@given(st.lists(st.tuples(st.sampled_from(["a", "bc", 'quo"te', "\n", "é"]), st.integers(0, FIGURES_EVERY_NS)), max_size=40))
def test_figures_never_fall_and_never_exceed_the_truth(pieces: list[tuple[str, int]]):
    """The counter of these tests takes every letter for a token, so that events have one or more of them."""
    exchange, at_ns, letters, last = streaming(), 0, 0, 0
    for text, pause_ns in pieces:
        at_ns += pause_ns + 1
        letters += len(text)
        now = int(told(exchange, chunk(delta(text), at_ns=at_ns)).get("output_tokens", last))
        assert last <= now <= letters
        last = now


@settings(max_examples=30)
@given(
    st.lists(st.lists(st.sampled_from(["a", "bc", 'quo"te', "\n", "é"]), min_size=1, max_size=3), min_size=1, max_size=12), st.booleans()
)
def test_bytes_are_those_that_the_client_got(chunks: list[list[str]], is_torn: bool):
    """Whether events are joined, torn, or of another shape than the one before."""
    exchange, passed = streaming(), 0
    for number, texts in enumerate(chunks):
        body = b"".join(map(delta, texts))
        passed += len(body)
        pieces = (body[:7], body[7:]) if is_torn else (body,)
        for half, piece in enumerate(pieces):
            figures = told(exchange, chunk(piece, at_ns=(2 * number + half + 1) * FIGURES_EVERY_NS))
        body_bytes, event_bytes, _ = map(int, figures["delivered"].split("/"))
        assert body_bytes == passed
        assert EVENT_BYTES <= event_bytes < EVENT_BYTES + 10
