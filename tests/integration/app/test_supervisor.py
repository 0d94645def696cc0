"""Who serves, who follows, who leaves: the supervisor over children that behave and children that do not."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import socket
import sys
import tempfile
import time
import urllib.request
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from extproc.app import watched
from extproc.app.endpoint import Endpoint, listen_of
from extproc.app.live import LivePolicy
from extproc.app.post import PAUSE_S_FIRST, Post
from extproc.app.process import LEAVE_S
from extproc.app.supervisor import Supervisor
from extproc.errors import UsageError
from extproc.settings import load_settings

CHILD = Path(__file__).parent / "scripted_child.py"


class House:
    """A directory with settings, and the mode of children that start from now on."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.config = directory / "extproc.yaml"
        self.configure("")
        self.mode("well")

    def configure(self, more: str, *, ops_port: int = 0) -> None:
        self.config.write_text(f"listen: {{workers: 2, ops_address: '127.0.0.1:{ops_port}'}}\n{more}")

    def mode(self, mode: str) -> None:
        (self.directory / "mode").write_text(mode)

    @property
    def argv(self) -> list[str]:
        return [sys.executable, str(CHILD), str(self.directory / "mode")]

    def socket_file(self, slot: int) -> Path:
        return self.directory / f"run/gate-{slot}.sock"


@pytest.fixture
def house() -> Iterator[House]:
    directory = Path(tempfile.mkdtemp(prefix="xs-", dir="/tmp"))
    yield House(directory)
    shutil.rmtree(directory)


async def until(condition: Callable[[], Any], within_s: float = 20) -> None:
    async with asyncio.timeout(within_s):
        while not condition():
            await asyncio.sleep(0.01)


@asynccontextmanager
async def manned(
    house: House, *, shared: bool = True, patience_s: float = 10, elsewhere: bool = False
) -> AsyncIterator[tuple[Post, list[int]]]:
    """A post with somebody ready in it, and the pids of those who have ended."""
    endpoint = Endpoint(listen_of(load_settings(house.config, {}), 0)) if shared else None
    buried: list[int] = []
    lost: list[str] = []
    post = Post(
        "gate-0",
        house.argv,
        endpoint=endpoint,
        environ=dict(os.environ),
        patience_s=patience_s,
        buried=buried.append,
        lost=lost.append,
        elsewhere=lambda _: elsewhere,
    )
    await post.open()
    await until(lambda: post.serving is not None and post.serving.is_ready)
    try:
        yield post, buried
    finally:
        await post.close()
    assert post.pids() == {}
    assert not house.socket_file(0).exists()


@pytest.mark.parametrize("shared", [True, False])
async def test_another_one_serves(house: House, shared: bool) -> None:
    async with manned(house, shared=shared) as (post, buried):
        old = post.pids()["gate-0"]
        assert await post.replace()
        assert post.serving is not None
        assert post.serving.is_ready
        assert post.serving.pid != old
        await until(lambda: buried == [old])
        assert post.pids() == {"gate-0": post.serving.pid}


@pytest.mark.parametrize("mode", ["dies", "mute"])
async def test_a_successor_that_does_not_become_ready_changes_nothing(house: House, mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watched, "START_S_MAX", 0.3)
    monkeypatch.setattr(watched, "HEARTBEAT_S", 0.1)
    async with manned(house) as (post, buried):
        old = post.serving
        house.mode(mode)
        assert not await post.replace()
        assert post.serving is old
        assert old is not None
        assert old.is_ready
        assert len(buried) == 1
        assert old.pid not in buried


async def test_who_does_not_leave_is_killed_and_the_next_round_waits_for_it(house: House) -> None:
    house.mode("stubborn")
    async with manned(house, patience_s=1.0) as (post, buried):
        old = post.pids()["gate-0"]
        house.mode("well")
        assert await post.replace()
        assert post.pids() == {"gate-0": post.serving.pid, "gate-0 leaving": old}  # type: ignore[union-attr]
        assert await post.replace()
        assert buried[0] == old
        assert len(post.children) <= 2


