"""Makes ``chat_tools.json``: conversations with tools, and how many tokens the models' own chat templates make of them.

    PYTHONPATH=tests python -m data.chat_tools DIRECTORY    with jinja2, and the templates of the wheel of trl (``trl/chat_templates``)

A template is handed what vLLM 0.32 hands it (``FunctionDefinition``, ``_postprocess_messages``), in transformers' environment
(``_compile_jinja_template``), and the text is cut at the special tokens that the model's tokenizer has. All of them by Qwen 3's vocabulary: what is
in question here is what is written, not how it is cut.
"""

from __future__ import annotations

import json
import random
import sys
import unicodedata
from pathlib import Path
from typing import Any

import jinja2.ext
import jinja2.sandbox
import tiktoken
from fuzz.asks import called, schema, text

from extproc.tokens.bpe import load_encoding
from extproc.tokens.vocabulary import QWEN

TURNS = ("<|im_start|>", "<|im_end|>", "<tool_call>", "</tool_call>")
MORE = ("<tool_response>", "</tool_response>", "<think>", "</think>")
TEMPLATES = {
    "chatml": (("qwen3.jinja", "qwen3_instruct_2507.jinja", "qwen3_vl.jinja"), TURNS + MORE),
    "chatml-default-system": (("qwen2_5.jinja",), TURNS),
    "qwen3.5": (("qwen3_5_think.jinja", "qwen3_6.jinja"), TURNS + MORE),
}
LOOK = {
    "name": "look",
    "description": "Looks.",
    "parameters": {"type": "object", "properties": {"at": {"type": "string"}}, "required": ["at"]},
}
BARE = {"name": "time"}
STRICT = {
    "parameters": {"properties": {"größe": {"enum": ["小", "大"]}}, "type": "object"},
    "strict": True,
    "name": "größe",
    "description": "多大？\n<b>",
}
ASKED = {"role": "user", "content": "Where is it?"}


def call(name: str, given: str) -> dict[str, Any]:
    return {"id": "c", "type": "function", "function": {"name": name, "arguments": given}}


def calls(content: str | None, *made: dict[str, Any]) -> dict[str, Any]:
    return {"role": "assistant", "content": content, "tool_calls": list(made)}


def result(content: str) -> dict[str, Any]:
    return {"role": "tool", "tool_call_id": "c", "content": content}


CONVERSATIONS: dict[str, tuple[list[dict[str, Any]], list[dict[str, Any]]]] = {
    "a function": ([LOOK], [ASKED]),
    "and a system": ([LOOK], [{"role": "system", "content": "Be brief."}, ASKED]),
    "a system of blanks": ([LOOK], [{"role": "system", "content": " \n"}, ASKED]),
    "nothing but a name": ([BARE], [ASKED]),
    "three of them": ([STRICT, LOOK, BARE], [{"role": "system", "content": "Sei kurz.\n"}, ASKED]),
    "a call": ([LOOK], [ASKED, calls(None, call("look", '{"at":"here"}')), result("42")]),
    "a call with words": ([LOOK], [ASKED, calls("I look.\n", call("look", '{"at": "here"}')), result(" 42 "), ASKED]),
    "two calls": ([LOOK, BARE], [ASKED, calls("", call("time", ""), call("look", '{"at":"\\u6771"}')), result("12"), result("東")]),
    "calls without functions": ([], [ASKED, calls(None, call("time", "{}")), result("12"), {"role": "assistant", "content": "Noon."}, ASKED]),
    "all kinds of arguments": ([BARE], [ASKED, calls(None, call("time", '{"a":1,"b":[1,2.50,{}],"c":null,"d":true,"e":"\\n","f":{"g":1e2}}')), result("")]),
    "no object": ([BARE], [ASKED, calls(None, call("time", "[1]"), call("time", "{")), result("12"), result("13")]),
    "again and again": ([BARE], [ASKED, *[calls(None, call("time", "{}")), result("12")] * 3]),
}  # fmt: skip


def random_conversation(dice: random.Random) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Without texts that a tokenizer takes for special tokens wherever they stand: those we count as texts, never too low."""
    functions = [{"name": "look", "description": text(dice), "parameters": schema(dice)} for _ in range(dice.randint(0, 3))]
    system = [{"role": "system", "content": text(dice)}] if dice.random() < 0.5 else []
    messages = [*system, {"role": "user", "content": text(dice)}, *called(dice), *dice.choice(([], [ASKED], called(dice)))]
    plain = json.dumps([functions, messages]).replace("<|im_end|>", "<|end|>")
    return tuple(json.loads(plain))


def handed(functions: list[dict[str, Any]], messages: list[dict[str, Any]]) -> dict[str, Any]:
    """As vLLM does it."""
    tools = []
    for function in functions:
        told = {name: function.get(name) for name in ("name", "description", "parameters", "strict")}
        if told["strict"] is None:
            del told["strict"]
        tools.append({"type": "function", "function": told})
    conversation = []
    for message in messages:
        made = []
        for one in message.get("tool_calls", ()):
            try:
                given = json.loads(one["function"]["arguments"] or "{}")
            except ValueError:
                given = {}
            made.append({**one, "function": {"name": one["function"]["name"], "arguments": given if isinstance(given, dict) else {}}})
        conversation.append({**message, "content": message["content"] or ""} | ({"tool_calls": made} if made else {}))
    return {"messages": conversation, "tools": tools or None}


def environment() -> jinja2.sandbox.ImmutableSandboxedEnvironment:
    """As transformers makes it."""

    def tojson(value: Any, ensure_ascii: bool = False, indent: int | None = None) -> str:
        return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent)

    made = jinja2.sandbox.ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[jinja2.ext.loopcontrols])
    made.filters["tojson"] = tojson
    return made


def main(directory: Path) -> None:
    qwen, jinja = load_encoding(QWEN), environment()
    cases = {**CONVERSATIONS, **{f"random {seed}": random_conversation(random.Random(seed)) for seed in range(20)}}
    templates = {}
    for name, (files, special) in TEMPLATES.items():
        ids = {token: qwen.n_vocab + number for number, token in enumerate(special)}
        encoding = tiktoken.Encoding(name, pat_str=qwen._pat_str, mergeable_ranks=qwen._mergeable_ranks, special_tokens=ids)
        templates[name] = ([jinja.from_string((directory / file).read_text()) for file in files], encoding)
    conversations = []
    for name, (functions, messages) in cases.items():
        tokens = {}
        for template, (sisters, encoding) in templates.items():
            written = [sister.render(**handed(functions, messages), add_generation_prompt=True) for sister in sisters]
            texts = [unicodedata.normalize("NFC", text) for text in written]
            (tokens[template],) = {len(encoding.encode(text, allowed_special="all")) for text in texts}  # sisters agree
        tools = [{"type": "function", "function": function} for function in functions]
        conversations.append({"name": name, "tokens": tokens, "tools": tools, "messages": messages})
    lines = ",\n".join(json.dumps(one, ensure_ascii=False, separators=(",", ":")) for one in conversations)
    (Path(__file__).parent / "chat_tools.json").write_text(f'{{"conversations":[\n{lines}\n]}}\n')


if __name__ == "__main__":
    main(Path(sys.argv[1]))
