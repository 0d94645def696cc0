"""The invariants of the money (MONEY.md) as checks: facts in, findings out. Pure; who reads the facts and when is ``reconciler``.

====  ==========================================  =======================================================================
no.   what is looked at                           check
====  ==========================================  =======================================================================
1     an event and its lines                      ``lines_sum_to_zero``
2     an event and its lines; a balance           ``amount_is_its_lines``, ``balance_is_its_entries``, ``nothing_is_orphaned``
3     an account in both stores                   ``money_is_the_same``
4     a shard's holds and sums                    ``holds_add_up``, ``budgets_add_up``
5     an account in both stores                   ``nobody_is_below_his_line``
6     an event, its hold's row and followers      ``holds_end_once``, ``conflicts_are_resolved``
8, 9  an ending and its row                       ``charge_is_within_the_hold``, ``rest_is_given_back``
10    an ending, its row and its price            ``charge_follows_from_usage``
11    a shard's leases                            ``leases_are_open_holds``
12    a stream, its counter and its cursor        ``numbers_are_complete``, ``violations_are_known``
15    a confirmed row of an outbox                ``lost_after_all``
18    a shard's holds                             ``checkpoints_are_capped``
====  ==========================================  =======================================================================

7, 13, 14 and 17 can only be shown by tests, 16 is part of 12: docs/decisions/reconcile.md.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from typing import Any, Final

from extproc.holds.facts import PayerFacts, ShardFacts
from extproc.ledger.facts import AccountMoney, AccountSum, BookedEvent, Orphan, ShardMoney
from extproc.ledger.port import ENDINGS, EventType, OutboxRow
from extproc.money.price import Price
from extproc.money.receipt import cost_nanos
from extproc.money.usage import FREE_UNITS, NO_QUOTA, used

PRICES_MAX: Final = 512  # parsed prices that are remembered: more than a catalog has

LENT: Final = "stores_away="  # the policy of a row that was served on credit


@dataclass(frozen=True, slots=True, kw_only=True)
class Invariant:
    """``advice``: what an operator does about a finding."""

    number: int
    sentence: str
    advice: str


_EXPLAIN = "look at the request with `extproc explain`; what was booked wrongly is set right by `extproc account refund` or a correction"
_REBUILD = "if the ledger is right (no finding of invariants 1, 2 and 6): `extproc rebuild --shard N` makes Redis what the ledger says"
_TAMPERED = "rows were changed past the triggers: compare with a backup; book the difference as a correction, with its reason"

INVARIANTS: Final[Mapping[int, Invariant]] = {
    one.number: one
    for one in (
        Invariant(number=1, sentence="The entries of an event sum to 0 per unit.", advice=_TAMPERED),
        Invariant(number=2, sentence="A balance is the sum of its entries.", advice=_TAMPERED),
        Invariant(
            number=3,
            sentence="Available + held in Redis = the posted balance, but for charges and credits that are on their way.",
            advice=_REBUILD,
        ),
        Invariant(number=4, sentence="What is held is what the open holds have reserved.", advice=_REBUILD),
        Invariant(
            number=5,
            sentence="Nobody is below his credit line, but for late charges and decisions.",
            advice="find the grant with `extproc requests`; freeze the account with `extproc account freeze` until it is understood",
        ),
        Invariant(number=6, sentence="A hold ends once; at most one adjust, only after an expire.", advice=_EXPLAIN),
        Invariant(number=8, sentence="A charge is at most the cap of its hold.", advice=_EXPLAIN),
        Invariant(number=9, sentence="Given back is what was reserved less the charge.", advice=_EXPLAIN),
        Invariant(number=10, sentence="A charge follows from its usage, its free quota and its price.", advice=_EXPLAIN),
        Invariant(
            number=11,
            sentence="No hold outlives its lease; the lease set is the set of open holds.",
            advice="is a settler running (`extproc holds list`, its log)? Its reaper ends these holds; else " + _REBUILD,
        ),
        Invariant(
            number=12,
            sentence="No number is missing on a shard's stream, and nothing was cut off before it was posted.",
            advice="events were lost in Redis, not in the outboxes: these are posted again. Then " + _REBUILD,
        ),
        Invariant(
            number=15,
            sentence="What an outbox has as confirmed is in the ledger.",
            advice="PostgreSQL has lost commits: the outboxes post them again as soon as its timeline changes; restart the settler",
        ),
        Invariant(number=18, sentence="A checkpoint is at most the cap of its hold.", advice=_REBUILD),
    )
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """A broken invariant. ``what`` names the figure, ``subject`` whose it is; ``drift`` = found − expected where both are amounts."""

    invariant: int
    what: str
    subject: str
    account: str = ""
    expected: str
    found: str
    drift_nanos: int = 0

    @property
    def place(self) -> tuple[int, str, str]:
        """What makes two findings the same one, seen twice."""
        return self.invariant, self.what, self.subject

    @property
    def advice(self) -> str:
        return INVARIANTS[self.invariant].advice

    def is_like(self, other: Finding) -> bool:
        """The same fault at another moment: amounts may have moved, what they are off by has not."""
        return self.place == other.place and (self.drift_nanos or self.found) == (other.drift_nanos or other.found)


@dataclass(frozen=True, slots=True, kw_only=True)
class Moment:
    """A shard in both stores: first the ledger, then Redis, whose events beyond the ledger's cursor say what lies between.

    ``excused``: accounts that something other than a hold may have taken below their line.
    """

    ledger: ShardMoney
    redis: ShardFacts
    grace_ms: int
    excused: frozenset[str] = frozenset()

    @property
    def missing_events(self) -> int:
        """Numbers that Redis gave in its epoch (from 1 on) and that are neither posted nor waiting.

        Not 0 as well if the poster posted and cut off between both readings.
        """
        cursor, redis = self.ledger.cursor, self.redis
        posted = cursor.seq if cursor.epoch == redis.epoch else 0
        return redis.seq - posted - sum(1 for event in redis.waiting if event.seq and event.epoch == redis.epoch)

    @property
    def is_readable(self) -> bool:
        """The shard serves (one that was emptied has no epoch, and is rebuilt), and was read whole."""
        return bool(self.redis.epoch) and not self.redis.rebuilding and self.redis.is_whole

    @property
    def is_comparable(self) -> bool:
        """Nothing was posted and cut off between both readings."""
        return self.is_readable and self.missing_events == 0

    def accounts(self) -> Iterator[tuple[AccountMoney, PayerFacts]]:
        """Those that both stores have."""
        for payer_id, money in self.ledger.accounts.items():
            facts = self.redis.payers.get(payer_id)
            if facts is not None:
                yield money, facts


Found = Iterator[Finding]


def _amounts(invariant: int, what: str, subject: str, account: str, *, expected: int, found: int) -> Found:
    """A finding, if they differ."""
    if expected != found:
        yield Finding(
            invariant=invariant,
            what=what,
            subject=subject,
            account=account,
            expected=str(expected),
            found=str(found),
            drift_nanos=found - expected,
        )


def _texts(invariant: int, what: str, subject: str, account: str, *, expected: str, found: str) -> Found:
    """A finding; there is no amount to it."""
    yield Finding(invariant=invariant, what=what, subject=subject, account=account, expected=expected, found=found)


def _more(invariant: int, what: str, subject: str, account: str, surplus: int) -> Found:
    """A count that is not what was counted. Told as the difference, which stays while both move."""
    if surplus:
        yield from _texts(invariant, what, subject, account, expected="as many as there are", found=f"{surplus:+} to that")


# --- of an event


def lines_sum_to_zero(one: BookedEvent) -> Found:
    """1. Per unit."""
    sums: Counter[str] = Counter()
    for line in one.entries:
        sums[line["unit"]] += line["amount"]
    for unit, total in sums.items():
        yield from _amounts(1, f"entries in {unit}", one.id, one.account, expected=0, found=total)


def amount_is_its_lines(one: BookedEvent) -> Found:
    """2, of one event: what it does to the balance is what its lines do to the customer's account."""
    taken = sum(line["amount"] for line in one.entries if line["kind"] == "customer" and line["unit"] == "nanos")
    yield from _amounts(2, "amount of the event", one.id, one.account, expected=taken, found=one.event["amount"])
    if one.event["event_type"] in (*ENDINGS, EventType.ADJUST):
        for unit in FREE_UNITS:
            used = sum(line["amount"] for line in one.entries if line["kind"] == "revenue" and line["unit"] == unit)
            yield from _amounts(2, f"{unit} of the event", one.id, one.account, expected=used, found=one.event.get(unit) or 0)
    for other in {line["user_id"] for line in one.entries} - {None, one.account}:
        yield from _texts(2, "payer of an entry", one.id, one.account, expected=one.account, found=str(other))