async def test_who_ends_is_followed(house: House) -> None:
    async with manned(house) as (post, buried):
        old = post.pids()["gate-0"]
        os.kill(old, signal.SIGKILL)
        await until(lambda: post.pids().get("gate-0", old) != old)
        assert buried == [old]


async def test_who_quits_is_followed_before_it_has_ended(house: House) -> None:
    house.mode("quits")
    async with manned(house) as (post, buried):
        quitter = post.pids().get("gate-0")
        house.mode("well")
        await until(lambda: post.serving is not None and post.serving.is_ready and post.serving.pid != quitter)
        await until(lambda: buried)


@pytest.mark.parametrize("elsewhere", [False, True])
async def test_connections_wait_for_the_next_one_unless_somebody_else_serves(house: House, elsewhere: bool) -> None:
    async with manned(house, elsewhere=elsewhere) as (post, _):
        assert post.endpoint is not None
        house.mode("mute")
        os.kill(post.pids()["gate-0"], signal.SIGKILL)
        await until(lambda: "gate-0 starting" in post.pids() or (post.serving is not None and not post.serving.ready.done()))
        with socket.socket(socket.AF_UNIX) as client:
            client.setblocking(False)
            await asyncio.get_running_loop().sock_connect(client, str(house.socket_file(0)))
            if elsewhere:
                assert await asyncio.wait_for(asyncio.get_running_loop().sock_recv(client, 1), 10) == b""
            else:
                await asyncio.sleep(0.1)  # so long nobody has taken it
                accepted, _ = post.endpoint.socket.accept()
                accepted.close()


async def test_connections_are_turned_away_when_the_old_one_dies_before_the_new_one_is_ready(house: House) -> None:
    async with manned(house, elsewhere=True) as (post, _):
        old = post.pids()["gate-0"]
        house.mode("mute")
        round_ = asyncio.create_task(post.replace())
        await until(lambda: "gate-0 starting" in post.pids())
        os.kill(old, signal.SIGKILL)
        with socket.socket(socket.AF_UNIX) as client:
            client.setblocking(False)
            await asyncio.get_running_loop().sock_connect(client, str(house.socket_file(0)))
            assert await asyncio.wait_for(asyncio.get_running_loop().sock_recv(client, 1), 10) == b""
        os.kill(post.pids()["gate-0 starting"], signal.SIGKILL)
        house.mode("well")
        assert not await round_
        await until(lambda: post.serving is not None and post.serving.pid != old and post.serving.is_ready)


async def test_connections_are_turned_away_from_one_that_cannot_live(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watched, "HEARTBEAT_S", 0.1)
    async with manned(house, elsewhere=True) as (post, buried):
        house.mode("dies")
        os.kill(post.pids()["gate-0"], signal.SIGKILL)
        await until(lambda: len(buried) == 3)
        await asyncio.sleep(0.3)  # in the pause before the next one
        with socket.socket(socket.AF_UNIX) as client:
            client.setblocking(False)
            await asyncio.get_running_loop().sock_connect(client, str(house.socket_file(0)))
            assert await asyncio.wait_for(asyncio.get_running_loop().sock_recv(client, 1), 0.3) == b""
        house.mode("well")
        await until(lambda: post.serving is not None and post.serving.is_ready)


async def test_nobody_is_turned_away_from_the_next_one(house: House) -> None:
    async with manned(house, elsewhere=True) as (post, _):
        assert post.endpoint is not None
        old = post.serving
        os.kill(post.pids()["gate-0"], signal.SIGKILL)
        await until(lambda: post.serving is not old and post.serving is not None and post.serving.is_ready)
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(str(house.socket_file(0)))
            await asyncio.sleep(0.1)
            accepted, _ = post.endpoint.socket.accept()
            accepted.close()


async def test_a_socket_whose_file_was_removed_is_made_anew_for_the_next_one(house: House) -> None:
    async with manned(house) as (post, _):
        assert post.endpoint is not None
        house.socket_file(0).unlink()
        assert await post.replace()
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(str(house.socket_file(0)))
            accepted, _address = post.endpoint.socket.accept()  # the one that the child was given
            accepted.close()


