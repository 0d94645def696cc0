"""``extproc demo``: a stack that is thrown away, four real requests through it, and what became of the money of each.

The client is OpenAI's own SDK, over TLS, through Envoy. What it saw itself is compared with what the ledger says.
"""

from __future__ import annotations

import asyncio
import shutil
import ssl
import tempfile
import time
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import openai
from openai.types.chat import ChatCompletionMessageParam

from extproc.app.desk import Desk, desk
from extproc.errors import UsageError
from extproc.local.stack import Plan, Say, Stack
from extproc.local.up import running

POSTED_S: Final = 20.0
"""For a request's row to be in PostgreSQL; it takes a tenth of a second."""

LEAVE_AFTER: Final = 10
"""Events that the aborting client reads, of a thousand, 20 ms apart: so that none waits unread in a socket."""

SMALL: Final = "qwen2.5-7b"
LARGE: Final = "qwen3-72b"
PROMPT: Final[list[ChatCompletionMessageParam]] = [{"role": "user", "content": "Tell me about the river that runs through the valley."}]
POOR_DEPOSIT: Final = "0.01"
ACTOR: Final = "extproc demo"


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """What the client knows of one request."""

    name: str
    request_id: str
    status: int
    input_tokens: int | None = None
    output_tokens: int | None = None
    cost: str | None = None
    code: str | None = None


@dataclass(slots=True, kw_only=True)
class Outcome:
    """``requests``: what the ledger says of each, under its name. ``proofs``: what must hold, and whether it does."""

    requests: list[dict[str, Any]] = field(default_factory=list)
    proofs: list[dict[str, Any]] = field(default_factory=list)

    def prove(self, what: str, holds: object) -> None:
        """One figure that must be as it is said."""
        self.proofs.append({"what": what, "holds": bool(holds)})

    @property
    def holds(self) -> bool:
        return all(proof["holds"] for proof in self.proofs)


def run(*, say: Say) -> Outcome:
    """Start, ask, compare, end."""
    folder = Path(tempfile.mkdtemp(prefix="extproc-demo-"))
    folder.chmod(0o711)  # as root, PostgreSQL is somebody else and must come through
    try:
        with running(folder, Plan(durable=False), say=say) as stack:
            return asyncio.run(_demo(stack, say))
    finally:
        shutil.rmtree(folder, ignore_errors=True)


async def _demo(stack: Stack, say: Say) -> Outcome:
    facts = stack.facts()
    async with desk(stack.settings, actor=ACTOR) as office:
        poor = (await office.create_account(name="poor", tier="unlimited"))["id"]
        await office.deposit(poor, POOR_DEPOSIT, method="demo", reference=None)
        poor_key = (await office.create_key(poor, name="demo"))["key"]
        say("four requests with the openai SDK")
        # The SDK is used as most of its users do, without asyncio; a thread, so that the desk's connections live on.
        seen = await asyncio.to_thread(_ask_all, facts, poor_key)
        outcome = Outcome()
        for one in seen:
            outcome.requests.append({"name": one.name, **await _posted(office, one)})
        _prove_requests(outcome, {one.name: one for one in seen})
        for name, account in (("the account", facts["account"]), ("the poor account", poor)):
            await _prove_balance(outcome, office, name, account)
        checked = await office.reconcile(None, full=True, progress=lambda phase, looked_at, found: None)  # noqa: ARG005 - quick enough
        outcome.prove("the reconciler finds nothing in PostgreSQL and Redis", not checked["findings"])
        outcome.prove("no hold is left open", not await office.holds(None))
    return outcome


def _ask_all(facts: dict[str, Any], poor_key: str) -> list[Seen]:
    trust = ssl.create_default_context(cafile=facts["ca_file"])
    with openai.DefaultHttpxClient(verify=trust) as http:

        def client(key: str) -> openai.OpenAI:
            return openai.OpenAI(base_url=facts["base_url"], api_key=key, http_client=http, max_retries=0)

        rich, poor = client(facts["api_key"]), client(poor_key)
        return [_streamed(rich), _json(rich), _aborted(rich), _refused(poor)]


def _streamed(client: openai.OpenAI) -> Seen:
    raw: Any = client.chat.completions.with_raw_response.create(
        model=SMALL,
        messages=PROMPT,
        stream=True,
        stream_options={"include_usage": True},
        extra_headers={"x-sim-tokens": "40"},
    )
    usage = None
    for chunk in raw.parse():
        usage = chunk.usage or usage
    assert usage is not None, "the stream ended without usage"
    return Seen(
        name="streamed",
        request_id=raw.headers["x-request-id"],
        status=raw.status_code,
        input_tokens=usage.prompt_tokens,
        output_tokens=usage.completion_tokens,
    )


