"""What a model's own server is asked when there is no vocabulary of it here: the body of ``POST /tokenize`` (vLLM)."""

from __future__ import annotations

import msgspec

from extproc.exchange.ask import Prompt


class _Message(msgspec.Struct):
    role: str
    content: str


class _Chat(msgspec.Struct):
    model: str
    messages: list[_Message]


class _Text(msgspec.Struct):
    model: str
    prompt: str


def question(prompt: Prompt, served_name: str) -> bytes | None:
    """The prompt's text as :meth:`Prompt.count` would count it. ``None``: it is not one conversation or one text, or has no text."""
    if prompt.shared or prompt.prompts != 1 or not prompt.text_bytes:
        return None
    match prompt.messages, prompt.texts:
        case (), (text,):
            return msgspec.json.encode(_Text(model=served_name, prompt=text))
        case messages, () if messages:
            return msgspec.json.encode(_Chat(model=served_name, messages=[_Message(role, content) for role, content in messages]))
    return None
