"""How many tokens a request used, and who says so."""

from __future__ import annotations

from enum import StrEnum

import msgspec

TOKENS_MAX = 2**31 - 1  # what PostgreSQL's integer holds; more than any model can give


class UsageSource(StrEnum):
    """In order of truth (VLLM.md)."""

    UPSTREAM = "upstream"  # the final usage object of the backend
    CONTINUOUS = "continuous"  # the last per-chunk usage before the stream ended early
    COUNTED = "counted"  # our own tokenizer over prompt and delivered text
    CHUNKS = "chunks"  # events counted: no tokenizer was there; alarm
    NONE = "none"  # nothing was used


class Usage(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """Tokens of one request. ``cached_tokens`` are part of ``input_tokens``; ``reasoning_tokens`` part of ``output_tokens``.

    ``flags`` name what was impossible in the figures of the backend and therefore clamped.
    """

    input_tokens: int = 0
    cached_tokens: int = 0
    output_tokens: int = 0
    reasoning_tokens: int = 0
    source: UsageSource = UsageSource.NONE
    flags: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        assert 0 <= self.cached_tokens <= self.input_tokens <= TOKENS_MAX
        assert 0 <= self.reasoning_tokens <= self.output_tokens <= TOKENS_MAX

    @property
    def total_tokens(self) -> int:
        return self.input_tokens + self.output_tokens


NO_USAGE = Usage()
