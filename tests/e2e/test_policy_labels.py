"""Every policy that made a figure stands in the row, in what ``explain`` says, and in ``extproc_policy_total``: each of their values once."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
from asking import CHAT, body
from click.testing import CliRunner
from house import NANOS_IN, NANOS_OUT, SMALL, Guest, House, until
from test_policies import Setting, counted, own_house, policy  # noqa: F401 - fixtures
from wire import Line, call, chat, steering

from extproc.cli.explain import explain
from extproc.settings import Settings

MAX = 400  # tokens asked for


@pytest.fixture
def decided(request: pytest.FixtureRequest) -> Callable[..., None]:
    """Section ``policy`` as a test wants it. What holds without being written is not written."""
    shipped = Settings().policy

    def decide(**keys: str) -> None:
        if any(getattr(shipped, name) != value for name, value in keys.items()):
            request.getfixturevalue("policy")(**keys)

    return decide


def labelled(house: House, guest: Guest, request_id: str, name: str, value: str) -> dict[str, Any]:
    """The row, whose charge can be recomputed and whose policy is named everywhere."""
    row = guest.row(request_id)
    assert row["policies"] == [f"{name}={value}"]
    said = CliRunner().invoke(explain, [request_id, "--config", str(house.settings_file)])
    assert said.exit_code == 0, said.output
    assert f"policy      {name}: {value}" in said.output.splitlines()
    counted(house, 1, "extproc_policy_total", policy=f"{name}={value}")
    return row


def cost_of(row: dict[str, Any]) -> int:
    return int(row["input_tokens"] * NANOS_IN + row["output_tokens"] * NANOS_OUT)


@pytest.mark.parametrize("value", ["actual_so_far", "input_only", "full"])
async def test_ended_early(own_house: House, decided: Callable[..., None], value: str):  # noqa: F811
    decided(ended_early=value)
    guest = own_house.guest()
    headers = {**guest.headers, **steering(tokens=MAX, delay_ms=30)}
    told = await call(own_house, headers, chat(SMALL, max_tokens=MAX), leave_after=10)
    row = await asyncio.to_thread(labelled, own_house, guest, told.request_id, "ended_early", value)
    low, high = {"actual_so_far": (9, 12), "input_only": (0, 0), "full": (MAX, MAX)}[value]
    assert low <= row["output_tokens"] <= high
    assert row["cost"] == cost_of(row) > 0
    assert (row["cost"] == row["hold_nanos"]) == (value == "full")
    await asyncio.to_thread(guest.check)


@pytest.mark.parametrize("value", ["input", "void"])
async def test_abort_before_response(own_house: House, decided: Callable[..., None], value: str):  # noqa: F811
    decided(abort_before_response=value)
    guest = own_house.guest()
    line = await Line.open(own_house)
    await line.send({**guest.headers, **steering(fault="hang_headers")}, chat(SMALL, max_tokens=MAX))

    def forwarded() -> list[dict[str, Any]]:
        seen, _ = own_house.simulators[SMALL].log()
        return [one for one in seen if dict(one["headers"]).get("x-account-id") == guest.id]

    (seen,) = await asyncio.to_thread(until, forwarded, "the simulator has it")
    await line.leave()
    row = await asyncio.to_thread(labelled, own_house, guest, seen["request_id"], "abort_before_response", value)
    assert (row["end_reason"], row["output_tokens"]) == ("client_gone", 0)
    assert row["cost"] == cost_of(row)
    assert (row["ending"], bool(row["cost"])) == {"input": ("settle", True), "void": ("void", False)}[value]
    await asyncio.to_thread(guest.check)


@pytest.mark.parametrize("value", ["count", "hold"])
def test_no_usage(own_house: House, decided: Callable[..., None], value: str):  # noqa: F811
    decided(no_usage=value)
    guest = own_house.guest()
    with own_house.client() as client:
        asked = body(stream=True, max_tokens=MAX)
        answer = client.post(CHAT, json=asked, headers={**guest.headers, **steering(tokens=7, fault="no_usage")})
    assert answer.status_code == 200
    row = labelled(own_house, guest, answer.headers["x-request-id"], "no_usage", value)
    assert (row["output_tokens"], row["usage_source"]) == {"count": (7, "counted"), "hold": (MAX, "none")}[value]
    assert row["cost"] == cost_of(row) > 0
    guest.check()


def test_over_balance(own_house: House, policy: Setting):  # noqa: F811
    """What it says without being set, ``reject``, makes no figure: the refusal is its own row."""
    guest = own_house.guest(deposit="0.002")
    with own_house.client() as client:
        refused = client.post(CHAT, json=body(max_tokens=8_000), headers=guest.headers)
        policy(over_balance="clamp")
        answer = client.post(CHAT, json=body(max_tokens=8_000), headers={**guest.headers, **steering(tokens=3)})
        assert answer.status_code == 200
        clamped = int(answer.headers["x-max-tokens-clamped"])
        row = labelled(own_house, guest, answer.headers["x-request-id"], "over_balance", "clamp")
    (seen,) = own_house.upstream(answer.headers["x-request-id"])
    assert seen["body"]["max_tokens"] == clamped < 2_000
    assert row["hold_nanos"] <= guest.deposited
    assert row["cost"] == cost_of(row) > 0
    assert refused.status_code == 402
    assert guest.row(refused.headers["x-request-id"])["policies"] == []
    guest.check()
