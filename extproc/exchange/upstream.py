"""What a model's own server is asked when there is no vocabulary of it here: the body of ``POST /tokenize`` (vLLM)."""

from __future__ import annotations

from typing import Any

import msgspec

from extproc.exchange.ask import Prompt
from extproc.tokens.counter import Tools


class _Message(msgspec.Struct, omit_defaults=True):
    role: str
    content: str
    tool_calls: list[dict[str, Any]] | None = None


class _Chat(msgspec.Struct, omit_defaults=True):
    model: str
    messages: list[_Message]
    tools: list[dict[str, Any]] | None = None


class _Text(msgspec.Struct):
    model: str
    prompt: str


def question(prompt: Prompt, served_name: str) -> bytes | None:
    """The prompt's text and tools, as :meth:`Prompt.count` takes them. ``None``: it is not one conversation or one text, or has no text."""
    if prompt.shared or prompt.prompts != 1 or not prompt.text_bytes:
        return None
    match prompt.messages, prompt.texts:
        case (), (text,):
            return msgspec.json.encode(_Text(model=served_name, prompt=text))
        case messages, () if messages:
            asked = _Chat(model=served_name, messages=[_Message(role, content) for role, content in messages])
            if prompt.tools is not None:
                _add(asked, prompt.tools)
            return msgspec.json.encode(asked)
    return None


def _add(asked: _Chat, tools: Tools) -> None:
    for number, (position, name, arguments) in enumerate(tools.calls):
        message = asked.messages[position]
        message.tool_calls = message.tool_calls or []
        message.tool_calls.append({"id": f"call_{number}", "type": "function", "function": {"name": name, "arguments": _json(arguments)}})
    if tools.functions:
        asked.tools = [{"type": "function", "function": function} for function in tools.functions]


def _json(arguments: Any) -> str:
    return arguments if isinstance(arguments, str) else msgspec.json.encode(arguments or {}).decode()
