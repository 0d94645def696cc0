from __future__ import annotations

import json

import pytest
from stage import (
    DONE,
    HOLD,
    PAYER,
    chat,
    chunk,
    delivered,
    delta,
    ends,
    error_of,
    granted,
    headers,
    key,
    model,
    pinned,
    play,
    to_open,
    to_streaming,
    usage_event,
)  # fmt: skip

from extproc.catalog.model import FREE
from extproc.errors import IllegalEvent
from extproc.exchange import actions as act
from extproc.exchange import events as ev
from extproc.exchange.machine import TRANSITIONS, Exchange, State
from extproc.exchange.policy import Bounds, Policy
from extproc.exchange.replies import CUT_EVENT
from extproc.money.hold import Denied, DenyReason, EndKind, Granted, Window


def denied(reason: DenyReason = DenyReason.INSUFFICIENT, **more: object) -> Denied:
    return Denied(reason=reason, **more)


def row_of(end: act.End) -> dict:
    return json.loads(end.ending.row)


def test_a_streamed_request_from_headers_to_settle():
    exchange = Exchange(pinned())
    (look_up,) = exchange.receive(headers())
    assert look_up == act.LookUpKey(secret="sk-good")
    (admit,) = exchange.receive(ev.KeyRead(key=key()))
    assert (admit.admission.hold_id, admit.admission.payer_id, admit.admission.request_id) == (HOLD, PAYER, "r1")
    assert admit.admission.entry_nanos == 1_000_000
    (passed,) = exchange.receive(ev.Admitted(granted=granted()))
    assert dict(passed.set_headers) == {"x-account-id": PAYER, "x-hold-id": HOLD}
    assert {"authorization", "x-api-key", "cookie", "proxy-authorization"} <= set(passed.remove_headers)
    (amend,) = exchange.receive(chat(stream=True, max_tokens=50))
    # "hello" = 5, a message 3, a prompt 3: 11 tokens and the allowance of 16 + 4 + 2; 50 tokens out at twice the price.
    assert amend.amendment.reserved_nanos == (11 + 22) * 1_000 + 50 * 2_000
    (body,) = exchange.receive(ev.Amended(granted=granted()))
    forwarded = json.loads(body.data)
    assert forwarded["max_tokens"] == 50
    assert forwarded["stream_options"] == {"include_usage": True}
    assert dict(body.set_headers)["x-model"] == "m"
    exchange.receive(ev.ResponseHeaders(status=200, headers={"content-type": "text/event-stream"}))
    actions = play(exchange, chunk(delta("he")), chunk(delta("llo", "stop")))
    assert [type(action) for action in actions] == [act.PassChunk, act.Beat, act.PassChunk]
    end, reply, note = play(exchange, chunk(usage_event(11, 5) + DONE))
    assert end.wait
    assert (end.ending.kind, end.ending.charge_nanos) == (EndKind.SETTLE, 11 * 1_000 + 5 * 2_000)
    assert delivered(b"", [reply]) == DONE  # the usage event was ours, not asked for
    assert note.record.usage_source == "upstream"
    assert note.record.end_reason == "stop"
    assert exchange.receive(chunk(b"", end=True)) == (act.PassChunk(),)
    assert exchange.receive(ev.Gone()) == ()
    assert exchange.state is State.CLOSED


def test_a_client_that_asked_for_usage_gets_it_byte_for_byte_and_its_cost():
    exchange = Exchange(pinned())
    to_streaming(exchange, stream_options={"include_usage": True})
    sent = delta("a", "stop") + usage_event() + DONE
    assert delivered(sent, play(exchange, chunk(sent))) == sent.replace(b"}}", b',"cost":0.000021}}')


def test_json_answer_is_buffered_and_told_its_cost():
    exchange = Exchange(pinned())
    to_open(exchange)
    exchange.receive(chat())
    exchange.receive(ev.Amended(granted=granted()))
    (passed,) = exchange.receive(ev.ResponseHeaders(status=200, headers={"content-type": "application/json", "content-length": "90"}))
    assert passed.buffer
    answer = {
        "choices": [{"message": {"content": "hi"}, "finish_reason": "length"}],
        "usage": {"prompt_tokens": 10, "completion_tokens": 2},
    }
    end, reply, note = play(exchange, chunk(json.dumps(answer).encode(), end=True))
    assert end.ending.charge_nanos == 14_000
    assert dict(reply.set_headers) == {"x-request-cost": "0.000014"}
    assert note.record.end_reason == "length"


