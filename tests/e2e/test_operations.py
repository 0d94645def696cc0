"""What an operator sees and does: rows, metrics and probes agree, nothing secret shows, and files take effect while streams run."""

from __future__ import annotations

import asyncio
import json
import re
import shutil
import signal
import subprocess
import time
import urllib.request
from collections import Counter
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path

import pytest
from house import LARGE, PASSWORD, SMALL, UNLIMITED, Guest, House, until
from prometheus_client.parser import text_string_to_metric_families
from wire import Line, Told, call, chat, steering

from extproc.app.process import HEARTBEAT_S
from extproc.local import envoy_files, simulator
from extproc.local.envoy_files import Site

UUID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}")
SLOW = steering(tokens=120, delay_ms=30)  # a stream that outlives what is done meanwhile
ONE, HALF = Decimal(1), Decimal("0.5")
SEEN_S = 15.0  # for a change of a file to be seen by both workers; 1 to 3 s, if the machine has nothing else to do
PROMPT = "the walrus said that the time had come"


def samples(house: House) -> dict[tuple[str, ...], float]:
    """(name, label values …) → value, of every counter and gauge."""
    families = text_string_to_metric_families(house.metrics())
    return {(one.name, *(v for _, v in sorted(one.labels.items()))): one.value for family in families for one in family.samples}


def samples_at_rest(house: House) -> dict[tuple[str, ...], float]:
    """When nothing has risen during two heartbeats and a half: with each, a process hands over what it has counted since the last one."""
    seen, since_s = samples(house), time.monotonic()

    def rests() -> bool:
        nonlocal seen, since_s
        now = {key: value for key, value in samples(house).items() if key[0].startswith("extproc_requests")}
        if any(seen.get(key) != value for key, value in now.items()):
            seen, since_s = samples(house), time.monotonic()
        return time.monotonic() - since_s > 2.5 * HEARTBEAT_S

    until(rests, "all of it is counted")
    return samples(house)


def increase(house: House, before: dict[tuple[str, ...], float], name: str) -> Counter[tuple[str, ...]]:
    """By label values: what a counter has risen by."""
    now = samples(house)
    risen = {key[1:]: int(now[key] - before.get(key, 0)) for key in now if key[0] == name}
    return Counter({labels: value for labels, value in risen.items() if value})


# A gate sees a stream cut off, and counts that. By whom, the access log tells the row later.
CUT = {"cut", "client_gone", "upstream_reset"}


async def endings(house: House, guest: Guest) -> list[Told]:
    """One request for each way in which an admitted request may end."""
    orders = [
        {"tokens": 7},
        {"tokens": 3, "fault": "no_usage"},
        {"fault": "status=500"},
        {"fault": "status=429"},
        {"fault": "reset"},
        {"tokens": 50, "delay_ms": 20, "fault": "reset_after=4"},
        {"fault": "engine_death_after=3"},
        {"fault": "abort_after=3"},
        {"tokens": 9, "cached_tokens": 4},
    ]
    asked = [call(house, {**guest.headers, **steering(**one)}, chat(SMALL, text=PROMPT)) for one in orders]
    asked += [call(house, {**guest.headers, **steering(tokens=4)}, chat(model, text=PROMPT, stream=False)) for model in (SMALL, LARGE)]
    asked += [
        call(house, guest.headers, b"{no json"),
        call(house, guest.headers, chat("no-such-model")),
        call(house, {**guest.headers, **SLOW}, chat(LARGE), leave_after=5),
        call(house, {**guest.headers, **steering(first_ms=60_000)}, chat(LARGE), leave_after=0),
    ]
    return list(await asyncio.gather(*asked))


async def test_every_admitted_request_has_one_row_and_the_metrics_say_the_same(house: House, guest: Guest):
    before = await asyncio.to_thread(samples_at_rest, house)
    tolds = await endings(house, guest)
    line = await Line.open(house)  # one that leaves during its upload
    await line.send(guest.headers, b"{", length=100)
    await asyncio.to_thread(until, lambda: guest.view().open_holds >= 1, "the entry hold")
    await line.leave()
    await asyncio.to_thread(guest.check)
    rows = guest.rows()
    assert len(rows) == len(tolds) + 1
    assert {told.request_id for told in tolds} <= {row["request_id"] for row in rows}
    assert len({row["request_id"] for row in rows}) == len(rows)
    assert {row["ending"] for row in rows} == {"settle", "void"}

    def agree() -> bool:
        return sum(increase(house, before, "extproc_requests_total").values()) == len(rows)

    await asyncio.to_thread(until, agree, "as many requests in the metrics as rows")
    models = lambda row: row["model"] or "unknown"  # noqa: E731
    assert increase(house, before, "extproc_requests_total") == Counter((str(row["status"]), models(row)) for row in rows)
    reasons: Counter[str] = Counter()
    for (reason,), count in increase(house, before, "extproc_end_reason_total").items():
        reasons["cut" if reason in CUT else reason] += count
    assert reasons == Counter("cut" if row["end_reason"] in CUT else row["end_reason"] for row in rows)
    charged = [row for row in rows if row["usage_source"] != "none"]
    assert increase(house, before, "extproc_usage_source_total") == Counter((row["usage_source"],) for row in charged)
    for column, name in (("input_tokens", "input"), ("output_tokens", "output"), ("cached_tokens", "cached_input")):
        billed: Counter[tuple[str, ...]] = Counter()
        for row in charged:
            billed[row["model"], name] += row[column]
        told = increase(house, before, "extproc_tokens_total")
        assert {key: value for key, value in told.items() if key[1] == name} == {key: value for key, value in billed.items() if value}
    revenue: Counter[tuple[str, ...]] = Counter()
    for row in rows:
        revenue[row["model"],] += row["cost"]
    assert increase(house, before, "extproc_revenue_nanos_total") == Counter({key: cost for key, cost in revenue.items() if cost})


