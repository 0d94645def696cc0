"""`tokenizer: upstream` in a whole house: a server of the model counts prompts before they are held for; when it is gone, sizes are held for."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator

import pytest
from asking import CHAT, body
from house import NANOS_IN, NANOS_OUT, ROOT, SMALL, TEMPLATES, VOCABULARY, House, short_directory

from extproc.exchange.ask import ALLOWANCE_TOKENS, ALLOWANCE_TOKENS_PER_MESSAGE
from extproc.local import simulator

WORDS = "The river runs slowly through the valley. " * 60


@pytest.fixture
def counting() -> Iterator[simulator.Simulator]:
    """A server of the model that nobody sends requests to."""
    directory = short_directory()
    server = simulator.start(directory, models=[SMALL], vocabulary=VOCABULARY, options=["--chat-template", TEMPLATES[SMALL]])
    yield server
    server.stop()
    shutil.rmtree(directory, ignore_errors=True)


@pytest.fixture
def own_house(counting: simulator.Simulator) -> Iterator[House]:
    catalog = (ROOT / "examples/models.yaml").read_text()
    before, mark, entry = catalog.partition(f"  {SMALL}:")
    assert "tokenizer: qwen2\n" in entry
    directory = short_directory()
    urls = {SMALL: [f"{counting.url}/tokenize"]}
    models = before + mark + entry.replace("tokenizer: qwen2\n", "tokenizer: upstream\n", 1)
    built = House(directory, workers=1, settings=f"body.tokenize_urls={json.dumps(urls)}", models=models)
    yield built
    built.close_clients()
    built.stop()
    shutil.rmtree(directory, ignore_errors=True)


def test_a_server_of_the_model_counts_its_prompts(own_house: House, counting: simulator.Simulator):
    guest = own_house.guest(tier="default")

    def ask() -> tuple[int, int]:
        """What was held, and prompt tokens."""
        with own_house.client() as client:
            answer = client.post(CHAT, json=body(messages=[{"role": "user", "content": WORDS}]), headers=guest.headers)
        assert answer.status_code == 200
        row, usage = guest.row(answer.headers["x-request-id"]), answer.json()["usage"]
        assert row["cost"] == usage["prompt_tokens"] * NANOS_IN + usage["completion_tokens"] * NANOS_OUT
        return row["hold_nanos"], usage["prompt_tokens"]

    held, tokens = ask()
    assert 500 < tokens < 700
    assert held == (tokens + ALLOWANCE_TOKENS + ALLOWANCE_TOKENS_PER_MESSAGE + 2) * NANOS_IN + 5 * NANOS_OUT
    counting.stop()
    by_size, same = ask()
    assert same == tokens
    assert by_size > 3 * len(WORDS) * NANOS_IN
    guest.check()