async def test_a_place_that_somebody_else_has_taken_is_not_robbed(house: House) -> None:
    async with manned(house) as (post, _):
        old = post.serving
        house.socket_file(0).unlink()
        parent = house.socket_file(0).parent
        parent.rename(parent.with_name("elsewhere"))
        parent.write_text("no directory")
        assert not await post.replace()
        assert post.serving is old
        parent.unlink()
        assert await post.replace()


async def test_somebody_elses_socket_is_not_taken(house: House) -> None:
    async with manned(house):
        with pytest.raises(UsageError, match="another process"):
            Endpoint(listen_of(load_settings(house.config, {}), 0))


async def test_nobody_follows_where_everybody_leaves(house: House) -> None:
    """One leaves slowly, its successor has just died: the pause before the next one ends while the place is being closed."""
    house.mode("stubborn")
    async with manned(house, patience_s=4 * PAUSE_S_FIRST) as (post, _):
        house.mode("well")
        assert await post.replace()
        os.kill(post.pids()["gate-0"], signal.SIGKILL)
        await until(post._changing.locked)


# ---- signals


class Scripted(Supervisor):
    """With children of ours."""

    def __init__(self, house: House) -> None:
        super().__init__(load_settings(house.config, {}))
        self.house = house
        self.rounds = 0

    def _post(self, name: str, slot: int, endpoint: Endpoint | None) -> Post:
        return Post(
            name,
            self.house.argv,
            endpoint=endpoint,
            environ=dict(os.environ),
            patience_s=self._patience_s(slot),
            buried=id,
            lost=self._processes.ended,
            elsewhere=self._is_ready,
        )

    async def _round(self) -> bool:
        self.rounds += 1
        return await super()._round()

    def all_ready(self) -> bool:
        return len(self._posts) == 3 and all(post.serving is not None and post.serving.is_ready for post in self._posts)

    def settled(self) -> bool:
        """Nobody starts, nobody leaves."""
        return self.all_ready() and self._pids().keys() == {"gate-0", "gate-1", "settler"}


@asynccontextmanager
async def running(house: House) -> AsyncIterator[Scripted]:
    supervisor = Scripted(house)
    run = asyncio.create_task(supervisor.run())
    await until(supervisor.all_ready)
    try:
        yield supervisor
    finally:
        os.kill(os.getpid(), signal.SIGTERM)
        assert await asyncio.wait_for(run, 20) == 0
    assert supervisor._pids() == {}
    assert not house.socket_file(0).exists()
    assert not supervisor._metrics_dir.exists()


async def test_orphans_of_a_killed_supervisor_are_waited_for(house: House) -> None:
    """They hold its socket until they have seen that they are orphans; one that is really taken is not waited for long."""
    held = Endpoint(listen_of(load_settings(house.config, {}), 0))
    asyncio.get_running_loop().call_later(0.3, held.close)
    async with running(house):
        assert held.socket.fileno() < 0


async def test_sigusr2_is_remembered_once(house: House) -> None:
    async with running(house) as supervisor:
        before = supervisor._pids()
        os.kill(os.getpid(), signal.SIGUSR2)
        await until(lambda: supervisor.rounds == 1)
        for _ in range(3):
            os.kill(os.getpid(), signal.SIGUSR2)
            await asyncio.sleep(0)
        assert "\nextproc_replacements_failed_total 0.0\n" in supervisor._processes.render().decode()
        await until(lambda: supervisor.rounds == 2 and supervisor.settled() and not supervisor._wanted.is_set())
        await until(lambda: set(supervisor._pids().values()).isdisjoint(before.values()))
        assert supervisor.rounds == 2


async def test_sigterm_in_the_middle_of_a_round_leads_all_out(house: House) -> None:
    async with running(house) as supervisor:
        house.mode("mute")
        os.kill(os.getpid(), signal.SIGUSR2)
        await until(lambda: "gate-0 starting" in supervisor._pids())
        began = time.monotonic()
    assert time.monotonic() - began < 5, "it waited for somebody who never becomes ready"


async def test_a_bad_release_stops_at_the_first_worker(house: House, caplog: pytest.LogCaptureFixture) -> None:
    async with running(house) as supervisor:
        before = supervisor._pids()
        house.mode("dies")
        os.kill(os.getpid(), signal.SIGUSR2)
        await until(lambda: "those after it were not replaced" in caplog.text)
        assert supervisor._pids() == before
        assert "\nextproc_replacements_failed_total 1.0\n" in supervisor._processes.render().decode()


