"""Every door of ENVOY.md that Envoy's files must keep shut, tried from outside."""

from __future__ import annotations

import json

import pytest
from envoy_stage import BIG, COMPLETIONS, SMALL, Exchange, Stage, forward, json_answer

from extproc.exchange import actions, events


@pytest.mark.parametrize("http2", [False, True])
@pytest.mark.parametrize("model", [BIG, SMALL])
async def test_the_sidecar_routes_by_model(stage: Stage, http2: bool, model: str) -> None:
    stage.sidecar.model = model
    async with stage.client(http2=http2) as client:
        answer = await client.post(COMPLETIONS, json={"model": model})
    assert answer.http_version == ("HTTP/2" if http2 else "HTTP/1.1")
    assert (answer.status_code, answer.json()) == (200, {"ok": True})
    assert [request.path for request in stage.backends[model].seen] == [COMPLETIONS]
    assert len(stage.seen) == 1
    assert stage.sidecar.last.kinds == ["Headers", "Body", "ResponseHeaders", "Chunk"]


async def test_a_client_cannot_choose_a_route(stage: Stage) -> None:
    """Neither before the sidecar has spoken, nor when it says nothing about the model, nor against it."""

    def says_nothing(exchange: Exchange, event: events.Event) -> actions.Action | None:
        return actions.PassBody(data=event.data) if isinstance(event, events.Body) else forward(exchange, event)

    headers = {"X-Model": SMALL, "X-Sticky": "me", "X-Priority": "spot", "X-Account-Id": "you", "X-Account": "you", "X-Hold-Id": "h"}
    stage.sidecar.answer = says_nothing
    answer = await stage.sends(COMPLETIONS, json={}, headers=headers)
    assert answer.status_code == 404
    assert answer.json()["error"]["code"] == "model_not_found"
    assert stage.seen == []
    seen = stage.sidecar.last.headers.headers
    assert seen["x-priority"] == "spot", "how a client asks for a priority"
    assert not {"x-model", "x-sticky", "x-account-id", "x-account", "x-hold-id"} & set(seen)

    stage.sidecar.answer = forward
    answer = await stage.sends(COMPLETIONS, json={}, headers=headers)
    assert answer.status_code == 200
    (request,) = stage.seen
    assert (request.headers["x-model"], request.headers["x-priority"]) == (BIG, "standard")
    assert not {"x-sticky", "x-account-id", "x-account", "x-hold-id"} & set(request.headers)


async def test_a_get_is_not_forwarded_without_a_model(stage: Stage) -> None:
    async with stage.client() as client:
        answer = await client.get("/metrics", headers={"x-model": BIG})
    assert answer.status_code == 404
    assert stage.seen == []
    assert stage.sidecar.last.headers.end_of_stream


@pytest.mark.parametrize(
    ("path", "outcome"),
    [
        ("//v1///chat//completions", COMPLETIONS),
        ("/v1/./chat/x/../completions", COMPLETIONS),
        ("/v1/%63hat/completions", COMPLETIONS),
        ("/v1/chat%2Fcompletions", 400),
        ("/v1/chat%2fcompletions", 400),
        ("/v1%5Cchat/completions", 400),
        ("/v1\\chat\\completions", COMPLETIONS),
        ("/../../v1/chat/completions", COMPLETIONS),
        ("/v1/chat/completions/", "/v1/chat/completions/"),
        ("/v1/chat/completions;x", "/v1/chat/completions;x"),
        ("/v1/chat/completions?a=b", "/v1/chat/completions?a=b"),
        ("/v1/chat/completions%00", 400),
        ("http://other.example/v1/chat/completions", COMPLETIONS),
    ],
)
async def test_paths_have_one_spelling(stage: Stage, path: str, outcome: str | int) -> None:
    """The sidecar sees the normal form, the very one that a backend would see, or nothing at all."""
    answer = await stage.raw(f"POST {path} HTTP/1.1\r\nhost: x\r\ncontent-length: 2\r\nconnection: close\r\n\r\n{{}}".encode())
    status = int(answer.split()[1])
    if isinstance(outcome, int):
        assert status == outcome, answer
        assert stage.seen == []
        # A local reply made before the filters saw the request still passes the sidecar, as a stream that begins with its headers.
        assert all(exchange.kinds[0] == "ResponseHeaders" for exchange in stage.sidecar.exchanges)
    else:
        assert status == 200, answer
        assert stage.sidecar.last.headers.path == outcome
        assert [request.path for request in stage.seen] == [outcome]


