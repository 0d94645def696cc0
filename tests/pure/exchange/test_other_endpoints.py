"""Embeddings, rerank, score, transcriptions, tokenize, images, echo: what each holds, forwards and charges."""

from __future__ import annotations

import base64
import json
import struct
from typing import Any

import pytest
from stage import RATE, chat, chunk, delta, ends, error_of, granted, headers, key, model, pinned, play, to_open, usage_event
from test_audio import wav

from extproc.catalog.model import Model, Tariff
from extproc.exchange import actions as act
from extproc.exchange import events as ev
from extproc.exchange.endpoints import ENDPOINTS, transcriptions
from extproc.exchange.form import BOUNDARY, CONTENT_TYPE
from extproc.exchange.machine import Exchange
from extproc.exchange.policy import Bounds, Policy
from extproc.money.hold import EndKind
from extproc.money.price import Rates

TRANSCRIPTIONS = "/v1/audio/transcriptions"
LISTED = frozenset(endpoint.name for endpoint in ENDPOINTS if endpoint.is_listed)
FREE = [
    ("/tokenize", {"prompt": "hi"}),
    ("/tokenize", {"messages": [{"role": "user", "content": "hi"}]}),
    ("/detokenize", {"tokens": [1, 2]}),
]


def sold(**changes: Any) -> Model:
    return model(**({"endpoints": LISTED} | changes))


def spoken(**changes: Any) -> Model:
    """A millionth of a unit of money for a thousand milliseconds."""
    return sold(tariffs=(Tariff(method="per_second", rates=Rates(audio_ms=1_000_000)),), output_tokens_max=0, **changes)


class Walk:
    """One request through the machine, up to its charge."""

    def __init__(
        self, path: str, served: Model | None = None, *, policy: Policy | None = None, bounds: Bounds | None = None, **more: str
    ) -> None:
        self.exchange = Exchange(pinned(served or sold(), policy=policy, bounds=bounds or Bounds(offload_bytes=65_536)))
        to_open(self.exchange, path=path, **more)

    def ask(self, body: Any) -> Any:
        """The amendment, or the refusal."""
        data = body if isinstance(body, bytes) else json.dumps({"model": "m"} | body).encode()
        first = self.exchange.receive(ev.Body(data=data))[0]
        return first.amendment if isinstance(first, act.Amend) else first

    def forward(self) -> act.PassBody:
        (passed,) = self.exchange.receive(ev.Amended(granted=granted()))
        assert isinstance(passed, act.PassBody)
        return passed

    def answer(self, body: Any, content_type: str = "application/json") -> tuple[Any, Any]:
        """The ending and the record."""
        self.exchange.receive(ev.ResponseHeaders(status=200, headers={"content-type": content_type}))
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        end, *_, note = play(self.exchange, chunk(data, end=True))
        return end.ending, note.record


