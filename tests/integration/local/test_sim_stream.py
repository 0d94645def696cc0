"""The simulator on a raw socket: bytes, usage, faults, and what its witness says of clients that leave."""

from __future__ import annotations

import itertools
import json
import re
import time

import pytest

MESSAGES = [{"role": "user", "content": "hello there world"}]
PROMPT_TOKENS = 3 + 5 + 3  # words, and ChatML around one message

ids = (f"stream-test-{number}" for number in itertools.count())


def chat(**fields):
    return {"model": "sim-model", "messages": MESSAGES, "stream": True, **fields}


def test_a_stream_is_what_vllm_writes_byte_by_byte(client):
    client.send("/v1/chat/completions", chat(max_tokens=2, stream_options={"include_usage": True}), x_request_id="abc")
    answer = client.answer()
    assert answer.head.split("\r\n")[0] == "HTTP/1.1 200 OK"
    assert "content-type: text/event-stream; charset=utf-8" in answer.head
    head = '{"id":"chatcmpl-abc","object":"chat.completion.chunk","created":0,"model":"sim-model","choices":'
    expected = [
        head + '[{"index":0,"delta":{"role":"assistant","content":""},"logprobs":null,"finish_reason":null}]}',
        head + '[{"index":0,"delta":{"content":" the"},"logprobs":null,"finish_reason":null,"token_ids":null}]}',
        head + '[{"index":0,"delta":{"content":" time"},"logprobs":null,"finish_reason":null,"token_ids":null}]}',
        head + '[{"index":0,"delta":{"content":""},"logprobs":null,"finish_reason":"length","stop_reason":null,"token_ids":null}]}',
        head + '[],"usage":{"prompt_tokens":11,"total_tokens":13,"completion_tokens":2}}',
        "[DONE]",
    ]
    body = re.sub(rb'"created":\d+', b'"created":0', answer.body)
    assert body == b"".join(b"data: %b\n\n" % event.encode() for event in expected)
    assert len(answer.writes) == len(expected)


def test_no_usage_unless_asked_for(client):
    client.send("/v1/chat/completions", chat(max_tokens=2))
    chunks = client.answer().chunks
    assert all("usage" not in chunk for chunk in chunks)
    assert all(chunk["choices"] for chunk in chunks)


def test_continuous_usage_counts_each_choice_by_itself(client):
    options = {"include_usage": True, "continuous_usage_stats": True}
    client.send("/v1/chat/completions", chat(max_tokens=3, n=2, stream_options=options))
    chunks = client.answer().chunks
    seen = {0: [], 1: []}
    for chunk in chunks[:-1]:
        seen[chunk["choices"][0]["index"]].append(chunk["usage"]["completion_tokens"])
        assert chunk["usage"]["prompt_tokens"] == PROMPT_TOKENS
    assert seen == {0: [0, 1, 2, 3, 3], 1: [0, 1, 2, 3, 3]}
    assert chunks[-1]["choices"] == []
    assert chunks[-1]["usage"] == {"prompt_tokens": PROMPT_TOKENS, "total_tokens": PROMPT_TOKENS + 6, "completion_tokens": 6}


def test_json_answer(client):
    client.send("/v1/chat/completions", chat(max_tokens=5, stream=False, n=2))
    answer = client.answer().json
    assert answer["usage"] == {"prompt_tokens": PROMPT_TOKENS, "total_tokens": PROMPT_TOKENS + 10, "completion_tokens": 10}
    assert [len(choice["message"]["content"].split()) for choice in answer["choices"]] == [5, 5]
    assert {choice["finish_reason"] for choice in answer["choices"]} == {"length"}


def test_completions_sum_over_prompts(client):
    client.send("/v1/completions", {"prompt": ["one two", "three"], "n": 2, "max_tokens": 4})
    answer = client.answer().json
    assert [choice["index"] for choice in answer["choices"]] == [0, 1, 2, 3]
    assert answer["usage"] == {"prompt_tokens": 3, "total_tokens": 19, "completion_tokens": 16}
    client.send("/v1/completions", {"prompt": "one two", "stream": True, "stream_options": {"include_usage": True}})
    chunks = client.answer().chunks
    assert chunks[0]["choices"][0]["text"] == " the"
    assert chunks[-1]["usage"]["completion_tokens"] == 16  # max_tokens where the client names none