@pytest.mark.parametrize(
    "request_",
    [
        b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\nx_model: qwen3-72b\r\ncontent-length: 0\r\n\r\n",
        b"POST /v1/chat/completions HTTP/1.0\r\ncontent-length: 0\r\n\r\n",
        b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-length: 3\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
        b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\nab",
        b"GET /v1/models HTTP/1.1\r\nhost: x\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n",
    ],
    ids=["underscore", "http-1.0", "two lengths", "lengths differ", "upgrade"],
)
async def test_requests_that_envoy_refuses(stage: Stage, request_: bytes) -> None:
    """Broken HTTP/1.1 is answered by closing the connection: Envoy's 400 for it is lost in ext_proc (docs/decisions/edge.md)."""
    answer = await stage.raw(request_)
    assert answer == b"" or 400 <= int(answer.split()[1]) < 500, answer
    assert stage.seen == []
    assert all(exchange.kinds[:1] in ([], ["ResponseHeaders"]) for exchange in stage.sidecar.exchanges)


async def test_connect_comes_without_a_path_and_is_the_sidecars_to_refuse(stage: Stage) -> None:
    stage.sidecar.answer = lambda exchange, event: actions.Answer(status=405, body=b"{}")
    answer = await stage.raw(b"CONNECT vllm:8000 HTTP/1.1\r\nhost: vllm:8000\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 405 ")
    assert (stage.sidecar.last.headers.method, stage.sidecar.last.headers.path) == ("CONNECT", "")
    assert stage.seen == []


async def test_no_credential_reaches_a_backend_even_if_the_sidecar_forgets(stage: Stage) -> None:
    secrets = {
        "Authorization": "Bearer sk-1",
        "X-Api-Key": "sk-2",
        "Api-Key": "sk-3",
        "Cookie": "session=sk-4",
        "Proxy-Authorization": "Basic sk-5",
        "Accept-Encoding": "gzip, br",
    }
    answer = await stage.sends(COMPLETIONS, json={}, headers=secrets)
    assert answer.status_code == 200
    assert stage.sidecar.last.headers.headers["authorization"] == "Bearer sk-1"
    (request,) = stage.seen
    assert not {name.lower() for name in secrets} & set(request.headers)
    assert "sk-" not in json.dumps(request.headers)


async def test_headers_that_only_we_may_send_to_vllm(stage: Stage) -> None:
    tricks = {"X-Vllm-Priority": "0", "X-Data-Parallel-Rank": "1", "X-Session-Id": "s", "Endpoint-Load-Metrics-Format": "JSON"}
    await stage.sends(COMPLETIONS, json={}, headers=tricks)
    (request,) = stage.seen
    assert not {name.lower() for name in tricks} & set(request.headers)


async def test_the_request_id_is_ours_though_the_client_is_on_the_loopback(stage: Stage) -> None:
    """Holds are deduplicated by it: a client that could repeat one would ride on an old hold."""
    ids = set()
    for _ in range(2):
        answer = await stage.sends(COMPLETIONS, json={}, headers={"X-Request-Id": "mine"})
        ours = stage.sidecar.last.headers.request_id
        assert ours == stage.sidecar.last.headers.headers["x-request-id"] == answer.headers["x-request-id"]
        assert stage.seen[-1].headers["x-request-id"] == ours
        ids.add(ours)
    assert len(ids) == 2
    assert all(len(ours) == 36 for ours in ids)


async def test_the_client_address_is_the_peer_whatever_the_client_says(stage: Stage) -> None:
    await stage.sends(COMPLETIONS, json={}, headers={"X-Forwarded-For": "8.8.8.8", "X-Envoy-External-Address": "8.8.8.8"})
    assert stage.sidecar.last.headers.client_ip == "127.0.0.1"


async def test_a_client_cannot_order_retries_or_timeouts(stage: Stage) -> None:
    async def fails(request, writer):
        await json_answer(request, writer, b'{"error": "backend"}', "500 Internal Server Error")

    stage.backends[BIG].respond = fails
    orders = {
        "X-Envoy-Retry-On": "5xx,gateway-error",
        "X-Envoy-Max-Retries": "5",
        "X-Envoy-Upstream-Rq-Timeout-Ms": "1",
        "X-Envoy-Upstream-Rq-Per-Try-Timeout-Ms": "1",
        "X-Envoy-Hedge-On-Per-Try-Timeout": "true",
        "X-Envoy-Internal": "true",
    }
    answer = await stage.sends(COMPLETIONS, json={}, headers=orders)
    assert (answer.status_code, answer.json()) == (500, {"error": "backend"}), "a backend's own error is passed on as it is"
    assert len(stage.seen) == 1
    assert stage.sidecar.last.response.attempts == 1
    assert not {name.lower() for name in orders} & set(stage.sidecar.last.headers.headers)