def test_cached_input_is_cheaper():
    exchange = Exchange(pinned())
    to_streaming(exchange)
    (end, *_) = play(exchange, chunk(delta("a", "stop") + usage_event(10, 1, prompt_tokens_details={"cached_tokens": 4}) + DONE))
    assert end.ending.charge_nanos == 6 * 1_000 + 4 * 500 + 2_000


@pytest.mark.parametrize(
    ("request_headers", "status", "code"),
    [
        (headers(authorization=None), 401, "invalid_api_key"),
        (headers(authorization="Basic abc"), 401, "invalid_api_key"),
        (headers(authorization="Bearer a,Bearer b"), 401, "invalid_api_key"),
        (headers(x_api_key="sk-other"), 401, "invalid_api_key"),
        (headers("/v1/chat/completions?api_key=sk-good"), 401, "invalid_api_key"),
        (headers("/v1/unknown"), 404, "unknown_url"),
        (headers("/v1/chat/completions/"), 404, "unknown_url"),
        (headers("/V1/chat/completions"), 404, "unknown_url"),
        (headers(method="GET", end=True), 405, "method_not_allowed"),
        (headers(method="OPTIONS", end=True), 405, "method_not_allowed"),
        (headers("/v1/models", method="GET"), 400, "unexpected_body"),
        (headers(upgrade="websocket"), 400, "unsupported_protocol"),
        (headers(content_type="application/grpc+proto"), 400, "unsupported_protocol"),
    ],
)
def test_closed_doors(request_headers: ev.Headers, status: int, code: str):
    exchange = Exchange(pinned())
    reply, note = exchange.receive(request_headers)
    assert (reply.status, error_of(reply)["code"]) == (status, code)
    assert note.row == b""  # nobody we know: a metric, no row
    assert exchange.state is State.CLOSED


@pytest.mark.parametrize(
    ("request_headers", "status", "code"),
    [
        (headers(end=True), 400, "missing_body"),
        (headers(content_length="99999999"), 413, "request_too_large"),
        (headers(content_length="-1"), 400, "bad_header"),
        (headers(content_encoding="gzip"), 415, "unsupported_encoding"),
    ],
)
def test_bodies_that_are_refused_by_their_headers_leave_a_row_of_who_is_known(request_headers: ev.Headers, status: int, code: str):
    exchange = Exchange(pinned())
    exchange.receive(request_headers)
    reply, note = exchange.receive(ev.KeyRead(key=key()))
    assert (reply.status, error_of(reply)["code"], exchange.state) == (status, code, State.CLOSED)
    row = json.loads(note.row)
    assert (note.payer_id, row["status"], row["error_code"], row["end_reason"]) == (PAYER, status, code, "refused")
    assert row["endpoint"] == "chat.completions"
    stranger = Exchange(pinned())
    stranger.receive(request_headers)
    reply, note = stranger.receive(ev.KeyRead(key=None))
    assert (reply.status, note.row) == (401, b"")


@pytest.mark.parametrize("scheme", ["bearer", "BEARER", "Bearer"])
def test_scheme_in_any_case(scheme: str):
    (look_up,) = Exchange(pinned()).receive(headers(authorization=f"{scheme} sk-good", x_api_key="sk-good"))
    assert look_up.secret == "sk-good"


@pytest.mark.parametrize(
    ("known", "status"),
    [
        (None, 401),
        (key(revoked=True), 401),
        (key(expires_ms=1), 401),
        (key(networks=("10.2.0.0/16",)), 403),
        (key(networks=("10.1.0.0/16",)), 0),
    ],
)
def test_keys_that_do_not_open(known, status: int):
    exchange = Exchange(pinned())
    exchange.receive(headers())
    actions = exchange.receive(ev.KeyRead(key=known))
    if not status:
        assert isinstance(actions[0], act.Admit)
        return
    assert actions[0].status == status
    assert bool(actions[1].row) == (known is not None)


def test_a_priority_that_the_tier_may_not_ask_for_is_refused():
    exchange = Exchange(pinned())
    exchange.receive(headers(x_priority="spot"))
    assert exchange.receive(ev.KeyRead(key=key()))[0].status == 403


