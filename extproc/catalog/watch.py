"""Keeps the catalog that new requests get: validate, then swap the whole; whatever goes wrong, the last good one stays.

:meth:`CatalogWatch.poll` is called by somebody's timer (once a second is right) and :meth:`CatalogWatch.reload` by SIGHUP; both read and
parse, so call them in a thread. A change is loaded once it has been the same in two polls: editors write in pieces or rename a new file
over the old one, and half a file must not be announced as a fault.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Protocol, TypeAlias

from extproc.catalog.load import load_catalog
from extproc.catalog.model import Catalog
from extproc.errors import ConfigError, Fault
from extproc.yamlfile import read

Signature: TypeAlias = "tuple[int, int, int, int] | None"  # None = there is no file


class Listener(Protocol):
    """Told about every attempt to reload, in the thread of the caller."""

    def catalog_loaded(self, catalog: Catalog) -> None:
        """The file is good; ``catalog`` is in force now (perhaps the same contents as before)."""

    def catalog_refused(self, error: ConfigError) -> None:
        """The file is bad; the last good catalog stays."""


class CatalogWatch:
    """Holder of the current snapshot."""

    def __init__(self, path: Path, listener: Listener, *, load: Callable[[Path], Catalog] = load_catalog) -> None:
        """Loads at once: :class:`ConfigError` if the file is bad, since there is no last good one yet."""
        self._path = path
        self._listener = listener
        self._load = load
        self._lock = threading.Lock()  # SIGHUP may come during a poll
        self._done = self._pending = self._signature()
        self._current = load(path)

    @property
    def current(self) -> Catalog:
        """The snapshot to pin; reading it is atomic."""
        return self._current

    def poll(self) -> bool:
        """Reload if the file has changed and stays as it is. True: a new catalog is in force."""
        with self._lock:
            now, before = self._signature(), self._pending
            self._pending = now
            if now == self._done or now != before:
                return False
            return self._reload(now)

    def reload(self) -> bool:
        """Reload whatever the file looks like. True: a new catalog is in force; False: the same contents, or refused."""
        with self._lock:
            return self._reload(self._signature())

    def _reload(self, signature: Signature) -> bool:
        self._done = self._pending = signature  # a bad file is reported once, not with every poll
        try:
            catalog = self._load(self._path)
            self._check_currency(catalog)
        except ConfigError as error:
            self._listener.catalog_refused(error)
            return False
        changed = catalog.version != self._current.version
        if changed:
            self._current = catalog
        self._listener.catalog_loaded(self._current)
        return changed

    def _check_currency(self, catalog: Catalog) -> None:
        if catalog.currency != self._current.currency:
            node = read(self._path).get("currency")
            message = f"currency: cannot change from {self._current.currency} while running; the ledger counts in it"
            raise ConfigError((Fault(file=str(self._path), line=node.line if node else 0, message=message),))

    def _signature(self) -> Signature:
        """Which file it is and when it was last written; links are followed (Kubernetes swaps them)."""
        try:
            stat = self._path.stat()
        except OSError:
            return None
        return stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino, stat.st_size
