"""The ``usage`` object, true or wrong on purpose."""

from __future__ import annotations

WRONG: dict[str, tuple[bytes, bytes]] = {
    "huge": (b"900000000000", b"900000000000"),
    "negative": (b"-5", b"-7"),
    "float": (b"12.5", b"7.25"),
    "string": (b'"12"', b'"7"'),
    "null": (b"null", b"null"),
    "zero": (b"0", b"0"),
}
"""Kind → prompt and completion tokens as they are written. ``cached`` (cached > prompt) is made from the true figures."""

CACHED_EXCESS = 1_000
"""By how many tokens ``cached`` exceeds the prompt."""


def usage_json(prompt: int, completion: int, *, cached: int | None = None, wrong: str | None = None) -> bytes:
    """Members in vLLM's order. ``cached``: with ``prompt_tokens_details``."""
    if wrong == "cached":
        cached = prompt + CACHED_EXCESS
    elif wrong is not None:
        written_prompt, written_completion = WRONG[wrong]
        return b'{"prompt_tokens":%b,"total_tokens":%b,"completion_tokens":%b}' % (written_prompt, written_prompt, written_completion)
    details = b"" if cached is None else b',"prompt_tokens_details":{"cached_tokens":%d}' % cached
    return b'{"prompt_tokens":%d,"total_tokens":%d,"completion_tokens":%d%b}' % (prompt, prompt + completion, completion, details)