@pytest.mark.parametrize(
    ("body", "status", "code", "param"),
    [
        (ev.Body(data=b"{"), 400, "invalid_json", None),
        (ev.Body(data=b"[]"), 400, "invalid_json", None),
        (ev.Body(data=b'{"model": "m\xff"}'), 400, "invalid_json", None),
        (ev.Body(data=b"[" * 100_000), 400, "invalid_json", None),
        (ev.Body(data=b'{"a":' * 100_000), 400, "invalid_json", None),
        (ev.Body(data=b'{"model": NaN}'), 400, "invalid_json", None),
        (ev.Body(data=b" " * 2_000_000), 413, "request_too_large", None),
        (chat(model=None), 400, "missing_required_parameter", "model"),
        (chat(model=7), 400, "missing_required_parameter", "model"),
        (chat(model="no"), 404, "model_not_found", "model"),
        (chat(messages="hi"), 400, "missing_required_parameter", "messages"),
        (chat(messages=[]), 400, "missing_required_parameter", "messages"),
        (chat(messages=[1]), 400, "invalid_type", "messages[0]"),
        (chat(messages=[{"role": "user", "content": [{"type": "input_audio"}]}]), 400, "invalid_value", "messages[0].content"),
        (chat(messages=[{"role": "user", "content": [{"type": "image_url"}]}]), 400, "invalid_type", "messages[0].content.image_url.url"),
        (chat(max_tokens=0), 400, "invalid_value", "max_tokens"),
        (chat(max_tokens=10**30), 400, "invalid_value", "max_tokens"),
        (chat(max_tokens=1.5), 400, "invalid_type", "max_tokens"),
        (chat(max_tokens=True), 400, "invalid_type", "max_tokens"),
        (chat(n=129), 400, "invalid_value", "n"),
        (chat(stream="maybe"), 400, "invalid_type", "stream"),
        (chat(stream=True, stream_options=3), 400, "invalid_type", "stream_options"),
        (chat(messages=[{"role": "user", "content": "x" * 10_000}]), 400, "context_length_exceeded", "messages"),
    ],
)
def test_bodies_that_are_refused_give_the_entry_hold_back(body: ev.Body, status: int, code: str, param: str | None):
    exchange = Exchange(pinned())
    to_open(exchange)
    reply, end, note = exchange.receive(body)
    error = error_of(reply)
    assert (reply.status, error["code"], error["param"]) == (status, code, param)
    assert end.ending.kind is EndKind.VOID
    assert row_of(end)["status"] == status
    assert note.row == b""  # the void carries it


def test_a_key_may_use_its_models_only():
    exchange = Exchange(pinned(model(), model("other")))
    exchange.receive(headers())
    exchange.receive(ev.KeyRead(key=key(models=frozenset({"other"}))))
    exchange.receive(ev.Admitted(granted=granted()))
    assert exchange.receive(chat())[0].status == 403


def test_unknown_fields_are_stripped_or_refused_by_policy():
    fields = {"priority": -5, "stream_interval": 10, "vllm_xargs": {}, "request_id": "mine", "temperature": 0.5, "user": "me"}
    exchange = Exchange(pinned())
    to_open(exchange)
    exchange.receive(chat(**fields))
    (body,) = exchange.receive(ev.Amended(granted=granted()))
    assert set(json.loads(body.data)) == {"model", "messages", "max_tokens", "temperature"}
    strict = Exchange(pinned(policy=Policy(unknown_fields="reject")))
    to_open(strict)
    assert error_of(strict.receive(chat(**fields))[0])["param"] == "priority"


def test_lenient_numbers_are_forwarded_plain_and_held_for():
    exchange = Exchange(pinned())
    to_open(exchange)
    (amend,) = exchange.receive(chat(max_tokens="7", max_completion_tokens=3.0, n=2, stream="true"))
    assert amend.amendment.tokens == 11 + 22 + 2 * 3
    (body,) = exchange.receive(ev.Amended(granted=granted()))
    forwarded = json.loads(body.data)
    assert (forwarded["max_tokens"], forwarded["n"], forwarded["stream"]) == (3, 2, True)
    assert "max_completion_tokens" not in forwarded


def test_no_maximum_and_a_short_balance_is_clamped_silently():
    exchange = Exchange(pinned(model(output_tokens_default=1_000)))
    to_open(exchange)
    exchange.receive(chat())
    (again,) = exchange.receive(ev.Refused(denied=denied(spendable_nanos=33_000 + 600_000)))
    assert exchange.state is State.CLAMPING
    assert again.amendment.reserved_nanos == 33_000 + 300 * 2_000
    (body,) = exchange.receive(ev.Amended(granted=granted()))
    assert json.loads(body.data)["max_tokens"] == 300


