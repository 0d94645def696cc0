"""Vocabularies come out of the package, whole or not at all."""

from __future__ import annotations

import hashlib
import lzma
import os
from collections.abc import Mapping
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
import tiktoken

from extproc.errors import ConfigError
from extproc.tokens import bpe
from extproc.tokens.bpe import load_encoding, vocabulary_folder
from extproc.tokens.counter import Counter, Counters, Running
from extproc.tokens.registry import LoadedCounters, load_counters
from extproc.tokens.vocabulary import CL100K, QWEN, QWEN3_6, TOKENIZERS

TINY = b"".join(b"%s %d\n" % (word, rank) for rank, word in enumerate([b"YQ==", b"Yg==", b"YWI="]))  # a, b, ab


def write_tiny(folder: Path, content: bytes) -> None:
    (folder / "tiny.xz").write_bytes(lzma.compress(content, preset=0))


def test_a_file_with_its_hash_is_loaded(tmp_path: Path) -> None:
    write_tiny(tmp_path, TINY)
    tiny = replace(CL100K, file="tiny.xz", sha256=hashlib.sha256(TINY).hexdigest())
    assert load_encoding(tiny, tmp_path).encode_ordinary("aba") == [2, 0]


def test_another_content_is_refused(tmp_path: Path) -> None:
    write_tiny(tmp_path, TINY.replace(b"2", b"3"))
    tiny = replace(CL100K, file="tiny.xz", sha256=hashlib.sha256(TINY).hexdigest())
    with pytest.raises(ConfigError, match=r"tiny\.xz: vocabulary cl100k has sha256 [0-9a-f]{64}, expected .*install extproc-billing again"):
        load_encoding(tiny, tmp_path)


def test_a_damaged_file_is_refused(tmp_path: Path) -> None:
    packed = bytearray(vocabulary_folder().joinpath(CL100K.file).read_bytes())
    packed[len(packed) // 2] ^= 1
    (tmp_path / CL100K.file).write_bytes(packed)
    with pytest.raises(ConfigError, match=r"damaged|has sha256"):
        load_encoding(CL100K, tmp_path)
    (tmp_path / CL100K.file).write_bytes(b"no xz")
    with pytest.raises(ConfigError, match="damaged"):
        load_encoding(CL100K, tmp_path)


def test_a_short_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / CL100K.file).write_bytes(vocabulary_folder().joinpath(CL100K.file).read_bytes()[:1000])
    with pytest.raises(ConfigError, match="has sha256"):
        load_encoding(CL100K, tmp_path)


def test_a_file_that_unpacks_to_too_much_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bpe, "UNPACKED_BYTES_MAX", len(TINY) - 1)
    write_tiny(tmp_path, TINY)
    with pytest.raises(ConfigError, match="has sha256"):
        load_encoding(replace(CL100K, file="tiny.xz", sha256=hashlib.sha256(TINY).hexdigest()), tmp_path)


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read"):
        load_encoding(QWEN, tmp_path)


def test_sums_and_licences_of_what_ships() -> None:
    folder = vocabulary_folder()
    sums = {name: digest for digest, name in map(str.split, folder.joinpath("SHA256SUMS").read_text().splitlines())}
    shipped = {path.name for path in folder.iterdir()} - {"SHA256SUMS"}
    assert set(sums) == shipped
    for name, digest in sums.items():
        assert hashlib.sha256(folder.joinpath(name).read_bytes()).hexdigest() == digest, name
    for vocabulary in TOKENIZERS.values():
        assert vocabulary.file in shipped
        assert vocabulary.licence in shipped


