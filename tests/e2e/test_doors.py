"""Every door of ENVOY.md, tried from outside. Truth is what the backends saw: nothing that was not held, nothing of the client's secrets.

Whatever a trick gets for an answer, ``audit`` compares what reached the backends with what was charged or voided.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from asking import CHAT, NO_ANSWER, PROMPT, body, error_of, h2_post, post, raw, status_of
from house import LARGE, NANOS_IN, NANOS_OUT, SMALL, Guest, House, until

from extproc.accounts.keys import new_key

SECRET = "tell-no-backend"  # in everything of a client that must go no further
CONTENT = json.dumps(body()).encode()
PATHS = {"/v1/chat/completions", "/v1/completions"}
PRIVATE = {"authorization", "x-api-key", "api-key", "cookie", "proxy-authorization", "accept-encoding"}
OURS = {"x-vllm-priority", "x-data-parallel-rank", "x-session-id", "endpoint-load-metrics-format", "x-sticky"}

Sent = Callable[[], list[dict[str, Any]]]


@pytest.fixture
def sent(house: House, guest: Guest) -> Iterator[Sent]:
    """What this test brought to the backends; held against the ledger when it is over."""
    places = {name: one.log()[1] for name, one in house.simulators.items()}
    before = forwarded(house)

    def look() -> list[dict[str, Any]]:
        return [seen for name, one in house.simulators.items() for seen in one.log(places[name])[0]]

    yield look
    seen = look()
    assert forwarded(house) - before == len(seen), "Envoy forwarded what is no request to a model"
    for one in seen:
        audit(house, one)
    guest.check()


def forwarded(house: House) -> int:
    return sum(house.envoy.stat(f"cluster.{name}.upstream_rq_total") for name in house.simulators)


def audit(house: House, seen: dict[str, Any]) -> None:
    """One request that reached a backend: held, ended, billed for the very model that served it, and clean."""
    rows = until(lambda: house.rows("SELECT * FROM requests WHERE id = %s", seen["hold_id"]), "the row of a request that was served")
    (row,) = rows
    headers = {name.lower(): value for name, value in seen["headers"]}
    assert seen["path"] in PATHS
    served = seen["model"] or headers["x-model"]  # a fault may end it before the simulator has read the body
    assert (row["request_id"], row["model"], str(row["user_id"])) == (seen["request_id"], served, headers["x-account-id"])
    assert headers["x-model"] == served
    assert row["hold_nanos"] > 0
    if seen["status"] == 200 and seen["end"] == "finished":
        assert (row["ending"], row["output_tokens"]) == ("settle", seen["generated_tokens"])
        assert row["cost"] > 0
    else:
        assert row["ending"] in ("settle", "void")
    assert not (PRIVATE | OURS) & set(headers)
    for name, value in headers.items():
        assert "sk-" not in value, name
        assert SECRET not in value, name
    assert len({name.lower() for name, _ in seen["headers"]}) == len(seen["headers"]), "a header that came twice"


def is_refusal(status: int) -> bool:
    """4xx, or the connection closed without a word: Envoy's way with broken HTTP/1.1 (docs/decisions/edge.md)."""
    return status == 0 or 400 <= status < 500


# headers that choose or tell who one is

IDENTITY = {
    "x-model": LARGE,
    "X-MODEL": LARGE,
    "x-sticky": SECRET,
    "x-account": SECRET,
    "x-account-id": SECRET,
    "x-hold-id": SECRET,
    "x-request-id": SECRET,
    "x-vllm-priority": "0",
    "x-data-parallel-rank": "1",
    "x-session-id": SECRET,
    "endpoint-load-metrics-format": "JSON",
    "cookie": f"session={SECRET}",
    "proxy-authorization": f"Basic {SECRET}",
    "api-key": SECRET,
    "x-envoy-retry-on": "5xx",
    "x-envoy-max-retries": "5",
    "x-envoy-upstream-rq-timeout-ms": "1",
    "x-envoy-upstream-rq-per-try-timeout-ms": "1",
    "x-envoy-hedge-on-per-try-timeout": "true",
    "x-envoy-internal": "true",
    "x-envoy-original-path": "/metrics",
    "x-envoy-decorator-operation": SECRET,
    "x-envoy-upstream-alt-stat-name": SECRET,
    "x-envoy-force-trace": "true",
    "accept-encoding": "gzip, br",
}