@pytest.mark.parametrize(("fields", "spendable"), [({"max_tokens": 1_000}, 600_000), ({}, 33_000 + 255 * 2_000), ({}, 100)])
def test_explicit_maximum_or_too_little_is_402(fields: dict, spendable: int):
    exchange = Exchange(pinned(model(output_tokens_default=1_000)))
    to_open(exchange)
    exchange.receive(chat(**fields))
    reply, end, _ = exchange.receive(ev.Refused(denied=denied(spendable_nanos=spendable, required_nanos=10**6)))
    assert reply.status == 402
    assert ("x-should-retry", "false") in reply.headers
    assert error_of(reply)["code"] == "insufficient_quota"
    assert end.ending.kind is EndKind.VOID


def test_only_held_money_in_the_way_is_429():
    exchange = Exchange(pinned())
    to_open(exchange)
    exchange.receive(chat(max_tokens=50))
    reply, *_ = exchange.receive(ev.Refused(denied=denied(DenyReason.HELD, retry_after_ms=700)))
    assert reply.status == 429
    assert dict(reply.headers)["retry-after-ms"] == "700"
    assert error_of(reply)["code"] == "balance_held"


def test_long_prompts_are_counted_elsewhere():
    exchange = Exchange(pinned(model(context_tokens=100_000), bounds=Bounds(offload_bytes=10)))
    to_open(exchange)
    (count,) = exchange.receive(chat(messages=[{"role": "user", "content": "x" * 11}]))
    assert count.job() == 17
    (amend,) = exchange.receive(ev.Counted(tokens=17))
    assert isinstance(amend, act.Amend)


@pytest.mark.parametrize("status", [400, 404, 429, 500, 503])
def test_a_backend_that_fails_is_not_charged(status: int):
    exchange = Exchange(pinned())
    to_open(exchange)
    exchange.receive(chat())
    exchange.receive(ev.Amended(granted=granted()))
    reply, end, _ = exchange.receive(ev.ResponseHeaders(status=status, headers={}))
    assert isinstance(reply, act.PassResponseHeaders)
    assert end.ending.kind is EndKind.VOID
    assert row_of(end)["status"] == status


def test_gone_mid_stream_pays_prompt_and_delivered():
    exchange = Exchange(pinned())
    to_streaming(exchange)
    play(exchange, chunk(delta("")), chunk(delta("abc")), chunk(delta("de")))
    end, note = exchange.receive(ev.Gone())
    assert end.ending.charge_nanos == 11 * 1_000 + 5 * 2_000
    assert (note.record.usage_source, note.record.end_reason) == ("counted", "cut")


@pytest.mark.parametrize(("policy", "kind", "nanos"), [("input", EndKind.SETTLE, 11_000), ("void", EndKind.VOID, 0)])
def test_gone_before_the_first_event(policy: str, kind: EndKind, nanos: int):
    for events in ((), (ev.ResponseHeaders(status=200, headers={"content-type": "text/event-stream"}), chunk(delta("")))):
        exchange = Exchange(pinned(policy=Policy(abort_before_response=policy)))
        to_open(exchange)
        exchange.receive(chat(stream=True))
        exchange.receive(ev.Amended(granted=granted()))
        play(exchange, *events)
        end, _ = exchange.receive(ev.Gone())
        assert (end.ending.kind, end.ending.charge_nanos) == (kind, nanos)


def test_engine_death_is_charged_for_what_came():
    exchange = Exchange(pinned())
    to_streaming(exchange)
    play(exchange, chunk(delta("abc")))
    end, _reply, note = play(exchange, chunk(b'data: {"error": {"message": "dead"}}\n\n' + DONE))
    assert end.ending.charge_nanos == 11_000 + 3 * 2_000
    assert note.record.end_reason == "upstream_error"
    before = Exchange(pinned())
    to_streaming(before)
    end, *_ = play(before, chunk(b'data: {"error": {"message": "dead"}}\n\n' + DONE))
    assert end.ending.kind is EndKind.VOID


