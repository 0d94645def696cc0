"""The hold store in Redis: each verb of the ports is one script of ``lua/``, on the shard of its payer.

Keys (``{s00}`` … ``{s63}`` is the shard's tag; no other key is touched by a script, so Redis Cluster works):

====================================  ======  ================================================================================
``{sNN}:payer:<payer>``               hash    version total spendable (= available + credit) credit held entry_held open
                                              frozen frozen_version; rpm rph tpm ("window:current:previous"); who ever had free
                                              tokens: free_input held_input total_input and the same of output
``{sNN}:key:<payer>:<key>``           hash    version revoked expires_ms budget_nanos budget_period budget_id open; rpm rph tpm
``{sNN}:budget:<payer>:<id>:<span>``  hash    used (= spent + held) held; span: all, 2026-01-31 or 2026-01; forgotten after it;
                                              id: the key's budget_id, or its own
``{sNN}:hold:<hold>``                 hash    open: state (entry, exact) owner payer key entry reserved cap checkpoint tokens
                                              minute period budget row created, free used ("input:output", if it took free tokens);
                                              ended: state kind amount owner (15 minutes); taken over: state (alias) to (15 minutes)
``{sNN}:request:<payer>:<request>``   string  hold id of the first try (60 s)
``{sNN}:leases``                      zset    hold id → unix ms at which its lease runs out: the open holds
``{sNN}:events``                      stream  k(ind) h(old) p(ayer) c(reds = key) a(mount charged) r(eserved) e(poch) s(eq)
                                              t(ime, ms) d(ata: the row) f(ree tokens used, if any)
``{sNN}:shard``                       hash    now (last seen, ms) seq (of the epoch); epoch (while open), rebuilding (the epoch that is
                                              built) counting (1: nobody asserts any more); reaped reaped_epoch quiet (of the reaper)
``{sNN}:asserted``                    set     workers that have said what they hold in the epoch that is built
====================================  ======  ================================================================================
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Final, TypeVar

from extproc.errors import StoreFenced
from extproc.holds.epochs import closed
from extproc.holds.port import NO_TOKENS, OpenHold, PayerView, Sight, Sighted, Tokens
from extproc.holds.shards import HOLD_AGE_MS_MAX, RedisShards, amount, tokens_fields
from extproc.holds.words import quota_of, tokens_word
from extproc.money.amount import BALANCE_NANOS_MAX
from extproc.money.hold import Admission, Amendment, Checkpoint, Denied, DenyReason, Ending, EndResult, Granted, Limits, Verdict, Window
from extproc.money.statement import Purse
from extproc.money.usage import NO_QUOTA, Quota
from extproc.stores.pipeline import Client
from extproc.stores.redis_link import as_it_is
from extproc.stores.shards import SHARDS, TAGS, shard_of, tag_of

DEDUPE_MS: Final = 60_000  # Envoy's retries of one request come within its route's patience for a first byte of ours
REAP_PAUSE_MS_MAX: Final = 10_000  # a reaper away for longer cannot know whether beats could come (MONEY.md)
EXPIRE_BATCH: Final = 64  # endings of one script: 2 ms of a server that everybody waits for
BEAT_BATCH: Final = 256  # checkpoints of one script, for the same reason
WITNESS_BATCH: Final = 256  # likewise
NOTES_WAITING_MAX: Final = 20_000  # events of a shard above which rows of refusals are dropped: in all shards together below a gigabyte
TOTAL_NANOS_MAX: Final = 2**63 - 1  # what HINCRBY can subtract
GRANTED_WORDS: Final = 10  # of a reply that says nothing of free tokens
DENIED_WORDS: Final = 9  # likewise
KEY_FIELDS: Final = frozenset({"revoked", "expires_ms", "budget_nanos", "budget_period", "budget_id"})

Thing = TypeVar("Thing")
Word = str | bytes | int
Words = tuple[Word, ...]


class RedisHolds(RedisShards):
    """The ports Holds, Purses, Reaping, Releasing, Witnessing and Delivery, besides those of :class:`RedisShards`, over one client.

    (Its owner opens and closes it.) Every call carries the epoch that its shard is known to have. A shard is closed until ``states()`` has
    said that it is open: then calls are refused at once, as :class:`~extproc.errors.StoreFenced`.
    """

    def __init__(self, pipeline: Client, *, lease_ms: int = 60_000) -> None:
        super().__init__(pipeline, lease_ms=lease_ms)
        self._reaped_connection: dict[int, int] = {}

    def _call(
        self, name: str, shard: int, args: Iterable[str | bytes | int], decode: Callable[[Any], Any] = as_it_is
    ) -> asyncio.Future[Any]:
        """A script of an open shard."""
        epoch = self._epochs.of(shard)
        return self._pipeline.call(self._scripts[name], TAGS[shard], (epoch, *args), decode) if epoch else closed(shard)

    # --- Holds

    def admit(self, admission: Admission) -> Awaitable[Verdict]:
        return self._call(
            "admit",
            shard_of(admission.payer_id),
            (
                admission.hold_id,
                admission.payer_id,
                admission.key_id,
                admission.request_id,
                amount(admission.entry_nanos),
                admission.row,
                self._lease_ms,
                DEDUPE_MS,
                *_limits(admission.account_limits),
                *_limits(admission.key_limits),
                "1" if admission.is_shadow else "",
            ),
            _verdict,
        )

    def amend(self, amendment: Amendment) -> Awaitable[Verdict]:
        account_tokens, key_tokens = amendment.account_limits.tokens_per_minute, amendment.key_limits.tokens_per_minute
        return self._call(
            "amend",
            shard_of(amendment.payer_id),
            (
                amendment.hold_id,
                amendment.owner,
                amendment.payer_id,
                amendment.key_id,
                amount(amendment.reserved_nanos),
                amount(amendment.cap_nanos),
                _tokens(amendment.tokens),
                amendment.row,
                self._lease_ms,
                "" if account_tokens is None else account_tokens,
                "" if key_tokens is None else key_tokens,
                "" if amendment.sandbox_tokens_per_day is None else amendment.sandbox_tokens_per_day,
                "" if amendment.would_hold_nanos is None else amount(amendment.would_hold_nanos),
                "1" if amendment.goes_on else "",
                *(() if amendment.quota is NO_QUOTA else _beside(amendment)),
            ),
            _verdict,
        )

    def beat(self, checkpoints: Sequence[Checkpoint]) -> Awaitable[None]:
        by_shard: dict[int, list[Checkpoint]] = {}
        for checkpoint in checkpoints:
            by_shard.setdefault(shard_of(checkpoint.payer_id), []).append(checkpoint)
        calls = [
            self._beat(shard, together[start : start + BEAT_BATCH])
            for shard, together in by_shard.items()
            if self._epochs.of(shard)  # a closed shard forgets leases, and is told what is open when it is rebuilt
            for start in range(0, len(together), BEAT_BATCH)
        ]
        return _all(calls)

    def _beat(self, shard: int, checkpoints: Sequence[Checkpoint]) -> asyncio.Future[Any]:
        args: list[str | bytes | int] = [self._lease_ms, HOLD_AGE_MS_MAX]
        for checkpoint in checkpoints:
            args += (checkpoint.hold_id, checkpoint.owner, amount(checkpoint.charge_nanos), checkpoint.row, tokens_word(checkpoint.quota))
        return self._call("beat", shard, args)

    def end(self, ending: Ending) -> Awaitable[EndResult]:
        return self._call(
            "settle",
            shard_of(ending.payer_id),
            (
                ending.hold_id,
                ending.owner,
                ending.kind.value,
                amount(ending.charge_nanos),
                _tokens(ending.tokens),
                ending.row,
                ending.payer_id,
                ending.key_id,
                *(() if ending.quota is NO_QUOTA else (tokens_word(ending.quota),)),
            ),
            _end_result,
        )

    def note(self, payer_id: str, row: bytes) -> Awaitable[None]:
        return self._call("note", shard_of(payer_id), (payer_id, row, NOTES_WAITING_MAX), _nothing)

    # --- Purses

    def purse(self, payer_id: str, key_id: str) -> Awaitable[Purse | Denied]:
        return self._call("purse", shard_of(payer_id), (payer_id, key_id), _purse)

    # --- Reaping

    async def expire(self, shard: int) -> list[str]:
        connection = self._pipeline.connects
        reconnected = self._reaped_connection.get(shard, connection) != connection
        ended: list[str] = await self._call("expire", shard, (self._lease_ms, REAP_PAUSE_MS_MAX, EXPIRE_BATCH, int(reconnected)), _texts)
        self._reaped_connection[shard] = connection
        return ended

    # --- Releasing

    async def row(self, hold: OpenHold) -> bytes:
        return await self._pipeline.execute("HGET", f"{tag_of(hold.payer_id)}:hold:{hold.hold_id}", "row") or b""

    async def release(self, hold: OpenHold, *, row: bytes) -> EndResult:
        released: EndResult = await self._call("release", shard_of(hold.payer_id), (hold.hold_id, row), _end_result)
        return released

    # --- Witnessing

    async def sight(self, holds: Mapping[str, str]) -> Sight:
        batches = list(_by_shard(holds.items(), lambda one: one[1], lambda one: one[:1]))
        answers = await asyncio.gather(*(self._call("sight", *batch) for batch in batches), return_exceptions=True)
        open_ones: list[Sighted] = []
        closed_ones: list[str] = []
        for (_, some), answer in zip(batches, answers, strict=True):
            if isinstance(answer, StoreFenced):
                closed_ones += map(str, some)
            elif isinstance(answer, BaseException):
                raise answer
            else:
                open_ones += [_sighted(holds, one) for one in answer]
        return Sight(open=open_ones, closed=closed_ones)

    async def witness(self, sighted: Sequence[Sighted], *, grace_ms: int) -> int:
        words = _by_shard(
            sighted, lambda one: one.payer_id, lambda one: (one.hold_id, amount(one.checkpoint_nanos), one.row, tokens_word(one.used))
        )
        return sum(await asyncio.gather(*(self._call("witness", shard, (grace_ms, *some)) for shard, some in words)))

    # --- Delivery

    async def install_payer(
        self,
        payer_id: str,
        *,
        version: int,
        total_nanos: int,
        available_nanos: int,
        credit_nanos: int,
        free: Tokens = NO_TOKENS,
        total: Tokens = NO_TOKENS,
    ) -> bool:
        assert abs(available_nanos) <= BALANCE_NANOS_MAX
        assert abs(total_nanos) <= TOTAL_NANOS_MAX
        spendable = available_nanos + amount(credit_nanos)
        fields = tokens_fields(free=free, total=total)
        args = (payer_id, version, total_nanos, spendable, credit_nanos, *(word for field in fields.items() for word in field))
        return bool(await self._call("install", shard_of(payer_id), args))

    def epoch_of(self, payer_id: str) -> str:
        return self._epochs.of(shard_of(payer_id))

    async def credit(self, payer_id: str, *, version: int, total_nanos: int, credit_nanos: int, total: Tokens = NO_TOKENS) -> bool:
        assert abs(total_nanos) <= TOTAL_NANOS_MAX
        assert max(map(abs, total)) <= BALANCE_NANOS_MAX
        args = (payer_id, version, total_nanos, amount(credit_nanos), f"{total.input}:{total.output}")
        return bool(await self._call("credit", shard_of(payer_id), args))

    async def put_key(self, payer_id: str, key_id: str, *, version: int, fields: Mapping[str, str]) -> None:
        unknown = fields.keys() - KEY_FIELDS
        assert not unknown, f"{sorted(unknown)} are not fields of a key"
        flat = [part for field in fields.items() for part in field]
        await self._call("put_key", shard_of(payer_id), (payer_id, key_id, version, *flat))

    async def set_frozen(self, payer_id: str, *, version: int, frozen: bool) -> bool:
        """Refuse new requests of a payer, or accept them again; the newest version wins. False: the payer is missing."""
        return bool(await self._call("freeze", shard_of(payer_id), (payer_id, version, int(frozen))))

    async def view(self, payer_id: str) -> PayerView | None:
        key = f"{tag_of(payer_id)}:payer:{payer_id}"
        values = await self._pipeline.execute(
            "HMGET", key, "spendable", "credit", "held", "entry_held", "version", "open",
            "free_input", "free_output", "held_input", "held_output",
        )  # fmt: skip
        if values[4] is None:
            return None
        spendable, credit, held, entry_held, version, open_holds, *tokens = (int(value or 0) for value in values)
        free_input, free_output, held_input, held_output = tokens
        return PayerView(
            available_nanos=spendable - credit,
            credit_nanos=credit,
            held_nanos=held,
            entry_held_nanos=entry_held,
            version=version,
            open_holds=open_holds,
            quota=Quota(input_tokens=max(0, free_input), output_tokens=max(0, free_output)),
            held_quota=Quota(input_tokens=held_input, output_tokens=held_output),
        )

    async def open_holds(self, payer_id: str | None = None) -> list[OpenHold]:
        shards = range(SHARDS) if payer_id is None else (shard_of(payer_id),)
        found = [hold for shard in shards for hold in await self._holds_of(shard)]
        return [hold for hold in found if payer_id in (None, hold.payer_id)]


def _by_shard(
    things: Iterable[Thing], payer_of: Callable[[Thing], str], words_of: Callable[[Thing], Words]
) -> Iterator[tuple[int, list[Word]]]:
    """The words of all things, for scripts that take many: by shard, and of at most ``WITNESS_BATCH`` things."""
    together: dict[int, list[Thing]] = {}
    for thing in things:
        together.setdefault(shard_of(payer_of(thing)), []).append(thing)
    for shard, some in together.items():
        for start in range(0, len(some), WITNESS_BATCH):
            yield shard, [word for thing in some[start : start + WITNESS_BATCH] for word in words_of(thing)]


async def _all_of(calls: Sequence[asyncio.Future[Any]]) -> None:
    await asyncio.gather(*calls)


def _all(calls: Sequence[asyncio.Future[Any]]) -> Awaitable[None]:
    return asyncio.ensure_future(_all_of(calls))


def _beside(amendment: Amendment) -> Words:
    """The free tokens that are wanted, and what is reserved with them."""
    assert not amendment.goes_on, "whoever takes free tokens waits to hear that they were there"
    return tokens_word(amendment.quota), amount(amendment.reserved_beside_nanos)


def _tokens(tokens: int) -> int:
    assert tokens >= 0, tokens
    return tokens


def _limits(limits: Limits) -> tuple[int | str, int | str, int | str, int | str]:
    """Requests a minute and an hour, tokens a minute, concurrent requests; ``""`` = unlimited."""
    rpm, rph = limits.requests_per_minute, limits.requests_per_hour
    tpm, concurrent = limits.tokens_per_minute, limits.concurrent_requests
    return (
        "" if rpm is None else rpm,
        "" if rph is None else rph,
        "" if tpm is None else tpm,
        "" if concurrent is None else concurrent,
    )


def _window(limit: int, remaining: int, reset_ms: int) -> Window | None:
    return None if limit < 0 else Window(limit=limit, remaining=remaining, reset_ms=reset_ms)


def _verdict(reply: list[Any]) -> Verdict:
    if reply[0] == b"granted":
        quota = quota_of(reply.pop()) if len(reply) > GRANTED_WORDS else NO_QUOTA
        _, hold_id, spendable, would_deny, limit, remaining, reset_ms, *tokens = reply
        return Granted(
            hold_id=hold_id.decode(),
            spendable_nanos=int(spendable),
            requests=_window(limit, remaining, reset_ms),
            tokens=_window(*tokens),
            would_deny=DenyReason(would_deny.decode()) if would_deny else None,
            quota=quota,
        )
    quota = quota_of(reply.pop()) if len(reply) > DENIED_WORDS else NO_QUOTA
    _, reason, source, required, spendable, retry_after_ms, *window = reply
    return Denied(
        reason=DenyReason(reason.decode()),
        limit_source=source.decode(),
        required_nanos=int(required),
        spendable_nanos=int(spendable),
        retry_after_ms=retry_after_ms,
        window=_window(*window),
        quota=quota,
    )


def _purse(reply: list[Any]) -> Purse | Denied:
    if reply[0] == b"denied":
        return Denied(reason=DenyReason(reply[1].decode()), limit_source=reply[2].decode())
    spendable, credit, held, total = map(int, reply[:4])
    free_input, free_output, held_input, held_output = map(int, reply[5:])
    return Purse(
        balance_nanos=spendable - credit + held,
        held_nanos=held,
        credit_nanos=credit,
        total_nanos=total,
        budget_used_nanos=int(reply[4]) if reply[4] else None,
        free=Quota(input_tokens=max(0, free_input), output_tokens=max(0, free_output)),
        held_free=Quota(input_tokens=held_input, output_tokens=held_output),
    )


def _end_result(reply: bytes) -> EndResult:
    return EndResult(reply.decode())


def _sighted(payers: Mapping[str, str], words: Sequence[bytes]) -> Sighted:
    hold_id, checkpoint, cap, row, free, used = words
    hold = hold_id.decode()
    return Sighted(
        hold_id=hold,
        payer_id=payers[hold],
        checkpoint_nanos=int(checkpoint),
        cap_nanos=int(cap),
        row=row,
        quota=quota_of(free),
        used=quota_of(used),
    )


def _texts(reply: list[bytes]) -> list[str]:
    return [text.decode() for text in reply]


def _nothing(_reply: Any) -> None:
    return None
