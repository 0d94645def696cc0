"""Policies, live, in a whole house: sandbox keys, shadow mode, trust, and credit while Redis is away."""

from __future__ import annotations

import json
import re
import shutil
import signal
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest
from asking import CHAT, body, error_of
from house import LARGE, NANOS_IN, NANOS_OUT, SMALL, Guest, House, short_directory, until

from extproc.app.explain import explained

Setting = Callable[..., None]


@pytest.fixture(scope="module")
def own_house() -> Iterator[House]:
    """One whose policy changes."""
    directory = short_directory()
    built = House(directory)
    yield built
    built.stop()
    shutil.rmtree(directory, ignore_errors=True)


@pytest.fixture
def policy(own_house: House) -> Iterator[Setting]:
    """Writes section ``policy`` and returns when every worker has it; afterwards it is as it was."""
    shipped = own_house.settings_file.read_text()

    def change(**keys: Any) -> None:
        begin = own_house.log_file.stat().st_size
        own_house.settings_file.write_text(json.dumps({**json.loads(shipped), "policy": keys}))
        own_house.sidecar.signal(signal.SIGHUP)
        said = b"the policy has changed"
        until(lambda: own_house.log_file.read_bytes()[begin:].count(said) == own_house.workers, "every worker has the policy")

    yield change
    change()
    own_house.close_clients()


def ask(guest: Guest, client: httpx.Client, headers: dict[str, str] | None = None, **more: Any) -> httpx.Response:
    return client.post(CHAT, json=body(**more), headers=guest.headers if headers is None else headers)


def counted(house: House, expected: float, name: str, **labels: str) -> None:
    """Workers hand over what they count once a second."""
    until(lambda: _count(house, name, **labels) == expected, f"{expected} of {name} {labels}", 5)


def _count(house: House, name: str, **labels: str) -> float:
    inside = ",".join(f'{key}="{value}"' for key, value in labels.items())
    found = re.findall(rf"^{name}(?:{{{re.escape(inside)}}})? ([0-9.e+]+)$", house.metrics(), re.MULTILINE)
    return sum(map(float, found))


def explained_by(house: House, row: dict[str, Any]) -> None:
    """The charge comes out again from the row and its price."""
    found = house.run(house.stores.ledger.explain(str(row["id"])))
    assert found is not None
    assert explained(found)["faults"] == []


# sandbox


def test_a_sandbox_key_is_metered_and_never_debited(house: House):
    guest = house.guest(deposit="0", sandbox=True)
    with house.client() as client:
        answer = ask(guest, client, max_tokens=9)
        assert answer.status_code == 200
        refused = ask(guest, client, model=LARGE)
        assert error_of(refused, 403, "model_not_allowed")["param"] == "model"
        listed = client.get("/v1/models", headers=guest.headers).json()["data"]
    assert [row["id"] for row in listed] == [SMALL]
    row = guest.row(answer.headers["x-request-id"])
    usage = answer.json()["usage"]
    assert (row["sandbox"], row["shadow"], row["cost"], row["hold_nanos"], row["overage_nanos"]) == (True, False, 0, 0, 0)
    assert row["list_nanos"] == usage["prompt_tokens"] * NANOS_IN + usage["completion_tokens"] * NANOS_OUT
    assert answer.headers["x-request-cost"] == "0.00"
    explained_by(house, row)
    guest.check()


def test_sandbox_tokens_end_for_the_day(house: House):
    guest = house.guest(deposit="0", sandbox=True)
    with house.client() as client:
        told = error_of(ask(guest, client, n=13, max_tokens=8_000), 429, "rate_limit_exceeded")
        assert "sandbox tokens a day" in told["message"]
        assert ask(guest, client).status_code == 200
    guest.check()


# shadow


def test_shadow_refuses_nothing_and_charges_nothing(own_house: House, policy: Setting):
    policy(shadow=True)
    poor = own_house.guest(deposit="0")
    rich = own_house.guest(deposit="10")
    with own_house.client() as client:
        answers = [ask(poor, client), ask(rich, client), ask(rich, client, stream=True)]
    assert [answer.status_code for answer in answers] == [200] * 3
    short, paid, streamed = (guest.row(answer.headers["x-request-id"]) for guest, answer in zip((poor, rich, rich), answers, strict=True))
    assert [(row["shadow"], row["cost"], row["hold_nanos"]) for row in (short, paid, streamed)] == [(True, 0, 0)] * 3
    assert [row["would_deny"] for row in (short, paid, streamed)] == ["insufficient", "", ""]
    usage = answers[1].json()["usage"]
    assert paid["list_nanos"] == usage["prompt_tokens"] * NANOS_IN + usage["completion_tokens"] * NANOS_OUT
    for row in (short, paid, streamed):
        explained_by(own_house, row)
    assert (streamed["usage_source"], streamed["list_nanos"]) == ("counted", paid["list_nanos"]), "nothing was asked of the backend"
    counted(own_house, 1, "extproc_would_deny_total", reason="insufficient")
    for guest in (poor, rich):
        guest.check()