@pytest.mark.parametrize(
    ("path", "body", "tokens", "answer", "charged"),
    [
        ("/v1/embeddings", {"input": "hello"}, 5 + 16 + 2, {"data": [], "usage": {"prompt_tokens": 6, "total_tokens": 6}}, 6),
        ("/v1/embeddings", {"input": ["a", "bc"]}, 3 + 16 + 4, {"data": [], "usage": {"prompt_tokens": 5, "completion_tokens": 9}}, 5),
        ("/v1/embeddings", {"input": [1, 2, 3]}, 3 + 16 + 2, {"data": [{"embedding": "AAAA"}]}, 3),
        ("/v1/embeddings", {"input": [[1], [2, 3]], "encoding_format": "base64"}, 3 + 16 + 4, {"data": [], "usage": {}}, 3),
        (
            "/rerank",
            {"query": "abc", "documents": ["d", {"text": "ef"}]},
            9 + 16 + 2 * 96,
            {"results": [], "usage": {"total_tokens": 12}},
            12,
        ),
        ("/v1/rerank", {"query": "abc", "documents": ["d"]}, 4 + 16 + 96, {"results": []}, 4),
        ("/v2/rerank", {"query": "abc", "documents": ["d"]}, 4 + 16 + 96, {"results": [], "usage": {"prompt_tokens": 99_999}}, 116),
        ("/score", {"text_1": "abc", "text_2": ["d", "ef"]}, 9 + 16 + 2 * 96, {"data": [], "usage": {"prompt_tokens": 13}}, 13),
        ("/v1/score", {"text_1": ["abc", "d"], "text_2": ["d", "ef"]}, 7 + 16 + 2 * 96, {"data": []}, 7),
    ],
)
def test_prompts_without_output(path: str, body: dict, tokens: int, answer: dict, charged: int):
    walk = Walk(path)
    amendment = walk.ask(body)
    assert (amendment.tokens, amendment.reserved_nanos) == (tokens, tokens * 1_000)
    forwarded = json.loads(walk.forward().data)
    assert forwarded["model"] == "m"
    assert "stream" not in forwarded
    assert "max_tokens" not in forwarded
    ending, record = walk.answer(answer)
    assert (ending.kind, ending.charge_nanos) == (EndKind.SETTLE, charged * 1_000)
    assert record.output_tokens == 0
    assert record.end_reason == "stop"


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        ("/v1/embeddings", {}, "input"),
        ("/v1/embeddings", {"input": []}, "input"),
        ("/v1/embeddings", {"input": [1, "a"]}, "input"),
        ("/v1/embeddings", {"input": [True]}, "input"),
        ("/v1/embeddings", {"input": ["a"] * 2_049}, "input"),
        ("/v1/embeddings", {"input": "a", "encoding_format": "bytes"}, "encoding_format"),
        ("/v1/embeddings", {"input": "a", "encoding_format": ["float"]}, "encoding_format"),
        ("/v1/embeddings", {"input": "a", "dimensions": 0}, "dimensions"),
        ("/v1/embeddings", {"input": "x" * 10_001}, "input"),
        ("/rerank", {"documents": ["a"]}, "query"),
        ("/rerank", {"query": "a", "documents": []}, "documents"),
        ("/rerank", {"query": "a", "documents": [1]}, "documents"),
        ("/rerank", {"query": "a", "documents": {"content": []}}, "documents"),
        ("/rerank", {"query": ["a"], "documents": ["a"]}, "query"),
        ("/score", {"text_1": ["a", "b"], "text_2": ["c"]}, "text_1"),
        ("/score", {"text_1": "a"}, "text_2"),
        ("/tokenize", {}, "prompt"),
        ("/tokenize", {"prompt": ["a"]}, "prompt"),
        ("/tokenize", {"messages": "a"}, "messages"),
        ("/detokenize", {"tokens": "a"}, "tokens"),
        ("/detokenize", {"tokens": [1.5]}, "tokens"),
        ("/v1/completions", {"prompt": "a", "suffix": "b"}, "suffix"),
        ("/v1/completions", {"prompt": "a", "echo": True, "max_tokens": 0}, "max_tokens"),
    ],
)
def test_bodies_that_are_refused(path: str, body: dict, param: str):
    reply = Walk(path).ask(body)
    assert (reply.status, error_of(reply)["param"]) == (400, param)


@pytest.mark.parametrize(("tokenizer", "held"), [("upstream", 16 + 2 * 1_000), ("words", 2 * 1_000)])
def test_a_thousand_empty_texts_have_their_beginnings_and_ends(tokenizer: str, held: int):
    walk = Walk("/v1/embeddings", sold(tokenizer=tokenizer), bounds=Bounds(count_exactly_bytes_max=-1))
    assert walk.ask({"input": [""] * 1_000}).tokens == held


def test_what_a_window_cannot_hold_may_be_cut_by_the_backend():
    walk = Walk("/v1/embeddings")
    assert walk.ask({"input": "x" * 20_000, "truncate_prompt_tokens": -1}).tokens == 10_000
    assert json.loads(walk.forward().data)["truncate_prompt_tokens"] == -1


