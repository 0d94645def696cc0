"""Free tokens as the scripts write them: ``input:output``, "" = none."""

from __future__ import annotations

from extproc.money.usage import NO_QUOTA, Quota


def tokens_word(quota: Quota) -> str:
    """What a script reads."""
    return "" if quota is NO_QUOTA else f"{quota.input_tokens}:{quota.output_tokens}"


def quota_of(word: bytes | None) -> Quota:
    """What a script has written; nothing is :data:`NO_QUOTA` itself, by which the ordinary way is told."""
    if not word or word == b"0:0":
        return NO_QUOTA
    given, made = word.split(b":")
    return Quota(input_tokens=int(given), output_tokens=int(made))
