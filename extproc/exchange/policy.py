"""What the operator decides about money at the edges. Pinned at the headers of a request."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """Section ``policy`` of extproc.yaml; the values are documented there."""

    over_balance: str = "reject"  # reject | clamp
    clamp_output_tokens_min: int = 256
    out_of_money_status: int = 402  # 402 | 429
    ended_early: str = "actual_so_far"  # actual_so_far | input_only | full
    abort_before_response: str = "input"  # input | void
    no_usage: str = "count"  # count | hold
    unknown_fields: str = "strip"  # strip | reject
    stores_away_credit_nanos: int | None = None  # None = closed: 503; else what all workers together may lend a payer
    trust_factor: int | None = None  # an account with so many times the hold does not wait for it
    shadow: bool = False
    topup_url: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Bounds:
    """Sizes and amounts that an exchange needs to know; from extproc.yaml's ``body``, ``holds`` and ``identity``.

    ``cache_salt_key``: empty = payers share the prefix caches of backends. ``counted_upstream``: models whose own servers may be asked
    for the tokens of a prompt.
    """

    body_bytes_max: int = 1_048_576
    json_bytes_max: int = 8_388_608  # of a body that is no form
    count_exactly_bytes_max: int = 262_144
    offload_bytes: int = 16_384
    entry_nanos: int = 1_000_000
    cache_salt_key: bytes = field(default=b"", repr=False)
    counted_upstream: frozenset[str] = frozenset()

    def bytes_max(self, *, is_form: bool) -> int:
        """Of such a body."""
        return self.body_bytes_max if is_form else min(self.body_bytes_max, self.json_bytes_max)
