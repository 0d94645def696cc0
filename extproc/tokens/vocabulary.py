"""Which vocabularies ship, how their text is cut into pre-tokens, and what their files must hash to.

``sha256`` is the hash of the *uncompressed* file, the one that its publisher names; ``vocab/SHA256SUMS`` has the hashes of the
files as they ship. The patterns differ in what they do to digits (Qwen: one by one; the others: by threes), to contractions, to
combining marks (words of their own, or parts of words), to scripts (DeepSeek: Chinese and Japanese apart) and to white space.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType


@dataclass(frozen=True, slots=True, kw_only=True)
class Vocabulary:
    """One ``.tiktoken`` file (base64 token, blank, rank; a line each) with its pre-tokenizer. ``nfc``: the model normalises its input.

    ``licence``: the file beside it with the terms under which it ships.
    """

    name: str
    file: str
    sha256: str
    licence: str
    pattern: str
    nfc: bool


# Qwen 1, 2, 2.5 and 3 share the file and the pattern (their tokenizer.json: normalizer NFC, pre_tokenizer Split).
QWEN = Vocabulary(
    name="qwen",
    file="qwen.tiktoken.xz",
    sha256="b2b1b8dfb5cc5f024bafc373121c6aba3f66f9a5a0269e243470a1de16a33186",
    licence="LICENSE.qwen",
    pattern=(
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
        r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    ),
    nfc=True,
)

# Qwen 3.5 and 3.6: marks belong to words. The models' vocab.json less 201 of its 248,044 tokens, which none of their merges makes: their
# tokenizer never comes to these, tiktoken would where one is a whole pre-token. docs/decisions/tokens.md says how that is proved.
QWEN3_6 = Vocabulary(
    name="qwen3.6",
    file="qwen3_6.tiktoken.xz",
    sha256="58ed13743a9bc19afe192cde1653cd3d602cfcf317f5f7e4141446a156b4ab63",
    licence="LICENSE.qwen",
    pattern=(
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}"
        r"| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    ),
    nfc=True,
)

# The pattern and the hash are those that tiktoken 0.8 and later use for this vocabulary.
CL100K = Vocabulary(
    name="cl100k",
    file="cl100k_base.tiktoken.xz",
    sha256="223921b76ee99bde995b7ff738513eef100fb51d18c93597a113bcffe865b2a7",
    licence="LICENSE.openai",
    pattern=(
        r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}++|\p{N}{1,3}+"
        r"| ?[^\s\p{L}\p{N}]++[\r\n]*+|\s++$|\s*[\r\n]|\s+(?!\S)|\s"
    ),
    nfc=False,
)

_UPPER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]"
_LOWER = r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_CONTRACTION = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?"

# Likewise those of tiktoken. gpt-oss has the same tokens, and more special ones.
O200K = Vocabulary(
    name="o200k",
    file="o200k_base.tiktoken.xz",
    sha256="446a9538cb6c348e3516120d7c08b09f57c36495e2acfffe59a5bf8b0cfb1a2d",
    licence="LICENSE.openai",
    pattern=(
        rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+{_CONTRACTION}|[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*{_CONTRACTION}"
        r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    ),
    nfc=False,
)

_KANA_AND_HAN = r"\x{4e00}-\x{9fa5}\x{3040}-\x{30ff}"
_WORD = rf"[\p{{L}}\p{{M}}--[{_KANA_AND_HAN}]]"

# DeepSeek V3 to V4. Its tokenizer.json cuts three times: numbers by threes, then runs of Chinese and Japanese, then what is left, where
# neither of both is seen; whatever matches nowhere (control characters) stands alone between the matches. Here that is one pattern:
# every class without numbers and _KANA_AND_HAN, the end of a blank where one of them or nothing follows, the unmatched as the last
# alternative. The ranks are its ids, which stand in the order of its merges; each token's bytes come out as the pair that its merge names.
DEEPSEEK = Vocabulary(
    name="deepseek",
    file="deepseek.tiktoken.xz",
    sha256="ea361439831165203088c236a65f20163f58a68d735b51593dfe1068a23920b2",
    licence="LICENSE.deepseek",
    pattern=(
        rf"\p{{N}}{{1,3}}|[{_KANA_AND_HAN}]+|[!-/:-@\[-`{{-~][A-Za-z]+|[^\r\n\p{{L}}\p{{P}}\p{{S}}\p{{N}}{_KANA_AND_HAN}]?{_WORD}+"
        rf"| ?[\p{{P}}\p{{S}}--[{_KANA_AND_HAN}]]+[\r\n]*|\s*[\r\n]+|\s+(?![^\s\p{{N}}{_KANA_AND_HAN}])|\s+"
        rf"|[^\s\p{{L}}\p{{M}}\p{{N}}\p{{P}}\p{{S}}{_KANA_AND_HAN}]+(?!{_WORD})"
    ),
    nfc=False,
)

UPSTREAM = "upstream"
"""What the catalog says of a model that has no vocabulary here: only what the upstream reports is billed."""

TOKENIZERS: Mapping[str, Vocabulary] = MappingProxyType(
    {
        "qwen2": QWEN,
        "qwen3": QWEN,
        "qwen3.5": QWEN3_6,
        "qwen3.6": QWEN3_6,
        "cl100k": CL100K,
        "o200k": O200K,
        "deepseek": DEEPSEEK,
    }
)
"""The names that ``models.yaml`` may use (besides :data:`UPSTREAM`), and the vocabulary behind each."""
