"""How much a request used, and who says so."""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from typing import Any

import msgspec

TOKENS_MAX = 2**31 - 1  # what PostgreSQL's integer holds; more than any model can give
CHARACTERS_PER_TOKEN_MAX = 6
"""So many characters of the answer are charged for each of its tokens at most, where they are priced. English and code have 4 to 5; of
5,900 pieces of 4,000 characters six had more than 6. A token may be 128 blanks, and a hold that allowed for those would keep twenty times
the charge."""


AUDIO_MS_PER_TOKEN = 20
"""Where tokens are limited, sound counts as 50 a second: as many places as Whisper's encoder makes of it. It has none of its own, so that
no limit would bind: neither tokens a minute nor the day of sandbox keys, who pay nothing."""


class UsageSource(StrEnum):
    """In order of truth (VLLM.md)."""

    UPSTREAM = "upstream"  # the final usage object of the backend
    CONTINUOUS = "continuous"  # the last per-chunk usage before the stream ended early
    COUNTED = "counted"  # our own tokenizer over prompt and delivered text
    CHUNKS = "chunks"  # events counted: no tokenizer was there; alarm
    NONE = "none"  # nothing was used


class Usage(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """What one request used. Cached, cache creation, image and audio tokens are parts of ``input_tokens``, reasoning of ``output_tokens``.

    Image and audio tokens may be among the cached ones; cached and cache creation are apart. The other units are there if the price of
    the model asks for them: ``images`` of the prompt, ``audio_ms`` of what was transcribed, characters (code points) and words (what
    blanks divide) of prompt and answer; of the answer at most :data:`CHARACTERS_PER_TOKEN_MAX` and one a token.
    ``flags`` name what was impossible in the figures of the backend and therefore clamped.
    """

    input_tokens: int = 0
    cached_tokens: int = 0
    cache_creation_tokens: int = 0
    image_tokens: int = 0
    audio_tokens: int = 0
    output_tokens: int = 0
    reasoning_tokens: int = 0
    images: int = 0
    audio_ms: int = 0
    input_characters: int = 0
    output_characters: int = 0
    input_words: int = 0
    output_words: int = 0
    source: UsageSource = UsageSource.NONE
    flags: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        assert self.cached_tokens >= 0
        assert self.cache_creation_tokens >= 0
        assert self.cached_tokens + self.cache_creation_tokens <= self.input_tokens <= TOKENS_MAX
        assert 0 <= self.reasoning_tokens <= self.output_tokens <= TOKENS_MAX

    @property
    def limited_tokens(self) -> int:
        return limited_tokens(self.input_tokens, self.output_tokens, self.audio_ms)

    @property
    def is_ordinary(self) -> bool:
        """Nothing of :data:`RARE`: nearly every usage."""
        return not (
            self.cache_creation_tokens
            or self.image_tokens
            or self.audio_tokens
            or self.images
            or self.audio_ms
            or self.input_characters
            or self.output_characters
            or self.input_words
            or self.output_words
        )

    @property
    def is_nothing(self) -> bool:
        """Neither tokens nor anything else: nothing is charged, not even the call."""
        return not (self.input_tokens or self.output_tokens or self.audio_ms)


def limited_tokens(input_tokens: int, output_tokens: int, audio_ms: int) -> int:
    """What counts against limits of tokens, of a demand or a usage: sound as its tokens, or as :data:`AUDIO_MS_PER_TOKEN`, what is more."""
    return max(input_tokens, -(-audio_ms // AUDIO_MS_PER_TOKEN)) + output_tokens


NO_USAGE = Usage()
QUANTITIES = Usage.__struct_fields__[:-2]
"""All but source and flags: fields of a record and columns of ``requests`` as well."""
RARE = tuple(name for name in QUANTITIES if name not in ("input_tokens", "cached_tokens", "output_tokens", "reasoning_tokens"))
"""What most requests have nothing of: carried and stored only where there is something."""
FREE_UNITS = ("free_input", "free_output")
"""How tokens that a quota has paid for are called in records, columns, units of the ledger and figures for the witness."""


def rare_of(usage: Usage) -> dict[str, int]:
    """What there is of :data:`RARE`, by name."""
    if usage.is_ordinary:
        return {}
    return {name: quantity for name in RARE if (quantity := getattr(usage, name))}


class Quota(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """Tokens that a grant pays for before money does: of prompts, and of answers."""

    input_tokens: int = 0
    output_tokens: int = 0

    def __post_init__(self) -> None:
        assert self.input_tokens >= 0
        assert self.output_tokens >= 0

    @property
    def both(self) -> tuple[int, int]:
        """Of input and of output."""
        return self.input_tokens, self.output_tokens

    def is_within(self, other: Quota) -> bool:
        """Neither is more than the other one's."""
        return self.input_tokens <= other.input_tokens and self.output_tokens <= other.output_tokens


NO_QUOTA = Quota()


def used_of(quota: Quota, usage: Usage) -> Quota:
    """Of free tokens those that a usage takes; :data:`NO_QUOTA` itself if that is none."""
    if quota is NO_QUOTA:
        return NO_QUOTA
    given, made = min(quota.input_tokens, usage.input_tokens), min(quota.output_tokens, usage.output_tokens)
    return Quota(input_tokens=given, output_tokens=made) if given or made else NO_QUOTA


def used(row: Mapping[str, Any]) -> tuple[Usage, Quota]:
    """What a row of ``requests`` says that was used, and what of it a free quota has paid for: with its price, its charge follows."""
    quota = Quota(input_tokens=row.get("free_input", 0), output_tokens=row.get("free_output", 0))
    return Usage(**{name: row.get(name, 0) for name in QUANTITIES}), quota if quota != NO_QUOTA else NO_QUOTA
