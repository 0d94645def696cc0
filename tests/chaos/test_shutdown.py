"""The machine is shut down under load, in the order of the units in deploy/systemd; and the settler is stopped wherever it is."""

from __future__ import annotations

import asyncio
import configparser
import graphlib
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from breakable import DRAIN_S, BreakableHouse
from house import ROOT, Guest, until
from traffic import TOKENS, Traffic
from wire import figure, steering

from extproc.app.process import ALL_LEAVE_S, SETTLER_LEAVE_S
from extproc.settings import Settings

UNITS = ROOT / "deploy/systemd"
LONG = steering(tokens=150, delay_ms=20)  # three seconds
HANGS_S = 15.0  # what a stop may take while PostgreSQL is frozen: its last statement is cut after ten


def unit(name: str) -> configparser.ConfigParser:
    parser = configparser.ConfigParser(strict=False, interpolation=None)
    parser.optionxform = str  # type: ignore[assignment,method-assign]
    parser.read([UNITS / name, *(UNITS / f"{name}.d").glob("*.conf")])
    return parser


def stop_order() -> list[str]:
    """Who is stopped after whom: the reverse of ``After=``."""
    names = ("envoy.service", "extproc.service", "valkey-server.service", "postgresql.service")
    after = {name: set(unit(name).get("Unit", "After", fallback="").split()) & set(names) for name in names}
    started = list(graphlib.TopologicalSorter(after).static_order())
    return [name.removesuffix(".service") for name in reversed(started)]


def exec_stop(house: BreakableHouse) -> list[str]:
    """Envoy's, as it stands in the unit, for this house: another Python, another admin port, shorter patience."""
    python, *words = unit("envoy.service")["Service"]["ExecStop"].split()
    assert python == "/opt/extproc/bin/python"
    *module, admin, grace_s, notice_s = words
    assert (admin, float(grace_s)) == ("127.0.0.1:9901", Settings().drain.grace_s)
    assert float(notice_s) > 0
    return [sys.executable, *module, house.envoy.admin, str(DRAIN_S), "1"]


@pytest.fixture
def own() -> Iterator[BreakableHouse]:
    """A house that is left dark."""
    with tempfile.TemporaryDirectory(prefix="xs-", dir="/tmp", ignore_cleanup_errors=True) as directory:
        Path(directory).chmod(0o711)
        house = BreakableHouse(Path(directory))
        yield house
        house.stop()


def test_the_order_of_the_units():
    assert stop_order() == ["envoy", "extproc", "valkey-server", "postgresql"]
    sidecar, envoy = unit("extproc.service")["Service"], unit("envoy.service")["Service"]
    grace_s = Settings().drain.grace_s
    assert sidecar["KillMode"] == "mixed", "the supervisor leads its children out"
    assert int(sidecar["TimeoutStopSec"]) > grace_s + ALL_LEAVE_S
    _, _, _, _, waits_s, notice_s = envoy["ExecStop"].split()
    assert int(envoy["TimeoutStopSec"]) > int(waits_s) + int(notice_s)


@pytest.mark.skipif(subprocess.run(["which", "systemd-analyze"], capture_output=True, check=False).returncode != 0, reason="no systemd")
def test_systemd_understands_the_units(tmp_path: Path):
    for name in ("envoy.service", "extproc.service"):
        text = (UNITS / name).read_text()
        for program in ("/opt/extproc/bin/extproc", "/opt/extproc/bin/python", "/usr/local/bin/envoy"):
            text = text.replace(program, "/bin/true")
        (tmp_path / name).write_text(text)
    files = [str(tmp_path / name) for name in ("envoy.service", "extproc.service")]
    told = subprocess.run(["systemd-analyze", "verify", "--man=no", *files], capture_output=True, text=True, check=False, timeout=60)
    assert (told.returncode, told.stderr) == (0, "")


def shut_down(house: BreakableHouse) -> list[str]:
    """As systemd does it; how long each took."""
    took = []
    stops: dict[str, Callable[[], object]] = {
        "envoy": lambda: (subprocess.run(exec_stop(house), cwd=ROOT, check=True, timeout=DRAIN_S + 10), house.envoy.stop()),
        "extproc": lambda: _terminate(house),
        "valkey-server": house.valkey.stop,
        "postgresql": house.postgres.stop,
    }
    for name in stop_order():
        began_s = time.monotonic()
        stops[name]()
        took.append(f"{name} {time.monotonic() - began_s:.1f} s")
    return took


