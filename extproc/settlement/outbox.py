"""The outbox of a gate worker: forwarded endings on their way to the disk, so that a charge survives the worker, Redis and a power cut.

``put`` never waits: what comes within :data:`GATHER_S` is one group, a thread commits it, and whoever put something in is told on the loop
when it is on the disk. Redis has acknowledged nearly all of it by then; the group is as large as the bound on CPU makes it.

A disk that cannot be written (full, read-only, locked) keeps nothing from running: groups wait in memory, the commit is tried again until
it succeeds, and :attr:`Outbox.is_full` says meanwhile that nobody new is to be let in. A file that is broken, or was taken away under us,
is replaced, and what the ledger has not confirmed of it is copied as far as it can be read.

What a worker lends while Redis is away is kept beside the endings until it has ended, so that it does not die with its worker.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import threading
from collections import deque
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Final, NamedTuple

from extproc.errors import StoreError, StoreRefused, StoreRejected
from extproc.metrics import OutboxSeries
from extproc.money.hold import Ending, Loan
from extproc.money.posting import Posting
from extproc.settlement.outbox_file import KEEP_MS, Claim, Extent, Lent, OutboxFile, Written, broken, watermark_of

log = logging.getLogger(__name__)

GATHER_S: Final = 0.02  # Redis answers in one; so a group is 56 rows at 2,800 requests a second, and costs each of them a few µs
GATHER_S_AWAITED: Final = 0.002  # where every reply waits for the disk: the commits themselves gather what comes meanwhile
PENDING_MAX: Final = 50_000  # rows that are not on the disk, about 1 KB each: all that a worker may have open, twice
STALLED_S: Final = 3.0  # a commit that takes longer is a disk that hangs
RETRY_S: Final = 0.5
LOOK_S: Final = 1.0  # between two looks at what is confirmed, and at the room that is left
ROWS_A_COMMIT: Final = 2_000  # after an outage: 2 MB, 10 ms
PIECE_ROWS: Final = 500  # deleted at once, a millisecond
PIECES_A_LOOK: Final = 20  # 10,000 rows a second: more than a worker can write
CLEAR_ABOVE: Final = 0.75  # of bytes_max: from there on confirmed rows go before their time
UNCONFIRMED_MAX: Final = 20_000  # rows told to a rebuild, the newest: holds of older ones have run out, and the ledger is told anyway
FLUSH_S: Final = 1.0  # a rebuild waits no longer for what is in memory: it will be told to Redis by its worker
PAGE_ROWS: Final = 1_000
OPEN_S: Final = 5.0  # a disk that hangs does not keep the worker from starting: it says 503
JOIN_S: Final = 5.0  # for the commit that is under way when the worker leaves


class Forgotten(NamedTuple):
    """A loan that has ended before anything was forwarded."""

    hold_id: str


class Entry(NamedTuple):
    """What is to be on the disk, when it came, and whom to tell on the loop that it is there."""

    what: Ending | Loan | Forgotten
    at_ms: int
    stored: Callable[[], object]


class Figures(NamedTuple):
    """``rows`` and ``used_bytes``: not confirmed, and ``oldest_ms`` of them (0 = all are); ``broken``: files that were put aside."""

    rows: int = 0
    used_bytes: int = 0
    broken: int = 0
    oldest_ms: int = 0


class Outbox:
    """Lives on the running loop. ``lives`` changes when rows that were put in may be missing from the file that is written now."""

    def __init__(self, keeper: Keeper, *, unix_ms: Callable[[], int], gather_s: float = GATHER_S) -> None:
        self._keeper = keeper
        self._gather_s = gather_s
        self._unix_ms = unix_ms
        self._loop = asyncio.get_running_loop()
        self._gathering: list[Entry] = []
        self._groups: SimpleQueue[list[Entry]] = SimpleQueue()
        self._put = self._written = 0  # rows, ever
        self._marks: deque[tuple[int, asyncio.Future[None]]] = deque()  # whoever waits until so many are written
        self._progress_s = 0.0
        self._refused = 0
        self._failures = 0
        self._fault = "not opened yet"
        self._over = threading.Event()
        self._opened = asyncio.Event()
        self._thread = threading.Thread(target=self._run, name="outbox", daemon=True)

    @property
    def is_full(self) -> bool:
        """What ends now may not be kept: no new request is to be let in."""
        waiting = self._put - self._written
        is_stalled = waiting and self._loop.time() - self._progress_s > STALLED_S
        return bool(self._fault) or self._keeper.is_over or bool(is_stalled) or waiting >= PENDING_MAX // 2

    @property
    def lives(self) -> int:
        """Rises when a row was refused, dropped before its time, or lost with its file: what it brought along is not known any more."""
        return self._refused + self._keeper.replaced

    @property
    def behind_s(self) -> float:
        """How long ago the oldest ending was put in that the ledger may not have, as of the last look; 0 = it has all."""
        oldest_ms = self._keeper.figures.oldest_ms
        return max(0, self._unix_ms() - oldest_ms) / 1_000 if oldest_ms else 0.0

    def tell(self, series: OutboxSeries) -> None:
        """Figures as of the last look."""
        rows, used_bytes, broken_files, _ = self._keeper.figures
        series.told(rows=rows, used_bytes=used_bytes, broken=broken_files, failures=self._failures, is_full=self.is_full)

    async def start(self) -> None:
        """Returns when the file is open, or cannot be opened: then it is tried again, and :attr:`is_full` until it is."""
        self._thread.start()
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._opened.wait(), OPEN_S)

    def put(self, ending: Ending, stored: Callable[[], object]) -> bool:
        """``stored`` is called when it is on the disk. False: there is no room, it is not kept. Whatever was lent to its hold is over."""
        is_kept = self._add(ending, stored)
        self._refused += not is_kept
        return is_kept

    def lend(self, loan: Loan, stored: Callable[[], object]) -> bool:
        """What is known of a loan now, as ``put``. False also if what comes now may not be written soon."""
        return not self.is_full and self._add(loan, stored)

    def forget(self, hold_id: str) -> None:
        """A loan is over, and nothing is to be booked. If there is no room for that, it expires one day with nothing charged."""
        self._add(Forgotten(hold_id), _tell_nobody)

    async def unconfirmed(self, shards: Collection[int]) -> list[Posting]:
        """Endings of these shards that the ledger is not known to have, the newest :data:`UNCONFIRMED_MAX` of all at most."""
        await self._flushed(FLUSH_S)
        return await asyncio.to_thread(self._keeper.unconfirmed, frozenset(shards))

    async def close(self, grace_s: float) -> None:
        """Commit what is left, if that can be done within ``grace_s``; the file is anybody's then."""
        await self._flushed(grace_s)
        if self._written < self._put:
            log.error("endings that are not in the outbox: %d", self._put - self._written)
        self._over.set()
        self._groups.put([])
        await asyncio.to_thread(self._thread.join, JOIN_S)

    def _add(self, what: Ending | Loan | Forgotten, stored: Callable[[], object]) -> bool:
        if self._put - self._written >= PENDING_MAX:
            return False
        if self._put == self._written:
            self._progress_s = self._loop.time()
        self._put += 1
        if not self._gathering:
            self._loop.call_later(self._gather_s, self._hand_over)
        self._gathering.append(Entry(what, self._unix_ms(), stored))
        return True

    async def _flushed(self, within_s: float) -> None:
        """Everything that was put in before is on the disk, or the time is over."""
        if self._written < self._put:
            mark = self._loop.create_future()
            self._marks.append((self._put, mark))
            await asyncio.wait({mark}, timeout=within_s)

    def _hand_over(self) -> None:
        group, self._gathering = self._gathering, []
        self._groups.put(group)

    def _committed(self, group: Sequence[Entry]) -> None:
        self._written += len(group)
        self._progress_s = self._loop.time()
        for entry in group:
            entry.stored()
        while self._marks and self._marks[0][0] <= self._written:
            self._marks.popleft()[1].set_result(None)

    # the thread

    def _run(self) -> None:
        waiting: list[Entry] = []
        while not self._over.is_set():
            try:
                self._keeper.look()
                self._commit(waiting)
                self._speak("")
                while not self._keeper.is_time_to_look and not self._over.is_set():
                    self._take(waiting)
                    self._commit(waiting)
            except StoreError as error:
                self._speak(str(error))
                self._over.wait(RETRY_S)
            except Exception as error:  # noqa: BLE001 - a thread that ends in silence would keep nothing any more, and nobody would know
                self._speak(repr(error))
                self._over.wait(RETRY_S)
        self._keeper.close()

    def _commit(self, waiting: list[Entry]) -> None:
        """What cannot be written stays in ``waiting``, in its order. :class:`StoreRefused`."""
        while waiting:
            group = waiting[:ROWS_A_COMMIT]
            self._keeper.write(group)
            del waiting[:ROWS_A_COMMIT]
            self._tell(self._committed, group)

    def _take(self, waiting: list[Entry]) -> None:
        with contextlib.suppress(Empty):
            waiting += self._groups.get(timeout=LOOK_S)
            while True:
                waiting += self._groups.get_nowait()

    def _speak(self, fault: str) -> None:
        self._failures += bool(fault)
        if fault != self._fault:
            log.log(logging.ERROR if fault else logging.INFO, "outbox: %s", fault or f"{self._keeper.path} is written")
            self._fault = fault
            self._tell(self._opened.set)

    def _tell(self, told: Callable[..., object], *words: object) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
            self._loop.call_soon_threadsafe(told, *words)


