"""Invariant 15 on this host: what an outbox has as confirmed is read back from the ledger once more."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Final

from extproc.ledger.port import Outboxes, OutboxRow
from extproc.settlement.invariants import Finding, lost_after_all
from extproc.settlement.outbox_file import OutboxFile, Watermark, outboxes, watermark_of

PAGE_ROWS: Final = 1_000
NOTHING_NEW: Final = 2**62  # a position beyond every row: reading back moves none


async def confirmed_rows(directory: Path, ledger: Outboxes) -> AsyncIterator[tuple[int, list[Finding]]]:
    """Page by page: rows that are confirmed, and what of them the ledger does not have. :class:`~extproc.errors.StoreError`."""
    for path in await asyncio.to_thread(outboxes, directory):
        mark = watermark_of(path)
        if mark is None:
            continue
        with contextlib.closing(await asyncio.to_thread(OutboxFile.read_only, path)) as file:
            after = 0
            while rows := await asyncio.to_thread(_confirmed, file, mark, after):
                after = rows[-1].id
                back = await ledger.read_back(mark.outbox_id, rows, known=NOTHING_NEW)
                yield len(rows), [finding for row in back.missing for finding in lost_after_all(path.name, row)]


def _confirmed(file: OutboxFile, mark: Watermark, after: int) -> list[OutboxRow]:
    if file.outbox_id != mark.outbox_id:
        return []
    return [row for row in file.read(after, PAGE_ROWS) if row.id < mark.below]