def test_an_endpoint_must_be_sold_for_a_model():
    reply = Walk("/v1/embeddings", model()).ask({"input": "a"})
    assert (reply.status, error_of(reply)["code"]) == (404, "model_not_found")


@pytest.mark.parametrize(("path", "body"), FREE)
def test_counting_tokens_costs_nothing(path: str, body: dict):
    walk = Walk(path, model())
    amendment = walk.ask(body | {"chat_template": "x", "priority": 1})
    assert (amendment.tokens, amendment.reserved_nanos, amendment.cap_nanos) == (0, 0, 0)
    assert json.loads(walk.forward().data) == {"model": "m", **body}
    ending, record = walk.answer({"count": 3, "tokens": [1, 2, 3]})
    assert (ending.charge_nanos, record.list_nanos, record.overage_nanos, record.input_tokens) == (0, 0, 0, 0)
    assert (record.policies, record.usage_source) == ((), "upstream")


# transcriptions


def form(file: bytes = wav(2.5), **fields: str) -> bytes:
    parts = [
        f'--b\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n{value}\r\n' for name, value in ({"model": "m"} | fields).items()
    ]
    return (
        "".join(parts).encode() + b'--b\r\nContent-Disposition: form-data; name="file"; filename="a.wav"\r\n\r\n' + file + b"\r\n--b--\r\n"
    )


def hear(**more: Any) -> Walk:
    return Walk("/v1/audio/transcriptions", spoken(), content_type="multipart/form-data; boundary=b", **more)


@pytest.mark.parametrize(
    ("answer", "charged_ms", "source"),
    [
        ({"text": "hi", "usage": {"type": "duration", "seconds": 3}}, 3_000, "upstream"),
        ({"text": "hi", "usage": {"type": "duration", "seconds": 2.75}}, 2_750, "upstream"),
        ({"text": "hi", "usage": {"type": "duration", "seconds": 0}}, 2_500, "upstream"),
        ({"text": "hi", "usage": {"type": "duration", "seconds": 9_000}}, 4_000, "upstream"),
        ({"text": "hi", "usage": {"type": "duration", "seconds": -1}}, 2_500, "upstream"),
        ({"text": "hi", "usage": {"type": "tokens", "input_tokens": 25, "output_tokens": 2}}, 2_500, "upstream"),
        ({"text": "hi", "duration": "2.6", "segments": []}, 2_600, "upstream"),
        ({"text": "hi"}, 2_500, "counted"),
        ({"text": "", "usage": {"seconds": "x"}}, 2_500, "counted"),
        (b"just text", 2_500, "counted"),
    ],
)
def test_sound_is_paid_by_the_second(answer: Any, charged_ms: int, source: str):
    walk = hear()
    amendment = walk.ask(form(language="en", vllm_xargs="{}"))
    assert amendment.reserved_nanos == 4_000  # 2.5 s in whole seconds, and one more
    passed = walk.forward()
    assert dict(passed.set_headers)["content-type"] == CONTENT_TYPE
    assert wav(2.5) in passed.data
    assert b"xargs" not in passed.data
    assert passed.data.count(BOUNDARY.encode()) == 4
    ending, record = walk.answer(answer)
    assert (ending.charge_nanos, record.usage_source, record.end_reason) == (charged_ms, source, "stop")


def test_tokens_of_sound_are_no_more_than_its_pieces_can_have():
    walk = hear()
    walk.ask(form())
    walk.forward()
    _, record = walk.answer({"text": "hi", "usage": {"type": "tokens", "input_tokens": 31_000, "output_tokens": 2}})
    assert (record.input_tokens, record.output_tokens, record.usage_flags[-1]) == (3 * 10_000, 2, "input_tokens_impossible")


