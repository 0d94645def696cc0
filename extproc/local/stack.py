"""One machine's whole stack: Valkey, PostgreSQL, a simulator for each model, the sidecar, Envoy with TLS."""

from __future__ import annotations

import asyncio
import json
import os
import re
import secrets
import signal
import socket
import sys
import urllib.request
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from extproc.app.desk import Desk, desk
from extproc.app.launch import migrate
from extproc.app.offers import Offer, Offers, offers
from extproc.app.process import ALL_LEAVE_S
from extproc.app.rebuilding import until_open
from extproc.errors import ConfigError, UsageError
from extproc.local import envoy, postgres, simulator, tls, valkey
from extproc.local.engine import Engine, EngineFailed
from extproc.local.places import Places, write_private
from extproc.local.written import keep_catalog, keep_settings
from extproc.settings import Settings, load_settings

WORKERS: Final = 2
READY_S: Final = 90.0
"""For the workers to load their vocabularies (0.2 to 1.6 s each) on a machine that has other things to do."""

PORT_TRIES: Final = 5
"""For the ops port: it is chosen free, and somebody else may be faster."""

HEALTH_S: Final = 2.0
"""Between two health checks of a backend: on one machine it costs nothing to know sooner than in 10 s."""

CONTROL_S: Final = 5.0
"""Of a question to the ops port."""

