"""POST /v1/responses, as vLLM reads and writes it: events of items, numbered; usage in the last one only; no [DONE]."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from extproc.local.sim import fields as read
from extproc.local.sim.ask import Ask, Model, Refused, missing
from extproc.local.sim.http import json_bytes
from extproc.local.sim.prompt import Message, prompt_of_chat
from extproc.local.sim.shape import Output
from extproc.local.sim.speech import Item, Kind
from extproc.local.sim.steering import Steering
from extproc.local.sim.text import Text
from extproc.local.sim.tools import Call
from extproc.local.sim.usage import Spent, usage_of_responses

_TEXTS = ("input_text", "output_text", "text", "reasoning_text", "refusal")


def ask_of_responses(fields: Mapping[str, Any], model: Model, steering: Steering, text: Text) -> Ask:
    """Raises :class:`Refused`."""
    if fields.get("prompt") is not None:
        raise Refused(400, "prompt template is not supported", param="prompt")
    if read.flag(fields, "background"):
        raise Refused(
            400, "This vLLM engine does not support `store=True` and therefore does not support the background mode.", param="background"
        )
    if earlier := fields.get("previous_response_id"):
        raise Refused(404, f"Response with id '{earlier}' not found.", kind="invalid_request_error", param="response_id")
    tools = fields.get("tools") or []
    if not isinstance(tools, list) or not all(isinstance(tool, dict) for tool in tools):
        raise Refused(400, "tools must be a list of objects", param="tools")
    return read.generating(
        fields,
        model,
        steering,
        [prompt_of_chat(_messages(fields, steering), tools, text)],
        read.integer(fields, "max_output_tokens", least=1),
        stream=read.flag(fields, "stream"),
        usage=(True, False),
        ends_incomplete=steering.faults.incomplete_event,
        calls=read.calls_of([str(tool["name"]) for tool in tools if "name" in tool], steering, choice=_forced(fields.get("tool_choice"))),
    )


def _messages(fields: Mapping[str, Any], steering: Steering) -> list[Message]:
    content = fields.get("input")
    if isinstance(content, str):
        messages = [Message(role="user", text=content)]
    elif isinstance(content, list) and content and all(isinstance(item, dict) for item in content):
        messages = _joined([_message(item, steering) for item in content])
    else:
        raise missing("input")
    if instructions := fields.get("instructions"):
        messages.insert(0, Message(role="system", text=str(instructions)))
    return messages


def _joined(messages: Sequence[Message]) -> list[Message]:
    """A call belongs to the message of the assistant that it follows."""
    joined: list[Message] = []
    for message in messages:
        if message.calls and joined and joined[-1].role == "assistant":
            joined[-1] = replace(joined[-1], calls=joined[-1].calls + message.calls)
        else:
            joined.append(message)
    return joined


def _message(item: Mapping[str, Any], steering: Steering) -> Message:
    """An item of the input: a message, reasoning, a call of a function or its result."""
    match item.get("type", "message"):
        case "function_call":
            return Message(role="assistant", text="", calls=(Call(str(item.get("name")), item.get("arguments")),))
        case "function_call_output":
            return Message(role="tool", text=str(item.get("output", "")))
        case "message" | "reasoning":
            parts = item.get("content") or ""
        case other:
            raise Refused(400, f"Unknown input item {other}", param="input")
    if isinstance(parts, str):
        return Message(role=str(item.get("role", "assistant")), text=parts)
    if not isinstance(parts, list) or not all(isinstance(part, dict) for part in parts):
        raise Refused(400, "content must be a string or a list of parts", param="input")
    texts = [str(part.get("text", "")) for part in parts if part.get("type") in _TEXTS]
    images = [read.image(part.get("image_url"), steering) for part in parts if part.get("type") == "input_image"]
    return Message(role=str(item.get("role", "assistant")), text="\n".join(texts), images=tuple(images))


def _forced(choice: Any) -> str | bool | None:
    if isinstance(choice, dict):
        return str(choice.get("name"))
    return {"required": True, "none": False}.get(choice) if isinstance(choice, str) else None


class ResponsesShape:
    """Of one request. It remembers what was said: an item, and the whole answer, are told again when they are done."""

    end = b""

    def __init__(self, request_id: str, created: int, model_json: bytes, ask: Ask) -> None:
        self._id = request_id.encode()
        self._created = created
        self._model = model_json
        self._ask = ask
        self._number = 0
        self._done: list[bytes] = []
        self._item: Item | None = None
        self._texts: list[bytes] = []

    def opening(self, choice: int, usage: bytes) -> Iterable[bytes]:
        del choice, usage
        begun = self._response("in_progress", b"", None)
        yield self._event(b"response.created", b'"response":%b' % begun)
        yield self._event(b"response.in_progress", b'"response":%b' % begun)

    def begin(self, choice: int, item: Item, usage: bytes) -> Iterable[bytes]:
        del choice, usage
        yield from self._close()
        self._item = item
        yield self._event(b"response.output_item.added", b'%b,"item":%b' % (self._place(), self._written(item, None)))
        if item.kind is not Kind.CALL:
            yield self._event(b"response.content_part.added", b'%b,"part":%b' % (self._place_of_part(), _part(item, b"")))

    def said(self, choice: int, item: Item, text: bytes, usage: bytes) -> bytes:
        del choice, usage
        self._texts.append(text)
        match item.kind:
            case Kind.TEXT:
                return self._event(b"response.output_text.delta", b'%b,"delta":"%b","logprobs":[]' % (self._place_of_part(), text))
            case Kind.REASONING:
                return self._event(b"response.reasoning_text.delta", b'%b,"delta":"%b"' % (self._place_of_part(), text))
            case Kind.CALL:
                return self._event(b"response.function_call_arguments.delta", b'%b,"delta":"%b"' % (self._place_of_id(), text))

    def finish(self, choice: int, reason: str, usage: bytes) -> Iterable[bytes]:
        del choice, reason, usage
        yield from self._close()

    def final(self, reason: str, usage: bytes | None) -> Iterable[bytes]:
        whole = self._response("incomplete" if reason == "length" else "completed", b",".join(self._done), usage)
        ends_incomplete = reason == "length" and self._ask.ends_incomplete
        yield self._event(b"response.incomplete" if ends_incomplete else b"response.completed", b'"response":%b' % whole)

    def died(self, message: str) -> Iterable[bytes]:
        """As OpenAI tells it; vLLM itself just breaks off."""
        yield self._event(b"error", b'"code":"server_error","message":%b,"param":null' % json_bytes(message))

    def usage(self, spent: Spent, wrong: str | None) -> bytes:
        return usage_of_responses(spent, wrong)

    def document(self, outputs: Sequence[Output], reason: str, usage: bytes | None) -> bytes:
        (output,) = outputs
        for item, text in output:
            self._done.append(self._written(item, text))
        return self._response("incomplete" if reason == "length" else "completed", b",".join(self._done), usage)

    def _close(self) -> Iterable[bytes]:
        """The open item is done."""
        item = self._item
        if item is None:
            return
        text = b"".join(self._texts)
        whole = self._written(item, text)
        match item.kind:
            case Kind.TEXT:
                yield self._event(b"response.output_text.done", b'%b,"text":"%b","logprobs":[]' % (self._place_of_part(), text))
            case Kind.REASONING:
                yield self._event(b"response.reasoning_text.done", b'%b,"text":"%b"' % (self._place_of_part(), text))
            case Kind.CALL:
                name = json_bytes(item.name)
                yield self._event(
                    b"response.function_call_arguments.done", b'%b,"name":%b,"arguments":"%b"' % (self._place_of_id(), name, text)
                )
        if item.kind is not Kind.CALL:
            yield self._event(b"response.content_part.done", b'%b,"part":%b' % (self._place_of_part(), _part(item, text)))
        yield self._event(b"response.output_item.done", b'%b,"item":%b' % (self._place(), whole))
        self._done.append(whole)
        self._texts.clear()
        self._item = None

    def _event(self, kind: bytes, members: bytes) -> bytes:
        number = self._number
        self._number += 1
        return b'event: %b\ndata: {"type":"%b","sequence_number":%d,%b}\n\n' % (kind, kind, number, members)

    def _place(self) -> bytes:
        return b'"output_index":%d' % len(self._done)

    def _place_of_id(self) -> bytes:
        return b'"item_id":"%b","output_index":%d' % (self._item_id(), len(self._done))

    def _place_of_part(self) -> bytes:
        return b'"item_id":"%b","output_index":%d,"content_index":0' % (self._item_id(), len(self._done))

    def _item_id(self) -> bytes:
        return b"item_%b_%d" % (self._id, len(self._done))

    def _written(self, item: Item, text: bytes | None) -> bytes:
        """An item; ``None``: as it begins."""
        status = b"in_progress" if text is None else b"completed"
        match item.kind:
            case Kind.TEXT:
                content = b"" if text is None else _part(item, text)
                return b'{"type":"message","id":"%b","role":"assistant","status":"%b","content":[%b]}' % (self._item_id(), status, content)
            case Kind.REASONING:
                content = b"" if text is None else b',"content":[%b]' % _part(item, text)
                return b'{"type":"reasoning","id":"%b","summary":[],"status":"%b"%b}' % (self._item_id(), status, content)
            case Kind.CALL:
                return b'{"type":"function_call","id":"%b","call_id":"call_%b_%d","name":%b,"arguments":"%b","status":"%b"}' % (
                    self._item_id(),
                    self._id,
                    item.number,
                    json_bytes(item.name),
                    text or b"",
                    status,
                )

    def _response(self, status: str, output: bytes, usage: bytes | None) -> bytes:
        fields, ask = self._ask.fields, self._ask
        told: dict[str, Any] = {
            "incomplete_details": {"reason": "max_output_tokens"} if status == "incomplete" else None,
            **{name: fields.get(name) for name in ("instructions", "metadata", "reasoning", "text", "user", "max_tool_calls")},
            "object": "response",
            "parallel_tool_calls": fields.get("parallel_tool_calls", True),
            "temperature": fields.get("temperature", 1.0),
            "tool_choice": fields.get("tool_choice", "auto"),
            "tools": fields.get("tools") or [],
            "top_p": fields.get("top_p", 1.0),
            "background": False,
            "max_output_tokens": ask.limit,
            "previous_response_id": None,
            "prompt": None,
            "service_tier": fields.get("service_tier", "auto"),
            "status": status,
            "top_logprobs": None,
            "truncation": fields.get("truncation", "disabled"),
        }
        return b'{"id":"resp_%b","created_at":%d,"model":%b,"output":[%b],"usage":%b,%b' % (
            self._id,
            self._created,
            self._model,
            output,
            usage or b"null",
            json_bytes(told)[1:],
        )


def _part(item: Item, text: bytes) -> bytes:
    if item.kind is Kind.REASONING:
        return b'{"type":"reasoning_text","text":"%b"}' % text
    return b'{"type":"output_text","text":"%b","annotations":[],"logprobs":[]}' % text