def test_abort_finish_is_stored():
    exchange = Exchange(pinned())
    to_streaming(exchange)
    play(exchange, chunk(delta("abc")), chunk(delta("", "abort")))
    _, _, note = play(exchange, chunk(DONE))
    assert note.record.end_reason == "abort"


def test_a_charge_never_exceeds_the_cap():
    exchange = Exchange(pinned())
    to_streaming(exchange, max_tokens=2)
    end, _, note = play(exchange, chunk(delta("abc", "stop") + usage_event(5_000, 10**9) + DONE))
    assert end.ending.charge_nanos == 33_000 + 4_000
    assert note.record.overage_nanos == 5_000 * 1_000 + 1_000 * 2_000 - 37_000
    assert "completion_tokens_impossible" in note.record.usage_flags


def test_envoys_retry_takes_the_first_hold_over():
    exchange = Exchange(pinned())
    exchange.receive(headers())
    exchange.receive(ev.KeyRead(key=key()))
    exchange.receive(ev.Admitted(granted=granted("the-first")))
    (amend,) = exchange.receive(chat())
    assert (amend.amendment.hold_id, amend.amendment.owner) == ("the-first", HOLD)


def test_alias_is_answered_under_the_name_asked_for():
    served = model("m", aliases=("gpt",), served_name="Org/M")
    exchange = Exchange(pinned(served))
    passed = to_streaming(exchange, model="gpt")
    assert json.loads(passed.data)["model"] == "Org/M"
    sent = b'data: {"model":"Org/M","choices":[{"index":0,"delta":{"content":"\\"model\\":\\"Org/M\\""}}]}\n\n'
    assert delivered(sent, play(exchange, chunk(sent))) == sent.replace(b'"model":"Org/M"', b'"model":"gpt"', 1)


def test_a_drain_that_loses_patience_cuts_with_an_error_event():
    exchange = Exchange(pinned())
    to_streaming(exchange)
    play(exchange, chunk(delta("abc")))
    end, note = exchange.receive(ev.Stopped())
    assert (end.ending.charge_nanos, note.record.end_reason) == (11_000 + 6_000, "cut")
    (first,) = exchange.receive(chunk(delta("d")))
    assert b'"error"' in first.data
    assert first.data.endswith(DONE)
    assert exchange.receive(chunk(delta("e"))) == (act.PassChunk(data=b""),)


@pytest.mark.parametrize("ends_with_it", [False, True])
def test_a_cut_comes_behind_the_event_that_the_client_has_the_beginning_of(ends_with_it: bool):
    """An SDK reads half an event as broken JSON, whatever stands behind it."""
    exchange = Exchange(pinned(model(usage="counted")))  # bytes pass as they come
    to_streaming(exchange)
    other = delta("d")
    play(exchange, chunk(delta("abc")), chunk(other[:30]))
    (end,) = ends(exchange.receive(ev.Stopped()))
    assert end.ending.charge_nanos == 11_000 + 6_000
    (more,) = exchange.receive(chunk(other[30:40]))
    assert (more.data, dict(more.metadata), exchange.state) == (None, {"end_reason": "cut"}, State.CUTTING)
    (last,) = exchange.receive(chunk(b"" if ends_with_it else other[40:] + delta("never"), end=ends_with_it))
    assert exchange.state is State.CUT
    assert last.data == (CUT_EVENT if ends_with_it else other[40:] + CUT_EVENT)
    assert exchange.receive(chunk(delta("e"))) == (act.PassChunk(data=b""),)


def test_a_cut_where_events_pass_whole_leaves_the_half_one_out():
    exchange = Exchange(pinned())
    to_streaming(exchange)
    play(exchange, chunk(delta("abc")), chunk(delta("d")[:30]), ev.Stopped())
    (last,) = exchange.receive(chunk(delta("d")[30:]))
    assert last.data == CUT_EVENT


def test_store_failures_are_503_and_void_what_may_have_been_held():
    keying = Exchange(pinned())
    keying.receive(headers())
    reply, note = keying.receive(ev.StoreFailed(what="PostgreSQL"))
    assert reply.status == 503
    assert ends([note]) == []
    admitting = Exchange(pinned())
    admitting.receive(headers())
    admitting.receive(ev.KeyRead(key=key()))
    reply, end, _ = admitting.receive(ev.StoreFailed(what="Redis"))
    assert (reply.status, end.ending.kind) == (503, EndKind.VOID)
    assert "retry-after" in dict(reply.headers)


