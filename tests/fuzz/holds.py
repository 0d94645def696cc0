"""Random requests over all endpoints, methods and policies, from the body to the charge: what was held covers what is charged. By seed.

    PYTHONPATH=tests python -m fuzz.holds 100000 7    tries so many, and prints hold ÷ charge of those that reach half of their maximum

A model with a random price serves an ordinary request (``asks.py``). Its backend reads the prompt as the right tokenizer does, with what its
template adds; generates as much as it likes, up to what it was allowed; and tells its usage – truly, wrongly or not at all. Or the
answer breaks off, or the client leaves. Prices, tiers and accounts change, and off-peak hours begin, about when the request begins or ends:
the price is that of its beginning. ``pure/money/random_bills.py`` tries the same of the money alone, with stranger figures.
"""

# ruff: noqa: T201 - it is there to print
from __future__ import annotations

import json
import random
import statistics
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from functools import cache
from itertools import pairwise
from typing import Any, NamedTuple
from zoneinfo import ZoneInfo

from msgspec import structs
from pure.money.random_bills import MILLIONTHS, ordinary_bill, random_bill

from extproc.accounts.model import Change, Key
from extproc.catalog.model import CHARGEABLE, Catalog, Model, OffPeak, Tariff, Tier
from extproc.exchange.ask import Prompt
from extproc.exchange.endpoints import BY_PATH
from extproc.exchange.policy import Bounds, Policy
from extproc.exchange.record import Record
from extproc.exchange.tab import Pinned
from extproc.money.hold import NO_LIMITS
from extproc.money.price import FACTOR_ONE, Band, Price, Rates
from extproc.money.receipt import cost_nanos
from extproc.money.usage import NO_QUOTA, Quota, used
from extproc.tokens.images import image_sizes, image_tokens
from extproc.tokens.registry import LoadedCounters, load_counters
from fuzz.asks import Ask, random_ask
from fuzz.walk import BEGUN_MS, KEY, RICH, Walk

Dice = random.Random
POLICIES = (
    Policy(),
    Policy(no_usage="hold"),
    Policy(ended_early="full"),
    Policy(ended_early="input_only", abort_before_response="void"),
    Policy(over_balance="clamp", clamp_output_tokens_min=1),
    Policy(trust_factor=2),
    Policy(stores_away_credit_nanos=10**12),
    Policy(shadow=True),
)
FACTORS = (500_000, 850_000, FACTOR_ONE)
USAGES = ("inject", "inject", "inject", "continuous", "forced", "counted")
TOOLS_PREAMBLE_TOKENS = 130  # Qwen's, about
RATIO_MEDIAN_MAX = 3
ENDS = ("whole", "whole", "whole", "whole", "broken", "left", "died", "spoilt")
SPLICED = (
    b"\xff",
    b"\xe4\xbd",
    b"\n\n",
    b"\r",
    b"data:",
    b"event: error\n",
    b'"',
    b"}",
    b"{",
    b"[",
    b"\\",
    b":",
    b'"usage":{',
    b"[DONE]",
    b"\x00",
    b"-1",
)
WORD = " time"  # a token of every vocabulary here
ZONES = tuple(map(ZoneInfo, ("Asia/Shanghai", "Europe/Berlin", "America/New_York", "Asia/Kathmandu")))
OTHER_PRICE = "another price at their end"
YEAR_MS = 365 * 86_400_000
THOUGHT_MS = (0, 0, 1, 2_000, 60_000, 7_200_000)


class Case(NamedTuple):
    """``is_ordinary``: a price as vendors have it, a full one. ``begun_ms``: when it is asked; ``thought_ms``: how long the answer takes."""

    model: Model
    key: Key
    terms: Pinned
    ask: Ask
    spendable_nanos: int
    is_ordinary: bool
    begun_ms: int
    thought_ms: int


class Made(NamedTuple):
    """What a backend has made of it: tokens of the prompt, and of each choice; how it tells them, and how it all ends."""

    prompt: int
    cached: int
    outputs: list[int]
    tells: str  # truly | nothing | wrongly
    end: str  # whole | broken | left | died | spoilt


@cache
def counters() -> LoadedCounters:
    return load_counters({"qwen2", "cl100k"})