def test_tokens_by_header_and_end_by_stop(client):
    client.send("/v1/chat/completions", chat(max_tokens=100), x_sim_tokens="7")
    answer = client.answer()
    assert len(answer.text.split()) == 7
    assert answer.chunks[-1]["choices"][0]["finish_reason"] == "stop"


def test_fast_streams_are_whole(client):
    client.send("/v1/chat/completions", chat(max_tokens=3_000, ignore_eos=True, stream_options={"include_usage": True}))
    answer = client.answer()
    assert len(answer.text.split()) == 3_000
    assert answer.chunks[-1]["usage"]["completion_tokens"] == 3_000


def test_pace(client):
    client.send("/v1/chat/completions", chat(max_tokens=5), x_sim_first_ms="40", x_sim_delay_ms="20")
    started = time.monotonic()
    answer = client.answer()
    assert 0.115 < time.monotonic() - started < 1.0  # 40 + 4 × 20 ms, at a millisecond's grain
    assert len(answer.text.split()) == 5


@pytest.mark.parametrize(
    ("fields", "status", "word"),
    [
        ({"model": "nothing"}, 404, "does not exist"),
        ({"max_tokens": 200_000}, 400, "too large"),
        ({"messages": [{"role": "user", "content": "a " * 140_000}]}, 400, "maximum context length"),
        ({"max_tokens": 0}, 400, "at least 1"),
        ({"stream": False, "stream_options": {"include_usage": True}}, 400, "Stream options"),
        ({"messages": []}, 400, "Field required"),
    ],
)
def test_refusals(client, fields, status, word):
    client.send("/v1/chat/completions", chat(**fields))
    answer = client.answer()
    assert answer.status == status
    error = answer.json["error"]
    assert word in error["message"]
    assert error["code"] == status
    client.send("/v1/models", method="GET")
    assert [card["id"] for card in client.answer().json["data"]] == ["sim-model", "other-model"]


def test_a_missing_model_is_served_by_the_first(client):
    client.send("/v1/chat/completions", {"messages": MESSAGES, "max_tokens": 1})
    assert client.answer().json["model"] == "sim-model"


def test_status(client):
    client.send("/v1/chat/completions", chat(), x_sim_fault="status=503")
    assert client.answer().status == 503


def test_a_misspelt_fault_is_refused(client):
    client.send("/v1/chat/completions", chat(), x_sim_fault="stale_after=3")
    answer = client.answer()
    assert answer.status == 400
    assert "unknown fault" in answer.json["error"]["message"]


def test_reset_before_the_first_byte(client):
    client.send("/v1/chat/completions", chat(), x_sim_fault="reset")
    answer = client.answer()
    assert (answer.head, answer.broken) == ("", "ConnectionResetError")


def test_reset_after_events(client):
    client.send("/v1/chat/completions", chat(max_tokens=9), x_sim_fault="reset_after=3", x_sim_delay_ms="5")
    answer = client.answer()
    assert answer.broken == "ConnectionResetError"
    assert len(answer.text.split()) == 3


def test_stall_after_events(client):
    client.send("/v1/chat/completions", chat(max_tokens=9), x_sim_fault="stall_after=3")
    answer = client.answer(silence_s=0.2)
    assert answer.broken == "TimeoutError"
    assert len(answer.text.split()) == 3


def test_hang_headers(client):
    client.send("/v1/chat/completions", chat(), x_sim_fault="hang_headers")
    answer = client.answer(silence_s=0.2)
    assert (answer.head, answer.broken) == ("", "TimeoutError")


@pytest.mark.parametrize("fault", ["no_usage", "no_final_usage"])
def test_lost_usage(client, fault):
    options = {"include_usage": True, "continuous_usage_stats": True}
    client.send("/v1/chat/completions", chat(max_tokens=2, stream_options=options), x_sim_fault=fault)
    chunks = client.answer().chunks
    assert chunks[-1]["choices"][0]["finish_reason"] == "length"
    assert any("usage" in chunk for chunk in chunks) == (fault == "no_final_usage")


