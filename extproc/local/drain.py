"""The order in which an Envoy is to leave: SIGTERM alone would cut every live stream.

1. ``healthcheck/fail`` and ``drain_listeners?graceful``: whoever asks for its health is told to go elsewhere, and every answer closes its
   connection. New connections are still taken, as long as a load balancer needs to notice.
2. ``drain_listeners``: no new connections. On those that are there, what runs goes on.
3. Nothing runs any more. Whoever stops Envoy now cuts nobody.

``python -m extproc.local.drain ADMIN GRACE_S [NOTICE_S]`` is ``ExecStop=`` of the unit in deploy/systemd: standard library only.
"""

from __future__ import annotations

import http.client
import json
import sys
import time
from collections.abc import Callable
from typing import Final

ADMIN_TIMEOUT_S: Final = 10.0
"""Of one question to Envoy's admin port, on the loopback."""

POLL_S: Final = 0.05
QUIET_S: Final = 0.25
"""Without a request: a client that was sending its next one on an old connection has its answer, and was told that it closes."""

ACTIVE: Final = "http.edge.downstream_rq_active"
"""Requests of the listener in envoy/envoy.yaml (``stat_prefix: edge``); health checks of Envoy itself are none."""

Say = Callable[[str], object]


def ask(admin: str, path: str, *, method: str = "GET") -> tuple[int, bytes]:
    """Status and body of one request to the admin port (``host:port``). OSError when nobody listens there."""
    connection = http.client.HTTPConnection(admin, timeout=ADMIN_TIMEOUT_S)
    try:
        connection.request(method, path)
        response = connection.getresponse()
        return response.status, response.read()
    finally:
        connection.close()


def stat(admin: str, name: str) -> int:
    """One counter or gauge by its full name; 0 if there is none yet."""
    stats = json.loads(ask(admin, f"/stats?format=json&filter=^{name}$")[1])["stats"]
    return next((int(one["value"]) for one in stats if one.get("name") == name), 0)


def drain(admin: str, *, grace_s: float, notice_s: float = 0.0, say: Say = lambda _: None) -> int:
    """Steps 1 to 3; how many requests still run when ``grace_s`` is over. ``notice_s``: for a load balancer, 0 = there is none."""
    ask(admin, "/healthcheck/fail", method="POST")
    ask(admin, "/drain_listeners?graceful", method="POST")
    if notice_s:
        say(f"no more healthy; new connections are taken for {notice_s:g} s")
        time.sleep(notice_s)
    ask(admin, "/drain_listeners", method="POST")
    busy_s = time.monotonic()
    end_s = busy_s + grace_s
    while True:
        active, now_s = stat(admin, ACTIVE), time.monotonic()
        if active:
            busy_s = now_s
        if now_s >= end_s or now_s - busy_s >= QUIET_S:
            say(f"{active} requests run")
            return active
        time.sleep(POLL_S)


def _main(admin: str, grace_s: str, notice_s: str = "0") -> int:
    """0 = nothing runs any more. 1 = patience is over, or there is no such Envoy: it may be stopped all the same."""
    try:
        active = drain(admin, grace_s=float(grace_s), notice_s=float(notice_s), say=print)
    except OSError as error:
        print(f"{admin}: {error}")  # noqa: T201 - for the journal
        return 1
    return 1 if active else 0


if __name__ == "__main__":
    sys.exit(_main(*sys.argv[1:]))