@pytest.mark.parametrize("http2", [False, True], ids=["HTTP/1.1", "HTTP/2"])
def test_no_header_chooses_a_model_or_an_identity(house: House, guest: Guest, sent: Sent, http2: bool):
    with house.client(http2=http2) as client:
        for name, value in IDENTITY.items():
            answer = client.post(CHAT, json=body(), headers={**guest.headers, name: value})
            assert answer.status_code == 200, (name, answer.text)
            assert answer.json()["model"] == SMALL
        together = client.post(CHAT, json=body(), headers={**guest.headers, **{name.lower(): value for name, value in IDENTITY.items()}})
        assert together.status_code == 200
    seen = sent()
    assert len(seen) == len(IDENTITY) + 1
    for one in seen:
        headers = dict(one["headers"])
        assert (headers["x-account-id"], headers["x-model"], headers["x-priority"]) == (guest.id, SMALL, "standard")
        # The only x-envoy- header that a backend gets is Envoy's own.
        assert {name for name in headers if name.startswith("x-envoy-")} <= {"x-envoy-external-address"}
        assert headers.get("x-envoy-external-address", "127.0.0.1") == "127.0.0.1"
        assert len(headers["x-request-id"]) == 36


def test_headers_with_underscores_are_not_taken_for_others(house: House, guest: Guest, sent: Sent):
    for name in ("x_model", "x_account_id", "x_hold_id", "x_priority"):
        answer = h2_post(house, {**guest.headers, name: LARGE}, CONTENT)
        assert answer is NO_ANSWER or answer.status_code == 400, name
    assert sent() == []


def test_a_priority_is_asked_for_and_never_forwarded_as_it_came(house: House, guest: Guest, sent: Sent):
    for value, status in (("standard", 200), ("Standard", 200), ("spot", 404), ("spot,standard", 403), ("", 200), ("x" * 5000, 403)):
        answer = house.client().post(CHAT, json=body(), headers={**guest.headers, "x-priority": value})
        assert answer.status_code == status, (value, answer.text)
    twice = [*guest.headers.items(), ("x-priority", "standard"), ("x-priority", "spot")]
    assert house.client().post(CHAT, json=body(), headers=twice).status_code == 403
    assert [dict(one["headers"])["x-priority"] for one in sent()] == ["standard"] * 3


def test_a_client_cannot_order_retries_of_its_request(house: House, guest: Guest, sent: Sent):
    """Each would be paid for with GPU time that nobody is charged for."""
    orders = {
        "x-envoy-retry-on": "5xx,gateway-error,retriable-status-codes",
        "x-envoy-max-retries": "9",
        "x-envoy-retriable-status-codes": "500",
    }
    answer = house.client().post(CHAT, json=body(), headers={**guest.headers, **orders, "x-sim-fault": "status=500"})
    assert answer.status_code == 500
    assert len(sent()) == 1


# paths

SERVED = [
    "//v1/chat/completions",
    "/v1//chat///completions",
    "/v1/./chat/x/../completions",
    "/v1/%63hat/completions",
    "/v1\\chat\\completions",
    "/v1/chat/completions?x=y",
    "/v1/chat/completions?model=qwen3-72b&stream=true",
    "/metrics/../v1/chat/completions",
    "/../v1/chat/completions",
    "/v1/..;/v1/chat/completions",
    "http://localhost/v1/chat/completions",
    "http://vllm.example:8000/v1/chat/completions",
]
REFUSED = [
    "/v1/chat/completions/",
    "/V1/chat/completions",
    "/v1/Chat/Completions",
    "/v1/chat%2Fcompletions",
    "/v1/chat%2fcompletions",
    "/v1%5Cchat/completions",
    "/v1/chat/completions;x=1",
    "/v1/chat/..;/..;/metrics",
    "/v1/chat/completions%00",
    "/v1/chat/completions%00.txt",
    "/v1/chat/completions%20",
    "/v1/chat/completions%3Fx",
    "/v1/chat/completions#x",
    "/v1/chat/completions/../../../metrics",
    "/v1/chat/completions/..%2f..%2fmetrics",
    "/v1/chat/completions%2e%2e%2fmetrics",
    "/v1/chat/completions/batch",
    "/metrics",
    "/tokenize/batch",
    "/sim/config",
    "/sim/log",
    "/invocations",
    "http://localhost/metrics",
    "http://localhost",
    "v1/chat/completions",
    "*",
    "/",
    "//",
    "/v1/chat/completions\\..\\..\\metrics",
    "/" + "a" * 8_000,
]