ACTOR: Final = "extproc up"
ACCOUNT: Final = "local"
DEPOSIT: Final = "1000.00"
FREE_TIER: Final = "unlimited"

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What to start. ``backends``: model → ``host:port``s of a vLLM of yours, in place of its simulator."""

    port: int = 0
    workers: int = WORKERS
    catalog: Path | None = None
    backends: Mapping[str, Sequence[str]] = field(default_factory=dict)
    durable: bool = True


class Stack:
    """Stopped in the reverse order of the start, which is that of deploy/systemd.

    ``start`` from the main thread (the kernel ends engines with the thread that started them); ``stop`` may be called at any time.
    """

    def __init__(self, places: Places, plan: Plan, say: Say) -> None:
        self.places = places
        self.simulators: dict[str, simulator.Simulator] = {}
        self.valkey: valkey.Valkey | None = None
        self.postgres: postgres.Postgres | None = None
        self.sidecar: Engine | None = None
        self.envoy: envoy.Envoy | None = None
        self.account: dict[str, str] = {}
        self._plan = plan
        self._say = say
        self._ca_file = Path()
        self._exits = ExitStack()

    def start(self) -> None:
        """Everything, in the order in which one needs the other; ready for requests when it returns."""
        offered = self._prepare()
        self._say("starting PostgreSQL")
        self.postgres = postgres.start(self.places.postgres, durable=self._plan.durable)
        self._exits.callback(self.postgres.stop)
        self._say("starting Valkey")
        self.valkey = valkey.start(self.places.home / "valkey", durable=self._plan.durable)
        self._exits.callback(self.valkey.stop)
        self._exits.callback(self._say, "stopping Valkey and PostgreSQL")
        settings = self._write_settings()
        for label in migrate(settings, progress=lambda _: None):
            self._say(f"schema: {label}")
        for number, alike in enumerate(_alike(model for model in offered.models if model.name not in self._plan.backends)):
            self._simulate(number, alike)
        self.account = asyncio.run(self._account(settings, offered))
        self._say(f"starting the sidecar, {self._plan.workers} workers")
        self._start_sidecar(settings)
        asyncio.run(asyncio.wait_for(until_open(settings), READY_S))
        assert self.sidecar is not None
        self.sidecar.wait_ready(self._sees_all_open, deadline_s=READY_S)
        self._say("starting Envoy")
        self._start_envoy(offered)

    def stop(self) -> None:
        """Envoy lets live requests end, then everything else goes, last the stores. One that fails keeps none of the others alive."""
        self._exits.close()
        self.places.leave()
        self.places.facts.unlink(missing_ok=True)

    @property
    def settings(self) -> Settings:
        return load_settings(self.places.settings, os.environ)

    def pids(self) -> dict[str, int]:
        """Who runs now, the children of the sidecar among them."""
        parts: dict[str, Any] = {"valkey": self.valkey, "postgres": self.postgres, "extproc": self.sidecar, "envoy": self.envoy}
        pids = {"up": os.getpid(), **{name: part.pid for name, part in parts.items() if part is not None}}
        pids |= {f"simulator-{model}": one.pid for model, one in self.simulators.items()}
        return pids | self._sidecar_pids()

    def facts(self) -> dict[str, Any]:
        """What ``up.json`` says."""
        assert self.valkey is not None
        assert self.postgres is not None
        assert self.envoy is not None
        return {
            "base_url": f"https://localhost:{self.envoy.port}/v1",
            "ca_file": str(self._ca_file),
            "api_key": self.account["api_key"],
            "account": self.account["account"],
            "metrics_url": f"http://{self.settings.listen.ops_address}/metrics",
            "redis_url": self.valkey.url,
            "postgres_dsn": self.postgres.dsn,
            "envoy_admin_url": self.envoy.admin_url,
            "simulator_urls": {model: [one.url] for model, one in self.simulators.items()},
            "backends": {model: list(addresses) for model, addresses in self._plan.backends.items()},
            "data": str(self.places.data),
            "pids": self.pids(),
        }

    def ended(self) -> list[str]:
        """Parts that are gone though nobody stopped them."""
        parts: dict[str, Engine | None] = {
            "valkey": self.valkey.engine if self.valkey is not None else None,
            "postgres": self.postgres.engine if self.postgres is not None else None,
            "extproc": self.sidecar,
            "envoy": self.envoy.engine if self.envoy is not None else None,
            **{f"simulator-{model}": one.engine for model, one in self.simulators.items()},
        }
        return [name for name, part in parts.items() if part is not None and not part.alive]

    # --- parts

    def _prepare(self) -> Offers:
        if self._plan.catalog is not None:
            offers(self._plan.catalog)  # a bad one does not take the place of a good one
        keep_catalog(self.places.catalog, self._plan.catalog)
        offered = offers(self.places.catalog)
        unknown = sorted(set(self._plan.backends) - {model.name for model in offered.models})
        if unknown:
            raise UsageError(f"--backend {unknown[0]}: the catalog has {', '.join(model.name for model in offered.models)}")
        if self._plan.port and not _is_free(self._plan.port):
            raise UsageError(f"port {self._plan.port} is in use: choose another one with --port, or leave it out")
        return offered

    def _write_settings(self) -> Settings:
        assert self.valkey is not None
        assert self.postgres is not None
        address = "unix:run/gate-{worker}.sock"
        if self.places.home != self.places.data:
            address = f"unix:{self.places.sockets}/gate-{{worker}}.sock"
        values: dict[str, str | int] = {
            "address": address,
            "workers": self._plan.workers,
            "ops_address": f"127.0.0.1:{_free_port()}",
            "url": self.valkey.url,
            "dsn": self.postgres.dsn,
        }
        if not self.places.salt_key.exists():
            write_private(self.places.salt_key, secrets.token_hex(32))
        keep_settings(self.places.settings, values)
        return self.settings

    def _simulate(self, number: int, alike: Sequence[Offer]) -> None:
        """One for all of them."""
        first = alike[0]
        self._say(f"starting a simulator of {', '.join(model.name for model in alike)}")
        longest = max(model.context_tokens for model in alike)
        options = ["--chat-template", first.chat_template, "--max-model-len", str(longest), "--enable-prompt-tokens-details"]
        if first.usage == "forced":
            options.append("--enable-force-include-usage")
        folder = self.places.data / "simulators" / f"{number}-{re.sub(r'[^A-Za-z0-9.-]', '_', first.name)}"
        served = list(dict.fromkeys(name for model in alike for name in (model.served_name, model.name)))
        started = simulator.start(folder, models=served, vocabulary=first.vocabulary, options=options)
        self.simulators |= dict.fromkeys((model.name for model in alike), started)
        self._exits.callback(started.stop)

    async def _account(self, settings: Settings, offered: Offers) -> dict[str, str]:
        """The one of the last time, if the database still has it; else a new one with a deposit and a key."""
        async with desk(settings, actor=ACTOR) as office:
            known = _read_state(self.places.state)
            if "account" in known and await _is_there(office, known["account"]):
                return known
            self._say("creating an account, a deposit and a key")
            tier = FREE_TIER if FREE_TIER in offered.tiers else None
            account = (await office.create_account(name=ACCOUNT, tier=tier))["id"]
            await office.deposit(account, DEPOSIT, method="up", reference=None)
            key = await office.create_key(account, name="up")
        made = {"account": account, "key_id": key["id"], "api_key": key["key"]}
        write_private(self.places.state, json.dumps(made))  # now: the key is shown this once
        return made

    def _start_sidecar(self, settings: Settings) -> None:
        self._exits.callback(self._stop_sidecar)  # before it is ready: it has children of its own to lead out
        for _ in range(PORT_TRIES):
            self.sidecar = self._serve()
            try:
                self.sidecar.wait_ready(self._ready, deadline_s=READY_S)
            except EngineFailed:
                if "cannot listen on ops_address" not in self.sidecar.log_tail():
                    raise
                settings = self._write_settings()
            else:
                return
        raise UsageError(f"no free port was found for ops_address, last tried was {settings.listen.ops_address}")

    def _stop_sidecar(self) -> None:
        if self.sidecar is not None:
            self._say("stopping the sidecar")
            self.sidecar.stop(drain_s(self.places.settings) + ALL_LEAVE_S)

    def _stop_envoy(self) -> None:
        assert self.envoy is not None
        self._say("draining Envoy")
        self.envoy.stop(drain_s(self.places.settings))

    def _serve(self) -> Engine:
        self._log("extproc").unlink(missing_ok=True)
        return Engine.start(
            "extproc",
            [sys.executable, "-m", "extproc.cli", "serve", "--config", str(self.places.settings)],
            log_file=self._log("extproc"),
            # The package may stand in a checkout that is not installed: the child finds it where we did.
            death_signal=signal.SIGTERM,  # likewise, should we be killed
            environ={"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)},
        )

    def _start_envoy(self, offered: Offers) -> None:
        certificates = tls.ensure(self.places.data / "tls")
        self._ca_file = certificates.ca_file
        simulated = {model: [one.url.removeprefix("http://")] for model, one in self.simulators.items()}
        self.envoy = envoy.start(
            self.places.data / "envoy",
            gates=[self.settings.listen.address_of(slot).removeprefix("unix:") for slot in range(self._plan.workers)],
            backends={model.name: simulated.get(model.name) or self._plan.backends[model.name] for model in offered.models},
            cert_file=certificates.cert_file,
            key_file=certificates.key_file,
            port=self._plan.port or self._port_of_last_time(),
            health_interval_s=HEALTH_S,
        )
        self._exits.callback(self._stop_envoy)
        write_private(self.places.state, json.dumps({**self.account, "port": self.envoy.port}))
        # A vLLM of the operator's may still be loading: that is no reason to wait.
        self.envoy.wait_healthy({"extproc": self._plan.workers, **dict.fromkeys(self.simulators, 1)}, deadline_s=READY_S)

    def _port_of_last_time(self) -> int:
        """So that clients need not be told anew; any free one, if somebody else has it by now."""
        port = int(_read_state(self.places.state).get("port", 0))
        return port if port and _is_free(port) else 0

    def _log(self, name: str) -> Path:
        return self.places.logs / f"{name}.log"

    def _ready(self) -> bool:
        return self._ops("/readyz") is not None

    def _sees_all_open(self) -> bool:
        """Workers look four times a second: what one of them has not seen to be open, it refuses."""
        return b"\nextproc_shards_closed 0.0\n" in (self._ops("/metrics") or b"")

    def _sidecar_pids(self) -> dict[str, int]:
        page = self._ops("/debug/config")
        pids: dict[str, int] = json.loads(page)["pids"] if page else {}
        return pids

    def _ops(self, path: str) -> bytes | None:
        try:
            with urllib.request.urlopen(f"http://{self.settings.listen.ops_address}{path}", timeout=CONTROL_S) as answer:
                page: bytes = answer.read()
                return page
        except OSError:
            return None


def _alike(models: Iterable[Offer]) -> list[list[Offer]]:
    """Models that one simulator can stand for: it counts as one tokenizer and one template do."""
    groups: dict[tuple[str, bool, Path | None], list[Offer]] = {}
    for model in models:
        groups.setdefault((model.chat_template, model.usage == "forced", model.vocabulary), []).append(model)
    return list(groups.values())


def drain_s(settings_file: Path) -> float:
    """How long live requests are waited for."""
    try:
        return float(load_settings(settings_file, os.environ).drain.grace_s)
    except ConfigError:
        return 0.0  # somebody has edited the file while it ran, or we never came so far


def _read_state(path: Path) -> dict[str, str]:
    try:
        state: dict[str, str] = json.loads(path.read_text())
    except (FileNotFoundError, ValueError):
        return {}
    return state


async def _is_there(office: Desk, account: str) -> bool:
    try:
        await office.account(account)
    except UsageError:
        return False
    return True


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True
