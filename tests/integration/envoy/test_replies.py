"""Who says what to the client: the sidecar's denials stay as they are, Envoy's own answers have OpenAI's shape."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from envoy_stage import BIG, COMPLETIONS, SMALL, Exchange, Stage, forward, until

from extproc.edge.transport.port import StatusCode
from extproc.exchange import actions, events

MIB = 1_048_576
DENIAL = b'{"error":{"message":"m","type":"t","param":null,"code":"c"}}'
PHASES = [events.Headers, events.Body, events.ResponseHeaders, events.Chunk]


def at(phase: type[events.Event], reaction: Any) -> Any:
    """Forward everything, but react in one phase."""

    def answer(exchange: Exchange, event: events.Event) -> actions.Action | None:
        if isinstance(event, phase):
            return reaction(exchange)
        return forward(exchange, event)

    return answer


def error_of(answer: Any) -> dict[str, Any]:
    assert answer.headers["content-type"] == "application/json"
    error = answer.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["message"]
    assert error["type"]
    return dict(error)


@pytest.mark.parametrize("http2", [False, True])
@pytest.mark.parametrize("phase", PHASES[:3])
async def test_denials_of_the_sidecar_are_not_rewritten(stage: Stage, http2: bool, phase: Any) -> None:
    statuses = [400, 401, 402, 404, 413, 429, 500, 503]
    async with stage.client(http2=http2) as client:
        for status in statuses:
            deny = actions.Answer(status=status, body=DENIAL, headers=(("x-should-retry", "false"), ("retry-after", "7")))
            stage.sidecar.answer = at(phase, lambda exchange, deny=deny: deny)
            answer = await client.post(COMPLETIONS, json={})
            assert (answer.status_code, answer.content) == (status, DENIAL)
            assert answer.headers["content-type"] == "application/json"
            assert (answer.headers["x-should-retry"], answer.headers["retry-after"]) == ("false", "7")
            assert answer.headers["x-request-id"] == stage.sidecar.last.headers.request_id
            assert stage.sidecar.last.kinds[-1] == phase.__name__, "a denial is not shown to us again"
    assert len(stage.seen) == (len(statuses) if phase is events.ResponseHeaders else 0)


async def test_no_route_for_a_model_is_404(stage: Stage) -> None:
    stage.sidecar.model = "priced-but-not-routed"
    answer = await stage.sends(COMPLETIONS, json={})
    assert (answer.status_code, error_of(answer)["code"]) == (404, "model_not_found")
    assert stage.sidecar.last.response.status == 404, "the sidecar learns of it, and voids the hold"


async def test_a_backend_that_is_not_healthy_is_503(stage: Stage) -> None:
    stage.backends[BIG].healthy = False
    await asyncio.to_thread(stage.envoy._wait, lambda: stage.envoy.healthy(BIG) == 0, "unhealthy", 15)
    answer = await stage.sends(COMPLETIONS, json={})
    assert (answer.status_code, error_of(answer)["code"], answer.headers["retry-after"]) == (503, "service_unavailable", "1")
    assert stage.sidecar.last.response.status == 503
    stage.sidecar.model = SMALL
    assert (await stage.sends(COMPLETIONS, json={})).status_code == 200


async def test_a_backend_that_resets_is_503_and_is_not_asked_twice(stage: Stage) -> None:
    async def resets(request, writer):
        writer.transport.abort()

    stage.backends[BIG].respond = resets
    answer = await stage.sends(COMPLETIONS, json={})
    assert (answer.status_code, error_of(answer)["code"]) == (503, "service_unavailable")
    assert len(stage.seen) == 1, "a GPU may have worked for it already"
    assert stage.sidecar.last.response.status == 503


async def test_a_refused_connection_is_503(stage: Stage) -> None:
    await stage.backends[BIG].stop()
    answer = await stage.sends(COMPLETIONS, json={})
    assert (answer.status_code, error_of(answer)["code"]) == (503, "service_unavailable")


async def test_without_a_sidecar_nothing_is_served(stage: Stage) -> None:
    await stage.transports[0].stop()
    answer = await stage.sends(COMPLETIONS, json={})
    assert (answer.status_code, error_of(answer)["code"]) == (503, "service_unavailable")
    assert stage.seen == []


async def test_a_sidecar_that_does_not_answer_is_504(stage: Stage) -> None:
    stage.sidecar.answer = at(events.Body, lambda exchange: None)
    answer = await stage.sends(COMPLETIONS, json={})
    assert (answer.status_code, error_of(answer)["code"]) == (504, "timeout")
    assert stage.seen == []
    await until(lambda: stage.sidecar.exchanges[0].gones == ["closed"])


@pytest.mark.parametrize("http2", [False, True])
async def test_413_by_the_sidecar_below_envoys_limit_and_by_envoy_above(stage: Stage, http2: bool) -> None:
    def limit(exchange: Exchange, event: events.Event) -> actions.Action | None:
        if isinstance(event, events.Body) and len(event.data) > MIB:
            return actions.Answer(status=413, body=DENIAL)
        return forward(exchange, event)

    stage.sidecar.answer = limit
    async with stage.client(http2=http2) as client:
        fits = await client.post(COMPLETIONS, content=bytes(MIB))
        ours = await client.post(COMPLETIONS, content=bytes(2 * MIB - 1024))
    async with stage.client(http2=http2) as client:
        envoys = await client.post(COMPLETIONS, content=bytes(3 * MIB))
    assert (fits.status_code, len(stage.seen), len(stage.seen[0].body)) == (200, 1, MIB)
    assert (ours.status_code, ours.content) == (413, DENIAL)
    assert (envoys.status_code, error_of(envoys)["code"]) == (413, "request_too_large")
    assert stage.sidecar.last.kinds[:2] == ["Headers", "ResponseHeaders"], "Envoy's 413 comes without a body event"
    assert stage.sidecar.last.response.status == 413


@pytest.mark.parametrize("how", ["close", "raise"])
@pytest.mark.parametrize("phase", PHASES)
async def test_an_early_end_of_ours_lets_nothing_through(stage: Stage, phase: Any, how: str, caplog: Any) -> None:
    def ends(exchange: Exchange) -> None:
        if how == "raise":
            raise ValueError("a bug")
        exchange.call.close(StatusCode.INTERNAL, "unknown state")

    stage.sidecar.answer = at(phase, ends)
    async with stage.client() as client:
        # Even at the first chunk: Envoy has not sent the headers yet.
        answer = await client.post(COMPLETIONS, json={})
    assert (answer.status_code, error_of(answer)["code"]) == (503, "service_unavailable")
    assert len(stage.seen) == (0 if phase in PHASES[:2] else 1)
    await until(lambda: all(exchange.gones == ["sidecar_error"] for exchange in stage.sidecar.exchanges))