def holds_end_once(one: BookedEvent) -> Found:
    """6. The key of the events allows one ending a hold; here: what follows it, and that its row says the same."""
    for event_type, times in Counter(follower["event_type"] for follower in one.followers).items():
        if event_type in (EventType.ADJUST, EventType.OVERAGE) and times > 1:
            yield from _texts(6, f"{event_type}s", one.id, one.account, expected="at most 1", found=str(times))
    if one.event["event_type"] == EventType.ADJUST:
        before = one.base["event_type"] if one.base else "nothing"
        if before != EventType.EXPIRE:
            yield from _texts(6, "adjusted ending", one.id, one.account, expected=EventType.EXPIRE, found=before)
    if one.event["event_type"] in ENDINGS:
        ending = one.request["ending"] if one.request else "no row"
        if ending != one.event["event_type"]:
            yield from _texts(6, "ending of the row", one.id, one.account, expected=one.event["event_type"], found=ending)


def _charge(one: BookedEvent) -> int:
    """What was to be charged in the end."""
    adjusts = (follower["charge_nanos"] for follower in one.followers if follower["event_type"] == EventType.ADJUST)
    return int(one.event["charge_nanos"] + sum(adjusts))


def charge_is_within_the_hold(one: BookedEvent) -> Found:
    """8. The cap is what was reserved. What came past Redis and was lent, or never reserved, has a cap that is not in the row."""
    row = one.request
    if row is None:
        return
    taken = [one.event, *(follower for follower in one.followers if follower["event_type"] == EventType.ADJUST)]
    is_lent = not row["hold_nanos"] or any(policy.startswith(LENT) for policy in row["policies"])
    has_cap = not is_lent or (one.event["seq"] is not None and len(taken) == 1)
    charge = _charge(one)
    if charge < 0 or (charge > row["hold_nanos"] and has_cap):
        yield from _amounts(8, "charge", one.id, one.account, expected=row["hold_nanos"], found=charge)
    yield from _amounts(8, "cost of the row", one.id, one.account, expected=-sum(event["amount"] for event in taken), found=row["cost"])
    yield from _amounts(8, "cost and loss", one.id, one.account, expected=charge, found=row["cost"] + row["loss_nanos"])
    for unit in FREE_UNITS:
        used = sum(event.get(unit) or 0 for event in taken)
        yield from _amounts(8, f"{unit} of the row", one.id, one.account, expected=used, found=row.get(unit, 0))


