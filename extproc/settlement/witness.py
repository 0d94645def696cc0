"""The second witness: Envoy's access log has a line for every request, whatever became of the worker that served it.

Who was served pays for it, up to what the gate said last (``exchange/figures.py``), though his worker was killed; and a request that was
cut off learns why. A witness ends nothing: it raises the checkpoint of a hold and lowers its lease. The owner's ending wins if it comes,
else the reaper ends the hold at the higher one of the two.

Lines of requests whose end the gate has told itself are passed over unread. What is left is few: who hung up, what failed, and what a
killed worker had open. Lines may come twice and late; everything here may be done twice.
"""

from __future__ import annotations

import asyncio
import json
import logging
import re
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any, NamedTuple, Protocol

from extproc.errors import StoreRefused
from extproc.holds.port import Sighted, Witnessing
from extproc.money.hold import EndReason
from extproc.money.usage import UsageSource
from extproc.settlement.meter import Meter, Series
from extproc.settlement.pace import Pace, keep_doing
from extproc.settlement.witness_log import Log, Place, Read

log = logging.getLogger(__name__)

LOOK_EVERY_S = 0.5
MOMENT_S = 0.5  # for the owner of a hold to end it: his call and Envoy's line are on their way at once
UNFILED_MAX = 20_000  # reasons kept while PostgreSQL is away: 5 MB; more are read again when it is back

_UUID = re.compile(r"[0-9a-f]{8}-(?:[0-9a-f]{4}-){3}[0-9a-f]{12}", re.ASCII).fullmatch

# By the beginning of RESPONSE_CODE_DETAILS, as seen on Envoy 1.40 (docs/decisions/witness.md). What is not here does not tell: a lost
# sidecar (ext_proc_error_…) has its reason in the row already, an answer that came whole (via_upstream) in itself.
REASONS = {
    "downstream_remote_": EndReason.CLIENT_GONE,
    "http2.remote_": EndReason.CLIENT_GONE,
    "downstream_local_": EndReason.EDGE_LOST,
    "upstream_reset_": EndReason.UPSTREAM_RESET,
    "upstream_": EndReason.UPSTREAM_ERROR,
    "response_timeout": EndReason.UPSTREAM_ERROR,
    "stream_idle_timeout": EndReason.UPSTREAM_ERROR,
}


class Figures(NamedTuple):
    """What the gate had counted when it said something for the last time."""

    charge_nanos: int
    list_nanos: int
    input_tokens: int
    cached_tokens: int
    output_tokens: int
    reasoning_tokens: int
    usage_source: str


class Statement(NamedTuple):
    """What a line says of a request whose end the gate has not told. ``figures`` ``None``: nothing was delivered. ``reason`` "": none."""

    hold_id: str
    payer_id: str
    figures: Figures | None
    reason: str


class Register(Protocol):
    """What of all this is in the ledger's database. A place is a :class:`Place`."""

    async def place(self, log: str) -> tuple[int, int, str] | None:
        """Up to where a log has been read; ``None``: it never was."""

    async def file(self, log: str, place: tuple[int, int, str], reasons: Mapping[str, str]) -> tuple[int, int]:
        """Keep reasons (hold → reason) and the place together; tell rows what waits for them: how many were told, how many wait."""


class Witness:
    """Reads ``source``, which is known as ``name``. Redis and PostgreSQL are told in loops of their own: neither waits for the other."""

    def __init__(
        self, *, source: Log, name: str, holds: Witnessing, register: Register, meter: Meter, pace: Pace, grace_s: int = 5
    ) -> None:
        self._source = source
        self._name = name
        self._holds = holds
        self._register = register
        self._meter = meter
        self._pace = pace
        self._grace_ms = grace_s * 1_000
        self._at: Place | None = None
        self._filed: Place | None = None
        self._reasons: dict[str, str] = {}
        self._waiting = 1  # unknown: perhaps some
        self._is_overfull = False
        self._is_there = True

    async def run(self) -> None:
        """Until the pace is over."""
        loops = (keep_doing(step, pace=self._pace, meter=self._meter, failures=Series.WITNESS_FAILURES) for step in (self.look, self.file))
        await asyncio.gather(*loops)

    async def look(self) -> float:
        """The next lines; holds that are still open learn of it. A store that fails: the same lines again."""
        if self._at is None:
            self._at = Place(*(await self._register.place(self._name) or ()))
        at, read = self._at, await self._read(self._at)
        statements, unreadable = read_lines(read.lines)
        await self._tell({one.hold_id: one for one in statements if one.payer_id})
        if self._at == at:  # else it was set back meanwhile
            self._at = read.end
            self._keep({one.hold_id: one.reason for one in statements if one.reason})
        for series, count in {Series.WITNESS_LINES: len(read.lines), Series.UNREADABLE_LINES: unreadable + read.torn}.items():
            if count:
                self._meter.add(series, count)
        self._meter.set(Series.WITNESS_LAG_BYTES, read.left_bytes)
        return 0 if read.lines or read.end != at else LOOK_EVERY_S

    async def file(self) -> float:
        """What was learnt, into the ledger. While PostgreSQL is away it is kept, up to a point; beyond it, it is read again."""
        if self._is_overfull:
            self._at = self._filed = Place(*(await self._register.place(self._name) or ()))
            self._is_overfull = False
        at, reasons = self._at, self._reasons
        if at is not None and (at != self._filed or self._waiting):
            told, self._waiting = await self._register.file(self._name, at, dict(reasons))
            self._filed = at
            self._reasons = {hold_id: reason for hold_id, reason in self._reasons.items() if hold_id not in reasons}
            if told:
                self._meter.add(Series.TOLD_REASONS, told)
        return LOOK_EVERY_S

    async def _read(self, at: Place) -> Read:
        try:
            read = await asyncio.to_thread(self._source.read, at)
        except OSError as error:
            self._say(is_there=False, why=str(error))
            raise StoreRefused(f"the access log cannot be read: {error}") from error
        self._say(is_there=read.is_there, why="there is no such file")
        return read

    def _say(self, *, is_there: bool, why: str) -> None:
        """Once, when it changes."""
        if is_there != self._is_there:
            self._is_there = is_there
            log.warning("access log %s: %s", self._name, "it is there again" if is_there else why)

    async def _tell(self, statements: Mapping[str, Statement]) -> None:
        if not statements or not await self._sight(statements):
            return
        await self._pace.rest(MOMENT_S)
        witnessed = [witnessed_by(statements[hold.hold_id], hold) for hold in await self._sight(statements)]
        if witnessed:
            self._meter.add(Series.WITNESSED_HOLDS, await self._holds.witness(witnessed, grace_ms=self._grace_ms))

    async def _sight(self, statements: Mapping[str, Statement]) -> list[Sighted]:
        return await self._holds.sight({one.hold_id: one.payer_id for one in statements.values()})

    def _keep(self, reasons: Mapping[str, str]) -> None:
        if len(self._reasons) + len(reasons) > UNFILED_MAX:
            self._is_overfull, self._reasons = True, {}
        if not self._is_overfull:
            self._reasons = {**reasons, **self._reasons}


