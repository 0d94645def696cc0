"""What a gate worker reads again while it runs: the catalog file, with the tokenizers that it needs, and the policy of the settings."""

from __future__ import annotations

import logging
import threading
from collections.abc import Mapping
from pathlib import Path

from extproc.catalog.load import load_catalog
from extproc.catalog.model import Catalog
from extproc.catalog.watch import CatalogWatch
from extproc.errors import ConfigError
from extproc.exchange.policy import Policy
from extproc.metrics import Metrics
from extproc.settings import Settings, load_settings, restart_needed
from extproc.tokens.registry import LoadedCounters, load_counters
from extproc.tokens.vocabulary import TOKENIZERS

log = logging.getLogger(__name__)


class LiveCatalog:
    """The catalog file, watched, with the tokenizers that it needs: a new catalog is in force only when its vocabularies are loaded."""

    def __init__(self, path: Path, meter: Metrics) -> None:
        self._metrics = meter
        self._lock = threading.Lock()
        self.counters: LoadedCounters = load_counters(())
        self._watch = CatalogWatch(path, self, load=self._load)
        self.catalog_loaded(self._watch.current)

    @property
    def current(self) -> Catalog:
        return self._watch.current

    def poll(self) -> None:
        """Look at the file. Blocks while a vocabulary is loaded: call it in a thread."""
        self._watch.poll()

    def reload(self) -> None:
        """Read the file again, changed or not. Blocks likewise."""
        self._watch.reload()

    def catalog_loaded(self, catalog: Catalog) -> None:
        """A good file is in force."""
        self._metrics.known_models({model.name for model in catalog.models.values()})
        self._metrics.catalog_in_force(catalog.version)

    def catalog_refused(self, error: ConfigError) -> None:
        """A bad file: the last good one stays."""
        log.error("the catalog was not reloaded: %s", error)
        self._metrics.catalog_refused()

    def _load(self, path: Path) -> Catalog:
        catalog = load_catalog(path, vocabularies=TOKENIZERS)
        with self._lock:
            self.counters = self.counters.including({model.tokenizer for model in catalog.models.values()})
        return catalog


class LivePolicy:
    """Section ``policy`` of the settings; SIGHUP reads it again, a bad file changes nothing."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings  # those that this process has started with
        self.current: Policy = settings.policy.policy()

    def reload(self, environ: Mapping[str, str]) -> None:
        """Take the policy of the file as it is now; what else has changed in it is said, and waits for a new process."""
        try:
            fresh = load_settings(self._settings.file, environ)
        except ConfigError as error:
            log.error("the settings were not reloaded: %s", error)
            return
        if (policy := fresh.policy.policy()) != self.current:
            log.warning("the policy has changed: %s", policy)
            self.current = policy
        if waiting := restart_needed(self._settings, fresh):
            log.warning("changed, and in force only for a new process (SIGUSR2, or a restart): %s", ", ".join(waiting))
