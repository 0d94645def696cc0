"""No body makes the simulator fail: it answers with what its endpoint says, or refuses."""

from __future__ import annotations

import json
import random

import pytest

from extproc.local.sim.ask import Model, Refused
from extproc.local.sim.endpoints import BY_PATH
from extproc.local.sim.run import Run
from extproc.local.sim.steering import Steering
from extproc.local.sim.text import Text

MODEL = Model(names=("m",), context_tokens=1_000)
TEXT = Text(None)
SOUND = {"messages": [{"role": "user", "content": "hi"}], "prompt": "a b", "input": "a", "max_tokens": 9, "query": "q", "documents": ["d"]}
SOUND |= {"text_1": "a", "text_2": "b", "tokens": [1], "file": b"ID3 and sound"}
NAMES = (
    "model",
    "stream",
    "n",
    "tools",
    "tool_choice",
    "system",
    "instructions",
    "max_completion_tokens",
    "max_output_tokens",
    "stream_options",
)
NAMES += (
    "top_n",
    "dimensions",
    "echo",
    "encoding_format",
    "truncate_prompt_tokens",
    "cache_salt",
    "request_id",
    "priority",
    "stream_interval",
)
TOOL = {"name": "f\ud801", "type": "function", "function": {"name": "f"}}
ODD = [None, True, False, 0, -1, 2, 2.5, "", "x", "3", "true", "\ud800", [], {}, [[]], [{}], ["x"], [1], [None], 10**30, float("nan")]
ODD += [TOOL, [TOOL], "required", {"type": "any"}, {"type": "text", "text": "\udfff"}, [{"role": "user", "content": ["x"]}], "data:"]
ODD += [
    [{"role": "user", "content": [{"type": "image_url", "image_url": 5, "source": {}}]}],
    [{"type": "function_call_output", "output": 5}],
]

BODIES_EACH = 60


def asked(endpoint, body, steering):
    """What will be served, or the refusal."""
    try:
        return endpoint.ask(body, MODEL, steering, TEXT)
    except Refused as refusal:
        return endpoint.refusal(refusal)


@pytest.mark.parametrize("path", BY_PATH)
def test_answered_or_refused(path):
    endpoint, chance = BY_PATH[path], random.Random(path)
    answered = refused = 0
    for _ in range(BODIES_EACH):
        body = {name: value for name, value in SOUND.items() if (path, name) != ("/v1/responses", "prompt")}  # a template's there
        body.update((chance.choice((*NAMES, *SOUND)), chance.choice(ODD)) for _ in range(chance.randrange(5)))
        steering = Steering(reasoning=chance.choice((0, 2)), tool_calls=chance.choice((0, 2)))
        ask = asked(endpoint, body, steering)
        if isinstance(ask, bytes):
            refused += 1
            assert json.loads(ask)["error"]["message"]
            continue
        answered += 1
        run = Run(ask, endpoint.shape("id", 1, b'"m"', ask), TEXT, steering, cached=0)
        if ask.stream:
            assert list(run.steps())
        else:
            assert json.loads(run.document())
    assert min(answered, refused) > 0