def rest_is_given_back(one: BookedEvent) -> Found:
    """9. Of the reserve."""
    row = one.request
    if row is not None:
        back = row["hold_nanos"] - min(row["cost"] + row["loss_nanos"], row["hold_nanos"])
        yield from _amounts(9, "given back", one.id, one.account, expected=back, found=row["refund_nanos"])


def charge_follows_from_usage(one: BookedEvent) -> Found:
    """10. What is borne by the payer and by the operator is what the usage costs beyond its free quota; a void bears nothing."""
    row = one.request
    if row is None:
        return
    borne = row["cost"] + row["loss_nanos"] + row["overage_nanos"]
    if row["ending"] == EventType.VOID:
        yield from _amounts(10, "charge of a void", one.id, one.account, expected=0, found=borne)
        return
    usage, quota = used(row)
    if not borne and not row["list_nanos"] and quota is NO_QUOTA:
        return
    price = _price(row["price"]) if row["price"] is not None else None
    if price is None or price.price_id != row["price_id"]:
        yield from _texts(10, "price", one.id, one.account, expected=row["price_id"], found=price.price_id if price else "none")
        return
    worth = cost_nanos(usage, price, quota)
    yield from _amounts(10, "list price", one.id, one.account, expected=worth, found=row["list_nanos"])
    expected = 0 if row["sandbox"] or row["shadow"] else worth
    yield from _amounts(10, "charge", one.id, one.account, expected=expected, found=borne)


@lru_cache(PRICES_MAX)
def _price(text: str) -> Price | None:
    try:
        return Price.parse(text)
    except (ValueError, KeyError, TypeError):
        return None


# --- of accounts, and what has no event


def balance_is_its_entries(one: AccountSum) -> Found:
    """2, in every unit."""
    yield from _amounts(2, "balance", one.payer_id, one.payer_id, expected=one.entries_nanos, found=one.balance_nanos)
    for unit, expected, found in zip(FREE_UNITS, one.entries_free, one.free, strict=True):
        yield from _amounts(2, unit, one.payer_id, one.payer_id, expected=expected, found=found)


def nothing_is_orphaned(one: Orphan) -> Found:
    """2 and 6: an entry, and the row of an ended request, belong to an event."""
    number = 2 if one.what == "entry" else 6
    yield Finding(
        invariant=number,
        what=f"{one.what} without an event",
        subject=one.id,
        account=one.account,
        expected="an event",
        found="none",
        drift_nanos=one.amount_nanos,
    )