def test_shadow_passes_strangers_and_bodies_as_they_came(own_house: House, policy: Setting):
    policy(shadow=True)
    guest = own_house.guest()
    odd = body(unheard_of={"a": [1]}, temperature=0.25)
    with own_house.client() as client:
        stranger = client.post(CHAT, json=odd, headers={"authorization": "Bearer sk-nobody"})
        keyless = client.post(CHAT, json=odd, headers={"x-account-id": guest.id})
        unpriced = client.post(CHAT, content=b"{", headers=guest.headers)
        scoped = own_house.guest(models=[LARGE])
        elsewhere = ask(scoped, client)
    assert (stranger.status_code, keyless.status_code, elsewhere.status_code) == (200, 200, 200)
    for answer in (stranger, keyless):
        (seen,) = own_house.upstream(answer.headers["x-request-id"])
        assert seen["body"] == odd
        assert "x-account-id" not in {name.lower() for name in dict(seen["headers"])}
    assert unpriced.status_code == 404, "no model, no route: that is Envoy's to say"
    assert scoped.row(elsewhere.headers["x-request-id"])["would_deny"] == "model_not_allowed"
    row = until(guest.rows, "the row of what could not be priced")[0]
    assert (row["ending"], row["would_deny"], row["cost"]) == ("void", "invalid_json", 0)
    (crowd,) = until(lambda: own_house.rows("SELECT * FROM requests WHERE user_id IS NULL AND would_deny <> ''"), "a row of the strangers")
    assert (crowd["shadow"], crowd["would_deny"], crowd["times"]) == (True, "invalid_api_key", 2)
    counted(own_house, 2, "extproc_would_deny_total", reason="invalid_api_key")
    guest.check()


# trust


def test_a_trusted_account_does_not_wait_for_its_hold(own_house: House, policy: Setting):
    policy(trust_factor=100)
    rich, poor = own_house.guest(deposit="10"), own_house.guest(deposit="0.002")
    with own_house.client() as client:
        answers = [ask(rich, client), ask(poor, client)]
    rows = [guest.row(answer.headers["x-request-id"]) for guest, answer in zip((rich, poor), answers, strict=True)]
    assert [row["policies"] for row in rows] == [["trust_factor=100"], []]
    assert all(0 < row["cost"] <= row["hold_nanos"] for row in rows)
    counted(own_house, 1, "extproc_policy_total", policy="trust_factor=100")
    rich.check()
    poor.check()


def test_a_trusted_account_waits_if_its_key_has_a_budget(own_house: House, policy: Setting):
    """``admit`` does not know whether it fits."""
    policy(trust_factor=100)
    served, refused = own_house.guest(deposit="10", budget_nanos=10**9), own_house.guest(deposit="10", budget_nanos=1)
    with own_house.client() as client:
        answers = [ask(served, client), ask(refused, client)]
    assert [answer.status_code for answer in answers] == [200, 402]
    assert served.row(answers[0].headers["x-request-id"])["policies"] == []
    served.check()
    refused.check()


# credit while Redis is away


@pytest.mark.long
@pytest.mark.parametrize("how", ["hangs", "dies"])
def test_redis_away_is_closed_unless_there_is_credit(own_house: House, policy: Setting, how: str):
    policy(stores_away={"credit": "0.002"})
    guest, poor, unseen = own_house.guest(deposit="10"), own_house.guest(deposit="0"), own_house.guest(deposit="10")
    with own_house.client() as client:
        for _ in range(6):  # both workers have seen both of them
            assert ask(guest, client).status_code == 200
            assert ask(poor, client).status_code == 402
        away(own_house, how)
        try:
            lent = [ask(guest, client) for _ in range(3)]
            refused = [ask(guest, client, max_tokens=2_000), ask(poor, client), ask(unseen, client)]
        finally:
            back(own_house, how)
    assert [answer.status_code for answer in lent] == [200] * 3
    for answer in refused:
        error_of(answer, 503, "unavailable")
    rows = [guest.row(answer.headers["x-request-id"], 40) for answer in lent]
    assert [row["policies"] for row in rows] == [["stores_away=credit"]] * 3
    assert all(row["cost"] == row["list_nanos"] > 0 and not row["loss_nanos"] for row in rows)
    for row in rows:
        explained_by(own_house, row)
    until(guest.view, "Redis has the payer again")
    guest.at_rest(40)
    assert guest.posted() == guest.deposited - sum(row["cost"] for row in guest.rows())


def test_redis_away_is_closed_by_default(own_house: House):
    guest = own_house.guest()
    with own_house.client() as client:
        until(lambda: ask(guest, client).status_code == 200, "Redis serves")
        lent = _count(own_house, "extproc_fail_open_total")
        away(own_house, "hangs")
        try:
            error_of(ask(guest, client), 503, "unavailable")
        finally:
            back(own_house, "hangs")
    own_house.close_clients()
    counted(own_house, lent, "extproc_fail_open_total")
    guest.check()


def away(house: House, how: str) -> None:
    if how == "hangs":
        house.kill(house.valkey.pid, signal.SIGSTOP)
    else:
        house.valkey.kill()


def back(house: House, how: str) -> None:
    if how == "hangs":
        house.kill(house.valkey.pid, signal.SIGCONT)
    else:
        house.valkey.start_again()
