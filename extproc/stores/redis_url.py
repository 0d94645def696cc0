"""From ``redis://``, ``rediss://`` or ``unix://`` to a transport and the commands that greet the server.

redis-py reads the URL and makes the TLS context, so that every option of its URLs means here what it means there.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable
from dataclasses import dataclass, field

from redis.asyncio.connection import SSLConnection, parse_url

DEFAULT_PORT = 6379


@dataclass(frozen=True, slots=True, kw_only=True)
class Address:
    """Where a server listens, and who we are to it. ``repr`` shows no password."""

    path: str
    host: str
    port: int
    tls: ssl.SSLContext | None = field(repr=False)
    greeting: tuple[tuple[str, ...], ...] = field(repr=False)

    @classmethod
    def parse(cls, url: str, *, password: str | None = None) -> Address:
        """``password`` (from a file) wins over the URL's. ``ValueError``: not one of the three schemes."""
        options = dict(parse_url(url))
        path = str(options.get("path", ""))
        secret = password or str(options.get("password", ""))
        greeting: list[tuple[str, ...]] = []
        if secret:
            username = str(options.get("username", ""))
            greeting.append(("AUTH", username, secret) if username else ("AUTH", secret))
        database = int(str(options.get("db", 0)))
        if database:
            greeting.append(("SELECT", str(database)))
        tls = None
        if options.get("connection_class") is SSLConnection:
            named = {name: value for name, value in options.items() if name.startswith("ssl_")}
            tls = SSLConnection(**named).ssl_context.get()  # type: ignore[arg-type]
        return cls(
            path=path,
            host=str(options.get("host", "localhost")),
            port=int(str(options.get("port", DEFAULT_PORT))),
            tls=tls,
            greeting=tuple(greeting),
        )

    async def connect(self, protocol: Callable[[], asyncio.Protocol]) -> None:
        """Open a transport; ``protocol`` learns of it by ``connection_made``. ``OSError`` if it cannot be."""
        loop = asyncio.get_running_loop()
        if self.path:
            await loop.create_unix_connection(protocol, self.path)
        else:
            await loop.create_connection(protocol, self.host, self.port, ssl=self.tls)
