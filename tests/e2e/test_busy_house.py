"""The reconciler beside real traffic: a busy house is whole at every look, and what an operator types finds what was planted."""

from __future__ import annotations

import asyncio
import json
import re
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import redirect_stderr, redirect_stdout
from io import StringIO
from typing import Any

import pytest
from house import SMALL, Guest, House, until

from extproc.app.backends import HttpBackends
from extproc.app.reconcile import auditor
from extproc.cli import main
from extproc.settings import load_settings
from extproc.settlement.invariants import INVARIANTS, Finding
from extproc.settlement.reconcile_unbilled import Counters
from extproc.stores.shards import tag_of

CLIENTS = 6
LOOKS = 5


def ask(guest: Guest, number: int) -> None:
    """Streams, answers at once, and streams that are left."""
    client = guest.openai()
    question: dict[str, Any] = {"model": SMALL, "messages": [{"role": "user", "content": f"{number}"}], "max_tokens": 20}
    if number % 3 == 0:
        client.chat.completions.create(**question)
        return
    with client.chat.completions.create(**question, stream=True) as stream:
        for place, _ in enumerate(stream):
            if number % 3 == 1 and place == 4:
                return


async def looks(house: House, rounds: int) -> list[Finding]:
    looking = auditor(load_settings(house.settings_file, {}), house.stores, asyncio.sleep)
    return [finding for _ in range(rounds) async for step in looking.everything(since="-infinity") for finding in step.findings]


def test_a_busy_house_is_whole(house):
    guests = [house.guest() for _ in range(CLIENTS)]
    stop = threading.Event()

    def keep_asking(guest: Guest) -> int:
        number = 0
        while not stop.is_set():
            ask(guest, number)
            number += 1
        return number

    with ThreadPoolExecutor(CLIENTS) as pool:
        asking = [pool.submit(keep_asking, guest) for guest in guests]
        try:
            for _ in range(LOOKS):
                assert house.run(looks(house, 1)) == []
        finally:
            stop.set()
        assert sum(one.result() for one in asking) > 3 * CLIENTS
    for guest in guests:
        guest.check()
    assert house.run(looks(house, 1)) == []
    house.close_clients()


def test_its_series(house, guest):
    """Before anything is planted: the settler would say so."""
    ask(guest, 0)

    def page() -> str:
        return house.metrics() if "extproc_broken_invariants" in house.metrics() else ""

    told = until(page, "a round of the reconciler", 30)
    broken = dict(re.findall(r'extproc_broken_invariants\{invariant="(\d+)"\} ([0-9.e+]+)', told))
    assert broken == {str(number): "0.0" for number in INVARIANTS}
    for name in ("extproc_ledger_drift_nanos", "extproc_holds_open", "extproc_hold_oldest_age_seconds"):
        assert re.search(rf"^{name} [0-9.e+]+$", told, re.MULTILINE), name


def type_in(house: House, *words: str) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of ``extproc reconcile``."""
    out, err = StringIO(), StringIO()
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(out), redirect_stderr(err):
        patch.setattr(sys, "argv", ["extproc", "reconcile", "--config", str(house.settings_file), *words])
        with pytest.raises(SystemExit) as left:
            main()
    return int(left.value.code or 0), out.getvalue(), err.getvalue()


@pytest.mark.long
def test_as_an_operator_types_it(house, guest):
    ask(guest, 0)
    guest.check()
    code, said, progress = type_in(house, "--full")
    assert (code, said[:13]) == (0, "nothing found")
    assert re.search(r"events: \d+ looked at, 0 found", progress)
    key = f"{tag_of(guest.id)}:payer:{guest.id}"
    with house.redis() as redis:
        redis.hincrby(key, "spendable", 7)
        try:
            code, said, _ = type_in(house, "--account", guest.id, "--json")
            finding = json.loads(said)["findings"][0]
            text = type_in(house, "--account", guest.id)
        finally:
            redis.hincrby(key, "spendable", -7)
    assert (code, finding["invariant"], finding["account"], finding["drift_nanos"]) == (1, 3, guest.id, 7)
    assert int(finding["found"]) - int(finding["expected"]) == 7
    assert text[0] == 1
    for line in ("invariant 3: ", f"account   {guest.id}", "drift     7 nanos", "to do "):
        assert line in text[1]
    assert type_in(house)[0] == 0


def test_the_backends_count_what_we_bill(house, guest):
    """The simulator's ``/metrics``, as vLLM has it, against the rows: the same tokens, whole."""
    counters = Counters(SMALL)
    url = f"{house.simulators[SMALL].url}/metrics"

    def grown() -> int:
        page = house.run(HttpBackends().page(url))
        assert page is not None
        return counters.growth(page)[0]

    assert house.run(HttpBackends().page(f"{url}/nothing")) is None
    assert house.run(HttpBackends().page("http://127.0.0.1:1/metrics")) is None
    assert grown() == 0
    for _ in range(5):
        ask(guest, 2)
    guest.check()
    assert grown() == sum(row["input_tokens"] + row["output_tokens"] for row in guest.rows()) > 0