@pytest.mark.parametrize("http2", [False, True], ids=["HTTP/1.1", "HTTP/2"])
def test_paths_that_mean_ours_are_served_as_ours(house: House, guest: Guest, sent: Sent, http2: bool):
    paths = [path for path in SERVED if not (http2 and path.startswith("http"))]
    for path in paths:
        if http2:
            status = h2_post(house, guest.headers, CONTENT, pseudo={":path": path}).status_code
        else:
            status = status_of(raw(house, post(guest.headers, CONTENT, path=path)))
        assert status == 200, path
    assert [one["path"] for one in sent()] == [CHAT] * len(paths), "normal form, without a query"


@pytest.mark.parametrize("http2", [False, True], ids=["HTTP/1.1", "HTTP/2"])
def test_no_other_path_leads_to_a_backend(house: House, guest: Guest, sent: Sent, http2: bool):
    def attempt(path: str) -> int:
        if http2:
            answer = h2_post(house, guest.headers, CONTENT, pseudo={":path": path})
            return 0 if answer is NO_ANSWER else answer.status_code
        return status_of(raw(house, post(guest.headers, CONTENT, path=path)))

    with guest.charged_nothing():
        with ThreadPoolExecutor(8) as together:
            statuses = dict(zip(REFUSED, together.map(attempt, REFUSED), strict=True))
        assert [path for path, status in statuses.items() if not is_refusal(status)] == []
    assert sent() == []


# credentials


def test_tricks_with_credentials(house: House, guest: Guest, sent: Sent):
    other, key = house.guest(), guest.secret
    good = [
        [("authorization", f"Bearer {key}")],
        [("authorization", f"bearer {key}")],
        [("Authorization", f"BEARER   {key}")],
        [("x-api-key", key)],
        [("authorization", f"Bearer {key}"), ("x-api-key", key)],
    ]
    bad = [
        [],
        [("authorization", "")],
        [("authorization", key)],
        [("authorization", "Bearer")],
        [("authorization", "Bearer ,")],
        [("authorization", f"Bearer\t{key}")],
        [("authorization", f"Basic {key}")],
        [("authorization", f"Bearer {key}, Bearer {key}")],
        [("authorization", f"Bearer {key},{other.secret}")],
        [("authorization", f"Bearer {key} {key}")],
        [("authorization", f"Bearer {key}"), ("authorization", f"Bearer {key}")],
        [("authorization", f"Bearer {new_key()}"), ("authorization", f"Bearer {key}")],
        [("authorization", f"Bearer {key}"), ("authorization", f"Bearer {other.secret}")],
        [("authorization", f"Bearer {key}"), ("x-api-key", other.secret)],
        [("authorization", f"Bearer {key}"), ("x-api-key", "")],
        [("authorization", "Bearer"), ("x-api-key", key)],
        [("x-api-key", key), ("x-api-key", other.secret)],
        [("x-api-key", f"Bearer {key}")],
        [("api-key", key)],
        [("cookie", f"authorization=Bearer {key}")],
        [("proxy-authorization", f"Bearer {key}")],
        [("authorization", f"Bearer {key.upper()}")],
        [("authorization", f"Bearer {key[:-1]}")],
        [("authorization", f"Bearer {key}x")],
        [("authorization", f"Bearer {key}" + "x" * 9_000)],
    ]
    client = house.client()
    for headers in good:
        assert client.post(CHAT, json=body(), headers=headers).status_code == 200, headers
    with guest.charged_nothing(), other.charged_nothing():
        for headers in bad:
            error_of(client.post(CHAT, json=body(), headers=headers), 401, "invalid_api_key")
    assert len(sent()) == len(good)


@pytest.mark.parametrize("query", ["api_key={}", "key={}", "x=1&access_token={}", "Authorization=Bearer%20{}", "%6Bey={}", "q={}"])
def test_a_key_in_the_url_is_refused_even_beside_a_good_one(house: House, guest: Guest, sent: Sent, query: str):
    with guest.charged_nothing():
        for headers in ({}, guest.headers):
            answer = house.client().post(f"{CHAT}?{query.format(guest.secret)}", json=body(), headers=headers)
            error_of(answer, 401, "invalid_api_key")
            assert guest.secret not in answer.text
    assert sent() == []