def conflicts_are_resolved(row: Mapping[str, Any]) -> Found:
    """6: an event that could not be booked as it came waits for somebody."""
    found = f"{row['kind']} of {row['charge_nanos']}: {row['reason']}, {row['detail']}"[:300]
    yield from _texts(6, f"conflict {row['id']}", row["hold_id"], row["payer_id"] or "", expected="every event booked", found=found)


def violations_are_known(row: Mapping[str, Any]) -> Found:
    """12: as the poster met it."""
    subject = f"shard {row['shard']} {row['stream_id']}"
    yield from _texts(12, str(row["kind"]), subject, "", expected=f"number {row['expected_seq']}", found=f"number {row['seq']}")


def lost_after_all(outbox: str, row: OutboxRow) -> Found:
    """15: it is there as confirmed, and the ledger does not have it."""
    posting = row.posting
    yield Finding(
        invariant=15,
        what=f"row {row.id} of {outbox}",
        subject=posting.hold_id,
        account=posting.payer_id,
        expected=f"{posting.kind} of {posting.charge_nanos}",
        found="none",
        drift_nanos=-posting.charge_nanos,
    )


# --- of a shard in both stores


def money_is_the_same(moment: Moment) -> Found:
    """3. In flight: Redis has not had the credits above its own total yet; the ledger has not had the charges that wait in the stream."""
    waiting: Counter[str] = Counter()
    tokens: tuple[Counter[str], ...] = (Counter(), Counter())
    for event in moment.redis.waiting:
        if event.seq:
            waiting[event.payer_id] += event.charge_nanos
            for of_unit, number in zip(tokens, event.used.both, strict=True):
                of_unit[event.payer_id] += number
    for money, facts in moment.accounts():
        coming = money.credited_total - facts.total_nanos
        expected = money.balance_nanos - coming - waiting[money.payer_id]
        yield from _amounts(
            3, "available + held", money.payer_id, money.payer_id, expected=expected, found=facts.available_nanos + facts.held_nanos
        )
        yield from _tokens_are_the_same(money, facts, [of_unit[money.payer_id] for of_unit in tokens])
        if facts.version == money.version and facts.credit_nanos != money.credit_nanos:
            yield from _amounts(3, "credit line", money.payer_id, money.payer_id, expected=money.credit_nanos, found=facts.credit_nanos)
    for payer_id, facts_or_none in moment.redis.payers.items():
        known = moment.ledger.accounts.get(payer_id)
        if facts_or_none is None and known is not None and known.redis_version is not None:
            yield from _texts(3, "payer in Redis", payer_id, payer_id, expected=f"version {known.redis_version}", found="missing")


def _tokens_are_the_same(money: AccountMoney, facts: PayerFacts, waiting: Sequence[int]) -> Found:
    """3, of free tokens."""
    posted, credited = (money.free_input, money.free_output), (money.credited_input, money.credited_output)
    for which, unit in enumerate(FREE_UNITS):
        coming = credited[which] - facts.total_tokens[which]
        expected = posted[which] - coming - waiting[which]
        found = facts.free_tokens[which] + facts.held_tokens[which]
        yield from _amounts(3, f"{unit} + held", money.payer_id, money.payer_id, expected=expected, found=found)


def holds_add_up(moment: Moment) -> Found:
    """4. Held, entry_held and open of payers, open of keys; of free tokens likewise."""
    tokens: dict[str, Counter[str]] = {unit: Counter() for unit in FREE_UNITS}
    held: Counter[str] = Counter()
    entry_held: Counter[str] = Counter()
    number: Counter[str] = Counter()
    of_keys: Counter[str] = Counter()
    for hold in moment.redis.holds:
        if hold.is_open:
            held[hold.payer_id] += hold.reserved_nanos
            entry_held[hold.payer_id] += hold.entry_nanos
            number[hold.payer_id] += 1
            of_keys[f"{hold.payer_id}:{hold.key_id}"] += 1
            tokens["free_input"][hold.payer_id] += hold.quota.input_tokens
            tokens["free_output"][hold.payer_id] += hold.quota.output_tokens
    for payer_id, facts in moment.redis.payers.items():
        if facts is not None:
            yield from _amounts(4, "held", payer_id, payer_id, expected=held[payer_id], found=facts.held_nanos)
            yield from _amounts(4, "entry_held", payer_id, payer_id, expected=entry_held[payer_id], found=facts.entry_held_nanos)
            yield from _more(4, "open holds", payer_id, payer_id, facts.open_holds - number[payer_id])
            for unit, found in zip(FREE_UNITS, facts.held_tokens, strict=True):
                yield from _amounts(4, f"held of {unit}", payer_id, payer_id, expected=tokens[unit][payer_id], found=found)
    for key, opened in moment.redis.keys.items():
        if opened is not None:
            payer_id, _, key_id = key.partition(":")
            yield from _more(4, "open holds of the key", key_id, payer_id, opened - of_keys[key])