@pytest.mark.parametrize(
    ("kind", "usage"),
    [
        ("huge", {"prompt_tokens": 900_000_000_000, "completion_tokens": 900_000_000_000}),
        ("negative", {"prompt_tokens": -5, "completion_tokens": -7}),
        ("float", {"prompt_tokens": 12.5, "completion_tokens": 7.25}),
        ("cached", {"prompt_tokens": PROMPT_TOKENS, "prompt_tokens_details": {"cached_tokens": PROMPT_TOKENS + 1000}}),
    ],
)
def test_wrong_usage(client, kind, usage):
    for stream in (False, True):
        fields = chat(max_tokens=2, stream=stream, **({"stream_options": {"include_usage": True}} if stream else {}))
        client.send("/v1/chat/completions", fields, x_sim_fault=f"wrong_usage={kind}")
        answer = client.answer()
        told = answer.chunks[-1]["usage"] if stream else answer.json["usage"]
        assert usage.items() <= told.items()


def test_engine_death(client):
    fields = chat(max_tokens=9, stream_options={"include_usage": True})
    client.send("/v1/chat/completions", fields, x_sim_fault="engine_death_after=2")
    answer = client.answer()
    assert answer.status == 200
    assert answer.events[-1] == "[DONE]"
    assert answer.chunks[-1]["error"]["code"] == 500
    assert all("usage" not in chunk for chunk in answer.chunks)
    assert all(choice["finish_reason"] is None for chunk in answer.chunks for choice in chunk.get("choices", ()))
    client.send("/v1/chat/completions", chat(stream=False), x_sim_fault="engine_death_after=2")
    assert client.answer().status == 500


def test_abort(client):
    client.send("/v1/chat/completions", chat(max_tokens=9), x_sim_fault="abort_after=2")
    answer = client.answer()
    assert len(answer.text.split()) == 2
    assert answer.chunks[-1]["choices"][0]["finish_reason"] == "abort"
    assert answer.events[-1] == "[DONE]"


@pytest.mark.parametrize("fault", ["split_utf8", "byte_by_byte", "join=3", "join=1", "crlf", "comments", "long_event=20000"])
def test_other_ways_to_write_the_same_events(client, fault):
    fields = chat(max_tokens=6, stream_options={"include_usage": True})
    client.send("/v1/chat/completions", fields, x_request_id="same")
    plain = client.answer()
    client.send("/v1/chat/completions", fields, x_request_id="same", x_sim_fault=fault)
    odd = client.answer()
    assert odd.broken is None
    assert (odd.text, odd.chunks[-1]["usage"], odd.events[-1]) == (plain.text, plain.chunks[-1]["usage"], "[DONE]")
    if fault != "join=1":  # the same chunks, each in a write of its own
        assert odd.writes != plain.writes
    if fault == "byte_by_byte":
        assert {len(write) for write in odd.writes[:-1]} == {1}
    if fault == "join=3":
        assert [write.count(b"\n\n") for write in odd.writes] == [3, 3, 3, 1]
    if fault == "crlf":
        assert odd.body.replace(b"\r\n", b"\n") == re.sub(rb'"created":\d+', re.search(rb'"created":\d+', odd.body)[0], plain.body)
    if fault.startswith("long_event"):
        assert max(map(len, odd.writes)) > 20_000


def test_late_end_of_the_body(client):
    client.send("/v1/chat/completions", chat(max_tokens=1), x_sim_fault="late_eos_ms=60")
    answer = client.answer(silence_s=0.02)
    assert (answer.broken, answer.events[-1]) == ("TimeoutError", "[DONE]")
    client.socket.settimeout(5)
    assert client._until(b"0\r\n\r\n") == b""


def test_stream_interval_of_the_client(client):
    client.send("/v1/chat/completions", chat(max_tokens=400, ignore_eos=True, stream_interval=4))
    answer = client.answer()
    assert len(answer.text.split()) == 400
    assert sum(1 for chunk in answer.chunks if chunk["choices"][0]["delta"].get("content")) == 101


