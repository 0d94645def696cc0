"""A tiny model of our own for a real vLLM: Qwen 2's architecture and tokenizer, two layers, random weights (``--load-format dummy``).

No hub is asked: ``tokenizer.json`` is made of the vocabulary that the package ships. Its merges are worked out from the ranks: a token is
the merge of the last two parts that the tokens before it leave of it.
"""

from __future__ import annotations

import base64
import json
import lzma
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

import extproc

SERVED, ALSO = "Org/M", "also"  # its names at vLLM; the first is that of tests/data/streams
VOCABULARY = Path(extproc.__file__).parent / "tokens/vocab/qwen.tiktoken.xz"
# Of Qwen 2's own file.
PATTERN = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
END_OF_TURN = 151_645
# Ids as in Qwen 2.5, from 151,643 on; the last eight are no special tokens there either.
ADDED = (
    *("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|object_ref_start|>", "<|object_ref_end|>", "<|box_start|>", "<|box_end|>"),
    *("<|quad_start|>", "<|quad_end|>", "<|vision_start|>", "<|vision_end|>", "<|vision_pad|>", "<|image_pad|>", "<|video_pad|>"),
    *("<tool_call>", "</tool_call>", "<|fim_prefix|>", "<|fim_middle|>", "<|fim_suffix|>", "<|fim_pad|>", "<|repo_name|>", "<|file_sep|>"),
)
SPECIAL = 14
CONTEXT_TOKENS = 4_096

# ChatML as Qwen renders it (extproc/tokens/chat.py has the formula); the words around the functions are ours.
TEMPLATE = """\
{%- if tools %}{{- '<|im_start|>system\\nFunctions, a line each:\\n' }}{% for tool in tools %}{{- tool | tojson + '\\n' }}{% endfor %}
{{- 'Call one as <tool_call>{"name": …, "arguments": …}</tool_call><|im_end|>\\n' }}{% endif %}
{%- for message in messages %}
{%- if message.role == 'tool' %}{{- '<|im_start|>user\\n<tool_response>\\n' + message.content + '\\n</tool_response><|im_end|>\\n' }}
{%- else %}{{- '<|im_start|>' + message.role + '\\n' + (message.content or '') }}
{%- for call in message.tool_calls or [] %}{{- '<tool_call>' + call.function | tojson + '</tool_call>' }}{% endfor %}
{{- '<|im_end|>\\n' }}{% endif %}{% endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{% endif %}"""


def write(folder: Path) -> Path:
    """The folder, with the model in it; 5 s."""
    folder.mkdir(parents=True, exist_ok=True)
    ranks = read_ranks()
    files = {
        "config.json": _config(len(ranks) + len(ADDED)),
        "generation_config.json": {"eos_token_id": END_OF_TURN, "bos_token_id": END_OF_TURN - 2},
        "tokenizer_config.json": {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "eos_token": "<|im_end|>",
            "pad_token": "<|endoftext|>",
            "clean_up_tokenization_spaces": False,
            "model_max_length": CONTEXT_TOKENS,
            "chat_template": TEMPLATE,
        },
        "tokenizer.json": _tokenizer(ranks),
    }
    for name, content in files.items():
        (folder / name).write_text(json.dumps(content, ensure_ascii=False))
    return folder


def read_ranks() -> dict[bytes, int]:
    """Token → id, in the order of the ids."""
    words = lzma.decompress(VOCABULARY.read_bytes()).split()
    return dict(zip(map(base64.b64decode, words[::2]), map(int, words[1::2]), strict=True))


def word_ids(ranks: Mapping[bytes, int], count: int) -> list[int]:
    """Tokens that are a blank and a lower-case word: text of theirs has as many tokens again, however they are mixed."""
    words = (rank for token, rank in ranks.items() if len(token) > 4 and token[:1] == b" " and token[1:].isalpha() and token.islower())
    return [rank for _, rank in zip(range(count), words, strict=False)]


def _config(vocabulary_size: int) -> dict[str, Any]:
    return {
        "architectures": ["Qwen2ForCausalLM"],
        "model_type": "qwen2",
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,  # 32 each: the smallest that the attention of vLLM knows on a CPU
        "num_key_value_heads": 2,
        "hidden_act": "silu",
        "max_position_embeddings": CONTEXT_TOKENS,
        "rms_norm_eps": 1e-6,
        "rope_theta": 1_000_000.0,
        "tie_word_embeddings": True,
        "torch_dtype": "bfloat16",
        "vocab_size": vocabulary_size,
        "bos_token_id": END_OF_TURN - 2,
        "eos_token_id": END_OF_TURN,
    }


def _tokenizer(ranks: Mapping[bytes, int]) -> dict[str, Any]:
    letters = _letters()

    def written(token: bytes) -> str:
        return "".join(letters[byte] for byte in token)

    halves = ((token, _halves(ranks, token, rank)) for token, rank in ranks.items() if len(token) > 1)
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": False}
    plain = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    added = [plain | {"id": len(ranks) + place, "content": name, "special": place < SPECIAL} for place, name in enumerate(ADDED)]
    split = {"type": "Split", "pattern": {"Regex": PATTERN}, "behavior": "Isolated", "invert": False}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": added,
        "normalizer": {"type": "NFC"},
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [split, byte_level]},
        "post_processor": byte_level,
        "decoder": byte_level,
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": "",
            "end_of_word_suffix": "",
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": False,
            "vocab": {written(token): rank for token, rank in ranks.items()},
            "merges": [[written(part) for part in parts] for token, parts in halves if len(parts) == 2],
        },
    }


def _halves(ranks: Mapping[bytes, int], token: bytes, rank: int) -> list[bytes]:
    """What the tokens before this one leave of it: two parts, if it can be made at all."""
    parts = [token[place : place + 1] for place in range(len(token))]
    while len(parts) > 2:
        pairs = [ranks.get(left + right, rank) for left, right in pairwise(parts)]
        lowest = min(pairs)
        if lowest >= rank:
            break
        place = pairs.index(lowest)
        parts[place : place + 2] = [parts[place] + parts[place + 1]]
    return parts


def _letters() -> list[str]:
    """A printable letter for every byte, as byte-level BPE has had them since GPT-2: itself, or the next one from U+0100 on."""
    plain = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = iter(range(0x100, 0x200))
    return [chr(byte) if byte in plain else chr(next(others)) for byte in range(256)]