def test_free_models_ask_for_no_money_on_the_headers():
    free = model("free", free=True, tariffs=(FREE,))
    exchange = Exchange(pinned(free))
    exchange.receive(headers())
    (admit,) = exchange.receive(ev.KeyRead(key=key()))
    assert admit.admission.entry_nanos == 0
    exchange.receive(ev.Admitted(granted=granted()))
    assert exchange.receive(chat(model="free"))[0].amendment.reserved_nanos == 0


def test_models_are_listed_by_us():
    exchange = Exchange(pinned(model(), model("b", aliases=("c",))))
    exchange.receive(headers("/v1/models", method="GET", end=True))
    reply, _ = exchange.receive(ev.KeyRead(key=key(models=frozenset({"b"}))))
    assert [row["id"] for row in json.loads(reply.body)["data"]] == ["b"]


def test_limits_are_told_with_every_success():
    exchange = Exchange(pinned())
    requests, tokens = Window(limit=10, remaining=7, reset_ms=61_500), Window(limit=5_000, remaining=4_000, reset_ms=1)
    play(exchange, headers(), ev.KeyRead(key=key()))
    exchange.receive(ev.Admitted(granted=Granted(hold_id=HOLD, spendable_nanos=9, requests=requests, tokens=tokens)))
    left = Window(limit=5_000, remaining=3_900, reset_ms=59_001)
    play(exchange, chat(), ev.Amended(granted=Granted(hold_id=HOLD, spendable_nanos=9, tokens=left)))
    (passed,) = exchange.receive(ev.ResponseHeaders(status=200, headers={"content-type": "application/json"}))
    assert passed.set_headers == (
        ("x-request-id", "r1"),
        ("x-ratelimit-limit-requests", "10"), ("x-ratelimit-remaining-requests", "7"), ("x-ratelimit-reset-requests", "62s"),
        ("x-ratelimit-limit-tokens", "5000"), ("x-ratelimit-remaining-tokens", "3900"), ("x-ratelimit-reset-tokens", "60s"),
    )  # fmt: skip


def test_what_is_not_in_the_table_is_illegal():
    with pytest.raises(IllegalEvent):
        Exchange(pinned()).receive(chat())


def test_gone_is_legal_everywhere():
    assert {state for state, event in TRANSITIONS if event is ev.Gone} == set(State)


@pytest.mark.parametrize(("policy", "nanos"), [("actual_so_far", 17_000), ("input_only", 11_000), ("full", 33_000 + 100_000)])
def test_policies_of_an_early_end(policy: str, nanos: int):
    exchange = Exchange(pinned(policy=Policy(ended_early=policy)))
    to_streaming(exchange, max_tokens=50)
    play(exchange, chunk(delta("abc")))
    end, note = exchange.receive(ev.Gone())
    assert end.ending.charge_nanos == note.record.cost_nanos == note.record.list_nanos == nanos


def test_without_any_usage_our_count_or_the_hold_is_charged_by_policy():
    for policy, nanos in (("count", 17_000), ("hold", 133_000)):
        exchange = Exchange(pinned(policy=Policy(no_usage=policy)))
        to_streaming(exchange, max_tokens=50)
        end, _, note = play(exchange, chunk(delta("abc", "stop") + DONE))
        assert end.ending.charge_nanos == note.record.list_nanos == nanos


def test_checkpoints_never_fall():
    exchange = Exchange(pinned())
    to_streaming(exchange)
    assert exchange.receive(ev.Tick(at_ns=1))[0].checkpoint.charge_nanos == 0
    play(exchange, chunk(delta("abc")))
    before = exchange.receive(ev.Tick(at_ns=1))[0].checkpoint
    assert before.charge_nanos == 17_000
    continuous = b'data: {"choices":[{"index":0,"delta":{"content":"d"}}],"usage":{"prompt_tokens":2,"completion_tokens":1}}\n\n'
    play(exchange, chunk(continuous))
    assert exchange.receive(ev.Tick(at_ns=1))[0].checkpoint == before


def test_conversations_stick_by_prefix():
    def sticky(kind: str, *contents: str) -> str | None:
        exchange = Exchange(pinned(model(sticky=kind)))
        to_open(exchange)
        exchange.receive(chat(messages=[{"role": "user", "content": content} for content in contents]))
        return dict(exchange.receive(ev.Amended(granted=granted()))[0].set_headers).get("x-sticky")

    assert sticky("none", "a") is None
    assert sticky("account", "a") == PAYER
    assert sticky("prefix", "a", "b", "c") == sticky("prefix", "a", "b") != sticky("prefix", "x", "b")


