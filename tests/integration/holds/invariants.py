"""The invariants of MONEY.md that Redis alone can show, read from its keys and not through our own code.

``await problems(redis_url)`` returns what is wrong, one line each; an empty list means that all hold. At rest or in flight.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from typing import Any

import redis.asyncio
import redis.asyncio.cluster

from extproc.stores.cluster import SCHEME, is_cluster
from extproc.stores.shards import TAGS


async def problems(
    url: str,
    *,
    grace_ms: int | None = None,
    balances: dict[str, int] | None = None,
    trimmed: bool = False,
    tokens: dict[str, Any] | None = None,
) -> list[str]:
    """``grace_ms`` None: leases that have run out are no fault (nobody reaps). ``balances``: what was ever credited to each payer, for 3;
    ``tokens`` the same of free input and output.

    ``trimmed``: the poster has cut the streams, so that what is left need not begin with sequence number 1, nor add up to balances.
    """
    async with _client(url) as client:
        named: dict[str, list[str]] = defaultdict(list)
        async for key in client.scan_iter(count=1000):
            named[":".join(key.split(":", 2)[:2])].append(key)
        moment = await client.time()
        now = max(value[0] for value in moment.values()) if isinstance(moment, dict) else moment[0]
        found: list[str] = []
        for tag in TAGS:
            found += await _shard(
                client,
                tag,
                named,
                now_ms=int(now) * 1_000,
                grace_ms=grace_ms,
                balances={} if trimmed else balances or {},
                trimmed=trimmed,
                tokens={} if trimmed else tokens or {},
            )
        return found


def _client(url: str) -> Any:
    if not is_cluster(url):
        return redis.asyncio.Redis.from_url(url, decode_responses=True)
    hosts = [host.rpartition(":") for host in url.removeprefix(SCHEME).split(",")]
    nodes = [redis.asyncio.cluster.ClusterNode(host, int(port)) for host, _, port in hosts]
    return redis.asyncio.cluster.RedisCluster(startup_nodes=nodes, decode_responses=True)


async def _shard(
    client: Any,
    tag: str,
    named: dict[str, list[str]],
    *,
    now_ms: int,
    grace_ms: int | None,
    balances: dict[str, int],
    trimmed: bool,
    tokens: dict[str, Any],
) -> list[str]:
    payers, keys, holds, budgets = [
        {key.split(":", 2)[2]: await client.hgetall(key) for key in named[f"{tag}:{kind}"]} for kind in ("payer", "key", "hold", "budget")
    ]
    holds = {name: hold for name, hold in holds.items() if hold}  # a tombstone may have been forgotten meanwhile
    leases = dict(await client.zrange(f"{tag}:leases", 0, -1, withscores=True))
    events = [fields for _, fields in await client.xrange(f"{tag}:events")]
    shard = await client.hgetall(f"{tag}:shard")
    opened = {hold_id: hold for hold_id, hold in holds.items() if hold["state"] in ("entry", "exact")}
    now = max(now_ms, int(shard.get("now", 0)))
    return [
        *_sums_of_payers(payers, opened),
        *_sums_of_keys(keys, budgets, opened),
        *_balances(payers, events, balances),
        *_tokens(payers, opened, events, tokens),
        *_leases(opened, leases, now, grace_ms),
        *_amounts(opened, events),
        *_events(events, holds, opened, shard, trimmed=trimmed),
    ]


def _sums_of_payers(payers: dict[str, dict[str, str]], opened: dict[str, dict[str, str]]) -> list[str]:
    """4: held, entry_held and open are what the open holds say; nothing is held for a payer that is not there."""
    held: Counter[str] = Counter()
    entries: Counter[str] = Counter()
    number: Counter[str] = Counter()
    for hold in opened.values():
        held[hold["payer"]] += int(hold["reserved"])
        entries[hold["payer"]] += int(hold["entry"])
        number[hold["payer"]] += 1
    wrong = [f"hold of a payer that Redis does not have: {payer}" for payer in number if payer not in payers]
    for payer, fields in payers.items():
        for field, sums in (("held", held), ("entry_held", entries), ("open", number)):
            if int(fields[field]) != sums[payer]:
                wrong.append(f"4: {field} of {payer} is {fields[field]}, its open holds say {sums[payer]}")
    return wrong


def _sums_of_keys(keys: dict[str, dict[str, str]], budgets: dict[str, dict[str, str]], opened: dict[str, dict[str, str]]) -> list[str]:
    held: Counter[str] = Counter()
    number: Counter[str] = Counter()
    for hold in opened.values():
        number[f"{hold['payer']}:{hold['key']}"] += 1
        if hold["period"]:
            held[f"{hold['payer']}:{hold.get('budget', hold['key'])}:{hold['period']}"] += int(hold["reserved"])
    wrong = [
        f"4: open of key {key}: {f.get('open', 0)}, {number[key]} holds" for key, f in keys.items() if int(f.get("open", 0)) != number[key]
    ]
    for span in budgets.keys() | held.keys():
        fields = budgets.get(span, {})
        if int(fields.get("held", 0)) != held[span]:
            wrong.append(f"4: budget {span} holds {fields.get('held')}, its open holds say {held[span]}")
        if int(fields.get("used", 0)) < int(fields.get("held", 0)):
            wrong.append(f"budget {span}: spent less than nothing: {fields}")
    return wrong


def _balances(payers: dict[str, dict[str, str]], events: list[dict[str, str]], balances: dict[str, int]) -> list[str]:
    """3: available + held = what was credited − what was charged. 5: no payer below its credit line."""
    charged: Counter[str] = Counter()
    for event in events:
        if not is_late(event):  # the ledger takes its difference, and it comes back as a credit
            charged[event["p"]] += int(event["a"])
    wrong = []
    for payer, fields in payers.items():
        if int(fields["spendable"]) < 0:
            wrong.append(f"5: {payer} is below its credit line: {fields['spendable']}")
        if payer not in balances:
            continue
        available = int(fields["spendable"]) - int(fields["credit"])
        if available + int(fields["held"]) != balances[payer] - charged[payer]:
            wrong.append(f"3: {payer}: {available} + {fields['held']} ≠ {balances[payer]} − {charged[payer]}")
    return wrong


def _tokens(
    payers: dict[str, dict[str, str]], opened: dict[str, dict[str, str]], events: list[dict[str, str]], credited: dict[str, Any]
) -> list[str]:
    """3 and 4 of free tokens, and 18: no checkpoint has used more of them than its hold has."""
    wrong = []
    for which, name in enumerate(("input", "output")):
        held: Counter[str] = Counter()
        used: Counter[str] = Counter()
        for hold_id, hold in opened.items():
            if "free" in hold:
                held[hold["payer"]] += int(hold["free"].split(":")[which])
                if int(hold["used"].split(":")[which]) > int(hold["free"].split(":")[which]):
                    wrong.append(f"18: {hold_id} has used more free {name} than it has: {hold}")
        for event in events:
            if not is_late(event):
                used[event["p"]] += int(event.get("f", "0:0").split(":")[which])
        for payer, fields in payers.items():
            if int(fields.get(f"held_{name}", 0)) != held[payer]:
                wrong.append(f"4: held_{name} of {payer} is {fields.get(f'held_{name}')}, its open holds say {held[payer]}")
            free = int(fields.get(f"free_{name}", 0))
            if free < 0:
                wrong.append(f"5: free {name} of {payer}: {free}")
            if payer in credited and free + held[payer] != credited[payer][which] - used[payer]:
                wrong.append(f"3: free {name} of {payer}: {free} + {held[payer]} ≠ {credited[payer][which]} − {used[payer]}")
    return wrong


def _leases(opened: dict[str, dict[str, str]], leases: dict[str, float], now: int, grace_ms: int | None) -> list[str]:
    """11: the lease set is the set of open holds, and none is past its lease + grace."""
    wrong = [f"11: {hold_id} is open and has no lease" for hold_id in opened.keys() - leases.keys()]
    wrong += [f"11: {hold_id} has a lease and is not open" for hold_id in leases.keys() - opened.keys()]
    if grace_ms is not None:
        wrong += [f"11: {hold_id} outlived its lease by {now - lease} ms" for hold_id, lease in leases.items() if lease + grace_ms < now]
    return wrong


def is_late(event: dict[str, str]) -> bool:
    """It has not passed through the sums: a settle after the reaper has ended its hold, a charge that nothing was reserved for."""
    return event["s"] == "0" and event["k"] != "note"


def _amounts(opened: dict[str, dict[str, str]], events: list[dict[str, str]]) -> list[str]:
    """8 and 18: 0 ≤ charge ≤ reserved (= cap where nothing is free), 0 ≤ checkpoint ≤ cap."""
    wrong = [f"18: checkpoint of {hold_id}: {h}" for hold_id, h in opened.items() if not 0 <= int(h["checkpoint"]) <= int(h["cap"])]
    wrong += [f"8: {event}" for event in events if not is_late(event) and not 0 <= int(event["a"]) <= int(event["r"])]
    wrong += [f"8: a void that charges: {event}" for event in events if event["k"] == "void" and event["a"] != "0"]
    return wrong


def _events(
    events: list[dict[str, str]],
    holds: dict[str, dict[str, str]],
    opened: dict[str, dict[str, str]],
    shard: dict[str, str],
    *,
    trimmed: bool,
) -> list[str]:
    """6: one ending per hold, and the tombstone says the same. 12: no gaps in the sequence of an epoch and shard."""
    last, now_in = int(shard.get("seq", 0)), shard.get("epoch", "")
    of_hold: dict[str, list[dict[str, str]]] = defaultdict(list)
    for event in events:
        if event["k"] != "note":
            of_hold[event["h"]].append(event)
    wrong = [problem for hold_id, endings in of_hold.items() for problem in _endings(hold_id, endings, holds.get(hold_id), trimmed=trimmed)]
    wrong += [f"6: {hold_id} has ended and is open" for hold_id in of_hold.keys() & opened.keys()]
    sequences: dict[str, list[int]] = defaultdict(list)
    for event in events:
        if event["s"] != "0":  # past the sums of Redis
            sequences[event["e"]].append(int(event["s"]))
    for epoch, numbers in sequences.items():
        first = numbers[0] if trimmed else 1
        end = last if epoch == now_in else numbers[-1]
        if numbers != list(range(first, end + 1)):
            wrong.append(f"12: epoch {epoch}: {numbers}, last {last}")
    return wrong


def _endings(hold_id: str, endings: list[dict[str, str]], tombstone: dict[str, str] | None, *, trimmed: bool) -> list[str]:
    """One, and after an expiry late settles, each of them higher than what was known."""
    first, *later = endings
    wrong = []
    if later and first["k"] != "expire" and not (trimmed and is_late(first)):
        wrong.append(f"6: {hold_id} ended {len(endings)} times")
    amounts = [int(event["a"]) for event in endings]
    if any(event["k"] != "settle" or not is_late(event) for event in later) or amounts != sorted(set(amounts)):
        wrong.append(f"6: {hold_id}: {endings}")
    kinds = {first["k"], "expire"} if trimmed else {first["k"]}
    if tombstone and tombstone["state"] == "ended" and (tombstone["kind"] not in kinds or tombstone["amount"] != endings[-1]["a"]):
        wrong.append(f"6: tombstone {tombstone} of {endings}")
    return wrong
