"""A tiktoken vocabulary from a file, with the model's own way of cutting text into words.

Own formulas on purpose: the sidecar counts with its own code, and the two must agree by being right.
"""

from __future__ import annotations

import base64
import gzip
import lzma
import unicodedata
from collections.abc import Sequence
from pathlib import Path

import tiktoken

CL100K = "cl100k"
O200K = "o200k"
QWEN = "qwen"
QWEN3_6 = "qwen3_6"
DEEPSEEK = "deepseek"

_LETTERS_UPPER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]"
_LETTERS_LOWER = r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_ENDINGS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"

_HAN_OR_KANA = "[\u4e00-\u9fa5\u3040-\u30ff]"

PATTERNS = {
    # Source: tokenization_qwen.py of Qwen's model cards.
    QWEN: _ENDINGS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    # Source: tiktoken_ext/openai_public.py of tiktoken.
    CL100K: r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}++|\p{N}{1,3}+| ?[^\s\p{L}\p{N}]++[\r\n]*+|\s++$|\s*[\r\n]|\s+(?!\S)|\s",
    O200K: "|".join(
        (
            r"[^\r\n\p{L}\p{N}]?" + _LETTERS_UPPER + "*" + _LETTERS_LOWER + "+" + _ENDINGS + "?",
            r"[^\r\n\p{L}\p{N}]?" + _LETTERS_UPPER + "+" + _LETTERS_LOWER + "*" + _ENDINGS + "?",
            r"\p{N}{1,3}",
            r" ?[^\s\p{L}\p{N}]+[\r\n/]*",
            r"\s*[\r\n]+",
            r"\s+(?!\S)",
            r"\s+",
        )
    ),
    # Source: tokenizer.json of Qwen3.5's model cards: as before, but marks are parts of words.
    QWEN3_6: _ENDINGS + r"|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    # Source: tokenizer.json of DeepSeek's model cards: numbers, then Chinese and Japanese are cut out, and the rest is cut by itself.
    DEEPSEEK: "|".join(
        (
            r"\p{N}{1,3}",
            rf"{_HAN_OR_KANA}+",
            r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+",
            rf"(?:(?!{_HAN_OR_KANA})[^\r\n\p{{L}}\p{{P}}\p{{S}}\p{{N}}])?(?:(?!{_HAN_OR_KANA})[\p{{L}}\p{{M}}])+",
            rf" ?(?:(?!{_HAN_OR_KANA})[\p{{P}}\p{{S}}])+[\r\n]*",
            r"\s*[\r\n]+",
            rf"\s+(?=\s|\p{{N}}|{_HAN_OR_KANA}|\z)",
            r"\s+",
            rf"(?:(?!{_HAN_OR_KANA})[^\s\p{{L}}\p{{M}}\p{{N}}\p{{P}}\p{{S}}])+(?=\z|{_HAN_OR_KANA}|[^\p{{L}}\p{{M}}])",
        )
    ),
}


class Vocabulary:
    """Counts and cuts text as the model does."""

    def __init__(self, ranks: dict[bytes, int], *, pattern: str) -> None:
        self._encoding = tiktoken.Encoding("sim", pat_str=PATTERNS[pattern], mergeable_ranks=ranks, special_tokens={})
        self._composes = pattern in (QWEN, QWEN3_6)

    def count(self, text: str) -> int:
        return len(self.encode(text))

    def encode(self, text: str) -> list[int]:
        """Token ids; special tokens are not recognised. Qwen's tokenizer composes (NFC) first."""
        return self._encoding.encode_ordinary(unicodedata.normalize("NFC", text) if self._composes else text)

    def decode(self, tokens: Sequence[int]) -> str:
        """Raises :class:`ValueError` for an id that is none of ours; torn characters are replaced."""
        try:
            return self._encoding.decode(list(tokens))
        except (KeyError, OverflowError) as error:
            raise ValueError(f"no such token: {error}") from error

    def token_bytes(self, token: int) -> bytes:
        return self._encoding.decode_single_token_bytes(token)


def load(file: Path, *, pattern: str | None = None) -> Vocabulary:
    """``pattern``: a key of :data:`PATTERNS`; by default what the file's name says, else Qwen's."""
    lines = (line.split() for line in _content(file).splitlines() if line)
    ranks = {base64.b64decode(token): int(rank) for token, rank in lines}
    named = next((name for name in (CL100K, O200K, QWEN3_6, DEEPSEEK) if name in file.name), QWEN)
    return Vocabulary(ranks, pattern=pattern or named)


def _content(file: Path) -> bytes:
    data = file.read_bytes()
    if file.suffix == ".xz":
        return lzma.decompress(data)
    return gzip.decompress(data) if file.suffix == ".gz" else data