def read_lines(lines: Iterable[bytes]) -> tuple[list[Statement], int]:
    """What the lines say, and how many of them nobody understands.

    JSON has quotes in texts escaped, so that these marks are members and nothing else.
    """
    statements, unreadable = [], 0
    for line in lines:
        if b'"hold_id":"' in line and b'"end_reason":"' not in line:
            try:
                statements.append(_statement(json.loads(line)))
            except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
                unreadable += 1
        elif not (line.startswith(b"{") and line.endswith(b"}")):
            unreadable += 1
    return statements, unreadable


def _statement(line: Any) -> Statement:
    billing = line["billing"]
    payer_id = billing["payer_id"]  # "": a stranger in shadow mode, who holds nothing
    return Statement(
        hold_id=_id(billing["hold_id"]),
        payer_id=_id(payer_id) if payer_id else "",
        figures=_figures(billing),
        reason=reason_of(line["details"] or ""),
    )


def _id(text: str) -> str:
    """As the ledger will take it."""
    if not _UUID(text):
        raise ValueError("no id")
    return text


def _figures(billing: Mapping[str, str]) -> Figures | None:
    if "charge_nanos" not in billing:
        return None
    charge = _amount(billing["charge_nanos"])
    return Figures(
        charge_nanos=charge,
        list_nanos=_amount(billing.get("list_nanos", charge)),
        input_tokens=_amount(billing["input_tokens"]),
        cached_tokens=_amount(billing.get("cached_tokens", 0)),
        output_tokens=_amount(billing["output_tokens"]),
        reasoning_tokens=_amount(billing.get("reasoning_tokens", 0)),
        usage_source=UsageSource(billing["usage_source"]).value,
    )


def _amount(text: str | int) -> int:
    amount = int(text)
    if not 0 <= amount < 2**62:
        raise ValueError(f"no amount: {amount}")
    return amount


def reason_of(details: str) -> str:
    """Of RESPONSE_CODE_DETAILS; "" if they do not tell."""
    return next((reason.value for beginning, reason in REASONS.items() if details.startswith(beginning)), "")


def witnessed_by(statement: Statement, hold: Sighted) -> Sighted:
    """The hold as it is to expire: the higher one of checkpoint and figure, at most the cap, with a row that says the same."""
    figures = statement.figures
    if figures is None or min(figures.charge_nanos, hold.cap_nanos) <= hold.checkpoint_nanos:
        return hold
    charge = min(figures.charge_nanos, hold.cap_nanos)
    return replace(hold, checkpoint_nanos=charge, row=_row(hold.row, figures, charge))


def _row(row: bytes, figures: Figures, charge_nanos: int) -> bytes:
    """The row of the last checkpoint with these figures; one that cannot be read stays what it is: the ledger sets it aside."""
    try:
        fields = json.loads(row)
        flags = [*fields.get("usage_flags", ()), "witnessed"]
    except (ValueError, TypeError, AttributeError):
        return row
    list_nanos = max(figures.list_nanos, charge_nanos)
    fields |= {
        "input_tokens": figures.input_tokens,
        "cached_tokens": figures.cached_tokens,
        "output_tokens": figures.output_tokens,
        "reasoning_tokens": figures.reasoning_tokens,
        "usage_source": figures.usage_source,
        "usage_flags": flags,
        "cost_nanos": charge_nanos,
        "list_nanos": list_nanos,
        "overage_nanos": list_nanos - charge_nanos,
    }
    return json.dumps(fields, separators=(",", ":")).encode()