def test_hidden_reasoning_is_billed(client):
    fields = chat(max_tokens=8, stream_options={"include_usage": True}, include_reasoning=False)
    client.send("/v1/chat/completions", fields, x_sim_reasoning="6")
    answer = client.answer()
    assert len(answer.text.split()) == 2
    assert answer.chunks[-1]["usage"]["completion_tokens"] == 8
    client.send("/v1/chat/completions", {**fields, "include_reasoning": True}, x_sim_reasoning="6")
    assert sum(1 for chunk in client.answer().chunks for choice in chunk["choices"] if "reasoning" in choice["delta"]) == 6


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_leaves_stops_the_generation(simulator, connect, until, stream):
    request_id = next(ids)
    leaving = connect()
    fields = chat(max_tokens=500, ignore_eos=True, stream=stream)
    leaving.send("/v1/chat/completions", fields, x_request_id=request_id, x_sim_delay_ms="50" if stream else "20")
    until(lambda: simulator.requests(request_id))
    if stream:
        while leaving._buffer.count(b'"content":" ') < 4:
            leaving._more()
    else:
        until(lambda: time.time() - simulator.requests(request_id)[0]["arrived_s"] > 0.1)
    received = leaving._buffer.count(b'"content":" ')
    left = time.time()
    leaving.close()
    record = until(lambda: next((one for one in simulator.requests(request_id) if one["end"] != "open"), None))
    assert record["end"] == "client_gone"
    assert record["arrived_s"] + record["duration_s"] - left < 0.1
    if stream:
        assert received <= record["delivered_tokens"] == record["generated_tokens"] <= received + 2
    else:
        assert record["delivered_tokens"] == 0
        assert 5 <= record["generated_tokens"] < 60


def test_a_client_that_does_not_read_stops_the_generation_too(simulator, connect, until):
    request_id = next(ids)
    deaf = connect()
    deaf.send("/v1/chat/completions", chat(max_tokens=100_000, ignore_eos=True), x_request_id=request_id)

    def stuck():
        first = simulator.requests(request_id)
        time.sleep(0.05)
        again = simulator.requests(request_id)
        return bool(again) and again[0]["generated_tokens"] == first[0]["generated_tokens"] if first else False

    until(stuck)
    record = simulator.requests(request_id)[0]
    assert record["end"] == "open"
    assert 0 < record["delivered_tokens"] < record["generated_tokens"] < 100_000
    deaf.close()
    assert until(lambda: simulator.requests(request_id)[0]["end"] == "client_gone")


def test_the_witness_keeps_headers_and_bodies(simulator, client):
    request_id = next(ids)
    _, before = simulator.log()
    fields = chat(max_tokens=3)
    client.send("/v1/chat/completions", fields, x_request_id=request_id, x_hold_id="hold-1", Authorization="Bearer sk-seen")
    client.answer()
    (record,) = simulator.requests(request_id)
    assert record["hold_id"] == "hold-1"
    assert ["Authorization", "Bearer sk-seen"] in record["headers"]
    assert record["body"] == fields
    assert (record["prompt_tokens"], record["generated_tokens"], record["delivered_tokens"]) == (PROMPT_TOKENS, 3, 3)
    assert (record["end"], record["finish_reason"], record["status"]) == ("finished", "length", 200)
    (logged,) = simulator.log(before)[0]
    assert logged["body"]["messages"] == [{"role": "user", "content": {"length": 17}}]
    assert "hello" not in json.dumps(logged)


def test_metrics_agree_with_the_answers(simulator, client):
    before = simulator.metrics()
    client.send("/v1/chat/completions", chat(max_tokens=9))
    client.answer()
    after = simulator.metrics()
    assert after["vllm:generation_tokens_total"] - before["vllm:generation_tokens_total"] == 9
    assert after["vllm:prompt_tokens_total"] - before["vllm:prompt_tokens_total"] == PROMPT_TOKENS
    assert after["vllm:num_requests_running"] == 0


def test_tokenize(client):
    client.send("/tokenize", {"prompt": "one two three"})
    assert client.answer().json["count"] == 3
    client.send("/tokenize", {"messages": MESSAGES})
    assert client.answer().json["count"] == PROMPT_TOKENS


def test_requests_on_one_connection_are_answered_in_order(client):
    for tokens in (5, 1, 3):
        client.send("/v1/chat/completions", chat(max_tokens=tokens), x_sim_delay_ms="2")
    assert [len(client.answer().text.split()) for _ in range(3)] == [5, 1, 3]


def test_a_chunked_request_body(client):
    body = json.dumps(chat(max_tokens=2)).encode()
    client.socket.sendall(b"POST /v1/chat/completions HTTP/1.1\r\nhost: sim\r\ntransfer-encoding: chunked\r\n\r\n")
    for part in (body[:10], body[10:]):
        client.socket.sendall(b"%x\r\n%b\r\n" % (len(part), part))
    client.socket.sendall(b"0\r\n\r\n")
    assert len(client.answer().text.split()) == 2


def test_what_is_no_http_is_refused(client):
    client.socket.sendall(b"hello\r\n\r\n")
    assert client.answer().status == 400
