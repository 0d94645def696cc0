"""What the gate says of a running request in Envoy's dynamic metadata, where the access log finds it: the second witness (witness.md).

The reply to the body says whose hold it is. A chunk's reply says now and then what has been counted so far: metadata of several replies
merges, so the line has the newest figure of each kind. The reply that ends the hold says so: then nothing is left to be witnessed.
"""

from __future__ import annotations

from extproc.exchange.actions import Pairs
from extproc.exchange.meter_stream import Delivered
from extproc.money.usage import Usage, rare_of

FIGURES_EVERY_NS = 250_000_000  # what a killed worker may have passed and not told; a figure costs 6 µs, or a quarter of an event's


def figures(usage: Usage, *, cost_nanos: int, charge_nanos: int, delivered: Delivered | None) -> Pairs:
    """What would be charged now, and for which usage; what is nothing, or the same as another, is left out.

    ``delivered``: of a stream; told as bytes of the body so far, of an event, and an event's tokens. Envoy's line says how many bytes
    went out in all: what came after this figure is worked out of them.
    """
    told: Pairs = (
        ("charge_nanos", str(charge_nanos)),
        ("input_tokens", str(usage.input_tokens)),
        ("output_tokens", str(usage.output_tokens)),
        ("usage_source", usage.source.value),
    )
    if delivered is not None:
        event_tokens = 1 if usage.output_tokens == delivered.events else _event_tokens(usage, delivered.events)
        told += (("delivered", f"{delivered.body_bytes}/{delivered.event_bytes}/{event_tokens}"),)
    if usage.cached_tokens:
        told += (("cached_tokens", str(usage.cached_tokens)),)
    if usage.reasoning_tokens:
        told += (("reasoning_tokens", str(usage.reasoning_tokens)),)
    if rare := rare_of(usage):
        told += tuple([(name, str(quantity)) for name, quantity in rare.items()])
    if cost_nanos != charge_nanos:
        told += (("list_nanos", str(cost_nanos)),)
    return told


def _event_tokens(usage: Usage, events: int) -> int:
    """Of every event but the first, on average and rounded down: the first one has one token whatever comes later."""
    return max(1, (usage.output_tokens - 1) // (events - 1)) if events > 1 else 1


def ended(end_reason: str) -> Pairs:
    """The gate has ended the hold itself, for this reason."""
    return (("end_reason", end_reason),)
