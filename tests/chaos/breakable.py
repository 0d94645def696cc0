"""A house that is broken on purpose: leases of two seconds, everything durable, and a proxy before Valkey that can be cut."""

from __future__ import annotations

import asyncio
import json
from collections import defaultdict
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import invariants
from asking import CHAT, body
from house import Answer, Guest, House, until
from severable import Severable
from wire import Told

from extproc.errors import StoreError
from extproc.local.engine import EngineFailed
from extproc.settlement.invariants import Finding

LEASE_S, BEAT_S, REAP_S, GRACE_S = 2, 1, 1, 2
DRAIN_S = 20


class BreakableHouse(House):
    def __init__(self, directory: Path, *, redis_url: str = "", settings: str = "") -> None:
        """``redis_url``: of servers that somebody else breaks. ``settings`` besides, or instead of, those here."""
        # Engines end with the thread that started them: those that are started while a test's loop runs, by this one.
        self._starter = ThreadPoolExecutor(1, thread_name_prefix="starter")
        self._doorman: Guest | None = None
        self.valkey_proxy = Severable(directory / "valkey/valkey.sock", directory / "px.sock")
        holds = f"holds.lease_s={LEASE_S};holds.beat_s={BEAT_S};holds.reap_every_s={REAP_S};holds.grace_s={GRACE_S};holds.witness_grace_s=1"
        super().__init__(
            directory,
            durable=True,
            settings=f'{holds};drain.grace_s={DRAIN_S};redis.url="{redis_url or self.valkey_proxy.url}";identity.cache_ttl_s=2;{settings}',
        )
        self.redis_url = redis_url or self.valkey.url

    def stop(self) -> None:
        super().stop()
        self.valkey_proxy.stop()
        self._starter.shutdown()

    async def aside(self, job: Callable[..., Answer], *words: Any, **named: Any) -> Answer:
        """Run what starts engines, or takes long, while the loop goes on."""
        return await asyncio.get_running_loop().run_in_executor(self._starter, partial(job, *words, **named))

    def is_whole(self) -> bool:
        """Everything runs and answers: the next test may have it."""
        engines = (self.sidecar, self.valkey.engine, self.postgres.engine, self.envoy.engine)
        if not all(engine.alive for engine in engines):
            return False
        try:
            self.wait_serving()
            self._wait_let_in()
        except (AssertionError, EngineFailed):
            return False
        return True

    def _wait_let_in(self) -> None:
        """Whoever comes next is served, by every worker: Envoy asks them in turn."""
        if self._doorman is None:
            self._doorman = self.guest()
        doorman = self._doorman
        with self.client() as client:

            def served() -> bool:
                asked = [client.post(CHAT, json=body(), headers=doorman.headers).status_code for _ in range(2 * self.workers)]
                return set(asked) == {200}

            until(served, "every worker lets in", 30)
        self.close_clients()

    def guest(self, **more: Any) -> Guest:
        """As soon as the stores, which the test before may have broken, take one."""
        return self._as_soon_as_stores_answer(lambda: super(BreakableHouse, self).guest(**more), "an account")

    def findings(self, account: str) -> list[Finding]:
        return self._as_soon_as_stores_answer(lambda: super(BreakableHouse, self).findings(account), "what is found")

    def _as_soon_as_stores_answer(self, ask: Callable[[], Answer], what: str) -> Answer:
        answers: list[Answer] = []

        def answered() -> bool:
            try:
                answers.append(ask())
            except StoreError:
                return False
            return True

        until(answered, what)
        return answers[0]

    def restart_sidecar(self) -> None:
        """With the settings as they are now."""
        self.sidecar.stop(DRAIN_S)
        self.sidecar = self.start_sidecar()

    def wait_serving(self) -> None:
        """Both workers are there, and Envoy knows."""
        until(self._is_ready, "both workers are ready")
        self.envoy.wait_healthy({"extproc": self.workers})

    def set(self, section: str, **members: Any) -> None:
        """In force with the next start."""
        settings = json.loads(self.settings_file.read_text())
        settings.setdefault(section, {}).update(members)
        self.settings_file.write_text(json.dumps(settings))

    def seen(self) -> dict[str, list[dict[str, Any]]]:
        """What the simulators have of each account's requests: an independent witness."""
        seen = defaultdict(list)
        for simulator in self.simulators.values():
            for one in simulator.log()[0]:
                seen[dict(one["headers"]).get("x-account-id", "")].append(one)
        return seen

    def seen_of(self, guest: Guest) -> list[dict[str, Any]]:
        return self.seen()[guest.id]

    def judge(
        self, guest: Guest, tolds: list[Told], *, killed: frozenset[str] = frozenset(), seen: Sequence[dict[str, Any]] | None = None
    ) -> list[dict[str, Any]]:
        """Every invariant at rest, and the ledger against what clients and simulators say; the rows of the holds.

        ``killed``: request ids whose worker was killed: they may fall short, by what came after their last checkpoint. ``seen``: by the
        simulators, of this account, where it was read for many accounts.
        """
        guest.check()
        assert asyncio.run(invariants.problems(self.redis_url, grace_ms=GRACE_S * 1_000, trimmed=True)) == []
        for alarm in ("conflicts", "fence_violations", "reconcile_findings"):
            assert self.rows(f"SELECT * FROM {alarm}") == []
        rows = [row for row in guest.rows() if row["ending"] != "none"]
        seen = self.seen_of(guest) if seen is None else seen
        by_hold = {one["hold_id"]: one for one in seen}
        by_request = {row["request_id"]: row for row in rows}
        assert len(by_request) == len(rows), "a request with two holds"
        assert set(by_hold) <= {str(row["id"]) for row in rows}, "forwarded and not held"
        for row in rows:
            made = by_hold[str(row["id"])]["generated_tokens"] if str(row["id"]) in by_hold else 0
            assert row["output_tokens"] <= made + 1, f"charged more than was made: {row}"
        for told in tolds:
            if told.status == 200:
                row = by_request[told.request_id]
                made = by_hold[str(row["id"])]["generated_tokens"]
                if told.request_id not in killed:
                    assert row["output_tokens"] >= min(told.tokens, made) - 1, f"charged less than was delivered: {told}, {row}"
                    assert row["cost"] + row["loss_nanos"] > 0 or not told.tokens
        return rows