def random_case(dice: Dice) -> Case:
    served: list[str] = []

    def named(endpoint: str) -> str:
        served.append(endpoint)
        return dice.choice(("m", "m", "sees"))

    ask = random_ask(dice, named)
    (endpoint,) = served
    is_ordinary = dice.random() < 0.7
    factors = FACTORS if is_ordinary else MILLIONTHS
    sees = ask.members is not None and ask.members["model"] == "sees"
    tariff = random_tariff(dice, endpoint, has_images=sees, is_ordinary=is_ordinary)
    begun_ms, thought_ms = BEGUN_MS + dice.randrange(YEAR_MS), dice.choice(THOUGHT_MS)
    tokenizer = "upstream" if endpoint == "transcriptions" else dice.choice(("qwen2", "qwen2", "cl100k", "upstream"))
    model = Model(
        name="sees" if sees else "m", served_name=dice.choice(("Org/M", "m")), endpoints=frozenset({endpoint}), tokenizer=tokenizer,
        chat_template="gpt" if tokenizer == "cl100k" else "chatml", context_tokens=32_768, output_tokens_max=0 if tariff.method == "per_second" else 2_048,
        output_tokens_default=dice.choice((64, 256, 1_024)), free=False, usage=dice.choice(USAGES[:-1] if tokenizer == "upstream" else USAGES), image_formula="qwen2-vl" if sees else "",
        image_tokens_max=4_096 if sees else 0, sandbox=True, priority_factors={"standard": dice.choice(factors) or 1},
        tariffs=tuple(dated(dice, tariff, begun_ms, thought_ms)), off_peak=random_hours(dice, begun_ms, thought_ms, factors),
    )  # fmt: skip
    later = [
        Tier(name="default", limits=NO_LIMITS, price_factor=dice.choice(factors), effective_ms=moment)
        for moment in moments(dice, begun_ms, thought_ms, 0.2)
    ]
    tier = Tier(name="default", limits=NO_LIMITS, price_factor=dice.choice(factors), later=tuple(later))
    catalog = Catalog(version="v", currency="CNY", tiers={"default": tier}, default_tier="default", models={"m": model, "sees": model})
    policy = dice.choice(POLICIES)
    bounds = Bounds(counted_upstream=frozenset({"m"}) if dice.random() < 0.2 else frozenset())
    terms = Pinned(catalog=catalog, policy=policy, bounds=bounds, counters=counters(), price_known=lambda payer, price: False)
    changes = [Change(at_ms=moment, price_factor=dice.choice(factors)) for moment in moments(dice, begun_ms, thought_ms, 0.2)]
    factor = dice.choice(factors) if dice.random() < 0.2 else FACTOR_ONE
    key = replace(KEY, price_factor=factor, changes=tuple(changes), sandbox=dice.random() < 0.03)
    poor = 10 ** dice.randint(6, 10) if dice.random() < 0.2 else RICH
    return Case(model, key, terms, ask, poor, is_ordinary, begun_ms, thought_ms)


def random_tariff(dice: Dice, endpoint: str, *, has_images: bool, is_ordinary: bool) -> Tariff:
    """A price for what this endpoint uses, as a catalog would be held to; with steps about as long as prompts are here."""
    usable = CHARGEABLE[endpoint] if has_images else CHARGEABLE[endpoint] - {"images", "image_tokens"}

    def priced(rates: Rates) -> Rates:
        return Rates(**{unit: rate for unit in rates.__struct_fields__ if (rate := getattr(rates, unit)) and unit in usable})

    while True:
        price = (ordinary_bill if is_ordinary else random_bill)(dice).price
        rates = priced(price.rates)
        if rates == Rates() or (endpoint == "transcriptions" and price.method != "per_second"):
            continue
        bands = tuple(
            Band(above_tokens=above, rates=priced(band.rates))
            for above, band in zip(sorted(dice.sample(range(1, 300), len(price.bands))), price.bands, strict=True)
        )
        minimum = 0 if is_ordinary else dice.choice((0, 0, 0, 1, 1_000_000))
        return Tariff(method=price.method, rates=rates, bands=() if is_ordinary else bands, minimum_nanos=minimum)


