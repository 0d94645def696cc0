"""What an exchange keeps while its answer takes minutes: there may be ten thousand of it."""

from __future__ import annotations

import tracemalloc

import pytest
from stage import DONE, chunk, delta, model, pinned, to_streaming, usage_event

from extproc.exchange.machine import Exchange, State

EXCHANGES = 8
PROMPT_CHARS = 15_000  # as much as is counted on the loop
KEPT_BYTES_MAX = 8_000  # of each; the transport and the driver come on top


def kept_bytes(events: int) -> int:
    """Of one exchange that streams, after so many events."""
    snapshot = pinned(model(context_tokens=10 * PROMPT_CHARS))
    prompt = [{"role": "user", "content": "x" * PROMPT_CHARS}]
    kept = [Exchange(snapshot)]
    to_streaming(kept[0], messages=prompt)
    tracemalloc.start()
    try:
        for _ in range(EXCHANGES):
            exchange = Exchange(snapshot)
            to_streaming(exchange, messages=prompt)
            for _ in range(events):
                exchange.receive(chunk(delta(" word")))
            kept.append(exchange)
        return tracemalloc.get_traced_memory()[0] // EXCHANGES
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("events", [1, 200])
def test_neither_the_prompt_nor_the_answer_is_kept(events: int):
    # Again, if it was more: what other threads of this process (houses of other tests) allocate meanwhile is counted too.
    assert any(kept_bytes(events) < KEPT_BYTES_MAX for _ in range(3))


def test_what_was_forwarded_is_enough_to_the_end():
    exchange = Exchange(pinned())
    to_streaming(exchange)
    assert exchange.tab.ask is None
    exchange.receive(chunk(delta("hello") + usage_event() + DONE))
    assert exchange.state is State.ENDED
