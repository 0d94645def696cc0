"""Conversations with functions, as Qwen's chat templates write them: one text, cut where their tokenizer knows a special token.

Own code on purpose, like everything here: the sidecar counts with its own, and the two must agree by being right. What is written is
what the templates of Qwen 2.5, 3, 3.5 and 3.6 say; how vLLM hands functions and arguments to a template is its ``FunctionDefinition`` and
``_postprocess_messages``.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any, NamedTuple

CALL_TAGS = ("<tool_call>", "</tool_call>")
RESULT_TAGS = ("<tool_response>", "</tool_response>")
THOUGHT_TAGS = ("<think>", "</think>")
TURN_TAGS = ("<|im_start|>", "<|im_end|>")

HERMES_BEFORE = """# Tools

You may call one or more functions to assist with the user query.

You are provided with function signatures within <tools></tools> XML tags:
<tools>
"""
HERMES_BEHIND = """
</tools>

For each function call, return a json object with function name and arguments within <tool_call></tool_call> XML tags:
<tool_call>
{"name": <function-name>, "arguments": <args-json-object>}
</tool_call>"""

XML_BEFORE = """# Tools

You have access to the following functions:

<tools>
"""
XML_BEHIND = """
</tools>

If you choose to call a function ONLY reply in the following format with NO suffix:

<tool_call>
<function=example_function_name>
<parameter=example_parameter_1>
value_1
</parameter>
<parameter=example_parameter_2>
This is the value for the second parameter
that can span
multiple lines
</parameter>
</function>
</tool_call>

<IMPORTANT>
Reminder:
- Function calls MUST follow the specified format: an inner <function=...></function> block must be \
nested within <tool_call></tool_call> XML tags
- Required parameters MUST be specified
- You may provide optional reasoning for your function call in natural language BEFORE the function call, but NOT after
- If there is no function call available, answer the question like normal with your current knowledge and \
do not tell the user about function calls
</IMPORTANT>"""


class Call(NamedTuple):
    """What an assistant has called; ``arguments`` as they came."""

    name: str
    arguments: Any


class Turn(NamedTuple):
    """A message, as far as templates print it."""

    role: str
    text: str
    calls: tuple[Call, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Script:
    """A template's manner. ``tags``: those that its tokenizer knows; ``system``: said where no message does; ``thinks``: its answers do."""

    tags: tuple[str, ...]
    system: str | None = None
    is_xml: bool = False
    thinks: bool = False


SCRIPTS: dict[str, Script] = {
    "chatml": Script(tags=TURN_TAGS + CALL_TAGS + RESULT_TAGS),
    "chatml-default-system": Script(
        tags=TURN_TAGS + CALL_TAGS, system="You are Qwen, created by Alibaba Cloud. You are a helpful assistant."
    ),
    "chatml-think": Script(tags=TURN_TAGS + CALL_TAGS + RESULT_TAGS + THOUGHT_TAGS, thinks=True),
    "qwen3.5": Script(tags=TURN_TAGS + CALL_TAGS + RESULT_TAGS + THOUGHT_TAGS, thinks=True, is_xml=True),
}


def pieces(turns: Sequence[Turn], functions: Sequence[Mapping[str, Any]], script: Script) -> list[str]:
    """The prompt: texts and tags, in turns."""
    cut = re.compile("(" + "|".join(map(re.escape, script.tags)) + ")")
    return [piece for piece in cut.split(_written(turns, functions, script)) if piece]


def _written(turns: Sequence[Turn], functions: Sequence[Mapping[str, Any]], script: Script) -> str:
    rest = list(turns)
    system = rest.pop(0).text if rest and rest[0].role == "system" else script.system
    if system is not None and script.is_xml:
        system = system.strip()
    said: list[tuple[str, str]] = []
    if functions:
        said.append(("system", _introduction(system, functions, script)))
    elif system is not None:
        said.append(("system", system))
    asked = max((place for place, turn in enumerate(rest) if turn.role == "user"), default=-1)
    for is_result, group in groupby(enumerate(rest), key=lambda one: one[1].role == "tool"):
        if is_result:
            results = [turn.text.strip() if script.is_xml else turn.text for _, turn in group]
            said.append(("user", "\n".join(f"<tool_response>\n{text}\n</tool_response>" for text in results)))
        else:
            said += [(turn.role, _said(turn, script, is_late=place > asked)) for place, turn in group]
    conversation = "".join(f"<|im_start|>{role}\n{text}<|im_end|>\n" for role, text in said)
    return conversation + "<|im_start|>assistant\n" + ("<think>\n" if script.thinks else "")


def _introduction(system: str | None, functions: Sequence[Mapping[str, Any]], script: Script) -> str:
    listed = "\n".join(_json(_described(function)) for function in functions)
    if script.is_xml:
        return f"{XML_BEFORE}{listed}{XML_BEHIND}" + (f"\n\n{system}" if system else "")
    return ("" if system is None else f"{system}\n\n") + f"{HERMES_BEFORE}{listed}{HERMES_BEHIND}"


def _described(function: Mapping[str, Any]) -> dict[str, Any]:
    """As vLLM's request has it after it was validated: unknown members are gone, missing ones are null, ``strict`` only if it was set."""
    told = {"name": function.get("name"), "description": function.get("description"), "parameters": function.get("parameters")}
    if function.get("strict") is not None:
        told["strict"] = function["strict"]
    return {"type": "function", "function": told}


def _said(turn: Turn, script: Script, *, is_late: bool) -> str:
    if not script.is_xml:
        lines = [turn.text] if turn.text else []
        lines += [f'<tool_call>\n{{"name": "{call.name}", "arguments": {_json(_object(call))}}}\n</tool_call>' for call in turn.calls]
        return "\n".join(lines)
    text = turn.text.strip()
    called = "\n".join(_tagged(call) for call in turn.calls)
    thought = "<think>\n\n</think>\n\n" if is_late and turn.role == "assistant" else ""
    return thought + text + ("\n\n" if text and called else "") + called


def _tagged(call: Call) -> str:
    values = {name: value if isinstance(value, str) else _json(value) for name, value in _object(call).items()}
    parameters = "".join(f"<parameter={name}>\n{value}\n</parameter>\n" for name, value in values.items())
    return f"<tool_call>\n<function={call.name}>\n{parameters}</function>\n</tool_call>"


def _object(call: Call) -> dict[str, Any]:
    """Arguments that are no object are taken for an empty one."""
    try:
        told = json.loads(call.arguments) if isinstance(call.arguments, str) else call.arguments
    except (ValueError, RecursionError):
        return {}
    return told if isinstance(told, dict) else {}


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)