def test_tools_are_held_by_the_byte_and_asked_for_with_the_first_chunk():
    tools = [{"type": "function", "function": {"name": "f", "parameters": {}}}]
    wide = len(json.dumps(tools, indent=4))
    exchange = Exchange(pinned())
    to_open(exchange)
    (amend,) = exchange.receive(chat(stream=True, tools=tools, max_tokens=1))
    least = 11 + len("f") + 22 + wide + 256 + 1
    assert least <= amend.amendment.tokens < least + 8
    (body,) = exchange.receive(ev.Amended(granted=granted()))
    assert json.loads(body.data)["stream_options"] == {"include_usage": True, "continuous_usage_stats": True}
    exchange.receive(ev.ResponseHeaders(status=200, headers={"content-type": "text/event-stream"}))
    sent = b'data: {"choices":[{"index":0,"delta":{"content":"d"}}],"usage":{"prompt_tokens":40,"completion_tokens":1}}\n\n'
    assert b"usage" not in delivered(sent, play(exchange, chunk(sent)))
    end, note = exchange.receive(ev.Gone())
    assert (end.ending.charge_nanos, note.record.usage_source) == (42_000, "continuous")


def test_what_envoy_answers_before_it_asks_us_is_passed():
    exchange = Exchange(pinned())
    assert exchange.receive(ev.ResponseHeaders(status=400, headers={})) == (act.PassResponseHeaders(),)
    assert exchange.receive(chunk(b"no", end=True)) == (act.PassChunk(),)
    assert exchange.receive(ev.Gone()) == ()


def test_envoy_answers_while_a_store_is_thinking():
    """A body above Envoy's buffer may be there before the key is known: its 413 passes, and what is granted afterwards goes back."""
    for asked in (0, 1):
        exchange = Exchange(pinned())
        exchange.receive(headers())
        if asked:
            exchange.receive(ev.KeyRead(key=key()))
        assert exchange.receive(ev.ResponseHeaders(status=413, headers={})) == (act.PassResponseHeaders(),)
        assert exchange.receive(chunk(b"{}", end=True)) == (act.PassChunk(),)
        actions = exchange.receive(ev.Admitted(granted=granted()) if asked else ev.KeyRead(key=key()))
        note = actions[-1]
        assert (note.record.status, note.record.error_code, note.record.end_reason) == (413, "http_413", "refused")
        if asked:
            assert actions[0].ending.kind is EndKind.VOID
        assert exchange.receive(ev.Gone()) == ()
        assert exchange.state is State.CLOSED


def test_a_drain_that_has_lost_patience_before_any_answer_charges_nothing():
    exchange = Exchange(pinned())
    to_open(exchange)
    exchange.receive(chat())
    exchange.receive(ev.Amended(granted=granted()))
    assert exchange.state is State.FORWARDED
    end, note = exchange.receive(ev.Stopped())
    assert (end.ending.kind, note.record.end_reason) == (EndKind.VOID, "cut")
    (reply,) = exchange.receive(ev.ResponseHeaders(status=200, headers={"content-type": "text/event-stream"}))
    assert reply.status == 503
    assert exchange.receive(ev.Gone()) == ()


def test_a_client_that_leaves_at_the_error_event_left_a_failed_backend():
    """SDKs close the connection there, before [DONE]."""
    error = b'data: {"error": {"message": "dead"}}\n\n'
    before = Exchange(pinned())
    to_streaming(before)
    play(before, chunk(error))
    end, note = before.receive(ev.Gone())
    assert (end.ending.kind, note.record.end_reason) == (EndKind.VOID, "upstream_error")
    after = Exchange(pinned())
    to_streaming(after)
    play(after, chunk(delta("abc")), chunk(error))
    end, note = after.receive(ev.Gone())
    assert (end.ending.charge_nanos, note.record.end_reason) == (11_000 + 3 * 2_000, "upstream_error")


def test_a_client_that_leaves_after_the_finish_reason_was_finished_with():
    exchange = Exchange(pinned())
    to_streaming(exchange)
    play(exchange, chunk(delta("abc")), chunk(delta("", "length")))
    _, note = exchange.receive(ev.Gone())
    assert note.record.end_reason == "length"