def _json(client: openai.OpenAI) -> Seen:
    raw: Any = client.chat.completions.with_raw_response.create(
        model=LARGE,
        messages=PROMPT,
        max_tokens=100,
        extra_headers={"x-sim-tokens": "25"},
    )
    usage = raw.parse().usage
    assert usage is not None
    return Seen(
        name="JSON",
        request_id=raw.headers["x-request-id"],
        status=raw.status_code,
        input_tokens=usage.prompt_tokens,
        output_tokens=usage.completion_tokens,
        cost=raw.headers.get("x-request-cost"),
    )


def _aborted(client: openai.OpenAI) -> Seen:
    raw: Any = client.chat.completions.with_raw_response.create(
        model=SMALL,
        messages=PROMPT,
        stream=True,
        extra_headers={"x-sim-tokens": "1000", "x-sim-delay-ms": "20"},
    )
    stream = raw.parse()
    read = 0
    for chunk in stream:
        read += bool(chunk.choices and chunk.choices[0].delta.content)
        if read == LEAVE_AFTER:
            break
    stream.close()
    return Seen(name="aborted", request_id=raw.headers["x-request-id"], status=raw.status_code, output_tokens=read)


def _refused(client: openai.OpenAI) -> Seen:
    try:
        client.chat.completions.create(model=LARGE, messages=PROMPT, max_tokens=16_000)
    except openai.APIStatusError as error:
        return Seen(name="refused", request_id=error.response.headers["x-request-id"], status=error.status_code, code=str(error.code))
    return Seen(name="refused", request_id="", status=200)


async def _posted(office: Desk, seen: Seen) -> dict[str, Any]:
    """As soon as the ledger has it."""
    end = time.monotonic() + POSTED_S
    while time.monotonic() < end:
        with suppress(UsageError):
            return await office.explain(seen.request_id)
        await asyncio.sleep(0.02)
    raise UsageError(f"the {seen.name} request {seen.request_id} was not in the ledger within {POSTED_S:g} s")


def _prove_requests(outcome: Outcome, seen: dict[str, Seen]) -> None:
    facts = {one["name"]: one for one in outcome.requests}
    rows = {name: one["request"] for name, one in facts.items()}
    for name in ("streamed", "JSON"):
        one, told = rows[name], seen[name]
        same = (one["input_tokens"], one["output_tokens"]) == (told.input_tokens, told.output_tokens)
        outcome.prove(f"{name}: the ledger has the tokens that the client was told", same)
        outcome.prove(f"{name}: they come from the backend's usage, and the hold was settled", _is(one, "upstream", "settle"))
    outcome.prove("JSON: the header x-request-cost is what was charged", seen["JSON"].cost == rows["JSON"]["cost"])
    aborted, read = rows["aborted"], seen["aborted"].output_tokens or 0
    outcome.prove(
        f"aborted: charged are the prompt and {read} ± 1 tokens, which the client read", abs(aborted["output_tokens"] - read) <= 1
    )
    outcome.prove("aborted: the prompt counts as it did for the streamed request", aborted["input_tokens"] == seen["streamed"].input_tokens)
    # How a stream broke cannot be seen on the wire; ``cut`` stands until Envoy's access log tells (MONEY.md, "Who pays").
    outcome.prove("aborted: the row says that it ended early", aborted["end_reason"] in ("client_gone", "cut"))
    outcome.prove(
        "refused: the client got 402 insufficient_quota", (seen["refused"].status, seen["refused"].code) == (402, "insufficient_quota")
    )
    outcome.prove(
        "refused: nothing was charged, and no entry was written", not rows["refused"]["cost_nanos"] and not facts["refused"]["entries"]
    )
    for name, one in facts.items():
        outcome.prove(f"{name}: row, price and entries agree; hold − cost = given back; Σ entries = 0", one["agrees"])


async def _prove_balance(outcome: Outcome, office: Desk, name: str, account: str) -> None:
    money = await office.account(account)
    spent = sum(row["cost_nanos"] for row in await office.requests(account, limit=100))
    redis = money["redis"] or {}
    outcome.prove(
        f"{name}: deposit − Σ cost = balance in PostgreSQL ({money['balance']})", money["balance_nanos"] == money["credited_nanos"] - spent
    )
    at_rest = (redis.get("available_nanos"), redis.get("held_nanos"), redis.get("entry_held_nanos")) == (money["balance_nanos"], 0, 0)
    outcome.prove(f"{name}: Redis has the same available, and nothing held", at_rest)


def _is(row: dict[str, Any], source: str, ending: str) -> bool:
    return bool(row["usage_source"] == source and row["ending"] == ending)
