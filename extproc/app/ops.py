"""The ops port: /metrics of all processes merged, /livez, /readyz, /debug/config. Bind it where Envoy does not listen."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from extproc import __version__, metrics
from extproc.errors import UsageError
from extproc.settings import Settings

REQUEST_S_MAX = 5  # a client that sends nothing is let go


class Ops:
    """An HTTP server in a thread of the supervisor."""

    def __init__(
        self,
        address: str,
        *,
        render: Callable[[], bytes],
        is_ready: Callable[[], bool],
        settings: Callable[[], Settings],
        pids: Callable[[], dict[str, int]],
    ) -> None:
        """``address``: ``host:port``. ``render`` makes the page of /metrics; ``settings`` are those that a new process gets."""
        host, _, port = address.rpartition(":")
        self._pages: dict[str, Callable[[], tuple[int, str, bytes]]] = {
            "/metrics": lambda: (200, metrics.CONTENT_TYPE, render()),
            "/livez": lambda: (200, "text/plain", b"ok\n"),
            "/readyz": lambda: (200, "text/plain", b"ready\n") if is_ready() else (503, "text/plain", b"not ready\n"),
            "/debug/config": lambda: _json({"version": __version__, "settings": settings().masked(), "pids": pids()}),
        }
        try:
            self._server = ThreadingHTTPServer((host.strip("[]"), int(port)), self._handler())
        except OSError as error:
            raise UsageError(f"cannot listen on ops_address {address}: {error.strerror}; is another one running?") from error
        self._thread = threading.Thread(target=self._server.serve_forever, name="ops", daemon=True)

    def start(self) -> None:
        """Serve."""
        self._thread.start()

    def stop(self) -> None:
        """Stop serving and give the port back."""
        if self._thread.is_alive():
            self._server.shutdown()
        self._server.server_close()

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        pages = self._pages

        class Handler(BaseHTTPRequestHandler):
            timeout = REQUEST_S_MAX
            server_version = "extproc"
            sys_version = ""

            def do_GET(self) -> None:
                page = pages.get(self.path.partition("?")[0])
                status, content_type, body = page() if page else (404, "text/plain", b"not found\n")
                self.send_response(status)
                self.send_header("content-type", content_type)
                self.send_header("content-length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: Any) -> None:
                """Scrapes are not news."""

        return Handler


def _json(value: Any) -> tuple[int, str, bytes]:
    return 200, "application/json", json.dumps(value, indent=2, default=str).encode() + b"\n"