@pytest.mark.skipif(shutil.which("promtool") is None, reason="no promtool: install the Debian package prometheus")
async def test_promtool_accepts_the_metrics(house: House, guest: Guest):
    await endings(house, guest)
    page = house.metrics()
    done = await asyncio.to_thread(
        subprocess.run, ["promtool", "check", "metrics"], input=page, capture_output=True, text=True, timeout=30, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


async def test_no_label_names_anybody(house: House, guest: Guest):
    tolds = await endings(house, guest)
    guest.at_rest()
    values = {
        value for family in text_string_to_metric_families(house.metrics()) for one in family.samples for value in one.labels.values()
    }
    names = {name for family in text_string_to_metric_families(house.metrics()) for one in family.samples for name in one.labels}
    assert not [value for value in values if UUID.search(value) or "sk-" in value or "no-such-model" in value]
    assert not values & {guest.id, guest.key_id, guest.secret, *(told.request_id for told in tolds)}
    assert names <= {
        "model", "code", "type", "reason", "source", "result", "store", "event", "phase", "le", "hash", "error_type", "invariant", "policy",
        "gen_ai_operation_name", "gen_ai_request_model", "gen_ai_response_model", "gen_ai_token_type",
    }  # fmt: skip


def page(house: House, path: str) -> tuple[int, str]:
    with urllib.request.urlopen(f"{house.ops}{path}", timeout=5) as answer:
        return answer.status, answer.read().decode()


async def test_probes_and_what_they_do_not_tell(house: House, guest: Guest):
    await endings(house, guest)
    assert page(house, "/livez") == (200, "ok\n")
    assert page(house, "/readyz") == (200, "ready\n")
    _, config = page(house, "/debug/config")
    assert json.loads(config)["settings"]["listen"]["workers"] == house.workers
    log = house.log_file.read_text()
    assert (house.directory / json.loads(house.settings_file.read_text())["postgres"]["password_file"]).read_text() == PASSWORD
    for place in (config, log, house.envoy.access_log_file.read_text(), house.metrics()):
        assert PASSWORD not in place
        assert guest.secret not in place
        assert PROMPT not in place
    for line in log.splitlines():
        assert json.loads(line)["msg"], "every line of the log is JSON"


class CatalogFile:
    """The catalog in force, edited as an operator would."""

    def __init__(self, house: House) -> None:
        self._house = house
        self._path = house.directory / "models.yaml"
        self.shipped = self._path.read_text()

    def write(self, text: str) -> None:
        self._path.write_text(text)

    def priced(self, output: str) -> str:
        """With another price of SMALL's output, per million tokens."""
        head, name, rest = self.shipped.partition(f"\n  {SMALL}:\n")
        assert name
        return head + name + rest.replace('output: "1.00"', f'output: "{output}"', 1)

    def halved(self, text: str) -> str:
        """Half of every price for the tier of guests."""
        head, tier, rest = text.partition(UNLIMITED)
        assert tier
        return head + tier.replace('price_factor: "1"', 'price_factor: "0.5"') + rest

    def price(self, guest: Guest, factor: Decimal = ONE) -> Decimal:
        """Of one token of output of a request made now, in nanos, before the factor of its tier."""
        with self._house.client() as client:
            told = client.post("/v1/chat/completions", content=chat(SMALL, stream=False), headers={**guest.headers, **steering(tokens=10)})
        row = guest.row(told.headers["x-request-id"])
        return (row["cost"] / factor - row["input_tokens"] * 500) / row["output_tokens"]

    def in_force(self, guest: Guest, price: int, factor: Decimal = ONE) -> bool:
        """In every worker: Envoy chooses by chance, so it is asked until each of them was."""
        before = self._house.exchanges_of_workers()
        while self.price(guest, factor) == price:
            now = self._house.exchanges_of_workers()
            if all(now[slot] > before[slot] for slot in before):
                return True
        return False

    def succeeded(self) -> bool:
        return samples(self._house)["extproc_config_reload_success",] == 1


@pytest.fixture
def catalog(house: House, guest: Guest) -> Iterator[CatalogFile]:
    file = CatalogFile(house)
    yield file
    file.write(file.shipped)
    until(lambda: file.succeeded() and file.in_force(guest, 1_000), "the shipped catalog is in force again", SEEN_S)


async def test_new_prices_and_tiers_are_for_new_requests(house: House, guest: Guest, catalog: CatalogFile):
    """By SIGHUP at once, and by a changed file alone; who is being served keeps the price and the tier that it came with."""
    assert await asyncio.to_thread(catalog.price, guest) == 1_000
    running = asyncio.create_task(call(house, {**guest.headers, **SLOW}, chat(SMALL)))
    await asyncio.to_thread(until, lambda: guest.view().open_holds == 1, "a stream runs")
    catalog.write(catalog.halved(catalog.priced("2.00")))
    house.sidecar.signal(signal.SIGHUP)
    await asyncio.to_thread(until, lambda: catalog.in_force(guest, 2_000, HALF), "the new price, and the new factor of the tier", SEEN_S)
    catalog.write(catalog.priced("3.00"))
    await asyncio.to_thread(until, lambda: catalog.in_force(guest, 3_000), "the newest price", SEEN_S)
    told = await running
    row = await asyncio.to_thread(guest.row, told.request_id)
    assert told.done
    assert row["output_tokens"] == 120
    assert row["cost"] == row["input_tokens"] * 500 + 120 * 1_000
    await asyncio.to_thread(guest.check)
    assert len({row["price_id"] for row in guest.rows()}) == 3


async def test_a_broken_catalog_changes_nothing_and_says_so(house: House, guest: Guest, catalog: CatalogFile):
    assert catalog.succeeded()
    begin = house.log_file.stat().st_size
    broken = catalog.shipped.replace('input: "4.00"', "input: 4.00", 1)
    assert broken != catalog.shipped
    catalog.write(broken)
    await asyncio.to_thread(until, lambda: not catalog.succeeded(), "the metric says so", SEEN_S)
    assert catalog.in_force(guest, 1_000)

    def said() -> list[str]:
        lines = [json.loads(line) for line in house.log_file.read_bytes()[begin:].decode().splitlines()]
        return [line["msg"] for line in lines if "catalog" in line["msg"]]

    await asyncio.to_thread(until, lambda: len(said()) == house.workers, "each worker says so, once", SEEN_S)
    number = next(n for n, line in enumerate(catalog.shipped.splitlines(), 1) if 'input: "4.00"' in line)
    assert all(f"models.yaml:{number}:" in text for text in said()), said()
    house.sidecar.signal(signal.SIGHUP)  # reads it again, changed or not
    await asyncio.to_thread(until, lambda: len(said()) == 2 * house.workers, "SIGHUP reaches each worker")
    assert catalog.in_force(guest, 1_000)
    guest.check()


async def test_a_new_model_while_a_stream_lives(house: House, guest: Guest, tmp_path: Path):
    """Its cluster and its route are moved into place; the stream does not notice."""
    name = "qwen-coder-7b"  # has a price, and no route yet
    body = chat(name, stream=False)
    served = simulator.start(tmp_path, models=[name, "Qwen/Qwen2.5-Coder-7B-Instruct"])
    files = {file: (house.envoy.directory / file).read_text() for file in ("routes.yaml", "clusters.yaml")}
    site = Site(
        gates=["/unused"],
        backends={model: [one.url.removeprefix("http://")] for model, one in {**house.simulators, name: served}.items()},
        cert_file=house.certificates.cert_file,
        key_file=house.certificates.key_file,
        health_interval_s=1,
    )
    wanted = envoy_files.render(site, house.envoy.directory)
    running = asyncio.create_task(call(house, {**guest.headers, **SLOW}, chat(SMALL)))
    try:
        before = await call(house, guest.headers, body)
        assert before.status == 404
        for file in ("clusters.yaml", "routes.yaml"):
            house.envoy.replace(file, wanted[file])
        await asyncio.to_thread(house.envoy.wait_healthy, {name: 1})
        async with asyncio.timeout(SEEN_S):
            while (told := await call(house, {**guest.headers, **steering(tokens=3)}, body)).status != 200:
                await asyncio.sleep(0.05)
        assert (await asyncio.to_thread(guest.row, told.request_id))["output_tokens"] == 3
        (seen,) = served.requests(told.request_id)
        assert seen["model"] == "Qwen/Qwen2.5-Coder-7B-Instruct"
        assert not running.done(), "the stream was to live all the while"
    finally:
        for file, text in files.items():
            house.envoy.replace(file, text)
        stayed = await running
        served.stop()
    assert (stayed.done, stayed.tokens) == (True, 120)
    await asyncio.to_thread(guest.check)
    voided = await asyncio.to_thread(guest.row, before.request_id)
    assert (voided["cost"], voided["ending"]) == (0, "void")
