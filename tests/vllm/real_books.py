"""Our rows against vLLM's own counters: what a block of requests was billed, and how the counters grew meanwhile.

Exact for requests that ended by themselves. vLLM counts a prompt once for each of its ``n`` choices, since each is a request of its own
to its engine; usage and bill have it once.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from real_server import RealVllm, Tokens
from upstack import Up


class Block:
    """The requests of one comparison."""

    def __init__(self) -> None:
        self.requests: list[str] = []

    def add(self, request_id: str) -> None:
        self.requests.append(request_id)


class Books:
    """One server's counters beside one stack's rows. ``sums`` are those of all blocks so far."""

    def __init__(self, up: Up, vllm: RealVllm) -> None:
        self.up, self.vllm = up, vllm
        self.lines: list[str] = []
        self.billed = self.counted = Tokens(0, 0)
        self.requests = 0

    @contextmanager
    def agree(self, what: str) -> Iterator[Block]:
        """The requests that are added to the block were billed exactly what vLLM counted while it lasted."""
        block, before = Block(), self.vllm.rest()
        yield block
        rows = [self.up.row(request_id) for request_id in block.requests]
        ours = Tokens(sum(row["input_tokens"] * max(1, row["choices"]) for row in rows), sum(row["output_tokens"] for row in rows))
        theirs = self.vllm.rest().since(before)
        self._note(what, len(rows), ours, theirs)
        assert theirs == ours, f"{what}: vLLM counted {theirs}, billed were {ours}"

    @contextmanager
    def left(self, what: str, *, counted: bool = False, stops_before: int = 0) -> Iterator[Block]:
        """Likewise for clients that left: the prompt exactly; of the answer at most what was made. How much of it still waited in buffers, and is
        nobody's, the speed of the machine decides: it is printed.

        ``counted``: by us, out of the nonsense that random weights say, whose letters are cut otherwise than they were made.
        ``stops_before``: the engine did not go on to the last of so many tokens.
        """
        block, before = Block(), self.vllm.rest()
        yield block
        rows = [self.up.row(request_id) for request_id in block.requests]
        theirs = self.vllm.rest().since(before)
        ours = Tokens(sum(row["input_tokens"] for row in rows), sum(row["output_tokens"] for row in rows))
        self.lines.append(
            f"{what:56} {len(rows):4} left early: billed {ours.prompt} + {ours.generated}, vLLM {theirs.prompt} + {theirs.generated}"
        )
        assert ours.prompt == theirs.prompt
        assert ours.generated - (nonsense(theirs.generated) if counted else 0) <= theirs.generated
        assert not stops_before or theirs.generated < stops_before, "the engine stops"

    def _note(self, what: str, requests: int, ours: Tokens, theirs: Tokens) -> None:
        self.requests += requests
        self.billed = Tokens(self.billed.prompt + ours.prompt, self.billed.generated + ours.generated)
        self.counted = Tokens(self.counted.prompt + theirs.prompt, self.counted.generated + theirs.generated)
        self.lines.append(
            f"{what:56} {requests:4} requests: billed {ours.prompt} + {ours.generated}, vLLM {theirs.prompt} + {theirs.generated}"
        )

    def summary(self) -> list[str]:
        """For people, a line a block, and the sum."""
        total = (
            f"{self.vllm.names[0]}: {self.requests} requests that ended, prompt + generated tokens: "
            f"billed {self.billed.prompt} + {self.billed.generated}, vLLM counted {self.counted.prompt} + {self.counted.generated}"
        )
        return [*self.lines, total]


def nonsense(tokens: int) -> int:
    """By how much a count of so many random tokens may be wrong."""
    return tokens // 4 + 5


def tell(*lines: object) -> None:
    """For whoever runs ``make vllm``."""
    print("", *lines, sep="\n", flush=True)  # noqa: T201 - figures are what it is run for


def price_of(row: dict[str, Any], *, fresh: int, cached: int, created: int, output: int) -> int:
    """In nanos, out of nanos a token."""
    rest = row["input_tokens"] - row["cached_tokens"] - row["cache_creation_tokens"]
    return rest * fresh + row["cached_tokens"] * cached + row["cache_creation_tokens"] * created + row["output_tokens"] * output