# addresses


def test_nobody_says_from_where_he_comes(house: House, sent: Sent):
    guest = house.guest(networks=("203.0.113.0/24", "::ffff:203.0.113.7"))
    claims = [
        {"x-forwarded-for": "203.0.113.5"},
        {"x-forwarded-for": "203.0.113.5, 203.0.113.6"},
        {"x-forwarded-for": "::ffff:203.0.113.5"},
        {"x-envoy-external-address": "203.0.113.5"},
        {"x-real-ip": "203.0.113.5"},
        {"forwarded": "for=203.0.113.5"},
        {"true-client-ip": "203.0.113.5"},
        {"cf-connecting-ip": "203.0.113.5"},
        {"x-client-ip": "203.0.113.5"},
        {"x-envoy-internal": "true", "x-forwarded-for": "203.0.113.5"},
    ]
    with guest.charged_nothing():
        for claim in claims:
            answer = house.client().post(CHAT, json=body(), headers=guest.headers | claim)
            error_of(answer, 403, "address_not_allowed")
            assert h2_post(house, guest.headers | claim, CONTENT).status_code == 403
        doubled = [*guest.headers.items(), ("x-forwarded-for", "203.0.113.5"), ("x-forwarded-for", "203.0.113.6")]
        error_of(house.client().post(CHAT, json=body(), headers=doubled), 403, "address_not_allowed")
        proxied = b"PROXY TCP4 203.0.113.5 127.0.0.1 1 2\r\n" + post(guest.headers, CONTENT)
        assert is_refusal(status_of(raw(house, proxied)))
    assert sent() == []


def test_a_claimed_address_does_not_lock_anybody_out_either(house: House, sent: Sent):
    guest = house.guest(networks=("127.0.0.0/8",))
    answer = house.client().post(CHAT, json=body(), headers=guest.headers | {"x-forwarded-for": "203.0.113.5"})
    assert answer.status_code == 200
    assert len(sent()) == 1


# request ids


def test_a_replayed_request_id_is_a_request_of_its_own(house: House, guest: Guest, sent: Sent):
    """In a row and at the same time: as many holds and charges as requests."""
    replayed = guest.headers | {"x-request-id": "0198c0de-0000-7000-8000-000000000001", "x-sim-delay-ms": "20", "idempotency-key": "mine"}

    def ask(_: int) -> str:
        answer = house.client().post(CHAT, json=body(), headers=replayed)
        assert answer.status_code == 200
        return answer.headers["x-request-id"]

    first = ask(0)
    own = house.client().post(CHAT, json=body(), headers=replayed | {"x-request-id": first})  # one that was ours
    with ThreadPoolExecutor(6) as together:
        ids = [first, own.headers["x-request-id"], *together.map(ask, range(6))]
    assert len(set(ids)) == 8
    assert replayed["x-request-id"] not in ids
    guest.at_rest()
    rows = guest.rows()
    seen = sent()
    assert len({one["hold_id"] for one in seen}) == len(rows) == len(seen) == 8
    assert {row["request_id"] for row in rows} == set(ids)
    assert {row["cost"] for row in rows} == {rows[0]["input_tokens"] * NANOS_IN + 5 * NANOS_OUT}


# protocols