def _terminate(house: BreakableHouse) -> None:
    house.sidecar.signal(signal.SIGTERM)
    assert house.sidecar.wait(DRAIN_S + ALL_LEAVE_S) == 0


def start_all(house: BreakableHouse) -> None:
    house.postgres.start_again()
    house.valkey.start_again()
    house.sidecar = house.start_sidecar()
    house.envoy.start_again()
    house.wait_serving()


@pytest.mark.long
async def test_the_machine_is_shut_down_under_load(own: BreakableHouse):
    house, guest = own, await asyncio.to_thread(own.guest)
    async with Traffic(house, guest, a_second=40, stream_orders=LONG) as traffic:
        await asyncio.to_thread(until, lambda: traffic.answered >= 100, "load")
        took = await house.aside(shut_down, house)
        figure(f"shut down at 40 requests/s: {', '.join(took)}")
    begun = [told for told in traffic.told if told.status]
    refused = [told for told in traffic.told if not told.status]
    figure(f"{len(begun)} answered, {len(refused)} could not connect any more")
    assert {told.status for told in begun} == {200}
    assert [told for told in begun if not told.whole or told.error or told.tokens not in (TOKENS, 150)] == []
    assert refused, "it was not under load to its end"
    await house.aside(start_all, house)
    rows = await asyncio.to_thread(house.judge, guest, traffic.told)
    assert {row["request_id"] for row in rows} == {told.request_id for told in begun}
    assert {row["ending"] for row in rows} == {"settle"}


# --- the settler, wherever it is


def rebuilding(house: BreakableHouse) -> Callable[[], object]:
    before = house.log_file.read_text().count('"rebuilding')
    redis = house.redis()
    redis.flushall()
    redis.close()
    until(lambda: house.log_file.read_text().count('"rebuilding') > before, "a rebuild begins")
    return lambda: None


def backlog(house: BreakableHouse) -> Callable[[], object]:
    """Endings that wait in the streams and in the outboxes."""
    house.postgres.kill()
    time.sleep(2)  # of load
    house.postgres.start_again()
    return lambda: None


def postgres_hangs(house: BreakableHouse) -> Callable[[], object]:
    """All of it: its sessions are processes of their own."""
    return _frozen(house, [house.postgres.pid, *_children(house.postgres.pid)])


def valkey_hangs(house: BreakableHouse) -> Callable[[], object]:
    return _frozen(house, [house.valkey.pid])


def _children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def _frozen(house: BreakableHouse, pids: list[int]) -> Callable[[], object]:
    for pid in pids:
        house.kill(pid, signal.SIGSTOP)
    return lambda: [house.kill(pid, signal.SIGCONT) for pid in pids]


@pytest.mark.long
@pytest.mark.parametrize("disturb", [rebuilding, backlog, postgres_hangs, valkey_hangs])
async def test_the_settler_is_stopped_while(house: BreakableHouse, guest: Guest, disturb: Callable[[BreakableHouse], Callable[[], object]]):
    async with Traffic(house, guest, a_second=40) as traffic:
        await asyncio.to_thread(until, lambda: traffic.answered >= 40, "load")
        mend = await house.aside(disturb, house)
        try:
            settler = (await asyncio.to_thread(house.pids))["settler"]
            house.kill(settler, signal.SIGTERM)
            began_s = time.monotonic()
            await asyncio.to_thread(until, lambda: not Path(f"/proc/{settler}").exists(), "it ends", SETTLER_LEAVE_S)
            took_s = time.monotonic() - began_s
        finally:
            mend()
        figure(f"the settler has ended {took_s:.1f} s after SIGTERM while: {disturb.__name__}")
        assert took_s < HANGS_S
        until(lambda: f"settler ({settler}) ended with code 0" in house.log_file.read_text(), "it has left by the rules")
        await asyncio.to_thread(until, lambda: house.pids().get("settler", settler) != settler, "another settler", 40)
        since = len(traffic.told)
        await asyncio.to_thread(until, lambda: sum(told.status == 200 for told in traffic.told[since:]) >= 20, "they are served", 40)
    await asyncio.to_thread(house.wait_serving)
    served = [told for told in traffic.told if told.status == 200]
    rows = await asyncio.to_thread(house.judge, guest, traffic.told)
    assert {told.request_id for told in served} <= {row["request_id"] for row in rows}
