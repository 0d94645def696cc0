"""A whole house for end-to-end tests: Valkey, PostgreSQL, two simulators, the sidecar with two workers, Envoy with TLS. All real.

``House`` starts, stops and breaks it; ``Guest`` is one account with a key, and everything that may be asked about its money.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import socket
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any, TypeVar

import httpx
import openai
import psycopg
import redis
from psycopg.rows import dict_row

from extproc.accounts.registry import Scopes
from extproc.app.compose import Stores, open_stores
from extproc.app.reconcile import auditor
from extproc.local import envoy, postgres, simulator, tls, valkey
from extproc.local.engine import Engine
from extproc.money.amount import parse_amount
from extproc.settings import load_settings
from extproc.settlement.invariants import Finding
from extproc.stores import migrations

ROOT = Path(__file__).parents[2]
VOCABULARY = ROOT / "extproc/tokens/vocab/qwen.tiktoken.xz"
SMALL, LARGE = "qwen2.5-7b", "qwen3-72b"
TEMPLATES = {SMALL: "chatml-default-system", LARGE: "chatml"}  # as the catalog says: the simulators count prompts as we do
NANOS_IN, NANOS_OUT = 500, 1_000  # of SMALL, a token (examples/models.yaml)
DEADLINE_S = 20.0
PASSWORD = "hunter2-of-the-database"  # trusted without it; there to be seen nowhere

Answer = TypeVar("Answer")

UNLIMITED = """
  unlimited:
    limits: {requests_per_minute: null, requests_per_hour: null, tokens_per_minute: null, concurrent_requests: null}
    price_factor: "1"
    priorities: [standard, spot]"""


def until(condition: Callable[[], Answer], what: str, deadline_s: float = DEADLINE_S) -> Answer:
    """The first true answer; waits for a condition, never for a time."""
    end = time.monotonic() + deadline_s
    while not (answer := condition()):
        assert time.monotonic() < end, f"not within {deadline_s} s: {what}"
        time.sleep(0.02)
    return answer


def reserved_port(stack: contextlib.ExitStack) -> int:
    """A free port that nobody else is given until ``stack`` is closed: it is bound, and who reuses addresses may listen on it all the same."""
    held = stack.enter_context(socket.socket())
    held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    held.bind(("127.0.0.1", 0))
    return int(held.getsockname()[1])


def short_directory() -> Path:
    directory = Path(tempfile.mkdtemp(prefix="xh-", dir="/tmp"))
    directory.chmod(0o711)
    return directory


class House:
    def __init__(self, directory: Path, *, workers: int = 2, settings: str = "", durable: bool = False, models: str | None = None) -> None:
        self.directory = directory
        self.clients: list[httpx.Client] = []
        self.workers = workers
        with contextlib.ExitStack() as stack:
            self.valkey = valkey.start(directory / "valkey", durable=durable)
            stack.callback(self.valkey.stop)
            self.postgres = postgres.start(directory / "postgres", durable=durable)
            stack.callback(self.postgres.stop)
            migrations.migrate(self.postgres.dsn)
            self.simulators = {
                name: simulator.start(
                    directory / f"sim-{place}", models=[name], vocabulary=VOCABULARY, options=["--chat-template", template]
                )
                for place, (name, template) in enumerate(TEMPLATES.items())
            }
            for one in self.simulators.values():
                stack.callback(one.stop)
            self._ops = f"127.0.0.1:{reserved_port(stack)}"
            self.settings_file = self._write_settings(settings, models)
            self.log_file = directory / "extproc.log"
            self.sidecar = self.start_sidecar()
            stack.callback(lambda: self.sidecar.stop(30))
            self.certificates = tls.ensure(directory / "tls")
            self.envoy = envoy.start(
                directory / "envoy",
                gates=[directory / f"run/gate-{slot}.sock" for slot in range(workers)],
                backends={name: [one.url.removeprefix("http://")] for name, one in self.simulators.items()},
                cert_file=self.certificates.cert_file,
                key_file=self.certificates.key_file,
                health_interval_s=1,
            )
            stack.callback(self.envoy.stop)
            self.envoy.wait_healthy({"extproc": workers, SMALL: 1, LARGE: 1})
            until(lambda: "\nextproc_shards_closed 0.0\n" in self.metrics(), "every worker has seen the shards open")
            self._loop = asyncio.new_event_loop()
            self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
            self._thread.start()
            self.stores: Stores = self.run(self._open())
            stack.callback(self._close)
            self._stack = stack.pop_all()

    def stop(self) -> None:
        self._stack.close()

    def run(self, coroutine: Coroutine[Any, Any, Answer]) -> Answer:
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(DEADLINE_S)

    @property
    def url(self) -> str:
        return f"https://localhost:{self.envoy.port}"

    @property
    def ops(self) -> str:
        return f"http://{self._ops}"

    def pids(self) -> dict[str, int]:
        with urllib.request.urlopen(f"{self.ops}/debug/config", timeout=5) as page:
            return json.load(page)["pids"]

    def metrics(self) -> str:
        with urllib.request.urlopen(f"{self.ops}/metrics", timeout=5) as page:
            return page.read().decode()

    def start_sidecar(self) -> Engine:
        code = (
            "import asyncio, os, pathlib; from extproc.app.supervisor import Supervisor; from extproc.settings import load_settings;"
            "from extproc.app.logs import set_up; s = load_settings(pathlib.Path(os.environ['HOUSE']), {});"
            "set_up(level='info', form='json', process='supervisor'); raise SystemExit(asyncio.run(Supervisor(s).run()))"
        )
        engine = Engine.start(
            "extproc", [sys.executable, "-c", code], log_file=self.log_file, cwd=ROOT, environ={"HOUSE": str(self.settings_file)},
            death_signal=signal.SIGTERM,
        )  # fmt: skip
        engine.wait_ready(self._is_ready, deadline_s=60)
        return engine

    def _is_ready(self) -> bool:
        try:
            ready = urllib.request.urlopen(f"{self.ops}/readyz", timeout=5).status == 200
            return ready and {f"gate-{slot}" for slot in range(self.workers)} <= set(self.pids())
        except OSError:
            return False

    def _write_settings(self, more: str, models: str | None) -> Path:
        catalog = models or (ROOT / "examples/models.yaml").read_text().replace("\n  business:", UNLIMITED + "\n  business:", 1)
        (self.directory / "models.yaml").write_text(catalog)
        (self.directory / "password").write_text(PASSWORD)
        sections = {
            "listen": {"address": f"unix:{self.directory}/run/gate-{{worker}}.sock", "workers": self.workers, "ops_address": self._ops},
            "catalog": {"file": "models.yaml"},
            "redis": {"url": self.valkey.url},
            "postgres": {"dsn": self.postgres.dsn, "password_file": "password"},
            "access_log": {"file": str(self.directory / "envoy/access.jsonl")},
            "log": {"format": "json"},
        }
        for line in filter(None, more.split(";")):
            name, _, value = line.partition("=")
            section, _, member = name.strip().partition(".")
            sections.setdefault(section, {})[member] = json.loads(value)
        path = self.directory / "extproc.yaml"
        path.write_text(json.dumps({"version": 1, **sections}))
        return path

    async def _open(self) -> Stores:
        """As a process has them that lives on: it looks at the shards. They are open when this returns."""
        stores = await open_stores(load_settings(self.settings_file, {}), application="tests")
        self._watching = asyncio.create_task(stores.holds.watch())
        async with asyncio.timeout(DEADLINE_S):
            while stores.holds.closed:
                await asyncio.sleep(0.01)
        return stores

    def _close(self) -> None:
        self._loop.call_soon_threadsafe(self._watching.cancel)
        self.run(self.stores.close())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(5)
        self._loop.close()

    def guest(self, *, deposit: str = "10", tier: str = "unlimited", **scopes: Any) -> Guest:
        return Guest(self, deposit=deposit, tier=tier, **scopes)

    def client(self, *, http2: bool = False, **more: Any) -> httpx.Client:
        client = httpx.Client(base_url=self.url, verify=self.context(), http2=http2, timeout=60, **more)
        self.clients.append(client)
        return client

    def close_clients(self) -> None:
        while self.clients:
            self.clients.pop().close()

    def context(self) -> Any:
        import ssl  # noqa: PLC0415

        return ssl.create_default_context(cafile=str(self.certificates.ca_file))

    @contextlib.contextmanager
    def database(self) -> Iterator[psycopg.Connection[dict[str, Any]]]:
        with psycopg.connect(self.postgres.dsn, row_factory=dict_row, autocommit=True) as connection:
            yield connection

    def rows(self, sql: str, *values: Any) -> list[dict[str, Any]]:
        with self.database() as connection:
            return connection.execute(sql, values).fetchall()

    def findings(self, account: str) -> list[Finding]:
        """What the reconciler says of one account: its events, its balance, its shard."""
        return self.run(self._findings(account))

    async def _findings(self, account: str) -> list[Finding]:
        looking = auditor(load_settings(self.settings_file, {}), self.stores, asyncio.sleep)
        return [finding async for step in looking.account(account) for finding in step.findings]

    def redis(self) -> redis.Redis:
        return redis.Redis.from_url(self.valkey.url, decode_responses=True)

    def upstream(self, request_id: str) -> list[dict[str, Any]]:
        """What the simulators saw of a request."""
        return [seen for one in self.simulators.values() for seen in one.requests(request_id)]

    def streams_of_workers(self) -> dict[int, int]:
        """Slot → exchanges that Envoy has open with it."""
        return self._of_workers("rq_active")

    def exchanges_of_workers(self) -> dict[int, int]:
        """Slot → exchanges that Envoy ever began with it."""
        return self._of_workers("rq_total")

    def _of_workers(self, name: str) -> dict[int, int]:
        return {int(path.rpartition("gate-")[2].removesuffix(".sock")): figure for path, figure in self.of_sockets(name).items()}

    def of_sockets(self, name: str) -> dict[str, int]:
        """A figure of Envoy for each endpoint of the cluster of workers."""
        told = json.loads(self.envoy.ask("/clusters?format=json")[1])["cluster_statuses"]
        (cluster,) = [one for one in told if one["name"] == "extproc"]
        return {
            host["address"]["pipe"]["path"]: sum(int(stat.get("value", 0)) for stat in host["stats"] if stat["name"] == name)
            for host in cluster["host_statuses"]
        }

    def kill(self, pid: int, number: signal.Signals = signal.SIGKILL) -> None:
        os.kill(pid, number)


class Guest:
    """One account, one key."""

    def __init__(self, house: House, *, deposit: str, tier: str, **scopes: Any) -> None:
        self.house = house
        registry = house.stores.registry
        account = house.run(registry.create_account(name="guest", tier=tier, actor="test"))
        self.id = account.id
        self.deposited = parse_amount(deposit)
        if self.deposited:
            house.run(house.stores.deposits.deposit(account.id, self.deposited, method="bank", actor="test"))
        key = house.run(registry.create_key(account.id, name="test", scopes=Scopes(**scopes), actor="test"))
        self.key_id, self.secret = key.id, key.secret

    def openai(self, **more: Any) -> openai.OpenAI:
        return openai.OpenAI(
            base_url=f"{self.house.url}/v1", api_key=self.secret, http_client=self.house.client(), **({"max_retries": 0} | more)
        )

    @property
    def headers(self) -> dict[str, str]:
        return {"authorization": f"Bearer {self.secret}"}

    def view(self) -> Any:
        return self.house.run(self.house.stores.holds.view(self.id))

    @property
    def available(self) -> int:
        return self.view().available_nanos

    def posted(self) -> int:
        return int(self.house.rows("SELECT balance FROM balances WHERE user_id = %s", self.id)[0]["balance"])

    def rows(self) -> list[dict[str, Any]]:
        return self.house.rows("SELECT * FROM requests WHERE user_id = %s ORDER BY id", self.id)

    def row(self, request_id: str, deadline_s: float = DEADLINE_S) -> dict[str, Any]:
        """The one row of a request, once it is posted."""

        def look() -> list[dict[str, Any]]:
            return self.house.rows("SELECT * FROM requests WHERE request_id = %s AND user_id = %s", request_id, self.id)

        until(look, f"a row of request {request_id}", deadline_s)
        (row,) = look()
        return row

    def at_rest(self, deadline_s: float = DEADLINE_S) -> None:
        """No open hold, and everything posted: available = balance."""
        until(self._rests, f"rest; {self.view()}, posted {self.posted()}", deadline_s)

    def _rests(self) -> bool:
        view = self.view()
        return view.open_holds == 0 and view.held_nanos == view.entry_held_nanos == 0 and view.available_nanos == self.posted()

    def check(self) -> None:
        """The invariants of MONEY.md that concern one payer at rest."""
        self.at_rest()
        house = self.house
        assert house.findings(self.id) == []  # 1 to 6, 8 to 12, 18
        rows = self.rows()
        assert self.posted() == self.deposited - sum(row["cost"] for row in rows)
        assert self.posted() >= 0  # 5

    @contextlib.contextmanager
    def charged_nothing(self) -> Iterator[None]:
        """No charge, ``available`` as before, no open hold, within 1 s."""
        before = self.available
        yield
        until(lambda: self.view().open_holds == 0 and self.available == before, "everything given back", 1.0)
        assert self.view().held_nanos == self.view().entry_held_nanos == 0
