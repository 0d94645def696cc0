"""One real vLLM, or two, behind what `extproc up --backend` runs. Only for ``make vllm``, which says where the real one is."""

from __future__ import annotations

import json
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parents[1] / "e2e"))  # house, upstack

from real_books import Books, tell
from real_model import ALSO, SERVED, read_ranks, word_ids, write
from real_server import RealVllm
from upstack import Up

from extproc.local.stack import Plan
from extproc.local.up import running

MODELS = ("tiny", "tiny-continuous", "tiny-counted", "tiny-upstream", "tiny-ranked")
TEXT_OPTIONS = (
    *("--enable-prompt-tokens-details", "--enable-auto-tool-choice", "--tool-call-parser", "hermes", "--block-size", "32"),
    # Random weights call a function as it is declared only if they must, and know no end of white space between two brackets.
    *("--tool-strict-level", "parameter", "--structured-outputs-config", '{"backend": "xgrammar", "disable_any_whitespace": true}'),
)
EMBED_OPTIONS = ("--runner", "pooling", "--convert", "embed")
WORDS = 400


@pytest.fixture(scope="session")
def folder() -> Iterator[Path]:
    made = Path(tempfile.mkdtemp(prefix="xv-", dir="/tmp"))
    made.chmod(0o711)
    yield made
    shutil.rmtree(made, ignore_errors=True)


@pytest.fixture(scope="session")
def python() -> Path:
    named = os.environ.get("EXTPROC_VLLM")
    if not named:
        pytest.skip("no real vLLM was named: `make vllm` installs one and runs these")
    return Path(named)


@pytest.fixture(scope="session")
def tiny(folder: Path) -> Path:
    return write(folder / "tiny")


@pytest.fixture(scope="session")
def words() -> list[int]:
    """Ids of whole words: an answer of nothing else has as many tokens when it is counted again."""
    return word_ids(read_ranks(), WORDS)


@pytest.fixture(scope="session")
def vllm(python: Path, tiny: Path, folder: Path) -> Iterator[RealVllm]:
    server = RealVllm(python, tiny, folder / "text", names=[SERVED, ALSO], options=TEXT_OPTIONS)
    tell(f"vLLM serves the tiny model, {server.ready_s:.0f} s after its start")
    yield server
    server.close()


@pytest.fixture(scope="session")
def embedder(python: Path, tiny: Path, folder: Path) -> Iterator[RealVllm]:
    server = RealVllm(python, tiny, folder / "embed", names=["tiny-embed"], options=EMBED_OPTIONS)
    yield server
    server.close()


@pytest.fixture(scope="session")
def up(vllm: RealVllm, embedder: RealVllm, folder: Path) -> Iterator[Up]:
    """The stack of `extproc up --backend tiny=… --backend tiny-embed=…`."""
    backends = {name: [vllm.address] for name in MODELS} | {"tiny-embed": [embedder.address]}
    plan = Plan(durable=False, catalog=Path(__file__).parent / "models.yaml", backends=backends)
    with pytest.MonkeyPatch.context() as environ:
        environ.setenv("EXTPROC_BODY__TOKENIZE_URLS", json.dumps({"tiny-upstream": [f"{vllm.url}/tokenize"]}))
        with running(folder / "up", plan, say=lambda _: None) as stack:
            assert stack.envoy is not None
            stack.envoy.wait_healthy(dict.fromkeys(backends, 1))
            made = Up(stack)
            yield made
            made.close()


@pytest.fixture(scope="session")
def books(up: Up, vllm: RealVllm) -> Iterator[Books]:
    kept = Books(up, vllm)
    yield kept
    tell(*kept.summary())
