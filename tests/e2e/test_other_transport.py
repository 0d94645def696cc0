"""The same house over grpcio, the reference transport: everything else here runs over the lean one."""

from __future__ import annotations

import json
import shutil
import signal
from collections.abc import Iterator

import pytest
from house import NANOS_IN, NANOS_OUT, SMALL, Guest, House, short_directory, until

ASK = {"model": SMALL, "messages": [{"role": "user", "content": "hello"}], "max_tokens": 500}


@pytest.fixture(scope="module")
def grpcio_house() -> Iterator[House]:
    directory = short_directory()
    built = House(directory, settings='listen.transport="grpcio"')
    yield built
    built.stop()
    shutil.rmtree(directory, ignore_errors=True)


@pytest.fixture
def visitor(grpcio_house: House) -> Iterator[Guest]:
    yield grpcio_house.guest()
    grpcio_house.close_clients()


def test_it_is_the_other_one(grpcio_house: House):
    lines = [json.loads(line) for line in grpcio_house.log_file.read_text().splitlines() if '"transport ' in line]
    assert {line["msg"] for line in lines} == {"transport grpcio: listen.transport says so"}


@pytest.mark.parametrize("stream", [True, False])
def test_requests_are_billed(visitor: Guest, stream: bool):
    answer = visitor.openai().chat.completions.create(stream=stream, **ASK)
    if stream:
        list(answer)
    visitor.at_rest()
    (row,) = visitor.rows()
    assert (row["cost"], row["usage_source"]) == (row["input_tokens"] * NANOS_IN + row["output_tokens"] * NANOS_OUT, "upstream")
    visitor.check()


def test_a_client_that_leaves_pays_what_was_made_for_it(grpcio_house: House, visitor: Guest):
    client = grpcio_house.client()
    steering = {"x-sim-tokens": "400", "x-sim-delay-ms": "20"}
    with client.stream("POST", "/v1/chat/completions", json=ASK | {"stream": True}, headers=visitor.headers | steering) as answer:
        request_id = answer.headers["x-request-id"]
        lines = (line for line in answer.iter_lines() if '"content":"' in line and '"content":""' not in line)
        for _ in range(10):
            next(lines)
    row = visitor.row(request_id)
    (made,) = [one["generated_tokens"] for one in grpcio_house.simulators[SMALL].log()[0] if one["request_id"] == request_id]
    assert made < 400
    assert row["output_tokens"] >= 10
    assert abs(row["output_tokens"] - made) <= 1
    visitor.check()


def test_a_refusal_costs_nothing(visitor: Guest):
    with visitor.charged_nothing():
        answer = visitor.house.client().post("/v1/chat/completions", content=b"{", headers=visitor.headers)
        assert (answer.status_code, answer.json()["error"]["code"]) == (400, "invalid_json")
    until(visitor.rows, "a row")
    visitor.check()


def test_workers_are_replaced_one_after_the_other(grpcio_house: House, visitor: Guest):
    """Each ends before the next one starts, since two processes cannot share its address: the other worker serves meanwhile."""
    before = grpcio_house.pids()

    def replaced() -> bool:
        now = grpcio_house.pids()
        return now.keys() == before.keys() and set(now.values()).isdisjoint(before.values())

    grpcio_house.sidecar.signal(signal.SIGUSR2)
    until(replaced, "everybody is replaced")
    grpcio_house.envoy.wait_healthy({"extproc": grpcio_house.workers})
    answers = [visitor.openai().chat.completions.create(**ASK) for _ in range(6)]
    assert all(answer.choices for answer in answers)
    visitor.check()
