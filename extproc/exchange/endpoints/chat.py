"""``POST /v1/chat/completions``: everything about it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from extproc.errors import ClientError
from extproc.exchange.ask import Ask, Prompt
from extproc.exchange.endpoints import fields as read
from extproc.exchange.endpoints import openai
from extproc.exchange.endpoints.tooling import Tooling
from extproc.tokens.counter import ROLE_BYTES_MAX

_OWN = frozenset({"model", "messages", "stream", "stream_options", "n", "max_tokens", "max_completion_tokens"})
_PROMPT_FIELDS = frozenset({"tools", "tool_choice", "parallel_tool_calls", "functions", "function_call", "reasoning_effort"})
_KNOWN = read.SAMPLING_FIELDS | _PROMPT_FIELDS | {"top_logprobs"}
_TEXT_PARTS = ("text", "refusal")  # the member with the text has the name of the type
_DETAILS = ("auto", "low", "high")
_SPOKEN = frozenset({"name", "reasoning", "reasoning_content", "task", "tools"})  # fields of messages that some templates print


class ChatCompletions(openai.Usual):
    """The endpoint that nearly everybody uses."""

    name = "chat.completions"
    paths = ("/v1/chat/completions",)

    def parse(self, body: Mapping[str, Any], *, reject_unknown: bool) -> Ask:
        """See :class:`~extproc.exchange.ask.Endpoint`."""
        fields = read.allowed(body, _KNOWN, _OWN, reject_unknown=reject_unknown)
        read.check_stop(body)
        fields["messages"], prompt = messages_of(body, fields)
        choices = read.whole(body, "n", low=1, high=read.CHOICES_MAX) or 1
        if choices > 1:
            fields["n"] = choices
        stream, usage, continuous = read.stream_options(body)
        return Ask(
            endpoint=self,
            model=read.model_name(body),
            stream=stream,
            choices=choices,
            output_max=read.output_max(body, "max_completion_tokens", "max_tokens"),
            prompt=prompt,
            wants_usage=usage,
            wants_continuous_usage=continuous,
            fields=fields,
        )


def messages_of(body: Mapping[str, Any], fields: Mapping[str, Any]) -> tuple[list[Any], Prompt]:
    """The messages as they are forwarded, and what of them is to be counted. What is not counted is not forwarded."""
    messages = read.turns(body.get("messages"), "messages")
    pairs, forwarded = [], []
    images: list[str] = []
    tooling = _tooling(fields)
    for position, message in enumerate(messages):
        param = f"messages[{position}]"
        if not isinstance(message, dict) or not isinstance(message.get("role"), str):
            raise ClientError(f"`{param}` must be an object with a `role`.", param=param, code="invalid_type")
        if len(message["role"].encode("utf-8", "replace")) > ROLE_BYTES_MAX:
            raise ClientError(f"`{param}.role` is no role.", param=f"{param}.role", code="invalid_value")
        others = {name: value for name, value in message.items() if name not in ("role", "content") and value is not None}
        if others:
            _note(tooling, position, message["role"], others)
        content, text = _content(message.get("content"), param, images)
        pairs.append((message["role"], text))
        forwarded.append({"role": message["role"], "content": content, **others})
    return forwarded, tooling.prompt(pairs, images)


def _tooling(fields: Mapping[str, Any]) -> Tooling:
    """The tools of a body. Its older ``functions`` are nothing that a backend prints for certain."""
    tooling = Tooling()
    if "functions" in fields:
        tooling.odd(fields["functions"])
    tools = fields.get("tools", ())
    for tool in tools if isinstance(tools, list) else (tools,) if tools else ():
        tooling.function(tool.get("function") if isinstance(tool, dict) else None, tool)
    return tooling


def _note(tooling: Tooling, position: int, role: str, others: Mapping[str, Any]) -> None:
    """What a message has beside role and content. Backends drop what they do not know (vLLM: all but these and ``tool_calls``)."""
    rest = dict(others)
    calls = rest.pop("tool_calls", None) if role == "assistant" else None
    for call in calls if isinstance(calls, list) else (calls,) if calls else ():
        function = call.get("function") if isinstance(call, dict) else None
        if isinstance(function, dict) and isinstance(function.get("name"), str):
            tooling.call(position, function["name"], function.get("arguments"), call)
        else:
            tooling.odd(call)
    if role == "tool":
        tooling.result()
        rest.pop("name", None)
    if rest:
        (tooling.odd if _SPOKEN & rest.keys() else tooling.silent)(rest)


def _content(content: Any, param: str, images: list[str]) -> tuple[Any, str]:
    """What is forwarded (parts with nothing but their text or image), and its text; its images are added to ``images``."""
    if content is None or isinstance(content, str):
        return content, content or ""
    if not isinstance(content, list):
        raise ClientError(f"`{param}.content` must be a string or a list of parts.", param=f"{param}.content", code="invalid_type")
    parts, texts = [], []
    for part in content:
        kind = part.get("type") if isinstance(part, dict) else None
        text = part.get(kind) if kind in _TEXT_PARTS else None
        if kind == "image_url":
            image = _image(part.get("image_url"), f"{param}.content")
            parts.append({"type": kind, kind: image})
            images.append(image["url"])
        elif isinstance(text, str):
            parts.append({"type": kind, kind: text})
            texts.append(text)
        else:
            words = f"`{param}.content` has a part of type {str(kind)[:64]!r} that cannot be read here; text and image_url can."
            raise ClientError(words, param=f"{param}.content", code="invalid_value")
    return parts, "\n".join(texts)


def _image(value: Any, param: str) -> dict[str, str]:
    """``{"url": …, "detail": …}``, or the URL alone, as vLLM takes it too."""
    members = value if isinstance(value, dict) else {"url": value}
    url, detail = read.image(members.get("url"), f"{param}.image_url.url"), members.get("detail")
    return {"url": url, "detail": detail} if detail in _DETAILS else {"url": url}