def dated(dice: Dice, tariff: Tariff, begun_ms: int, thought_ms: int) -> Iterator[Tariff]:
    """A price over time."""
    yield tariff
    for moment in moments(dice, begun_ms, thought_ms, 0.5):
        numerator, denominator = dice.choice(((0, 1), (1, 2), (2, 1), (3, 1)))

        def other(rates: Rates, numerator: int = numerator, denominator: int = denominator) -> Rates:
            told = {unit: rate for unit in rates.__struct_fields__ if (rate := getattr(rates, unit)) is not None}
            return Rates(**{unit: rate * numerator // denominator for unit, rate in told.items()})

        bands = tuple(Band(above_tokens=band.above_tokens, rates=other(band.rates)) for band in tariff.bands)
        yield replace(tariff, effective_ms=moment, rates=other(tariff.rates), bands=bands)


def moments(dice: Dice, begun_ms: int, thought_ms: int, probability: float) -> list[int]:
    """When something changes: about when the request begins, while it runs, or about when it ends."""
    if dice.random() > probability:
        return []
    apart = (-86_400_000, -1, 0, 1, thought_ms // 2, thought_ms, thought_ms + 1)
    return sorted({begun_ms + dice.choice(apart) for _ in range(dice.choice((1, 2)))})


def random_hours(dice: Dice, begun_ms: int, thought_ms: int, factors: Sequence[int]) -> OffPeak | None:
    """Hours that begin or end about then."""
    if dice.random() < 0.5:
        return None
    zone = dice.choice(ZONES)
    minutes = [
        minute_of_day(zone, begun_ms + dice.choice((0, thought_ms // 2, thought_ms))) + dice.choice((-60, -1, 0, 1, 60)) for _ in range(2)
    ]
    begin, end = (minute % 1_440 for minute in minutes)
    if begin == end:
        return None
    return OffPeak(zone=zone, begin_minute=begin, end_minute=end, factor=dice.choice((0, *factors)), name=f"off-peak {begin}-{end}")


def minute_of_day(zone: ZoneInfo, at_ms: int) -> int:
    clock = (datetime(1970, 1, 1, tzinfo=UTC) + timedelta(milliseconds=at_ms)).astimezone(zone)
    return clock.hour * 60 + clock.minute


def price_then(case: Case, at_ms: int) -> tuple[tuple[int, ...], dict[str, int]]:
    """Rates and factors at a moment, by the words of the reference rather than by the catalog."""

    def since(moment: int) -> int:
        return moment if moment <= at_ms else -1

    model, tier = case.model, case.terms.catalog.tiers["default"]
    tariff = max(model.tariffs, key=lambda one: since(one.effective_ms))
    tier = max((tier, *tier.later), key=lambda one: since(one.effective_ms))
    account = max(
        ((0, case.key.price_factor), *((since(one.at_ms), one.price_factor or 0) for one in case.key.changes)), key=lambda one: one[0]
    )
    found = {"priority standard": model.priority_factors["standard"], "tier default": tier.price_factor, "account": account[1]}
    if (hours := model.off_peak) is not None:
        passed, length = ((minute - hours.begin_minute) % 1_440 for minute in (minute_of_day(hours.zone, at_ms), hours.end_minute))
        found |= {hours.name: hours.factor} if passed < length else {}
    return tariff.rates.resolved, {name: millionths for name, millionths in found.items() if millionths != FACTOR_ONE}


def random_made(dice: Dice, walk: Walk, prompt: Prompt, case: Case) -> Made:
    """An honest backend's figures. What is generated is bounded by what the forwarded body says."""
    tab = walk.exchange.tab
    assert tab.sized is not None
    each, choices = tab.sized.output_each, tab.sized.demand.output_tokens // max(1, tab.sized.output_each)
    read = min(read_tokens(dice, prompt, case), case.model.context_tokens * prompt.prompts)
    outputs = [dice.choice((each, dice.randint(0, each), dice.randint((each + 1) // 2, each))) for _ in range(choices)]
    tells = dice.choice(("truly", "truly", "truly", "nothing", "wrongly"))
    return Made(read, dice.choice((0, 0, dice.randint(0, read))), outputs, tells, dice.choice(ENDS))


def read_tokens(dice: Dice, prompt: Prompt, case: Case) -> int:
    """As the model's own tokenizer counts; a template that differs from the catalog's by a few tokens a message and as many once."""
    counter = counters().get("qwen2" if case.model.tokenizer == "upstream" else case.model.tokenizer, case.model.chat_template)
    assert counter is not None
    tokens = prompt.token_ids + sum(counter.count(text) for text in prompt.texts) + counter.count(prompt.shared) * prompt.prompts
    tools = prompt.tools if counter.prints_tools else None
    if prompt.messages:
        tokens += counter.count_chat(prompt.messages, tools) + dice.randint(0, 4) * len(prompt.messages) + dice.randint(0, 16)
    else:
        tokens += dice.randint(0, prompt.tokens_each) * prompt.prompts
    if tools is not None:
        tokens += dice.choice((0, dice.randint(0, prompt.extra_bytes // 4 + TOOLS_PREAMBLE_TOKENS)))
    elif prompt.extra_bytes:
        tokens += prompt.extra_bytes // dice.choice((2, 3, 4)) + TOOLS_PREAMBLE_TOKENS
    most = case.model.image_tokens_max
    sizes = [size or (dice.choice((512, 1_024, 2_048)), 768) for size in image_sizes(prompt.images)]
    return tokens + sum(image_tokens(case.model.image_formula, size, most) for size in sizes)


# what a backend writes


def usage_of(dice: Dice, path: str, made: Made, audio_ms: int) -> dict[str, Any] | None:
    if made.tells == "nothing":
        return None
    if made.tells == "wrongly":
        figures = [dice.choice((10**12, -5, "7", 1.5, None, 2**70, 0)) for _ in range(3)]
    else:
        figures = [made.prompt, sum(made.outputs), made.cached]
    prompt, output, cached = figures
    if "audio" in path:
        return {"type": "duration", "seconds": -(-audio_ms // 1_000) if made.tells == "truly" else prompt}
    if path.startswith("/v1/messages"):
        fresh = prompt - cached if made.tells == "truly" else prompt
        return {"input_tokens": fresh, "cache_read_input_tokens": cached, "output_tokens": output}
    if path.startswith("/v1/responses"):
        return {"input_tokens": prompt, "input_tokens_details": {"cached_tokens": cached}, "output_tokens": output}
    return {"prompt_tokens": prompt, "completion_tokens": output, "prompt_tokens_details": {"cached_tokens": cached}}


def document(path: str, made: Made, usage: dict[str, Any] | None) -> dict[str, Any]:
    told = {} if usage is None else {"usage": usage}
    texts = [WORD * tokens for tokens in made.outputs]
    if path == "/v1/messages":
        return {"type": "message", "content": [{"type": "text", "text": texts[0]}], "stop_reason": "end_turn"} | told
    if path == "/v1/responses":
        return {"status": "completed", "output": [{"type": "message", "content": [{"type": "output_text", "text": texts[0]}]}]} | told
    if "audio" in path:
        return {"text": "a time"} | told
    if "completions" not in path:
        return {"data": [{"embedding": [1]}]} | told
    name = "message" if "chat" in path else "text"
    said = [{"content": text} if "chat" in path else text for text in texts]
    return {"choices": [{"index": index, name: one, "finish_reason": "stop"} for index, one in enumerate(said)]} | told


def events(path: str, made: Made, usage: dict[str, Any] | None) -> list[bytes]:
    if path == "/v1/messages":
        begun = {} if usage is None else {name: usage[name] for name in usage if name != "output_tokens"}
        delta = {"type": "content_block_delta", "delta": {"type": "text_delta", "text": WORD * made.outputs[0]}}
        end = {"type": "message_delta", "delta": {"stop_reason": "end_turn"}} | ({} if usage is None else {"usage": usage})
        return [sse(one) for one in ({"type": "message_start", "message": {"usage": begun}}, delta, end, {"type": "message_stop"})]
    if path == "/v1/responses":
        delta = {"type": "response.output_text.delta", "delta": WORD * made.outputs[0]}
        return [sse(delta), sse({"type": "response.completed", "response": document(path, made._replace(outputs=[0]), usage)})]
    found = []
    for index, tokens in enumerate(made.outputs):
        for part in (tokens // 2, tokens - tokens // 2):
            said = {"text": WORD * part} if path == "/v1/completions" else {"delta": {"content": WORD * part}}
            found.append(sse({"choices": [{"index": index, **said, "finish_reason": None}]}))
        found.append(sse({"choices": [{"index": index, "delta": {}, "text": "", "finish_reason": "stop"}]}))
    told = [] if usage is None else [sse({"choices": [], "usage": usage})]
    return [*found, *told, b"data: [DONE]\n\n"]


def sse(event: Mapping[str, Any]) -> bytes:
    return b"data: " + json.dumps(event, separators=(",", ":")).encode() + b"\n\n"


def play(dice: Dice, walk: Walk, path: str, made: Made) -> None:
    """The answer, up to its end."""
    tab = walk.exchange.tab
    assert tab.sized is not None
    usage = usage_of(dice, path, made, tab.sized.demand.audio_ms)
    assert tab.price is not None
    if made.tells == "truly" and made.end == "whole" and tab.trusts_usage and not tab.price.needs_text:
        made = made._replace(outputs=[1 for _ in made.outputs])  # nobody counts the text
    if made.end == "died" and dice.random() < 0.5:
        walk.fail(503)
        return
    is_stream = tab.stream
    if is_stream:
        chunks, kind = events(path, made, usage), "text/event-stream"
    else:
        chunks, kind = [json.dumps(document(path, made, usage)).encode()], "application/json"
    if made.end == "whole":
        chunks = cut_anywhere(dice, b"".join(chunks)) if is_stream else chunks
        walk.answer(chunks, kind, length=None if is_stream else len(chunks[0]))
        return
    whole = b"".join(chunks)
    if made.end == "spoilt":
        walk.answer(cut_anywhere(dice, spoilt(dice, whole)), kind)
        return
    part = [whole[: dice.randrange(len(whole) + 1)]]
    if made.end == "left":
        walk.leave(part, kind)
    elif made.end == "broken":
        walk.answer(part, kind)
    else:
        walk.answer([*part, sse({"error": {"message": "EngineCore", "code": 500}}), b"data: [DONE]\n\n"], kind)


def cut_anywhere(dice: Dice, data: bytes) -> list[bytes]:
    places = sorted(dice.randrange(len(data) + 1) for _ in range(dice.choice((0, 1, 3, 9))))
    return [data[begin:end] for begin, end in pairwise([0, *places, len(data)])]


def spoilt(dice: Dice, data: bytes) -> bytes:
    """An answer that nobody should send."""
    body = bytearray(data)
    for _ in range(dice.choice((1, 2, 8))):
        at = dice.randrange(len(body) + 1)
        body[at : at + dice.choice((0, 1, 5, 50))] = dice.choice((*SPLICED, body[:60]))
    return bytes(body)


# what must be true


def check(dice: Dice, case: Case) -> tuple[str, float | None]:
    """What became of it; and hold ÷ charge of an ordinary request that has reached half of its maximum."""
    lends = case.terms.policy.stores_away_credit_nanos is not None and dice.random() < 0.5
    quota = Quota(input_tokens=dice.randint(0, 200), output_tokens=dice.randint(0, 500)) if dice.random() < 0.2 else NO_QUOTA
    walk = Walk(case.terms, key=case.key, spendable_nanos=case.spendable_nanos, stores_away=lends, quota=quota)
    walk.is_quota_gone = dice.random() < 0.1
    walk.begun_ms, walk.thought_ms = case.begun_ms, case.thought_ms
    walk.ask(case.ask.path, case.ask.body, case.ask.content_type)
    if walk.passed is None:
        assert walk.reply is not None
        assert all(ending.charge_nanos == 0 for ending in walk.ends)
        return f"refused: {walk.reply.code}", None
    held, tab, prompt = walk.amendment, walk.exchange.tab, walk.prompt
    is_paid = not (case.terms.policy.shadow or case.key.sandbox)
    if held is None:
        assert case.terms.policy.shadow
        assert all(ending.charge_nanos == 0 for ending in walk.ends)
        return "spared", None
    assert prompt is not None
    assert tab.sized is not None
    assert not walk.ends
    made = random_made(dice, walk, prompt, case)
    play(dice, walk, case.ask.path, made)
    (ending,), record = walk.ends, walk.record
    assert tab.quote is not None
    cap_nanos = tab.quote.cap_nanos
    assert 0 <= ending.charge_nanos <= cap_nanos <= walk.spendable_nanos
    assert walk.reserved_nanos == tab.quote.reserved_nanos == (0 if lends else cap_nanos) <= held.reserved_nanos
    assert is_paid or cap_nanos == 0
    assert ending.quota.is_within(walk.taken)
    assert ending.charge_nanos == record.cost_nanos
    assert ending.charge_nanos == min(record.list_nanos, cap_nanos)
    is_true = made.tells == "truly" and made.end == "whole"
    if is_true:
        assert record.overage_nanos == 0, (made, record, tab.sized)
        check_usage(case, made, record)
    usage, free = used(structs.asdict(record))
    assert free == ending.quota
    if record.price and BY_PATH[case.ask.path].is_listed:
        price = Price.parse(record.price)
        assert cost_nanos(usage, price, free) == record.list_nanos
        check_price(case, price, walk)
    else:
        assert ending.charge_nanos == 0
    most = tab.sized.demand.output_tokens
    if not is_paid:
        return "metered only", None
    if any(free.both):
        return "partly free", None
    if not (is_true and case.is_ordinary and ending.charge_nanos and 2 * sum(made.outputs) >= most):
        return record.end_reason, None
    return record.end_reason, cap_nanos / ending.charge_nanos


def check_price(case: Case, price: Price, walk: Walk) -> None:
    """It is that of the moment of its beginning, whenever it ends; it was held for at that price, too."""
    assert (price.rates.resolved, {factor.name: factor.millionths for factor in price.factors}) == price_then(case, case.begun_ms)
    assert walk.passed is not None
    assert dict(walk.passed.metadata)["price_id"] == price.price_id


def check_usage(case: Case, made: Made, record: Record) -> None:
    """What is told truly is what is charged."""
    if (
        case.model.usage != "counted"
        and record.usage_source == "upstream"
        and BY_PATH[case.ask.path].is_listed
        and "audio" not in case.ask.path
    ):
        assert (record.input_tokens, record.output_tokens, record.cached_tokens) == (made.prompt, sum(made.outputs), made.cached)


def run(requests: int, seed: int) -> tuple[Counter[str], dict[str, list[float]]]:
    """What became of them, and ratios by endpoint. A failure names its seed."""
    became: Counter[str] = Counter()
    ratios = defaultdict(list)
    for number in range(requests):
        dice = random.Random(f"{seed}/{number}")
        case = random_case(dice)
        try:
            what, ratio = check(dice, case)
        except BaseException as error:
            error.add_note(f"seed {seed}, request {number}: {case.ask.path} {case.ask.body[:600]!r} {case.model} {case.terms.policy}")
            raise
        became[what] += 1
        now, then = (price_then(case, case.begun_ms + passed_ms) for passed_ms in (0, case.thought_ms))
        became[OTHER_PRICE] += now != then
        if ratio is not None:
            bounded = ", no vocabulary" if case.model.tokenizer == "upstream" and "audio" not in case.ask.path else ""
            ratios[f"{BY_PATH[case.ask.path].name}{bounded}"].append(ratio)
            if sum(name in case.ask.path for name in ("completions", "responses", "messages")):
                ratios["all that have an answer of text"].append(ratio)
            ratios[f"method {case.model.tariffs[0].method}"].append(ratio)
    return became, dict(ratios)


def main(requests: int, seed: int) -> None:
    begun = time.monotonic()
    became, ratios = run(requests, seed)
    print(f"{requests} random requests over all endpoints, methods and policies, seed {seed}, {time.monotonic() - begun:.0f} s:")
    print("  hold ≥ charge in all; what a backend told truly never cost more than was held.")
    print(f"  Their price changed while {became.pop(OTHER_PRICE)} of them ran: charged at that of their beginning.")
    print("  " + ", ".join(f"{what} {count}" for what, count in became.most_common()))
    print("Hold ÷ charge of the ordinary ones that reached half of their maximum:")
    ratios["all"] = [ratio for name, found in ratios.items() if name.startswith("method ") for ratio in found]
    for name, found in sorted(ratios.items()):
        print(f"  {name:<34} {len(found):>7}  median {statistics.median(found):>5.2f}  p99 {sorted(found)[len(found) * 99 // 100]:>6.1f}")
    assert max(statistics.median(ratios[name]) for name in ratios if name.startswith("all")) <= RATIO_MEDIAN_MAX


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
