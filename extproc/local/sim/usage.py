"""The ``usage`` object in the words of each family of endpoints, true or wrong on purpose."""

from __future__ import annotations

import math
from dataclasses import dataclass

WRONG: dict[str, tuple[bytes, bytes]] = {
    "huge": (b"900000000000", b"900000000000"),
    "negative": (b"-5", b"-7"),
    "float": (b"12.5", b"7.25"),
    "string": (b'"12"', b'"7"'),
    "null": (b"null", b"null"),
    "zero": (b"0", b"0"),
}
"""Kind → prompt and completion tokens as they are written. ``cached`` (cached > prompt) is made from the true figures."""

CACHED = "cached"

CACHED_EXCESS = 1_000
"""By how many tokens ``cached`` exceeds the prompt."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Spent:
    """What a request has cost the engine."""

    prompt: int
    """Tokens, cached ones included."""
    completion: int
    """Tokens, reasoning included."""
    cached: int | None = None
    """Tokens of the prompt that were known; ``None``: not told."""
    created: int | None = None
    """Tokens of the prompt that were written into the cache (Anthropic's own count; vLLM has none)."""
    reasoning: int = 0
    reasoning_told: bool = False
    seconds: float | None = None
    """Of sound."""


def usage_json(prompt: int, completion: int, *, cached: int | None = None, reasoning: int | None = None, wrong: str | None = None) -> bytes:
    """OpenAI's chat and completions; members in vLLM's order. ``cached``, ``reasoning``: with their details."""
    if wrong == CACHED:
        cached = prompt + CACHED_EXCESS
    elif wrong is not None:
        written_prompt, written_completion = WRONG[wrong]
        return b'{"prompt_tokens":%b,"total_tokens":%b,"completion_tokens":%b}' % (written_prompt, written_prompt, written_completion)
    details = b"" if cached is None else b',"prompt_tokens_details":{"cached_tokens":%d}' % cached
    if reasoning is not None:
        details += b',"completion_tokens_details":{"reasoning_tokens":%d}' % reasoning
    return b'{"prompt_tokens":%d,"total_tokens":%d,"completion_tokens":%d%b}' % (prompt, prompt + completion, completion, details)


def usage_of_chunks(spent: Spent, wrong: str | None) -> bytes:
    """The same, of a whole answer."""
    told = spent.reasoning if spent.reasoning_told else None
    return usage_json(spent.prompt, spent.completion, cached=spent.cached, reasoning=told, wrong=wrong)


def usage_of_reading(spent: Spent, wrong: str | None) -> bytes:
    """Embeddings and scores: vLLM writes every member, whether it means anything or not."""
    if wrong == CACHED:
        return usage_json(spent.prompt, 0, wrong=wrong)
    prompt = b"%d" % spent.prompt if wrong is None else WRONG[wrong][0]
    return b'{"prompt_tokens":%b,"total_tokens":%b,"completion_tokens":0,"prompt_tokens_details":null}' % (prompt, prompt)


def usage_of_rerank(spent: Spent, wrong: str | None) -> bytes:
    """Two members only."""
    prompt = b"%d" % spent.prompt if wrong in (None, CACHED) else WRONG[wrong][0]
    return b'{"prompt_tokens":%b,"total_tokens":%b}' % (prompt, prompt)


def usage_of_sound(spent: Spent, wrong: str | None) -> bytes:
    """Transcriptions: whole seconds, rounded up."""
    seconds = b"%d" % math.ceil(spent.seconds or 0) if wrong in (None, CACHED) else WRONG[wrong][0]
    return b'{"type":"duration","seconds":%b}' % seconds


def usage_of_responses(spent: Spent, wrong: str | None) -> bytes:
    """Cached tokens are always told here, whatever the server's flags say."""
    prompt, completion, total = b"%d" % spent.prompt, b"%d" % spent.completion, b"%d" % (spent.prompt + spent.completion)
    cached = spent.cached or 0
    if wrong == CACHED:
        cached = spent.prompt + CACHED_EXCESS
    elif wrong is not None:
        prompt, completion = WRONG[wrong]
        total = prompt
    return (
        b'{"input_tokens":%b,"input_tokens_details":{"cached_tokens":%d,"input_tokens_per_turn":[],"cached_tokens_per_turn":[]},'
        b'"output_tokens":%b,"output_tokens_details":{"reasoning_tokens":%d,"tool_output_tokens":0,"output_tokens_per_turn":[],'
        b'"tool_output_tokens_per_turn":[]},"total_tokens":%b}' % (prompt, cached, completion, spent.reasoning, total)
    )


def usage_of_messages(spent: Spent, wrong: str | None) -> bytes:
    """Anthropic's: ``input_tokens`` are those that were neither read from the cache nor written into it."""
    if wrong is not None and wrong != CACHED:
        return b'{"input_tokens":%b,"output_tokens":%b}' % WRONG[wrong]
    if wrong == CACHED:
        cached, created, read = spent.prompt + CACHED_EXCESS, 0, spent.prompt
    elif spent.cached is None and spent.created is None:
        return b'{"input_tokens":%d,"output_tokens":%d}' % (spent.prompt, spent.completion)
    else:
        cached, created = spent.cached or 0, spent.created or 0
        read = max(0, spent.prompt - cached - created)
    return b'{"input_tokens":%d,"output_tokens":%d,"cache_creation_input_tokens":%d,"cache_read_input_tokens":%d}' % (
        read,
        spent.completion,
        created,
        cached,
    )