@pytest.mark.parametrize(("more", "why"), [("holds: {lease_s: never}", "never"), ("settler: {enabled: false}", "needs a restart")])
async def test_settings_that_cannot_be_taken_replace_nobody(house: House, more: str, why: str, caplog: pytest.LogCaptureFixture) -> None:
    async with running(house) as supervisor:
        house.configure(more)
        os.kill(os.getpid(), signal.SIGUSR2)
        await until(lambda: "nothing is replaced" in caplog.text)
        assert why in caplog.text
        assert supervisor.rounds == 0


async def test_who_ends_unasked_is_counted(house: House) -> None:
    async with running(house) as supervisor:
        os.kill(supervisor._pids()["gate-1"], signal.SIGKILL)
        page = lambda: supervisor._render().decode()  # noqa: E731
        await until(lambda: '\nextproc_processes_ended_total{process="gate-1"} 1.0\n' in page() and supervisor.settled())
        before = supervisor._pids().values()
        os.kill(os.getpid(), signal.SIGUSR2)
        await until(lambda: supervisor.settled() and set(supervisor._pids().values()).isdisjoint(before))
        assert page().count("extproc_processes_ended_total{") == 1, "who was replaced is not counted"


async def test_patience_is_longer_than_the_grace_of_the_settings(house: House) -> None:
    async with running(house) as supervisor:
        house.configure("drain: {grace_s: 7}")
        os.kill(os.getpid(), signal.SIGUSR2)
        await until(lambda: supervisor.rounds == 1)
        assert {gate.patience_s for gate in supervisor._gates} == {7 + LEAVE_S}


async def test_the_settings_that_are_shown_are_those_of_new_processes(house: House) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        ops_port = probe.getsockname()[1]
    house.configure("drain: {grace_s: 600}", ops_port=ops_port)
    async with running(house) as supervisor:
        assert (await shown(ops_port))["drain"]["grace_s"] == 600
        house.configure("drain: {grace_s: 7}", ops_port=ops_port)
        os.kill(os.getpid(), signal.SIGUSR2)
        await until(lambda: supervisor.rounds == 1)
        assert (await shown(ops_port))["drain"]["grace_s"] == 7


async def shown(ops_port: int) -> Any:
    def read() -> Any:
        with urllib.request.urlopen(f"http://127.0.0.1:{ops_port}/debug/config", timeout=5) as page:
            return json.load(page)["settings"]

    return await asyncio.to_thread(read)


def test_what_waits_for_a_new_process_is_said(house: House, caplog: pytest.LogCaptureFixture) -> None:
    policy = LivePolicy(load_settings(house.config, {}))
    house.configure("policy: {over_balance: clamp}")
    policy.reload({})
    waits = lambda: [message.partition(": ")[2] for message in caplog.messages if "only for a new process" in message]  # noqa: E731
    assert (policy.current.over_balance, waits()) == ("clamp", [])
    house.configure("policy: {over_balance: reject}\nholds: {lease_s: 50}")
    policy.reload({})
    assert policy.current.over_balance == "reject"
    assert waits() == ["holds.lease_s"]
    house.configure("policy: {over_balance: perhaps}")
    policy.reload({})
    assert policy.current.over_balance == "reject", "a bad file changes nothing"


def test_what_a_worker_listens_with(house: House) -> None:
    tls = "{cert_file: a.pem, key_file: a.key, client_ca_file: ca.pem}"
    house.config.write_text(f"listen: {{allowed_uids: [101, 0], socket_mode: 0600, max_open_exchanges: 7, tls: {tls}}}")
    listen = listen_of(load_settings(house.config, {}), 3, 9)
    assert (listen.address, listen.inherited_fd) == (f"unix:{house.socket_file(3)}", 9)
    assert (listen.allowed_uids, listen.socket_mode, listen.streams_max) == (frozenset({0, 101}), 0o600, 7)
    assert listen.tls is not None
    assert listen.tls.client_ca_file == str(house.directory / "ca.pem")