class Keeper:
    """The file of one worker, and its room. Blocks: everything here but the plain figures belongs to the outbox's thread."""

    def __init__(
        self,
        directory: Path,
        slot: int,
        *,
        bytes_max: int,
        shard_of: Callable[[str], int],
        new_id: Callable[[], str],
        unix_ms: Callable[[], int],
        monotonic_s: Callable[[], float],
    ) -> None:
        self._directory = directory
        self._slot = slot
        self._bytes_max = bytes_max
        self._shard_of = shard_of
        self._new_id = new_id
        self._unix_ms = unix_ms
        self._monotonic_s = monotonic_s
        self._claim: Claim | None = None
        self._file: OutboxFile | None = None
        self._below = 1  # what the ledger has, as far as it was said
        self._look_s = 0.0
        self._lent: set[str] = set()  # holds whose loans are in the file
        self.figures = Figures()
        self.is_over = False  # the ledger confirms less than is written: there is no room for more
        self.replaced = 0

    @property
    def path(self) -> Path | None:
        """``None``: it could not be opened yet."""
        return self._claim.path if self._claim else None

    @property
    def is_time_to_look(self) -> bool:
        return self._monotonic_s() >= self._look_s

    def write(self, group: Sequence[Entry]) -> None:
        """On the disk when it returns. :class:`StoreRefused`: not now."""
        rows = [self._written(entry.what, entry.at_ms) for entry in group if type(entry.what) is Ending]
        lent: Sequence[Lent] = ()
        ended: Sequence[str] = ()
        if self._lent or len(rows) < len(group):  # else, as nearly always, there is nothing but endings
            lent, ended = self._loans(group)
        file = self._file or self._open()
        try:
            file.append(rows, lent=lent, ended=ended)
        except StoreRejected as error:
            self._replace(file, str(error)).append(rows, lent=lent, ended=ended)
        if lent or ended:
            self._lent = (self._lent | {loan.hold_id for loan in lent}) - set(ended)

    def look(self) -> None:
        """What is confirmed, how much there is, and what may go. :class:`StoreRefused`."""
        self._look_s = self._monotonic_s() + LOOK_S
        file = self._file or self._open()
        if not file.is_in_place:
            file = self._replace(file, f"{file.path} was removed, or replaced, by somebody else")
        try:
            self._clear(file)
        except StoreRejected as error:
            self._replace(file, str(error))

    def unconfirmed(self, shards: frozenset[int]) -> list[Posting]:
        """From any thread: by a connection of its own. What cannot be read is told by nobody; the settler will say so."""
        found: list[Posting] = []
        if self.path is None:
            return found
        try:
            with contextlib.closing(OutboxFile.read_only(self.path)) as file:
                after = max(self._below - 1, file.extent().last - UNCONFIRMED_MAX)
                while rows := file.read(after, PAGE_ROWS):
                    found += [row.posting for row in rows if row.posting.shard in shards]
                    after = rows[-1].id
        except StoreError as error:
            log.error("endings of the outbox cannot be told: %s", error)
        return found

    def close(self) -> None:
        """The file is anybody's."""
        if self._file is not None:
            self._file.close()
        if self._claim is not None:
            self._claim.release()

    def _open(self) -> OutboxFile:
        self._claim = self._claim or Claim.first_of(self._directory, self._slot)
        try:
            self._file = self._owned(self._claim)
        except StoreRejected as error:
            log.error("outbox: %s; it is put aside as %s", error, self._claim.put_aside(self._unix_ms()))
            self._file = self._owned(self._claim)
        return self._file

    def _owned(self, claim: Claim) -> OutboxFile:
        return OutboxFile.owned(claim, new_id=self._new_id(), unix_ms=self._unix_ms(), host=socket.gethostname())

    def _replace(self, old: OutboxFile, why: str) -> OutboxFile:
        """Another file, with everything that was not confirmed and can still be read of the old one, which is kept if it is still there."""
        assert self._claim is not None
        log.error("outbox: %s; it is put aside as %s", why, self._claim.put_aside(self._unix_ms()))
        self._claim.release()  # its lock may be gone as well
        self._claim, self._file = None, None
        self.replaced += 1
        with contextlib.closing(old):
            file, after = self._open(), self._below - 1
            try:
                while rows := old.read(after, PAGE_ROWS):
                    file.append([_copied(row.posting) for row in rows])
                    after = rows[-1].id
                file.append((), lent=old.loans())
            except (StoreRejected, StoreRefused) as error:
                log.error("outbox: rows from %d on could not be copied: %s", after + 1, error)
        return file

    def _clear(self, file: OutboxFile) -> None:
        watermark = watermark_of(file.path)
        self._below = watermark.below if watermark and watermark.outbox_id == file.outbox_id else 1
        before_ms = self._unix_ms() - KEEP_MS
        for _ in range(PIECES_A_LOOK):
            extent = file.extent()
            early = extent.used_bytes > CLEAR_ABOVE * self._bytes_max
            if not file.drop(below=self._below, before_ms=self._unix_ms() if early else before_ms, limit=PIECE_ROWS):
                break
            self.replaced += early and extent.first_ms >= before_ms
        rows, used_bytes = _beyond(self._below, file.extent())
        self.is_over = used_bytes > self._bytes_max
        oldest = file.read(self._below - 1, 1)
        oldest_ms = oldest[0].posting.occurred_ms if oldest else 0
        self.figures = Figures(rows=rows, used_bytes=used_bytes, broken=len(broken(self._directory)), oldest_ms=oldest_ms)

    def _loans(self, group: Sequence[Entry]) -> tuple[Sequence[Lent], Sequence[str]]:
        """Loans as they are at the end of the group, and those that end with it."""
        lent: dict[str, Lent] = {}
        ended = []
        for what, _, _ in group:
            if isinstance(what, Loan):
                shard = self._shard_of(what.payer_id)
                lent[what.hold_id] = Lent(what.hold_id, shard, what.payer_id, what.key_id, what.cap_nanos, what.charge_nanos, what.row)
            elif lent.pop(what.hold_id, None) or what.hold_id in self._lent:
                ended.append(what.hold_id)
        return list(lent.values()), ended

    def _written(self, ending: Ending, at_ms: int) -> Written:
        return Written(
            at_ms,
            self._shard_of(ending.payer_id),
            ending.hold_id,
            ending.payer_id,
            ending.key_id,
            ending.kind,
            ending.charge_nanos,
            ending.reserved_nanos,
            ending.row,
        )


def _tell_nobody() -> None:
    """Nobody waits for it."""


def _copied(posting: Posting) -> Written:
    _, _, kind, hold_id, payer_id, key_id, charge, reserved, _, _, at_ms, row, *_ = posting
    return Written(at_ms, posting.shard, hold_id, payer_id, key_id, kind, charge, reserved, row)


def _beyond(below: int, extent: Extent) -> tuple[int, int]:
    """Rows from ``below`` on, and what they take: their share of all."""
    if not extent.last:
        return 0, 0
    rows = max(0, extent.last - max(below, extent.first) + 1)
    return rows, extent.used_bytes * rows // (extent.last - extent.first + 1)