def test_what_a_catalog_names_is_loaded(encodings: Mapping[str, tiktoken.Encoding], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("extproc.tokens.registry.load_encoding", lambda vocabulary: encodings[vocabulary.name])
    counter = load_counters(["cl100k", "upstream"]).get("cl100k", "gpt")
    assert counter is not None
    assert counter.count("hello world") == 2


def test_upstream_and_unloaded_have_no_counter() -> None:
    counters = load_counters(["upstream"])
    assert counters.get("upstream", "none") is None
    assert counters.get("qwen3", "chatml") is None


def test_unknown_tokenizers_are_all_named() -> None:
    with pytest.raises(ConfigError, match="llama") as caught:
        load_counters(["llama", "gpt2"])
    assert len(caught.value.faults) == 2


def test_an_unknown_template_is_an_error(counters: LoadedCounters) -> None:
    with pytest.raises(ConfigError, match="use one of chatml"):
        counters.get("qwen3", "jinja")


def test_one_encoding_for_all_names_and_templates(counters: LoadedCounters, encodings: Mapping[str, tiktoken.Encoding]) -> None:
    every = [counters.get(name, template) for name in ("qwen2", "qwen3") for template in ("chatml", "chatml-default-system", "none")]
    assert len({id(counter._codec) for counter in every if counter}) == 1
    assert [counter.name for counter in every if counter] == ["qwen2"] * 3 + ["qwen3"] * 3
    larger = counters.including(["qwen2", "cl100k"])
    assert larger.get("qwen2", "none")._codec is counters.get("qwen2", "none")._codec  # type: ignore[union-attr]


def test_the_ports_are_kept(counters: LoadedCounters) -> None:
    port: Counters = counters
    counter: Counter | None = port.get("qwen3", "chatml")
    assert counter is not None
    running: Running = counter.running()
    running.feed("hello")
    assert running.total() == 1


MERGES_OF_QWEN_3_5 = "a9d356d7bdf1ef4949e3e748e95b8e10ad9d4e2e838eddc38a0a7b6b94d1db8d"
"""SHA-256 of ``merges.txt`` in the repositories of Qwen3.5-0.8B, Qwen3.5-4B-Base and Qwen3.8-27B."""


@pytest.mark.skipif(os.environ.get("HYPOTHESIS_PROFILE") != "thorough", reason="ten seconds: make fuzz")
def test_qwen_3_6_merges_as_the_models_do() -> None:
    """Their list of merges comes out of our tokens: each is made of the two that merging by rank leaves, itself aside."""
    encoding = load_encoding(QWEN3_6)
    ranks = encoding._mergeable_ranks
    shown = {byte: chr(byte) for byte in (*range(33, 127), *range(161, 173), *range(174, 256))}
    shown |= {byte: chr(256 + place) for place, byte in enumerate(byte for byte in range(256) if byte not in shown)}
    merges = []
    for token in sorted((token for token in ranks if len(token) > 1), key=ranks.__getitem__):
        left, right = _merged(token, ranks, ranks[token]) or _merged(token, ranks, len(ranks) + 1_000) or (b"", b"")
        merges.append(f"{''.join(map(shown.__getitem__, left))} {''.join(map(shown.__getitem__, right))}\n")
    assert len(merges) == 247_587
    assert hashlib.sha256("".join(merges).encode()).hexdigest() == MERGES_OF_QWEN_3_5
    sizes = [len(encoding.encode_ordinary(word)) for word in (" является", "人力资源", "いっぱい", "各种各样的")]
    assert sizes == [1, 1, 1, 3], "the last is a token, and no merge makes it"


def _merged(token: bytes, ranks: Mapping[bytes, int], below: int) -> tuple[bytes, bytes] | None:
    """The two parts that tokens of a lower rank make of it, ``None`` if more are left."""
    parts = [token[at : at + 1] for at in range(len(token))]
    while len(parts) > 2:
        joined = [(ranks.get(left + right, below), at) for at, (left, right) in enumerate(pairwise(parts))]
        rank, at = min(joined)
        if rank >= below:
            return None
        parts[at : at + 2] = [parts[at] + parts[at + 1]]
    return parts[0], parts[1]