@pytest.mark.parametrize(
    ("usage", "counted"),
    [({"seconds": 3}, 150), ({"input_tokens": 25, "output_tokens": 2}, 127), ({"input_tokens": 250, "output_tokens": 2}, 252)],
)
def test_sound_counts_as_tokens_where_those_are_limited(usage: dict, counted: int):
    """50 a second: else no day ends for a sandbox key, who pays nothing."""
    exchange = Exchange(pinned(spoken(sandbox=True)))
    exchange.receive(headers(path="/v1/audio/transcriptions", content_type="multipart/form-data; boundary=b"))
    exchange.receive(ev.KeyRead(key=key(sandbox=True)))
    exchange.receive(ev.Admitted(granted=granted()))
    (amend,) = exchange.receive(ev.Body(data=form()))
    assert isinstance(amend, act.Amend)
    assert (amend.amendment.tokens, amend.amendment.sandbox_tokens_per_day) == (200, 100_000)
    exchange.receive(ev.Amended(granted=granted()))
    exchange.receive(ev.ResponseHeaders(status=200, headers={"content-type": "application/json"}))
    (end,) = ends(play(exchange, chunk(json.dumps({"text": "hi", "usage": usage}).encode(), end=True)))
    assert (end.ending.tokens, end.ending.charge_nanos) == (counted, 0)


@pytest.mark.parametrize("answer", [{"error": {"message": "no"}}, b"<html>", b"", {}])
def test_sound_that_was_not_understood_is_not_paid(answer: Any):
    walk = hear()
    walk.ask(form())
    walk.forward()
    assert walk.answer(answer)[0].kind is EndKind.VOID


@pytest.mark.parametrize("form_of_answer", ["text", "srt", "vtt"])
@pytest.mark.parametrize("spoken_words", ['{"text":"hi","usage":{"seconds":0.001}}', '{"error":{"message":"no"}}', "<hm>"])
def test_what_was_asked_for_as_text_is_text(form_of_answer: str, spoken_words: str):
    """Whoever makes a model say a usage object writes his own bill."""
    walk = hear()
    walk.ask(form(response_format=form_of_answer))
    walk.forward()
    ending, record = walk.answer(spoken_words.encode(), "text/plain")
    assert (ending.charge_nanos, record.usage_source, record.end_reason) == (2_500, "counted", "stop")


def test_a_transcription_may_be_streamed():
    walk = hear()
    walk.ask(form(stream="true"))
    assert b'name="stream_include_usage"\r\n\r\ntrue' in walk.forward().data
    walk.exchange.receive(ev.ResponseHeaders(status=200, headers={"content-type": "text/event-stream"}))
    end, reply, _ = play(walk.exchange, chunk(delta("hi", "stop") + usage_event(250, 2)))
    assert end.ending.charge_nanos == 2_500
    assert reply.data == delta("hi", "stop")


@pytest.mark.parametrize("sent", [form(), form(b"")])
def test_in_shadow_mode_a_form_goes_on_as_it_came(sent: bytes):
    walk = hear(policy=Policy(shadow=True))
    passed, *_ = walk.exchange.receive(ev.Body(data=sent))
    if isinstance(passed, act.Amend):
        passed = walk.forward()
    assert passed.data == sent
    assert "content-type" not in dict(passed.set_headers)


@pytest.mark.parametrize("more", [{"stream": "true"}, {"response_format": "srt"}, {"response_format": "xml"}])
def test_somebody_must_tell_the_seconds(more: dict):
    reply = hear().ask(form(b"\x1aE\xdf\xa3" + bytes(5_000), **more))
    assert (reply.status, error_of(reply)["param"]) == (400, next(iter(more)))
    translation = Walk("/v1/audio/translations", spoken(), content_type="multipart/form-data; boundary=b")
    assert error_of(translation.ask(form(b"\x1aE\xdf\xa3" + bytes(5_000))))["code"] == "unknown_duration"
    walk = hear()
    walk.ask(form(b"\x1aE\xdf\xa3" + bytes(7_500)))
    walk.forward()
    assert walk.answer({"text": "hi", "usage": {"type": "duration", "seconds": 10}})[0].charge_nanos == 10_000