def budgets_add_up(moment: Moment) -> Found:
    """4, of budgets: a counter holds what open holds have reserved of it, and nobody has spent less than nothing."""
    held: Counter[str] = Counter()
    for hold in moment.redis.holds:
        if hold.is_open and hold.budget:
            held[hold.budget] += hold.reserved_nanos
    for name, facts in moment.redis.budgets.items():
        payer_id = name.partition(":")[0]
        yield from _amounts(4, "held of a budget", name, payer_id, expected=held[name], found=facts.held_nanos)
        if facts.used_nanos < facts.held_nanos:
            yield from _amounts(4, "used of a budget", name, payer_id, expected=facts.held_nanos, found=facts.used_nanos)


def nobody_is_below_his_line(moment: Moment) -> Found:
    """5. Spendable = available + credit."""
    for money, facts in moment.accounts():
        if facts.spendable_nanos < 0 and money.payer_id not in moment.excused:
            yield from _amounts(5, "available + credit", money.payer_id, money.payer_id, expected=0, found=facts.spendable_nanos)


def leases_are_open_holds(moment: Moment) -> Found:
    """11. After a pause of the reaper, a reconnect or a new epoch nothing expires for a lease."""
    for hold in moment.redis.holds:
        late_ms = moment.redis.now_ms - max(hold.lease_ms, moment.redis.quiet_ms)
        if not hold.is_open:
            found = hold.state or "missing"
            yield from _texts(11, "hold of a lease", hold.hold_id, hold.payer_id, expected="open", found=found)
        elif late_ms > moment.grace_ms:
            yield from _texts(11, "outlived its lease", hold.hold_id, hold.payer_id, expected=f"within {moment.grace_ms} ms", found="open")


def numbers_are_complete(moment: Moment) -> Found:
    """12, and 16: what was cut off is posted. Numbers given = posted + waiting, and those that wait follow each other."""
    redis = moment.redis
    subject = f"shard {redis.shard}"
    if moment.missing_events:
        yield from _texts(12, "events neither posted nor waiting", subject, "", expected="0", found=str(moment.missing_events))
    numbers = [event.seq for event in redis.waiting if event.seq and event.epoch == redis.epoch]
    for before, after in pairwise(numbers):
        if after != before + 1:
            yield from _texts(12, "number of a waiting event", subject, "", expected=str(before + 1), found=str(after))


def checkpoints_are_capped(moment: Moment) -> Found:
    """18, as far as one look can say."""
    for hold in moment.redis.holds:
        if not 0 <= hold.checkpoint_nanos <= hold.cap_nanos:
            yield from _amounts(18, "checkpoint", hold.hold_id, hold.payer_id, expected=hold.cap_nanos, found=hold.checkpoint_nanos)
        for unit, most, found in zip(FREE_UNITS, hold.quota.both, hold.used.both, strict=True):
            if found > most:
                yield from _amounts(18, f"{unit} of the checkpoint", hold.hold_id, hold.payer_id, expected=most, found=found)


EVENT_CHECKS: Final[tuple[Callable[[BookedEvent], Found], ...]] = (
    lines_sum_to_zero,
    amount_is_its_lines,
    holds_end_once,
    charge_is_within_the_hold,
    rest_is_given_back,
    charge_follows_from_usage,
)
SHARD_CHECKS: Final[tuple[Callable[[Moment], Found], ...]] = (
    holds_add_up,
    budgets_add_up,
    leases_are_open_holds,
    numbers_are_complete,
    checkpoints_are_capped,
)
MONEY_CHECKS: Final[tuple[Callable[[Moment], Found], ...]] = (money_is_the_same, nobody_is_below_his_line)
"""Only where the moment is comparable."""


def of_event(one: BookedEvent) -> list[Finding]:
    """All that is wrong with an event."""
    return [finding for check in EVENT_CHECKS for finding in check(one)]


def of_moment(moment: Moment) -> list[Finding]:
    """All that seems to be wrong with a shard; what is still there at the next looks is."""
    if not moment.is_readable:
        return []
    checks = (*SHARD_CHECKS, *MONEY_CHECKS) if moment.is_comparable else SHARD_CHECKS
    return [finding for check in checks for finding in check(moment)]


def drift_nanos(findings: Iterable[Finding]) -> int:
    """Of all of them, without regard to signs: two faults do not make a right."""
    return sum(abs(finding.drift_nanos) for finding in findings)
