"""The audit: who did what to whom, and why. Rows are only ever added."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from extproc.ledger.journal import Statement
from extproc.stores.postgres import Database, Row
from extproc.stores.queries import Queries, load_queries

PAGE_MAX = 1_000  # rows of one answer


class PostgresAudit:
    """The port Audit, and the reading side."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._queries = load_queries("extproc.ledger")

    async def tell(self, audit_id: str, *, actor: str, action: str, subject: str, reason: str, detail: Mapping[str, Any]) -> None:
        """Of something that is done elsewhere than in this database; before it is done."""
        await self._database.fetch(
            *audit(self._queries, audit_id, actor=actor, action=action, subject=subject, reason=reason, detail=detail)
        )

    async def newest(self, subject: str | None = None, *, limit: int) -> list[Row]:
        """Of one subject (the id of an account, a key, a hold; a month) or of all, newest first."""
        return await self._database.fetch(self._queries["newest_audit"], {"subject": subject, "limit": min(limit, PAGE_MAX)})


def audit(queries: Queries, audit_id: str, *, actor: str, action: str, subject: str, reason: str, detail: Mapping[str, Any]) -> Statement:
    """For the transaction that does it."""
    params = {"id": audit_id, "actor": actor, "action": action, "subject": subject, "reason": reason, "detail": json.dumps(detail)}
    return queries["insert_audit"], params