def test_upgrades_and_tunnels_are_refused(house: House, guest: Guest, sent: Sent):
    key = f"authorization: Bearer {guest.secret}\r\n"
    attempts = [
        f"GET /v1/chat/completions HTTP/1.1\r\nhost: x\r\n{key}connection: upgrade\r\nupgrade: websocket\r\nsec-websocket-version: 13\r\nsec-websocket-key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n",
        f"GET /v1/models HTTP/1.1\r\nhost: x\r\n{key}connection: upgrade, http2-settings\r\nupgrade: h2c\r\nhttp2-settings: AAMAAABkAAQAAP__\r\n\r\n",
        post(guest.headers, CONTENT, connection="upgrade", upgrade="foo").decode(),
        f"CONNECT vllm:8000 HTTP/1.1\r\nhost: vllm:8000\r\n{key}\r\n",
        f"CONNECT qwen3-72b HTTP/1.1\r\nhost: qwen3-72b\r\n{key}x-model: qwen3-72b\r\n\r\n",
    ]
    closing = [
        attempt if "connection:" in attempt else attempt.replace("\r\n\r\n", "\r\nconnection: close\r\n\r\n", 1) for attempt in attempts
    ]
    with guest.charged_nothing():
        with ThreadPoolExecutor(len(closing)) as together:
            statuses = list(together.map(lambda attempt: refused_status(house, attempt.encode()), closing))
        assert all(map(is_refusal, statuses)), statuses
        for pseudo in (
            {":method": "CONNECT", ":path": None, ":scheme": None, ":authority": "vllm:8000"},
            {":method": "CONNECT", ":protocol": "websocket"},
        ):
            answer = h2_post(house, guest.headers, b"", announced=False, pseudo=pseudo)
            assert answer is NO_ANSWER or is_refusal(answer.status_code), pseudo
        for kind in ("application/grpc", "application/grpc+proto", "application/grpc-web"):
            answer = house.client(http2=True).post(CHAT, content=CONTENT, headers=guest.headers | {"content-type": kind})
            # Envoy makes a gRPC answer of ours: status 200 with the error in grpc-status.
            assert answer.status_code == 400 or int(answer.headers["grpc-status"]) != 0, kind
    assert sent() == []


def refused_status(house: House, attempt: bytes) -> int:
    """Some refusals leave the connection open: a little patience is enough."""
    try:
        return status_of(raw(house, attempt, wait_s=1.5))
    except TimeoutError:
        return 0


def test_other_methods_are_refused(house: House, guest: Guest, sent: Sent):
    methods = ("GET", "HEAD", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "post", "POSTS", "PROPFIND")
    tries = [
        (method, path) for method in methods for path in (CHAT, "/v1/models", "/metrics", "/") if (method, path) != ("GET", "/v1/models")
    ]

    def attempt(one: tuple[str, str]) -> int:
        return status_of(raw(house, post(guest.headers, b"", path=one[1], line=f"{one[0]} {{}} HTTP/1.1")))

    with guest.charged_nothing():
        with ThreadPoolExecutor(8) as together:
            statuses = dict(zip(tries, together.map(attempt, tries), strict=True))
        assert [one for one, status in statuses.items() if not is_refusal(status)] == []
    assert sent() == []


def test_a_get_with_a_body_is_refused(house: House, guest: Guest, sent: Sent):
    with guest.charged_nothing():
        for path in (CHAT, "/v1/models"):
            status = status_of(raw(house, post(guest.headers, CONTENT, path=path, line="GET {} HTTP/1.1")))
            assert is_refusal(status), path
            assert h2_post(house, guest.headers, CONTENT, pseudo={":method": "GET", ":path": path}).status_code in (400, 405)
        chunked = post(guest.headers, b"2\r\n{}\r\n0\r\n\r\n", path="/v1/models", line="GET {} HTTP/1.1", transfer_encoding="chunked")
        assert is_refusal(status_of(raw(house, chunked.replace(b"content-length: 12\r\n", b""))))
    assert sent() == []


def test_models_are_listed_without_a_backend(house: House, guest: Guest, sent: Sent):
    names = {model.id for model in guest.openai().models.list()}
    assert {SMALL, LARGE} < names
    assert sent() == []
    assert guest.rows() == []


def test_old_and_odd_request_lines(house: House, guest: Guest, sent: Sent):
    lines = [
        *(
            "POST {} HTTP/1.0",
            "POST {} HTTP/0.9",
            "POST {}",
            "POST {} HTTP/2.0",
            "POST {} HTTP/1.1 x",
            "POST  {} HTTP/1.1",
            "POST\t{} HTTP/1.1",
        ),
        *("POST {} ICAP/1.0", " POST {} HTTP/1.1", "POST {} HTTP/1.1\r\n x-folded: a"),
    ]
    with ThreadPoolExecutor(8) as together:
        statuses = dict(
            zip(lines, together.map(lambda line: refused_status(house, post(guest.headers, CONTENT, line=line)), lines), strict=True)
        )
    served = [line for line, status in statuses.items() if status == 200]
    assert all(status == 200 or is_refusal(status) or status == 505 for status in statuses.values()), statuses
    assert len(sent()) == len(served), statuses


# smuggling

