"""A Redis Cluster of our own on the loopback: masters with all slots among them, and a replica of each where one is wanted.

For tests of what a deployment with several Redis servers meets: slots that move, masters that die, replicas that take over.
"""

from __future__ import annotations

import itertools
import socket
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path

from extproc.local.engine import POLL_S, Engine, EngineFailed, Server
from extproc.local.valkey import server_program

SLOTS = 16_384
READY_S = 30.0
NODE_TIMEOUT_MS = 1_000
"""After which a silent master is taken for dead, and its replica stands for election."""


class Node(Server):
    """One server. ``port`` is where clients find it."""

    def __init__(self, directory: Path, port: int, bus_port: int) -> None:
        self.directory, self.port, self._bus_port = directory.absolute(), port, bus_port
        self.engine = self._start()

    def ask(self, *words: str | int) -> str:
        """One command, its answer as text: errors raise :class:`EngineFailed`."""
        with socket.create_connection(("127.0.0.1", self.port), timeout=5) as connection, connection.makefile("rb") as answer:
            parts = [str(word).encode() for word in words]
            connection.sendall(b"*%d\r\n" % len(parts) + b"".join(b"$%d\r\n%s\r\n" % (len(part), part) for part in parts))
            kind = answer.readline().rstrip()
            if kind.startswith(b"-"):
                raise EngineFailed(f"{' '.join(map(str, words))}: {kind.decode()}")
            return (answer.read(int(kind[1:])) if kind.startswith(b"$") else kind[1:]).decode()

    def _start(self) -> Engine:
        self.directory.mkdir(parents=True, exist_ok=True)
        options = {
            "port": self.port,
            "bind": "127.0.0.1",
            "dir": self.directory,
            "cluster-enabled": "yes",
            "cluster-port": self._bus_port,
            "cluster-config-file": "nodes.conf",
            "cluster-node-timeout": NODE_TIMEOUT_MS,
            "appendonly": "yes",
            "appendfsync": "everysec",
            "save": "",
            "maxmemory-policy": "noeviction",
            "repl-diskless-sync-delay": 0,
        }
        words = [str(word) for key, value in options.items() for word in (f"--{key}", value)]
        engine = Engine.start("valkey", [str(server_program()), *words], log_file=self.directory / "valkey.log")
        engine.wait_ready(self._answers, deadline_s=READY_S)
        return engine

    def _answers(self) -> bool:
        try:
            return self.ask("PING") == "PONG"
        except (OSError, EngineFailed):
            return False


class Cluster:
    """``masters`` first, then as many ``replicas`` (of the master at the same place)."""

    def __init__(self, directory: Path, *, masters: int = 3, replicas: bool = False) -> None:
        ports = _free_ports(2 * masters * (1 + replicas))
        with ExitStack() as stack:
            self.nodes: list[Node] = []
            for number, (port, bus_port) in enumerate(zip(ports[::2], ports[1::2], strict=True)):
                node = Node(directory / f"node-{number}", port, bus_port)
                stack.callback(node.stop)
                self.nodes.append(node)
            self.masters, self.replicas = self.nodes[:masters], self.nodes[masters:]
            self._join(ports[1::2])
            self._stack = stack.pop_all()

    @property
    def url(self) -> str:
        return "redis+cluster://" + ",".join(f"127.0.0.1:{node.port}" for node in self.nodes)

    def stop(self) -> None:
        """All of them."""
        self._stack.close()

    def wait_whole(self) -> None:
        """Until every node that runs says that all slots are served."""
        nodes = [node for node in self.nodes if node.engine.alive]
        _until(lambda: all("cluster_state:ok" in node.ask("CLUSTER", "INFO") for node in nodes), "the cluster is whole")

    def master_of(self, slot: int, *, says: Node) -> Node | None:
        """Who serves a slot, as one of the nodes has it; ``None``: nobody at present."""
        for line in says.ask("CLUSTER", "NODES").splitlines():
            _, address, flags, *_ = fields = line.split()
            if "master" in flags and "fail" not in flags and any(_has(part, slot) for part in fields[8:]):
                port = int(address.partition("@")[0].rpartition(":")[2])
                return next(node for node in self.nodes if node.port == port)
        return None

    def _join(self, bus_ports: Sequence[int]) -> None:
        bounds = [SLOTS * number // len(self.masters) for number in range(len(self.masters) + 1)]
        for master, (first, behind) in zip(self.masters, itertools.pairwise(bounds), strict=True):
            master.ask("CLUSTER", "ADDSLOTSRANGE", first, behind - 1)
        for node, bus_port in zip(self.nodes[1:], bus_ports[1:], strict=True):
            self.nodes[0].ask("CLUSTER", "MEET", "127.0.0.1", node.port, bus_port)
        known = len(self.nodes)
        _until(lambda: all(f"cluster_known_nodes:{known}\r" in node.ask("CLUSTER", "INFO") for node in self.nodes), "all nodes have met")
        for replica, master in zip(self.replicas, self.masters, strict=False):
            replica.ask("CLUSTER", "REPLICATE", master.ask("CLUSTER", "MYID"))
        self.wait_whole()
        _until(lambda: all("master_link_status:up" in node.ask("INFO", "replication") for node in self.replicas), "replicas follow")


def _has(part: str, slot: int) -> bool:
    first, _, last = part.partition("-")
    return first.isdigit() and int(first) <= slot <= int(last or first)


def _free_ports(count: int) -> list[int]:
    """Ports that nobody has now: kept until all are found, so that they differ."""
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [int(one.getsockname()[1]) for one in sockets]


def _until(condition: Callable[[], bool], what: str) -> None:
    end = time.monotonic() + READY_S
    while not condition():
        if time.monotonic() > end:
            raise EngineFailed(f"not within {READY_S:g} s: {what}")
        time.sleep(POLL_S)
