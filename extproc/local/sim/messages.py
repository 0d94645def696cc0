"""POST /v1/messages and …/count_tokens, as vLLM reads and writes Anthropic's words: named events, cached tokens apart, no [DONE]."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from extproc.local.sim import fields as read
from extproc.local.sim.ask import Ask, Model, Refused, missing
from extproc.local.sim.http import json_bytes
from extproc.local.sim.prompt import Filler, Message, Prompt, prompt_of_chat
from extproc.local.sim.shape import DocumentShape, Output
from extproc.local.sim.speech import Item, Kind
from extproc.local.sim.steering import Steering
from extproc.local.sim.text import Text
from extproc.local.sim.tools import Call
from extproc.local.sim.usage import Spent, usage_of_messages

_STOP_REASONS = {"stop": b'"end_turn"', "length": b'"max_tokens"', "tool_calls": b'"tool_use"'}
"""What is none of these (``abort``) is told as null."""


def ask_of_messages(fields: Mapping[str, Any], model: Model, steering: Steering, text: Text) -> Ask:
    """Raises :class:`Refused`."""
    prompt = _prompt(fields, steering, text)
    limit = read.integer(fields, "max_tokens", least=1)
    if limit is None:
        raise missing("max_tokens")
    return read.generating(
        fields,
        model,
        steering,
        [prompt],
        limit,
        stream=read.flag(fields, "stream"),
        usage=(True, True),
        calls=read.calls_of([str(tool.get("name")) for tool in _tools(fields)], steering, choice=_forced(fields.get("tool_choice"))),
    )


def ask_of_count_tokens(fields: Mapping[str, Any], model: Model, steering: Steering, text: Text) -> Ask:
    """Raises :class:`Refused`."""
    return Ask(model=read.model_name(fields, model), prompts=(_prompt(fields, steering, text),), runs=False)


def refusal(refused: Refused) -> bytes:
    """An error in Anthropic's words; its type is vLLM's own."""
    return json_bytes({"type": "error", "error": {"type": refused.kind, "message": refused.message}})


def _prompt(fields: Mapping[str, Any], steering: Steering, text: Text) -> Prompt:
    given = fields.get("messages")
    if not isinstance(given, list) or not given or not all(isinstance(message, dict) for message in given):
        raise missing("messages")
    messages = [one for message in given for one in _messages(message, steering)]
    if system := fields.get("system"):
        messages.insert(0, Message(role="system", text=system if isinstance(system, str) else "".join(map(_text, _blocks(system)))))
    return prompt_of_chat(messages, [_function(tool) for tool in _tools(fields)], text)


def _function(tool: Mapping[str, Any]) -> dict[str, Any]:
    """As it is handed on: a schema that says nothing of its type is one of an object."""
    schema = tool.get("input_schema")
    parameters = dict(schema) if isinstance(schema, dict) else {}
    parameters.setdefault("type", "object")
    return {**tool, "parameters": parameters}


def _messages(message: Mapping[str, Any], steering: Steering) -> Iterable[Message]:
    """One, and before it one more for each result of a tool."""
    role, content = message.get("role"), message.get("content")
    if role not in ("user", "assistant", "system"):
        raise missing("messages', 'role")
    if isinstance(content, str):
        yield Message(role=role, text=content)
        return
    texts: list[str] = []
    calls: list[Call] = []
    images: list[Filler] = []
    for block in _blocks(content):
        match block.get("type"):
            case "tool_result":
                yield Message(role="tool", text=_result(block.get("content")))
            case "image":
                images.append(_image(block.get("source"), steering))
            case "tool_use":
                calls.append(Call(str(block.get("name")), block.get("input")))
            case _:
                texts.append(_text(block))
    if texts or images or calls:
        yield Message(role=role, text="\n".join(texts), calls=tuple(calls), images=tuple(images))


def _blocks(content: Any) -> list[dict[str, Any]]:
    if not isinstance(content, list) or not all(isinstance(block, dict) for block in content):
        raise Refused(400, "content must be a string or a list of blocks", param="messages")
    return content


def _text(block: Mapping[str, Any]) -> str:
    return str(block.get("text") or block.get("thinking") or "")


def _result(content: Any) -> str:
    return content if isinstance(content, str) else "\n".join(map(_text, _blocks(content or [])))


def _image(source: Any, steering: Steering) -> Filler:
    if not isinstance(source, dict):
        raise Refused(400, "an image needs a source", param="messages")
    if source.get("type") == "url":
        return read.image(source.get("url"), steering)
    return read.image(f"data:{source.get('media_type', 'image/jpeg')};base64,{source.get('data', '')}", steering)


def _tools(fields: Mapping[str, Any]) -> list[dict[str, Any]]:
    tools = fields.get("tools") or []
    if not isinstance(tools, list) or not all(isinstance(tool, dict) and "name" in tool for tool in tools):
        raise Refused(400, "tools must be a list of objects with a name", param="tools")
    return tools


def _forced(choice: Any) -> str | bool | None:
    if not isinstance(choice, dict):
        return None
    return str(choice.get("name")) if choice.get("type") == "tool" else {"any": True, "none": False}.get(str(choice.get("type")))


class MessagesShape:
    """Of one request."""

    end = b""

    def __init__(self, request_id: str, created: int, model_json: bytes, ask: Ask) -> None:
        del created
        self._id = request_id.encode()
        self._model = model_json
        self._ask = ask
        self._block = -1
        self._open: Item | None = None

    def opening(self, choice: int, usage: bytes) -> Iterable[bytes]:
        """The prompt is told before it is known what of it was cached: in full."""
        del choice
        told = usage_of_messages(Spent(prompt=sum(self._ask.prompt_tokens), completion=0), None)
        yield _event(
            b"message_start",
            b'"message":{"id":"chatcmpl-%b","type":"message","role":"assistant","content":[],"model":%b,"stop_reason":null,'
            b'"stop_sequence":null%b}' % (self._id, self._model, b',"usage":%b' % told if usage else b""),
        )

    def begin(self, choice: int, item: Item, usage: bytes) -> Iterable[bytes]:
        yield from self.finish(choice, "", usage)
        self._block += 1
        self._open = item
        match item.kind:
            case Kind.TEXT:
                block = b'{"type":"text","text":""}'
            case Kind.REASONING:
                block = b'{"type":"thinking","thinking":""}'
            case Kind.CALL:
                block = b'{"type":"tool_use","id":"%b","name":%b,"input":{}}' % (self._call_id(item), json_bytes(item.name))
        yield _event(b"content_block_start", b'"index":%d,"content_block":%b' % (self._block, block))

    def said(self, choice: int, item: Item, text: bytes, usage: bytes) -> bytes:
        del choice, usage
        match item.kind:
            case Kind.TEXT:
                delta = b'{"type":"text_delta","text":"%b"}' % text
            case Kind.REASONING:
                delta = b'{"type":"thinking_delta","thinking":"%b"}' % text
            case Kind.CALL:
                delta = b'{"type":"input_json_delta","partial_json":"%b"}' % text
        return _event(b"content_block_delta", b'"index":%d,"delta":%b' % (self._block, delta))

    def finish(self, choice: int, reason: str, usage: bytes) -> Iterable[bytes]:
        """The open block ends; a thought is signed."""
        del choice, reason, usage
        if self._open is None:
            return
        if self._open.kind is Kind.REASONING:
            delta = b'{"type":"signature_delta","signature":"%b"}' % self._id
            yield _event(b"content_block_delta", b'"index":%d,"delta":%b' % (self._block, delta))
        yield _event(b"content_block_stop", b'"index":%d' % self._block)
        self._open = None

    def final(self, reason: str, usage: bytes | None) -> Iterable[bytes]:
        told = b"" if usage is None else b',"usage":%b' % usage
        yield _event(b"message_delta", b'"delta":{"stop_reason":%b}%b' % (_STOP_REASONS.get(reason, b"null"), told))
        yield b'event: message_stop\ndata: {"type":"message_stop"}\n\n'

    def died(self, message: str) -> Iterable[bytes]:
        yield _event(b"error", b'"error":{"type":"internal_error","message":%b}' % json_bytes(message))

    def usage(self, spent: Spent, wrong: str | None) -> bytes:
        return usage_of_messages(spent, wrong)

    def document(self, outputs: Sequence[Output], reason: str, usage: bytes | None) -> bytes:
        (output,) = outputs
        return b'{"id":"chatcmpl-%b","type":"message","role":"assistant","content":[%b],"model":%b,"stop_reason":%b%b}' % (
            self._id,
            b",".join(self._written(item, text) for item, text in output),
            self._model,
            _STOP_REASONS.get(reason, b"null"),
            b"" if usage is None else b',"usage":%b' % usage,
        )

    def _written(self, item: Item, text: bytes) -> bytes:
        match item.kind:
            case Kind.TEXT:
                return b'{"type":"text","text":"%b"}' % text
            case Kind.REASONING:
                return b'{"type":"thinking","thinking":"%b","signature":"%b"}' % (text, self._id)
            case Kind.CALL:
                return b'{"type":"tool_use","id":"%b","name":%b,"input":%b}' % (self._call_id(item), json_bytes(item.name), _input(text))

    def _call_id(self, item: Item) -> bytes:
        return b"chatcmpl-tool-%b-%d" % (self._id, item.number)


class CountTokensShape(DocumentShape):
    """An answer that is only a number."""

    def __init__(self, request_id: str, created: int, model_json: bytes, ask: Ask) -> None:
        del request_id, created, model_json
        self._tokens = sum(ask.prompt_tokens)

    def document(self, outputs: Sequence[Output], reason: str, usage: bytes | None) -> bytes:
        del outputs, reason, usage
        return json_bytes({"input_tokens": self._tokens, "context_management": {"original_input_tokens": self._tokens}})


def _event(kind: bytes, members: bytes) -> bytes:
    return b'event: %b\ndata: {"type":"%b",%b}\n\n' % (kind, kind, members)


def _input(arguments: bytes) -> bytes:
    """Arguments as an object; those that were cut are none."""
    try:
        return json_bytes(json.loads(json.loads(b'"%b"' % arguments)))
    except ValueError:
        return b"{}"