INSIDE = b"POST /metrics HTTP/1.1\r\nhost: x\r\nx-model: qwen3-72b\r\ncontent-length: 0\r\n\r\n"
HIDDEN = b"0\r\n\r\n" + INSIDE
SMUGGLED: dict[str, tuple[list[tuple[str, str]], bytes]] = {
    "two lengths": ([("content-length", "5"), ("content-length", "6")], b"0\r\n\r\n"),
    "two equal lengths": ([("content-length", str(len(CONTENT))), ("content-length", str(len(CONTENT)))], CONTENT),
    "a list of lengths": ([("content-length", f"{len(CONTENT)}, {len(CONTENT)}")], CONTENT),
    "a signed length": ([("content-length", f"+{len(CONTENT)}")], CONTENT),
    "a length in hex": ([("content-length", hex(len(CONTENT)))], CONTENT),
    "length, then chunked": ([("content-length", str(len(HIDDEN))), ("transfer-encoding", "chunked")], HIDDEN),
    "chunked, then length": ([("transfer-encoding", "chunked"), ("content-length", "5")], HIDDEN),
    "chunked twice": ([("transfer-encoding", "chunked"), ("transfer-encoding", "chunked")], HIDDEN),
    "chunked, identity": ([("transfer-encoding", "chunked, identity"), ("content-length", "5")], HIDDEN),
    "xchunked": ([("transfer-encoding", "xchunked"), ("content-length", "5")], HIDDEN),
    "a tab before chunked": ([("transfer-encoding", "\tchunked"), ("content-length", "5")], HIDDEN),
    "vertical tab": ([("transfer-encoding", "\x0bchunked"), ("content-length", "5")], HIDDEN),
    "a blank in the name": ([("transfer-encoding ", "chunked"), ("content-length", "5")], HIDDEN),
    "gzip, chunked": ([("transfer-encoding", "gzip, chunked")], HIDDEN),
    "folded": ([("x-fold", "a\r\n transfer-encoding: chunked"), ("content-length", "5")], HIDDEN),
    "chunk sizes that overflow": ([("transfer-encoding", "chunked")], b"fffffffffffffffffff\r\n" + CONTENT + b"\r\n0\r\n\r\n"),
    "negative chunk": ([("transfer-encoding", "chunked")], b"-1\r\n" + CONTENT + b"\r\n0\r\n\r\n"),
    "chunk extension": ([("transfer-encoding", "chunked")], b"%x;a=b\r\n%b\r\n" % (len(CONTENT), CONTENT) + HIDDEN),
    "lines of LF": ([("transfer-encoding", "chunked")], b"%x\n%b\n0\n\n" % (len(CONTENT), CONTENT) + INSIDE),
    "pipelined": ([("content-length", str(len(CONTENT)))], CONTENT + INSIDE),
    "shorter than its length": ([("content-length", str(len(CONTENT) - 10))], CONTENT),
}


def test_no_request_is_smuggled(house: House, guest: Guest, sent: Sent):
    """Whatever Envoy makes of these, a backend sees whole requests of ours, each held."""

    def attempt(case: tuple[list[tuple[str, str]], bytes]) -> bytes:
        headers, content = case
        lines = [f"POST {CHAT} HTTP/1.1", "host: localhost", "content-type: application/json", f"authorization: Bearer {guest.secret}"]
        lines += [f"{name}: {value}" for name, value in headers]
        try:
            return raw(house, "\r\n".join([*lines, "", ""]).encode() + content, wait_s=1.5)
        except TimeoutError:
            return b""

    with ThreadPoolExecutor(len(SMUGGLED)) as together:
        answers = dict(zip(SMUGGLED, together.map(attempt, SMUGGLED.values()), strict=True))
    assert all(status_of(answer) == 200 or is_refusal(status_of(answer)) for answer in answers.values()), answers
    guest.at_rest()
    for one in sent():
        assert json.loads(json.dumps(one))["path"] == CHAT
        assert one["model"] == SMALL
    rows = guest.rows()
    assert len(sent()) == sum(row["ending"] == "settle" for row in rows)


def test_two_requests_in_one_write_are_two_charges(house: House, guest: Guest, sent: Sent):
    first = post(guest.headers, CONTENT).replace(b"connection: close\r\n", b"")
    answer = raw(house, first + post(guest.headers, CONTENT))
    assert answer.count(b"HTTP/1.1 200 OK") == 2
    assert len(sent()) == 2
    guest.at_rest()
    assert len(guest.rows()) == 2


