"""The whole way of a count: what the exchange asks, what the driver does, and what the simulator of vLLM answers as our tokenizer does."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from extproc.edge import driver as module
from extproc.edge.driver import Driver
from extproc.edge.upstream_tokens import UpstreamTokens
from extproc.exchange.actions import CountUpstream
from extproc.exchange.ask import Prompt
from extproc.exchange.events import Counted
from extproc.exchange.upstream import question
from extproc.local.simulator import Simulator, start
from extproc.metrics import Metrics, registry
from extproc.tokens.bpe import vocabulary_folder
from extproc.tokens.registry import load_counters
from extproc.tokens.vocabulary import DEEPSEEK

PROMPTS = {
    "chat": Prompt(messages=(("system", "Be brief."), ("user", "Wie geht's? 你好，世界！ " * 40), ("tool", "42"))),
    "text": Prompt(texts=("def f(x):\n    return x  # naïve\n" * 40,)),
}


@pytest.fixture(scope="module")
def deepseek(engine_directory: Path) -> Iterator[Simulator]:
    vocabulary = Path(str(vocabulary_folder())) / DEEPSEEK.file
    server = start(engine_directory / "deepseek", models=["deepseek"], vocabulary=vocabulary, options=["--chat-template", "deepseek-v3"])
    yield server
    server.stop()


@pytest.mark.parametrize("kind", PROMPTS)
async def test_the_simulator_tells_what_we_count(deepseek: Simulator, kind: str) -> None:
    asked = question(PROMPTS[kind], "deepseek")
    assert asked is not None
    upstream = UpstreamTokens({"m": (f"{deepseek.url}/tokenize",)}, monotonic_s=time.monotonic, metrics=Metrics(registry()))
    answer = upstream.ask("anna", "m", asked)
    assert answer is not None
    counter = load_counters(["deepseek"]).get("deepseek", "deepseek-v3")
    assert counter is not None
    assert await asyncio.wait_for(answer, 5) == PROMPTS[kind].count(counter) > 300


@pytest.mark.parametrize(("upstream", "expected"), [("tells", 7), ("does not tell", None), ("is not there", None), ("is slow", None)])
async def test_the_driver_goes_on_whatever_comes(monkeypatch: pytest.MonkeyPatch, upstream: str, expected: int | None) -> None:
    monkeypatch.setattr(module, "COUNT_S", 0.02)
    told: asyncio.Queue[Any] = asyncio.Queue()

    class Watched(Driver):
        def push(self, event: Any) -> None:
            told.put_nowait(event)

    def ask(payer_id: str, model: str, asked: bytes) -> asyncio.Future[int | None] | None:
        assert (payer_id, model, asked) == ("anna", "m", b"{}")
        answer = asyncio.get_running_loop().create_future()
        if upstream == "is not there":
            return None
        if upstream != "is slow":
            answer.set_result(expected)
        return answer

    driver = Watched.__new__(Watched)
    driver._timer = None
    driver._gate = SimpleNamespace(upstream_tokens=SimpleNamespace(ask=ask))
    assert driver._count_upstream(CountUpstream(payer_id="anna", model="m", question=b"{}")) is False
    event = await asyncio.wait_for(told.get(), 5)
    assert isinstance(event, Counted)
    assert event.tokens == expected
