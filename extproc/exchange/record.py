"""The one record that an exchange leaves: the row of ``requests``, its metrics and its log line are all made of it."""

from __future__ import annotations

import msgspec


class Record(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Field names are the columns of ``requests`` (PRODUCT.md); times in unix ms or ms, amounts in nanos.

    No prompt, no completion, no key: ids, counts, names from the catalog and reasons only.
    ``status`` is the HTTP status that the client saw (0: it left before there was one).
    ``price`` is the price in full, sent along until an ending that names it was acknowledged; empty afterwards.
    ``policies``: settings of section ``policy`` that made this figure or let this request in, as ``name=value``.
    ``would_deny``: of a shadow request, why it would have been refused (a ``DenyReason``, or the code of the error).
    """

    id: str
    request_id: str = ""
    user_id: str = ""
    creds_id: str = ""
    model: str = ""
    endpoint: str = ""
    priority: str = ""
    tier: str = ""
    stream: bool = False
    input_tokens: int = 0
    cached_tokens: int = 0
    output_tokens: int = 0
    reasoning_tokens: int = 0
    cache_creation_tokens: int = 0
    image_tokens: int = 0
    audio_tokens: int = 0
    images: int = 0
    audio_ms: int = 0
    input_characters: int = 0
    output_characters: int = 0
    input_words: int = 0
    output_words: int = 0
    free_input: int = 0  # tokens that a free quota has paid for
    free_output: int = 0
    choices: int = 0  # answers to each prompt, where there are more than one: a backend counts the prompt once for each, we charge it once
    usage_source: str = "none"
    usage_flags: tuple[str, ...] = ()
    events: int = 0  # SSE events with output that passed: a cross-check of the counts
    end_reason: str = ""
    hold_nanos: int = 0
    cost_nanos: int = 0  # charged
    list_nanos: int = 0  # what the usage costs at the price, before cap, sandbox and shadow
    overage_nanos: int = 0
    price_id: str = ""
    price: str = ""
    status: int = 0
    error_code: str = ""
    error_msg: str = ""
    upstream: str = ""
    attempts: int = 0
    created_ms: int = 0
    duration_ms: int = 0
    ttft_ms: int = 0
    sandbox: bool = False
    shadow: bool = False
    would_deny: str = ""
    policies: tuple[str, ...] = ()

    def to_row(self) -> bytes:
        """JSON of the fields that are not defaults: what travels with the hold."""
        return _ENCODER.encode(self)


_ENCODER = msgspec.json.Encoder()
