"""Which vocabularies ship, how their text is cut into pre-tokens, and what their files must hash to.

``sha256`` is the hash of the *uncompressed* file, the one that its publisher names; ``vocab/SHA256SUMS`` has the hashes of the
files as they ship. The two patterns differ in what they do to digits (Qwen: one by one; cl100k: by threes), to contractions
(both take ``'s`` apart from the word) and to white space at the very end of a text.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType


@dataclass(frozen=True, slots=True, kw_only=True)
class Vocabulary:
    """One ``.tiktoken`` file (base64 token, blank, rank; a line each) with its pre-tokenizer. ``nfc``: the model normalises its input."""

    name: str
    file: str
    sha256: str
    pattern: str
    nfc: bool


# Qwen 1, 2, 2.5 and 3 share the file and the pattern (their tokenizer.json: normalizer NFC, pre_tokenizer Split).
QWEN = Vocabulary(
    name="qwen",
    file="qwen.tiktoken.xz",
    sha256="b2b1b8dfb5cc5f024bafc373121c6aba3f66f9a5a0269e243470a1de16a33186",
    pattern=(
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
        r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    ),
    nfc=True,
)

# The pattern and the hash are those that tiktoken 0.8 and later use for this vocabulary.
CL100K = Vocabulary(
    name="cl100k",
    file="cl100k_base.tiktoken.xz",
    sha256="223921b76ee99bde995b7ff738513eef100fb51d18c93597a113bcffe865b2a7",
    pattern=(
        r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}++|\p{N}{1,3}+"
        r"| ?[^\s\p{L}\p{N}]++[\r\n]*+|\s++$|\s*[\r\n]|\s+(?!\S)|\s"
    ),
    nfc=False,
)

UPSTREAM = "upstream"
"""What the catalog says of a model that has no vocabulary here: only what the upstream reports is billed."""

TOKENIZERS: Mapping[str, Vocabulary] = MappingProxyType({"qwen2": QWEN, "qwen3": QWEN, "cl100k": CL100K})
"""The names that ``models.yaml`` may use (besides :data:`UPSTREAM`), and the vocabulary behind each."""