H2_ODD: dict[str, list[tuple[str, str]]] = {
    "transfer-encoding": [("transfer-encoding", "chunked")],
    "connection": [("connection", "close, x-model")],
    "upper case": [("X-Model", LARGE)],
    "CRLF in a value": [("x-a", f"b\r\nx-model: {LARGE}")],
    "LF in a value": [("x-a", f"b\nx-model: {LARGE}")],
    "NUL in a value": [("x-a", "b\x00c")],
    "a colon in a name": [("x-a: b", "c")],
    "a blank in a name": [("x-model ", LARGE)],
    "a late pseudo header": [("x-a", "b"), (":path", "/metrics")],
    "two paths": [(":path", "/metrics")],
    "an unknown pseudo header": [(":model", LARGE)],
    "two lengths": [("content-length", "1")],
    "host that differs": [("host", "vllm")],
    "te": [("te", "trailers, deflate")],
}


def test_odd_headers_over_http_2(house: House, guest: Guest, sent: Sent):
    with ThreadPoolExecutor(8) as together:
        attempts = together.map(lambda odd: h2_post(house, [*guest.headers.items(), *odd], CONTENT), H2_ODD.values())
        answers = dict(zip(H2_ODD, attempts, strict=True))
    assert all(answer is NO_ANSWER or answer.status_code in (200, 400) for answer in answers.values()), answers
    guest.at_rest()
    assert len(sent()) == sum(answer.status_code == 200 for answer in answers.values())
    for one in sent():
        assert dict(one["headers"])["x-model"] == SMALL
        assert not {"transfer-encoding", "te"} & set(dict(one["headers"]))


def test_trailers_tell_a_backend_nothing(house: House, guest: Guest, sent: Sent):
    trailers = {"authorization": f"Bearer {SECRET}", "x-model": LARGE, "x-trailer": SECRET}
    answer = h2_post(house, guest.headers, CONTENT, announced=False, trailers=trailers)
    assert answer.status_code == 200, answer.text
    lines = "".join(f"{name}: {value}\r\n" for name, value in trailers.items())
    chunked = b"%x\r\n%b\r\n0\r\n%b\r\n" % (len(CONTENT), CONTENT, lines.encode())
    head = post(guest.headers, b"", transfer_encoding="chunked").replace(b"content-length: 0\r\n", b"")
    assert status_of(raw(house, head + chunked)) == 200
    seen = sent()
    assert len(seen) == 2
    assert SECRET not in json.dumps(seen)


# bodies


def test_nothing_of_the_body_but_what_is_sold_reaches_a_backend(house: House, guest: Guest, sent: Sent):
    """Fields that change the bill or the queue (VLLM.md) are ours to say."""
    tricks = {
        "priority": -100, "stream_interval": 1000, "include_reasoning": False, "request_id": SECRET, "vllm_xargs": {"a": SECRET},
        "kv_transfer_params": {"a": SECRET}, "chat_template": SECRET, "chat_template_kwargs": {"a": SECRET}, "mm_processor_kwargs": {},
        "cache_salt": SECRET, "user": SECRET, "metadata": {"a": SECRET}, "max_completion_tokens": 3, "x-model": LARGE, "unknown": SECRET,
    }  # fmt: skip
    answer = house.client().post(CHAT, json=body(**tricks), headers=guest.headers)
    assert answer.status_code == 200
    (one,) = house.upstream(answer.headers["x-request-id"])
    forwarded_body = json.loads(one["body"]) if isinstance(one["body"], str) else one["body"]
    assert set(forwarded_body) == {"model", "messages", "max_tokens"} or set(forwarded_body) == {
        "model",
        "messages",
        "max_completion_tokens",
    }
    assert SECRET not in json.dumps(forwarded_body)
    assert one["generated_tokens"] == 3
    assert len(sent()) == 1


def test_the_backends_saw_nobodys_key(house: House, guest: Guest):
    """Of everything that these tests sent."""
    guest.openai().chat.completions.create(**body())
    for one in house.simulators.values():
        requests, _ = one.log()
        text = json.dumps(requests)
        assert "sk-" not in text
        assert SECRET not in text
        assert PROMPT not in text, "the log keeps lengths only"
