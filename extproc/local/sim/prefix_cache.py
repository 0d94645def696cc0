"""The prefix cache: which beginning of a prompt was read before, in blocks, apart for every salt. Source: vLLM's KV cache manager."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable, Sequence

BLOCK_TOKENS = 16
"""vLLM's default; only whole blocks are found again."""

BLOCKS_MAX = 65_536
"""A million tokens, 10 MB; the ones that were not used for the longest time are forgotten."""


class PrefixCache:
    """Of prompts. (A real one also keeps what the model wrote, which only the next turn of the same conversation could find.)"""

    def __init__(self, blocks_max: int = BLOCKS_MAX) -> None:
        self._blocks: OrderedDict[int, None] = OrderedDict()
        self._blocks_max = blocks_max

    def read(self, units: Sequence[Hashable], *, salt: str) -> int:
        """Tokens of this prompt that are known already; from now on all its whole blocks are.

        The last token is always computed, because the first one of the answer comes of it.
        """
        blocks = self._blocks
        key = hash(salt)
        found, searching = 0, True
        for start in range(0, len(units) - BLOCK_TOKENS + 1, BLOCK_TOKENS):
            key = hash((key, *units[start : start + BLOCK_TOKENS]))
            searching = searching and key in blocks
            found += searching
            blocks[key] = None
            blocks.move_to_end(key)
        while len(blocks) > self._blocks_max:
            blocks.popitem(last=False)
        return min(found, max(0, len(units) - 1) // BLOCK_TOKENS) * BLOCK_TOKENS