def test_sound_of_more_than_a_day(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(transcriptions, "LENGTH_MS_MAX", 3_000)
    assert hear().ask(form(wav(1.5))).reserved_nanos == 3_000
    reply = hear().ask(form(wav(2.5)))
    assert (reply.status, error_of(reply)["code"]) == (413, "audio_too_long")


@pytest.mark.parametrize(
    ("body", "param"), [(form(b""), "file"), (form().replace(b'; filename="a.wav"', b""), "file"), (form(model=""), "model")]
)
def test_forms_that_are_refused(body: bytes, param: str):
    reply = hear().ask(body)
    assert (reply.status, error_of(reply)["param"]) in ((400, param), (400, None))


@pytest.mark.parametrize(
    ("path", "length", "admitted"),
    [("/v1/embeddings", 200, True), ("/v1/embeddings", 201, False), (TRANSCRIPTIONS, 10_000, True), (TRANSCRIPTIONS, 10_001, False)],
)
def test_a_recording_may_be_larger_than_json(path: str, length: int, admitted: bool):
    bounds = Bounds(json_bytes_max=200, body_bytes_max=10_000)
    exchange = Exchange(pinned(sold(), bounds=bounds))
    first, *_ = play(exchange, headers(path, content_length=str(length)), ev.KeyRead(key=key()))[1:]
    assert isinstance(first, act.Admit) if admitted else error_of(first)["code"] == "request_too_large"
    reply = Walk(path, bounds=bounds).ask(b" " * length)
    assert (reply.status == 413) is not admitted


# images and echo


def png(width: int, height: int) -> str:
    head = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR" + struct.pack(">II", width, height) + bytes(9)
    return "data:image/png;base64," + base64.b64encode(head + b"\0\0\0\x04IDAT" + bytes(64)).decode()


def looking(*urls: Any, text: str = "hello") -> dict:
    parts = [{"type": "text", "text": text}, *({"type": "image_url", "image_url": url} for url in urls)]
    return {"messages": [{"role": "user", "content": parts}], "max_tokens": 1}


SEEING = {"image_formula": "qwen2-vl", "image_tokens_max": 4_000}


@pytest.mark.parametrize(
    ("urls", "images"),
    [
        ([{"url": png(512, 512), "detail": "low"}], 326),
        ([png(28, 28)], 6),
        ([{"url": "https://example.org/a.png"}], 4_002),
        ([png(512, 512), {"url": "http://example.org/a.png"}], 326 + 4_002),
        (["data:image/png;base64,AAAA"], 4_002),
    ],
)
def test_images_are_held_for(urls: list, images: int):
    walk = Walk("/v1/chat/completions", sold(**SEEING))
    assert walk.ask(looking(*urls)).tokens == 11 + 22 + images + 1
    forwarded = json.loads(walk.forward().data)
    assert [part["image_url"]["url"] for part in forwarded["messages"][0]["content"][1:]] == [
        url["url"] if isinstance(url, dict) else url for url in urls
    ]


def test_images_may_be_priced_by_the_piece():
    tariff = Tariff(method="hybrid", rates=Rates(input=RATE, images=7_000_000 * 1_000_000))
    walk = Walk("/v1/chat/completions", sold(**SEEING, tariffs=(tariff,)))
    walk.ask(looking(png(28, 28), "https://example.org/a.png"))
    walk.forward()
    answer = {"choices": [{"message": {"content": "h"}, "finish_reason": "stop"}], "usage": {"prompt_tokens": 300, "completion_tokens": 1}}
    ending, record = walk.answer(answer)
    assert (ending.charge_nanos, record.images) == (300 * 1_000 + 2 * 7_000_000, 2)


def test_images_nobody_counted_are_charged_by_their_size():
    walk = Walk("/v1/chat/completions", sold(**SEEING, tariffs=(Tariff(rates=Rates(input=RATE, image_tokens=2 * RATE, output=RATE)),)))
    walk.ask(looking(png(512, 512)))
    walk.forward()
    ending, record = walk.answer({"choices": [{"message": {"content": "h"}, "finish_reason": "stop"}]})
    assert (ending.charge_nanos, record.input_tokens) == ((11 + 1) * 1_000 + 326 * 2_000, 337)


@pytest.mark.parametrize(
    ("served", "body", "code"),
    [
        (sold(), looking(png(28, 28)), "images_not_supported"),
        (sold(**SEEING), looking("file:///etc/passwd"), "invalid_value"),
        (sold(**SEEING), looking({"url": "ftp://example.org"}), "invalid_value"),
        (sold(**SEEING), looking({"url": "https://" + "x" * 9_000}), "invalid_value"),
        (sold(**SEEING), looking(5), "invalid_type"),
        (sold(**SEEING), looking(*["https://example.org"] * 257), "invalid_value"),
        (sold(**SEEING), looking(*[png(3_000, 1_000)] * 3), "context_length_exceeded"),
        (sold(**SEEING), {"messages": [{"role": "user", "content": [{"type": "input_audio", "input_audio": {}}]}]}, "invalid_value"),
    ],
)
def test_images_that_are_refused(served: Model, body: dict, code: str):
    reply = Walk("/v1/chat/completions", served).ask(body)
    assert (reply.status, error_of(reply)["code"]) == (400, code)


@pytest.mark.parametrize("path", ["/tokenize", "/v1/messages/count_tokens"])
def test_who_pays_nothing_has_nothing_fetched(path: str):
    def ask(url: str) -> Any:
        walk = Walk(path)
        if path == "/tokenize":
            return walk.ask(looking(url))
        source = {"type": "base64", "media_type": "image/png", "data": url} if url == "AAAA" else {"type": "url", "url": url}
        return walk.ask({"messages": [{"role": "user", "content": [{"type": "image", "source": source}]}]})

    reply = ask("HTTPS://example.org/large.png")
    assert (reply.status, error_of(reply)["param"]) == (400, "messages")
    assert ask("AAAA" if path != "/tokenize" else png(3, 3)).reserved_nanos == 0


def test_an_echo_is_no_output():
    walk = Walk("/v1/completions")
    walk.ask({"prompt": ["abc", "de"], "echo": True, "n": 2, "max_tokens": 4})
    assert json.loads(walk.forward().data)["echo"] is True
    answer = {
        "choices": [{"index": index, "text": text, "finish_reason": "stop"} for index, text in enumerate(["abcX", "abcYZ", "de", "deV"])]
    }
    ending, record = walk.answer(answer)
    assert (record.output_tokens, ending.charge_nanos) == (4, 5_000 + 4 * 2_000)
    assert record.choices == 2, "of each prompt, not of both"
    assert error_of(Walk("/v1/completions", model(tokenizer="upstream")).ask({"prompt": "a", "echo": True}))["param"] == "echo"


def test_characters_and_words_are_held_and_charged_where_they_are_priced():
    rates = Rates(input_characters=1_000_000, input_words=100_000_000)
    walk = Walk("/v1/embeddings", sold(tariffs=(Tariff(method="per_character", rates=rates),)))
    assert walk.ask({"input": ["ab cd", "語 文"]}).reserved_nanos == 8 + 400
    walk.forward()
    assert walk.answer({"data": [], "usage": {"prompt_tokens": 500}})[0].charge_nanos == 408


def test_a_form_needs_a_form():
    reply = Walk("/v1/audio/transcriptions", spoken()).ask({"file": "x"})
    assert (reply.status, error_of(reply)["code"]) == (415, "unsupported_media_type")


def test_each_path_leads_to_one_endpoint():
    paths = [path for endpoint in ENDPOINTS for path in endpoint.paths]
    assert len(paths) == len(set(paths))
    for path in paths:
        (asked,) = Exchange(pinned()).receive(headers(path))
        assert isinstance(asked, act.LookUpKey)


def test_unknown_posts_stay_out():
    for path in ("/invocations", "/pooling", "/v1/chat/completions/batch", "/inference/v1/generate", "/v2/embed", "/v1/tokenize"):
        reply, _ = Exchange(pinned()).receive(headers(path))
        assert (reply.status, error_of(reply)["code"]) == (404, "unknown_url")
    assert key().id
    assert chat().data
